"""Writes the lines that a search begins with: space, targets, budgets, epochs, how many networks are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nas import sampling
from nas.pipeline.inputs import Inputs
from nas.run.tables import origin
from nas.training.recipes import FineTuningRecipe, SupernetRecipe
from nas.units import amount


def header_lines(inputs: Inputs, limits: Mapping[str, Sequence[float]], recipe: SupernetRecipe,
                 tuning: FineTuningRecipe) -> list[str]:
    """Returns one line each of the space, of every target with its budgets, and of what is trained and judged."""
    layout, config = inputs.layout, inputs.config
    sizes = " and ".join(str(at.size) for at in inputs.every)
    searched = (f"space: {layout.space} at {sizes} pixels, {len(layout.slots)} slots, "
                f"{in_short(sampling.count(layout))} networks")
    targets = [f"target: {target} ({', '.join(origin(inputs.costs[target])) or inputs.costs[target].name}), "
               f"{'budget' if len(budgets) == 1 else 'budgets'} {', '.join(amount(ms, target) for ms in budgets)}"
               for target, budgets in limits.items()]
    longer = tuning.depends_on_size(config) and sum(map(len, limits.values())) > 1
    return [searched, *targets, f"epochs: {_epochs(recipe)}; {config.evaluations} networks are judged for each target, "
            f"then each pick is fine-tuned for {tuning.epochs}{', the smaller the longer' if longer else ''}"]


def _epochs(recipe: SupernetRecipe) -> str:
    """Writes the epochs of the supernet: ``3 of warm-up (60 % the largest network alone, ...), 2 of search, ...``."""
    shares = {"the largest network alone": recipe.largest_first, "blockwise": recipe.blockwise}
    rest = 1 - sum(shares.values())
    parts = [f"{100 * share:.0f} % {name}" for name, share in {**shares, "sandwich": rest}.items() if share > 1e-9]
    return (f"{recipe.epochs['warmup']} of warm-up ({', '.join(parts)}), {recipe.epochs['search']} of search, "
            f"{recipe.epochs['settle']} to settle")


def in_short(count: int) -> str:
    """Writes a number in short, ``3.1e+105``, also one that is larger than any float."""
    text = str(count)
    return f"{count:,}" if len(text) <= 6 else f"{text[0]}.{text[1]}e+{len(text) - 1}"
