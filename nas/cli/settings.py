"""The settings of a search, key by key."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import typer

from nas.cli.base import Json, app, rows
from nas.cli.output import print_result
from nas.errors import UserError

EPOCHS = "default: as many as the number of images asks for"
MEANINGS = {
    "space": "Search space: a shipped name, or a file.",
    "only_op": "Only this operator of the space.",
    "width": "Factor of all channels.",
    "size": "Input side in pixels, or several that are searched; default: the data's own.",
    "target": "Devices: the first is the one that budgets are of.",
    "budget_ms": "Latency budgets; default: as many as budgets says.",
    "budgets": "How many budgets are spread over the reachable range, where none is given.",
    "sram_kb": "SRAM of an Ethos-U in KB: no pick needs more.",
    "flash_kb": "Flash of an Ethos-U in KB: no pick needs more.",
    "max_ms": "No image takes longer on the first target, as predicted.",
    "exits.method": "How the early exits of the picks are trained; none: no exits.",
    "exits.settings": "Settings of that method (docs/exits.md).",
    "exits.confidence": "When an image leaves early.",
    "exits.rule": "How thresholds are found.",
    "exits.lose": "Points of accuracy (%) that speed may cost.",
    "exits.epochs": "Epochs of the heads; default: as in fine-tuning.",
    "selector": "How networks are chosen; auto: the ILP on the scores that rank best.",
    "objective": "What evolution and bayes choose by; mnas: MnasNet's reward.",
    "shrink": "How often evolution narrows the space to what its best networks have.",
    "evaluations": "Networks that the selection judges.",
    "judge_images": "Held-out images that each of them is judged on.",
    "data": "Images: digits, cifar10, or a folder.",
    "data_dir": "Where cifar10 lies.",
    "limit": "Train on at most this many images.",
    "seed": "Of splits, weights and everything drawn.",
    "init": "A finished run of the same space whose supernet this one starts from.",
    "train_on": "Where training runs.",
    "threads": "Threads of training; default: all cores.",
    "prune": "Drop what loses at every budget: blocks, layers, both or neither.",
    "train.batch": "Images in a training step.",
    "train.lr": "Highest learning rate of the supernet (AdamW, one cycle).",
    "train.finetune_lr": "Highest learning rate of fine-tuning.",
    "train.weight_decay": "Weight decay of AdamW.",
    "train.sandwich_every": "Steps between two that train the largest network as well; 0: never.",
    "train.largest_first": "Share of the warm-up in which the largest network learns alone; default: 0.6.",
    "train.blockwise": "Share of the warm-up in which choices learn to stand in for its blocks; default: 0.4.",
    "train.warmup_epochs": f"Epochs before gates learn; {EPOCHS}.",
    "train.search_epochs": f"Epochs in which gates learn and branches are pruned; {EPOCHS}.",
    "train.settle_epochs": f"Epochs of what is left, before selection; {EPOCHS}.",
    "train.finetune_epochs": f"Epochs of each pick, and of nas train (--epochs there); {EPOCHS}.",
    "train.augment": "Augmentation: none, crop or flip-crop; default: what suits the data.",
    "train.label_smoothing": "Label smoothing of the loss.",
    "train.distill": "What a pick learns from its teacher in fine-tuning.",
    "train.inplace": "What small networks of the supernet learn from the largest by.",
    "train.attend": "Which of attend_to random networks is trained.",
    "train.attend_to": "How many random networks attend chooses from.",
    "train.ema": "Decay of the averaged weights, which are then those judged; 0: none.",
    "train.accumulate": "Parts that a batch is computed in, for less memory.",
    "train.amp": "Half precision in training; auto: on a GPU.",
    "gates.relaxation": "How choices are relaxed; single: paths at random, nothing learned.",
    "gates.lr": "Learning rate of the gates.",
    "gates.tau_start": "Temperature at the start of the search.",
    "gates.tau_end": "Temperature at its end.",
    "gates.every": "Training steps to a step of the gates.",
    "gates.latency": "How latency enters the loss; projection: as an equation, no weight to tune.",
    "gates.update": "bilevel: gates learn on their own split; single: with the weights, on both.",
    "gates.widths": "Hidden widths: two of them that move, or each one a choice.",
    "gates.granularity": "Widths beside which a wider one costs no more: left out (target), or kept (space).",
    "gates.dual.lr": "Step of the multiplier, with gates.latency=dual.",
    "gates.dual.rho": "Weight of its quadratic term.",
    "gates.fbnet.alpha": "Factor of the latency term, with gates.latency=fbnet.",
    "gates.fbnet.beta": "Its exponent.",
    "gates.proxyless.form": "Whether latency is added or multiplied, with gates.latency=proxyless.",
    "gates.proxyless.weight": "Weight of latency that is added.",
    "gates.proxyless.alpha": "Factor of latency that is multiplied.",
    "gates.proxyless.beta": "Its exponent.",
    "gates.mnas.alpha": "Exponent within the budget, with gates.latency=mnas.",
    "gates.mnas.beta": "Exponent above it.",
}


@app.command()
def settings(
    prefix: Annotated[str, typer.Argument(metavar="KEY", help="Only keys that begin so, for example train.")] = "",
    as_json: Json = False,
) -> None:
    """List the settings of a search. Each is KEY=VALUE on the command line, or a key of the --config file.

    Settings that have a flag of the same name (--budget-ms for budget_ms) may be written either way.
    """

    def work() -> list[dict[str, Any]]:
        from nas.config.search import Config

        listed = [row for row in _settings(Config) if row["key"].startswith(prefix)]
        if not listed:
            raise UserError(f"{prefix}: no setting begins so; nas settings lists them all")
        return listed

    print_result(work, as_json, lambda found: rows([{**row, "default": _written(row)} for row in found]))


def _settings(group: Any, above: str = "") -> list[dict[str, Any]]:
    """Key, default, choices and meaning of all fields of a model, those of models inside it as well."""
    listed: list[dict[str, Any]] = []
    for name, field in group.model_fields.items():
        key = f"{above}{name}"
        if hasattr(field.annotation, "model_fields"):
            listed += _settings(field.annotation, f"{key}.")
            continue
        choices = [part for part in get_args(field.annotation) if isinstance(part, str | bool)]
        listed.append({"key": key, "default": None if field.is_required() else field.default,
                       "choices": choices, "meaning": MEANINGS[key]})
    return listed


def _written(row: dict[str, Any]) -> str:
    """The default as it would be typed; a dash where it depends on something else."""
    value = row["default"]
    return "-" if value in (None, [], {}) else str(value).lower() if isinstance(value, bool) else str(value)
