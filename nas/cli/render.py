"""Prints results as tables on stdout, for people; ``--json`` is for programs."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from nas import text
from nas.pipeline import overrun, winners
from nas.run.records import Budget, Card, Comparison, Exported, Front, JudgedNetworks, Spread, Stopped
from nas.units import amount, column, device, is_count, millions, unit

if TYPE_CHECKING:
    from nas.latency.predict import Prediction
    from nas.pipeline.check_space import SpaceFacts
    from nas.pipeline.evaluate import Evaluation, Share
    from nas.pipeline.exits.card import ExitsCard
    from nas.pipeline.exits.places import Places
    from nas.pipeline.profile import ProfiledSpaces
    from nas.training.preprocessing import Preprocessing

GAP = 3  # blanks between two columns
INDENT = 5  # of what has no room beside the first columns


def rows(values: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Prints a table, one line a value; the columns are all keys in order of appearance, unless given.

    In a terminal, the columns for which it is too narrow stand below each line; a pipe gets whole lines.
    """
    names = list(columns or dict.fromkeys(key for value in values for key in value))
    numeric = [all(isinstance(value.get(name), int | float | None) for value in values) for name in names]
    titles = [_displayable(name.replace("_", " ")) for name in names]
    cells = [[_displayable(cell(value.get(name))) for name in names] for value in values]
    for row in _laid_out(titles, cells, numeric, _room()):
        print(row.rstrip())


def _laid_out(titles: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool],
              room: int | None) -> Iterator[str]:
    """Yields the lines of a table, of at most ``room`` characters each, where a limit is given."""
    widths = [max(map(cell_len, column)) for column in zip(titles, *cells, strict=True)]
    ends = [end - GAP + 1 for end in accumulate(width + GAP for width in widths)]
    fitting = len(ends) if room is None else max(1, sum(end <= room for end in ends))
    rule = "\N{BOX DRAWINGS LIGHT HORIZONTAL}"
    yield _line(titles[:fitting], widths, numeric)
    yield f" {(rule if _displayable(rule) == rule else '-') * (ends[fitting - 1] - 1)}"
    for row in cells:
        yield _line(row[:fitting], widths, numeric)
        rest = "; ".join(f"{title}: {value}" for title, value in zip(titles[fitting:], row[fitting:], strict=True)
                         if value not in ("", "-"))
        yield from textwrap.wrap(rest, max(20, room or 0), initial_indent=" " * INDENT,
                                 subsequent_indent=" " * INDENT, break_on_hyphens=False) if rest else []


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = []
    for value, width, right in zip(cells, widths, numeric, strict=False):
        blanks = " " * (width - cell_len(value))
        padded.append(blanks + value if right else value + blanks)
    return " " + (" " * GAP).join(padded)


