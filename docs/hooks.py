"""Builds the pages of the site that are not written in ``docs/``: files from elsewhere, and what ``--help`` says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from nas.cli.base import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"index.md": "README.md", **{name: name for name in (
    "CONTRIBUTING.md", "CHANGELOG.md", "search_spaces/README.md", "latency_tables/README.md", "experiments/README.md",
    "examples/README.md")}}
COMMANDS = "<!-- commands -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds pages whose files stand elsewhere in the repository."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository become links of the site, in which ``docs/`` and the root are one folder."""
    markdown = re.sub(r"\]\((?:\.\./|docs/)", "](", markdown)
    return markdown.replace(COMMANDS, commands()) if COMMANDS in markdown else markdown


def commands() -> str:
    """Every command with its arguments and options, in the order of ``nas --help``."""
    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    """One section of Markdown: what the command does, then a table of what it takes."""
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    rows = [f"| {_spelled(parameter)} | {_cell(parameter.help or '')} |" for parameter in shown]
    return "\n".join([f"## nas {name}", "", inspect.cleandoc(command.help or ""), "",
                      "| argument or option | what it is |", "|---|---|", *rows])


def _spelled(parameter: Any) -> str:
    """How a parameter is written on the command line; repeatable ones end in an ellipsis."""
    if parameter.param_type_name == "argument":
        text = parameter.metavar or parameter.name.upper()
    else:
        flags = ", ".join([*parameter.opts, *parameter.secondary_opts])
        text = flags if parameter.is_flag else f"{flags} {parameter.metavar or parameter.name.upper()}"
    repeats = parameter.nargs == -1 or getattr(parameter, "multiple", False)
    return f"`{text.replace('|', '/')}`{' ...' if repeats else ''}"


def _cell(text: str) -> str:
    """Text inside a table: one line, in which pipes and tags are characters."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
