"""Compares spaces by training random networks of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.base import Budgets, Images, Json, Ops, Size, Target, Width, app, run_files
from nas.cli.output import print_result

if TYPE_CHECKING:
    from nas.run.records import Comparison


@app.command()
def compare(
    target: Target,
    spaces: Annotated[list[str], typer.Option("--spaces", help="Shipped name or file, twice or more: see nas spaces.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Of the recipe, for example "
                                                          "train.batch=64; nas settings train lists them.")] = None,
    budget_ms: Budgets = None,
    budgets: Annotated[int, typer.Option(min=1, max=256, help="As many, geometric over what all spaces reach.")] = 5,
    networks: Annotated[int, typer.Option(min=1, max=1000, help="Random networks a budget and space.")] = 5,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of each network; default: from the number of images.")]
    = None,
    data: Images = None,
    data_dir: Annotated[str | None, typer.Option(help="Where cifar10 lies.")] = None,
    limit: Annotated[int | None, typer.Option(help="Train on at most this many images.")] = None,
    size: Size = None,
    width: Width = None,
    seed: Annotated[int | None, typer.Option(help="Of networks, weights and batches. Default: 0.")] = None,
    train_on: Annotated[str | None, typer.Option(help="auto (default), cpu or cuda: where training runs.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of training; default: all cores.")] = None,
    ops: Ops = None,
    run: Annotated[Path | None, typer.Option(help="Run directory; default: runs/compare-SPACES-TARGET-HEX.")] = None,
    as_json: Json = False,
) -> None:
    """Train random networks of several spaces under the same budgets, and lay their fronts side by side.

    From scratch, with one short recipe. The same command continues what was stopped.
    """
    flags = {"target": target, "budget_ms": budget_ms, "budgets": budgets, "data": data, "data_dir": data_dir,
             "limit": limit, "size": size, "width": width, "seed": seed, "train_on": train_on, "threads": threads,
             "train.finetune_epochs": epochs}

    def work() -> Comparison:
        run_files(ops)
        from nas.cli.progress import TerminalProgress
        from nas.config.search import Config, resolve
        from nas.pipeline.begin import begin_comparison

        configs: list[Config] = [resolve(None, overrides or [], {**flags, "space": name}) for name in spaces]
        return begin_comparison(configs, networks, run, TerminalProgress())

    print_result(work, as_json, _show)


def _show(result: Comparison) -> None:
    from nas.cli import render

    render.comparison(result)