def _room() -> int | None:
    """Returns the characters in a line of the terminal; None in a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _displayable(value: str) -> str:
    """Returns a text as the terminal can show it."""
    return text.printable(value, getattr(sys.stdout, "encoding", None))


def front(result: Front) -> None:
    """Prints the picks of a search or a selection, what was chosen for each budget, and the run directory."""
    several = len(result.target) > 1
    rows([_point(card, result) for card in result.cards])
    measured = any(_stopwatch(budget) for budget in result.budgets)
    if result.budgets:
        rows([{"budget": _amounts(budget.budget_ms, several), "pick": budget.id,
               **({"size": budget.size} if result.sizes else {}),
               "predicted": _amounts(budget.ms, several),
               **({"measured ms": _stopwatch(budget)} if measured else {})} for budget in result.budgets])
    for target, ids in result.fronts.items():
        line(f"front of {target}: {', '.join(ids)}")
    if result.fronts:
        line(f"on several fronts: {', '.join(result.on_several) or 'none'}")
    for target in _unmeasured(result):
        line(f"not measured: no {target} here")
    for card in result.too_large:
        needs = "; ".join(f"SRAM {cell(sram)} KB, flash {cell(card.flash_kb.get(target))} KB on {target}"
                          for target, sram in card.sram_kb.items())
        line(f"{card.id} is too large with its trained weights, and not in the front: {needs}")
    over_budget(result)
    for winner in winners.winner_lines(result):
        line(winner)
    if result.seconds:
        line(text.took(result.seconds))
    line(str(result.run))


def _stopwatch(budget: Budget) -> Any:
    """Returns what the pick of a budget was measured to take: a number, or those of several targets that have one."""
    ms = {target: value for target, value in budget.measured_ms.items() if value is not None}
    return ms if len(budget.budget_ms) > 1 and ms else next(iter(ms.values()), None)


def over_budget(result: Front) -> None:
    """Prints a line for every pick measured above its budget, and for every table that was made on a busy machine."""
    tables = {target: busy for card in result.cards for target, busy in card.tables.items()}
    for target, busy in tables.items():
        line(f"the table of {target} was {busy}; nas profile --remeasure with its device, space and size, where "
             "nothing else runs, makes it anew")
    for excess in overrun.overrun_lines(result):
        line(excess)


def exported(result: Exported) -> None:
    """Prints the exported files, then a line for each that is measured above the budget of its pick."""
    files = [file.model_dump(exclude_none=True, exclude={"over_budget"}) for file in result.files]
    rows([{name: part for key, value in file.items() for name, part in _export_columns(key, value).items()}
          for file in files]) if files else line("none")
    for file in result.files:
        for target, excess in file.over_budget.items():
            line(overrun.overrun_line(file.id, target, excess, file.predicted_ms.get(target)))


def _export_columns(key: str, value: Any) -> dict[str, Any]:
    """Returns the columns that show one figure of an exported file, by title."""
    if key == "drift":
        return _per_target(key, {target: drift for target, drift in value.items() if not is_count(target)},
                           len(value) > 1)
    what = {"predicted_ms": "predicted", "measured_ms": "measured"}.get(key)
    return _costs(what, value) if what else {key: value}


def stopped(result: Stopped) -> None:
    """Prints the picks of a search that was told to stop after a stage, with their inherited accuracy, and the run."""
    networks = [*result.front, *result.dominated]
    if networks:
        rows([{"id": network.id, **({"size": network.size} if result.sizes else {}),
               "inherited accuracy": _accuracy(network.select_accuracy, network.select_accuracy_se),
               **_costs("predicted", network.ms), "MACs": millions(network.macs),
               "params": millions(network.params)} for network in networks])
        line("accuracy: with inherited weights, on the images that the selection decides by; nothing is fine-tuned, "
             "tested or exported")
    line(text.took(result.seconds))
    line(f"stopped behind the {result.until}, as asked; the same command without --until goes on")
    line(result.run)


def judged(result: JudgedNetworks) -> None:
    """Prints loss, accuracy and costs of judged networks, in the order of their file."""
    rows([{"id": network.id, "loss": network.loss,
           "inherited accuracy": _accuracy(network.accuracy, network.accuracy_se), **_costs("predicted", network.ms),
           "MACs": millions(network.macs), "params": millions(network.params)} for network in result.networks])
    line(f"networks: {len(result.networks)}, judged on {result.images} images of the selection split")


def profile(result: ProfiledSpaces) -> None:
    """Prints how far off the table is, where that was tried, the number of rows, and the file."""
    if result.validation:
        rows([result.validation.to_json()])
    line(f"{result.measured} rows measured, {result.rows - result.measured} already there")
    line(text.took(result.seconds))
    line(result.table)


def space(result: SpaceFacts) -> None:
    """Prints a space's size and ends, then what it costs, target by target, or what is missing there."""
    rows([{"name": result.name, "size": result.size, "classes": result.classes, "slots": result.slots,
           "archs": result.archs, "operators": result.operators, "last_map": result.last_map,
           "params": _between(result.params, millions), "macs": _between(result.macs, millions)}])
    if priced := [(costs.target, costs.ends) for costs in result.targets if costs.ends]:
        print()
        rows([{"target": target, "predicted": f"{_between(ends, cell)} {unit(target)}"} for target, ends in priced])
    for costs in result.targets:
        if costs.note:
            line(f"{costs.target}: {costs.note}")


def spaces(results: Sequence[SpaceFacts]) -> None:
    """Prints what all spaces have and cost; a last line where a target lacks rows."""
    titles, cells = _costs_of_spaces(results)
    rows([dict(zip(titles, row, strict=True)) for row in cells])
    if lacking := [costs.target for result in results for costs in result.targets if not costs.ends]:
        line(f"-: not known; nas spaces --check NAME --target {lacking[0]} says what is missing")


def table_of_spaces(results: Sequence[SpaceFacts]) -> None:
    """Prints what all spaces have and cost as a table for a documentation page."""
    markdown(*_costs_of_spaces(results))


