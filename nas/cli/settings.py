"""Lists the settings of a search, key by key."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import typer

from nas.cli.base import Json, app, rows
from nas.cli.output import print_result
from nas.errors import UserError


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

    print_result(work, as_json, lambda listed: rows([{**row, "default": _written(row)} for row in listed]))


def _settings(group: Any, above: str = "") -> list[dict[str, Any]]:
    """Returns key, default, choices and meaning of all fields of a model, those of models inside it as well."""
    listed: list[dict[str, Any]] = []
    for name, field in group.model_fields.items():
        key = f"{above}{name}"
        if hasattr(field.annotation, "model_fields"):
            listed += _settings(field.annotation, f"{key}.")
            continue
        choices = [part for part in get_args(field.annotation) if isinstance(part, str | bool)]
        listed.append({"key": key, "default": None if field.is_required() else field.default,
                       "choices": choices, "meaning": field.description})
    return listed


def _written(row: dict[str, Any]) -> str:
    """Returns the default of a setting as a user would type it; a dash where it depends on something else."""
    value = row["default"]
    return "-" if value in (None, [], {}) else str(value).lower() if isinstance(value, bool) else str(value)
