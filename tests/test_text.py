"""Names are text wherever they appear: terminal, bar, table of a document, page, picture."""

from __future__ import annotations

import io
import json
import re
import warnings
from functools import partial
from html.parser import HTMLParser
from typing import Any

import pytest
from cards import card, front
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from nas import text
from nas.cli import render
from nas.cli.output import one_line
from nas.cli.progress import TerminalProgress
from nas.errors import UserError
from nas.report.comparison import draw_comparison
from nas.report.drawing import drawing, label
from nas.report.figures import draw_front
from nas.report.page import page
from nas.run.records import ComparedSpace, Comparison, Spread
from nas.training.recipes import FineTuningRecipe

HOSTILE = ["[red]", "[/b]", "[link=file:///etc]x", "$a$", "$\\frac{", "_hidden", "a|b", "</script><script>alert(1)",
           "<!--", "\"' onload=x", "{{js}}", "{name}", "%s", "a\nnas: done", "\x1b[2Jx", "\r1 of 1", "\u202egnp.exe",
           "\udcff", ":smile:", "caf\u00e9 \u4e2d\u6587", "`x`", "\\|", "*a*", "&lt;", "\x00", "#", "x" * 300]
ANY = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20),
                st.text(st.sampled_from("[]/b<>&\"'|`*_\\$\n\r\x1b\u202e\x00{}"), max_size=12))
NAMES = [*HOSTILE]


def visible(words: str) -> bool:
    return all(char.isprintable() for char in words)


@given(ANY)
def test_what_is_printable_stays_and_the_rest_is_escaped_so_that_names_stay_apart(name: str) -> None:
    shown = text.printable(name)
    assert visible(shown) and (shown == name) == visible(name)
    assert text.printable(shown) == shown
    text.printable(name, "ascii").encode("ascii")
    text.printable(name, "latin-1").encode("latin-1")
    assert text.printable(name, "no such encoding") == text.printable(name, "ascii")


@pytest.mark.parametrize(("name", "expected"), [
    ("[red]a[/b]", "[red]a[/b]"), ("a\nb", "a\\nb"), ("\x1b[2J", "\\x1b[2J"), ("\udcff", "\\udcff"),
    ("\u202e", "\\u202e"), ("\u4e2d", "\u4e2d")])
def test_printable(name: str, expected: str) -> None:
    assert text.printable(name) == expected


@settings(max_examples=60)
@given(ANY, ANY)
@example("[red]a", "[/b]")
def test_a_table_in_the_terminal_has_one_line_a_row(capsys_free: Any, first: str, second: str) -> None:
    out = capsys_free(lambda: render.rows([{"name": first, "ms": 1.5}, {"name": second, "ms": None}]))
    lines = out.splitlines()
    assert len(lines) == 4 and all(map(visible, lines))
    assert text.printable(first).strip() in lines[2] and text.printable(second).strip() in lines[3]
    assert capsys_free(lambda: render.line(first)) == text.printable(first) + "\n"


@pytest.fixture(scope="module")
def capsys_free() -> Any:
    """What a function prints, into a stream of UTF-8."""
    import contextlib

    def printed(work: Any) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            work()
        return out.getvalue()

    return printed


@settings(max_examples=60)
@given(ANY)
@example("[/b]")
def test_progress_shows_names_as_they_are(name: str) -> None:
    plain, bar = io.StringIO(), io.StringIO()
    progress = TerminalProgress(Console(file=plain, width=1000), every_s=0)
    progress.note(name)
    with progress.task(name, 1) as task:
        task.advance(1, figure=name)
    lines = plain.getvalue().split("\n")
    assert lines[0] == text.printable(name) and all(map(visible, lines)) and len(lines) == 3
    with TerminalProgress(Console(file=bar, force_terminal=True, width=1000)).task(name, 2) as task:
        task.advance(1, figure=name)
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", bar.getvalue())
    assert text.printable(name).strip() in drawn


@given(ANY)
def test_a_mistake_is_one_line_of_visible_characters(name: str) -> None:
    line = one_line(UserError(f"{name}: no such class"))
    assert line is not None and visible(line)


@given(ANY)
@example("a|b")
@example("\\")
@example("_a_")
def test_a_cell_of_a_markdown_table_reads_as_the_name(name: str) -> None:
    table = f"| {text.markdown('x' + name + 'x')} | 1 |\n| --- | --- |\n| {text.markdown('x' + name + 'x')} | 2 |\n"
    tokens = MarkdownIt("js-default", {"linkify": False}).parse(table)
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 4
    for cell in (cells[0], cells[2]):
        assert cell.children is not None and {child.type for child in cell.children} <= {"text", "text_special"}
        assert "".join(child.content for child in cell.children) == text.printable("x" + name + "x")


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.inside = list[str](), dict[str, str]()
        self.last = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.last = dict(attrs).get("id") or tag

    def handle_data(self, data: str) -> None:
        self.inside[self.last] = self.inside.get(self.last, "") + data


EMPTY = Page(page({"run": "/r"})).tags


@settings(max_examples=60)
@given(ANY)
@example("</script><script>alert(1)</script>")
def test_a_page_holds_names_as_text(name: str) -> None:
    made = page({"run": f"/r/{name}".replace("\x00", ""), "notes": [name], "space": name, "networks": {name: [name]}})
    made.encode("utf-8")
    parsed = Page(made)
    data = json.loads(parsed.inside["run-data"])
    assert parsed.tags == EMPTY and data["notes"] == [text.printable(name)]
    assert data["networks"] == {text.printable(name): [text.printable(name)]}


RECIPE = FineTuningRecipe(epochs=1, batch=8, lr=0.1, weight_decay=0.0, label_smoothing=0.0, augment="none")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_pictures_draw_names_as_they_are(name: str) -> None:
    whole = name.encode("utf-8", "replace").decode()  # a record is JSON, which has no half of a pair of surrogates
    shown = card(ms={whole: 1.0}, exits=[1], of="0123456789ab", onnx="archs/a/exits/model.onnx")
    part = ComparedSpace(space=whole, reach_ms={whole: [0.5, 2.0]}, front=[shown], dominated=[],
                         budgets=[Spread(budget_ms={whole: 1}, mean=0.5, sd=0.1, n=2)])
    comparison = Comparison(target=[whole], data=whole, size=16, seed=0, recipe=RECIPE, budget_ms={whole: [1.0]},
                            networks=1, spaces=[part, part])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw in (partial(draw_front, front([shown], space=whole, sizes=[32])),
                     partial(draw_comparison, comparison)):
            file = io.BytesIO()
            draw(file)
            assert file.getvalue()[:4] == b"\x89PNG"
        with drawing(3, 3) as figure:
            axes = figure.add_subplot()
            axes.plot([1], [1], label=label(name))
            axes.set_title(label(name))
            legend = axes.legend()
            assert axes.title.get_parse_math() is False and len(legend.get_texts()) == 1
    assert len(label(name)) <= 50 and visible(label(name))