def _costs_of_spaces(results: Sequence[SpaceFacts]) -> tuple[list[str], list[list[str]]]:
    """Returns titles and a row a space: its size and the ends of its networks' costs; a dash where rows are missing."""
    titles = ["space", "slots", "networks", "parameters", "multiply-adds",
              *(f"{unit(costs.target)}, {device(costs.target)}" for costs in results[0].targets)]

    def short(end: float) -> str:
        return f"{end:.0f}" if end >= 1000 else cell(end)

    def counts(ends: tuple[int, int]) -> str:
        return _between((end / 1e6 for end in ends), short) + " M"

    return titles, [[result.name, str(result.slots), result.archs, counts(result.params), counts(result.macs),
                     *(_between(costs.ends, short) if costs.ends else "-" for costs in result.targets)]
                    for result in results]


def _between(ends: Iterable[float], shown: Callable[[float], str]) -> str:
    return " .. ".join(map(shown, ends))


def markdown(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Prints a table for a documentation page; what stands in a cell is text."""
    for row in (map(text.markdown, titles), ["---"] * len(titles), *(map(text.markdown, row) for row in cells)):
        print("| " + " | ".join(row) + " |")


def comparison(result: Comparison) -> None:
    """Prints the spaces beside each other by budget, then each front's hypervolume, then the run directory."""
    (target,) = result.target
    of = unit(target)
    rows([{f"budget {of}": bound, **{part.space: _spread(part.budgets[i]) for part in result.spaces}}
          for i, bound in enumerate(result.budget_ms[target])])
    print()
    rows([{"space": part.space, f"reach {of}": " .. ".join(map(cell, part.reach_ms[target])),
           "networks": len(part.cards), "in the front": len(part.front),
           "hypervolume": part.hypervolume} for part in result.spaces])
    if result.seconds:
        line(text.took(result.seconds))
    line(str(result.run))


def prediction(result: Prediction) -> None:
    """Prints the predicted ms operator by operator, what was left out, and the sum."""
    of = unit(result.target)
    rows([{"name": operator.name, "op": operator.op, of: operator.ms} for operator in result.operators])
    for operator in result.unknown:
        line(f"left out: {operator.op} ({operator.name})" + (f": {operator.why}" if operator.why else ""))
    for note in result.notes:
        line(note)
    if is_count(result.target):
        line(f"{amount(result.ms, result.target)} for an image")
        return
    line(f"{cell(result.ms)} ms at batch {result.batch} on {result.target} ({result.method}: predicted, not measured)")


def score(result: Evaluation) -> None:
    """Prints accuracy class by class, then of all together."""
    def shown(share: Share) -> str:
        return f"{100 * share.share:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"

    rows([{"class": of_class.name, "images": of_class.n, "top-1": shown(of_class.top1) if of_class.top1 else "-"}
          for of_class in result.classes])
    for name, share in (("top-1", result.top1), ("top-5", result.top5)):
        if share:
            line(f"{name} {shown(share)} of {result.n} images, {result.split} split of {result.data}")
    if result.ends_in != "logits":
        line(f"its outputs are {result.ends_in}: the loss is that of their logarithms"
             + (", the Sigmoid undone" if result.ends_in.startswith("independent") else ""))
    _read_as(result.preprocessing, result.classes_by)


def exits(card: ExitsCard) -> None:
    """Prints where images leave and when, accuracy and latency with and without exits, and the folder."""
    target, names = card.target, [*(f"exit {index}" for index in range(len(card.kept))), "head"]
    measured: Sequence[float | None] = card.measured_prefix_ms or [None] * len(names)
    rows([{"leaves at": name, "images": f"{100 * share:.1f} %", column("predicted", target, False): ms,
           **({} if is_count(target) else {column("measured", target, False): ms_here})}
          for name, share, ms, ms_here in zip(names, card.shares, card.prefix_ms, measured, strict=True)])
    line(f"{len(card.kept)} of {card.candidates} possible exits kept; accuracy "
         f"{_accuracy(card.accuracy, card.accuracy_se)} on {card.n} test images, "
         f"{_accuracy(card.accuracy_without, None)} without exits (labels: {card.labels})")
    line(f"mean {amount(card.mean_ms, target)}, worst {amount(card.worst_ms, target)} predicted" + (
        "" if is_count(target) else f"; not measured: no {target} here" if card.measured_ms is None else
        f"; measured here: mean {cell(card.measured_ms)} ms, worst {cell(card.measured_worst_ms)} ms"))
    if card.ends_in != "logits":
        line(f"the network gives {card.ends_in}; with exits it gives logits, which they were made of")
    _read_as(card.preprocessing, card.classes_by, card.weights_at)
    for where, excess in card.over_budget.items():
        line(overrun.overrun_line(card.id, where, excess, None))
    line(text.took(card.seconds))
    line(str(card.folder))


def places(result: Places) -> None:
    """Prints where exits could stand in a network, then what the whole of it takes."""
    rows([{"exit behind": place.behind, "map": "x".join(map(str, place.shape)), "MACs": millions(place.macs),
           "of all": f"{100 * place.macs_share:.1f} %", "its head": millions(place.head_macs),
           **({} if place.ms_share is None else {"ms": place.ms, "of all ms": f"{100 * place.ms_share:.1f} %"})}
          for place in result.places])
    whole = "" if result.ms is None else f", {cell(result.ms)} ms on {result.target}"
    line(f"{result.model} at {result.size}x{result.size}, {result.classes} classes: {millions(result.macs)} MACs{whole}"
         + (" (random weights)" if result.weights else ""))
    if result.uncounted:
        line(f"not in these MACs, as no rule counts them: {', '.join(result.uncounted)}")


def _read_as(how: Preprocessing, classes_by: str | None, weights_at: str | None = None) -> None:
    """Prints how pixels and classes of the images went into a network, and where its weights were."""
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (how.mean, how.std))
    scaled = "pixels / 255" if how.scale == 1 else f"pixels / 255 * {how.scale:g}"
    line(f"input: ({scaled} - mean) / std with mean {mean} and std {std} ({how.source})")
    if classes_by:
        line(f"classes: {classes_by}")
    if weights_at:
        line(f"weights: those under {weights_at} in the file")


def line(words: str) -> None:
    """Prints one line, in which unprintable characters, as names from files may have, are escaped."""
    print(_displayable(words))


def cell(value: Any) -> str:
    """Returns a value with three or four significant digits; a dash where nothing is known."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(cell(part) for part in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {cell(part)}" for key, part in value.items())
    return str(value)


def _unmeasured(result: Front) -> list[str]:
    """Returns the targets that this machine is not."""
    return [target for target in result.target
            if not is_count(target) and all(card.measured_ms[target] is None for card in result.front)]


def _point(card: Card, front: Front) -> dict[str, Any]:
    several = len(front.target) > 1
    known = {"network": card.known or ""} if any(card.known for card in front.cards) else {}
    shown = {"id": card.id, **known, **({"size": card.size} if front.sizes else {}),
             "accuracy": _accuracy(card.accuracy, card.accuracy_se)}
    if card.exits:
        shown |= {"exits": cell(card.exits)} | _costs("worst", card.worst_ms)
    if card.within_error_of:
        shown["accuracy"] = f"{shown['accuracy']} (tied with {card.within_error_of} in selection)"
    shown |= _costs("predicted", card.ms) | _costs("measured", card.measured_ms)
    shown |= _per_target("standing", {target: front.standing(card.id, target) for target in front.target or [""]},
                         several)
    for name, needs in (("SRAM KB", card.sram_kb), ("flash KB", card.flash_kb)):
        shown |= _per_target(name, needs, several)
    return shown | {"MACs": millions(card.macs), "params": millions(card.params),
                    "onnx": card.int8_onnx or card.onnx}  # the file whose figures these are


def _accuracy(accuracy: float | None, error: float | None) -> str:
    if accuracy is None:
        return "-"
    return f"{100 * accuracy:.1f} %" + ("" if error is None else f" +- {100 * error:.1f}")


def _spread(row: Spread) -> str:
    """Returns mean and standard deviation of the accuracies at a budget, as a text."""
    if row.mean is None:
        return "-"
    sd = "" if row.sd is None else f" +- {100 * row.sd:.1f}"
    return f"{100 * row.mean:.1f} %{sd} ({row.n})"


def _per_target(name: str, values: Mapping[str, Any], several: bool) -> dict[str, Any]:
    """Makes a column for each target, which its title names where there are several."""
    return {f"{name} {device(target)}" if several else name: value for target, value in values.items()}


def _costs(what: str, ms: Mapping[str, float | None]) -> dict[str, Any]:
    """Makes a column for each target; none of what is measured for a count, which nothing measures."""
    return {column(what, target, len(ms) > 1): value
            for target, value in ms.items() if what != "measured" or not is_count(target)}


def _amounts(ms: Mapping[str, float], several: bool) -> str:
    """Returns a budget, or what a pick takes of it, with its unit; one for each target where there are several."""
    if several:
        return " and ".join(amount(value, target) for target, value in ms.items())
    return " and ".join(f"{cell(value)} {unit(target)}" for target, value in ms.items())
