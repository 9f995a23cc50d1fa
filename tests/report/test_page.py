"""The page of a run: whole, self-contained, honest about what is missing, and alive in a browser."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cards
import pytest
from every import every
from tiny_search import config_of, searched_once

from nas import cli
from nas.cli import render
from nas.report import figures
from nas.report.page import page
from nas.report.run_data import collect
from nas.run import events
from nas.run.directory import Run
from nas.run.records import Card
from nas.supernet.drop import Drop
from nas.training.epochs import Pruning

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
                 if (path := shutil.which(name))), None)
HOSTILE = "<b id='evil'>&</script><script>alert(1)</script>{{js}}"


@pytest.fixture(scope="module")
def finished(space_file: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "a <b>run</b>".replace("/", "")
    searched_once(config_of(space_file, "train.distill=kd"), path, shared)
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    """A copy to take pieces out of."""
    return Run(Path(shutil.copytree(finished, tmp_path / finished.name)))


class Parsed(HTMLParser):
    """Tags that are open, all that were seen, and the text of the scripts and of the heading."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.seen, self.inside = list[str](), list[tuple[str, dict[str, str | None]]](), dict[str, str]()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        name = (self.seen[-1][1].get("id") or self.open[-1]) if self.open else ""
        self.inside[name] = self.inside.get(name, "") + data


def ids(data: dict[str, Any]) -> set[str]:
    return {point["id"] for view in data["views"] for point in view["points"]}


def test_the_page_is_whole_and_holds_every_pick(run: Run) -> None:
    data, front = collect(run), run.read_json("front.json")
    parsed = Parsed(page(data))
    assert not parsed.open and json.loads(parsed.inside["run-data"]) == data
    cards = {card["id"]: card for card in [*front["front"], *front["dominated"]]}
    assert ids(data) == set(cards) == set(data["networks"]) and not data["notes"] and data["state"] == "finished"
    for id, card in cards.items():
        rows = data["networks"][id]
        assert data["export"][id] == f"export(run={str(run.path)!r}, arch={id!r}, out={id!r})"
        assert [row["where"] for row in rows] == ["stem", "0", "1", "2", "3", "head"]
        kept = [row for row in rows if row["op"] != "skip"]
        assert sum(row["ms"]["gpu-v100"] for row in kept) == pytest.approx(card["ms"]["gpu-v100"])
        assert sum(row["macs"] for row in kept) == card["macs"]
        assert sum(row["params"] for row in kept) == card["params"]
    view = data["views"][0]
    assert [b["budget_ms"] for b in view["budgets"]] == [b["budget_ms"]["gpu-v100"] for b in front["budgets"]]
    assert [(e["phase"], e["epoch"]) for e in data["epochs"]] == [("warmup", 0), ("search", 0), ("search", 1),
                                                                  ("settle", 0)]
    assert {id: len(curve) for id, curve in data["finetune"].items()} == dict.fromkeys(cards, 2)
    assert {one["id"] for one in data["judged"]} == {event.id for event in run.events(events.Judged)}
    assert data["conditions"]["settings"] == run.config and data["conditions"]["target gpu-v100"]["precision"] == "fp16"


def test_what_was_pruned_is_told_with_its_evidence(run: Run) -> None:
    drop = Drop("block", 1, "skip", 0.25, ((0.1, 0.2), (0.05, 0.0)))
    pruning = Pruning(dropped=(drop,), branches=7, parameters=70, skip_share=0.5)
    run.log(events.Epoch(phase="search", epoch=2, pruning=pruning, seconds=1.0))
    assert collect(run)["pruned"][-1] == {"kind": "block", "epoch": 2, "slot": 1, "op": "skip", "threshold": 0.25,
                                        "most": 0.2}


def test_an_epoch_that_was_done_again_counts_once(run: Run) -> None:
    run.log(events.Epoch(phase="settle", epoch=0, loss_largest=7.0, seconds=1.0))
    assert [e["loss_largest"] for e in collect(run)["epochs"] if e["phase"] == "settle"] == [7.0]


def test_nothing_comes_from_outside(run: Run) -> None:
    text = page(collect(run))
    parsed = Parsed(text)
    assert not [attrs for _, attrs in parsed.seen if {"src", "href", "srcset", "data", "action"} & set(attrs)]
    own = text.replace(parsed.inside["run-data"], "")
    assert set(re.findall(r"https?://[^\"'\s]+", own)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "url(" not in own and "@import" not in own and "default-src 'none'" in own
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", own)


def test_text_of_the_run_is_escaped(run: Run) -> None:
    data = collect(run)
    data |= {"run": f"/runs/{HOSTILE.replace('/', '')}", "data": HOSTILE, "notes": [HOSTILE]}
    data["conditions"]["images"]["classes"] = [HOSTILE]
    parsed = Parsed(page(data))
    assert not parsed.open and [tag for tag, _ in parsed.seen].count("script") == 3
    assert "b" not in [tag for tag, _ in parsed.seen] and json.loads(parsed.inside["run-data"]) == data
    assert parsed.inside["h1"] == f"{HOSTILE.replace('/', '')} · nas"


GONE = {"fine-tuning": (("front.json", "archs"), "picks are chosen"), "supernet": (
    ("front.json", "picks.json", "archs"), "4 of 4 epochs"), "start": (
    ("front.json", "picks.json", "archs", "data.json", "space.yaml", "tables", "log.jsonl"), "not finished an epoch")}


@pytest.mark.parametrize("stage", GONE)
def test_a_run_on_its_way_has_a_page_too(run: Run, stage: str) -> None:
    everything, (names, state) = collect(run), GONE[stage]
    for name in names:
        path = run.file(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with run.lock():  # a search holds it all the while
        data = collect(run)
    assert state in data["state"] and data["state"].startswith("so far") and not data["notes"]
    assert not Parsed(page(data)).open
    assert ids(data) == (ids(everything) if stage == "fine-tuning" else set())
    points = [point for view in data["views"] for point in view["points"]]
    assert bool(points) == (stage == "fine-tuning") and not any("accuracy" in point for point in points)
    assert {view["unmeasured"] for view in data["views"]} <= {"not measured yet"}
    assert {point["standing"] for view in data["views"] for point in view["points"]} <= {"not decided yet"}
    assert set(data["networks"]) == ids(data) and bool(data["slots"]) == (stage != "start")


@pytest.mark.parametrize("name", ["data.json", "space.yaml", "tables/gpu-v100.json", "front.json", "environment.json"])
@pytest.mark.parametrize("content", ["", "[1]", "{\"a\": 1}"])
def test_a_broken_file_is_a_note_on_the_page(run: Run, name: str, content: str) -> None:
    run.file(name).write_text(content)
    data = collect(run)
    assert data["notes"] and "\n" not in "".join(data["notes"])
    assert not Parsed(page(data)).open


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    return int(end.value.code or 0)


def test_the_command_writes_page_and_picture(run: Run, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()}
    assert call("report", str(run.path)) == 0
    assert capfd.readouterr().out == f"{run.path}/report.html\n"
    assert {p for p in run.path.rglob("*") if p.is_file()} == {*before, run.file("report.html")}
    assert every(p.stat().st_mtime_ns == when for p, when in before.items())
    out = tmp_path / "front.png"
    assert call("report", str(run.path), "--png", "--out", str(out), "--json") == 0
    assert json.loads(capfd.readouterr().out)["file"] == str(out) and out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    run.file("front.json").unlink()
    assert call("report", str(run.path), "--png") == 2
    assert "front.json: missing" in capfd.readouterr().err
    assert call("report", str(tmp_path / "none")) == 2
    assert "no such run directory" in capfd.readouterr().err


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[str, str], tuple[str, list[str]]]:
    """``browse(html, hash) -> (what the browser made of it, its console)``."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium, or another package of that browser")

    def dump(text: str, fragment: str = "") -> tuple[str, list[str]]:
        file = tmp_path / "page.html"
        file.write_text(text)
        done = subprocess.run(
            [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
             "--enable-logging=stderr", "--window-size=400,900", "--dump-dom", f"{file.as_uri()}{fragment}"],
            capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return dump


def test_a_browser_draws_it_without_a_word(run: Run, browse: Callable[..., tuple[str, list[str]]]) -> None:
    data = collect(run)
    data |= {"notes": [HOSTILE], "data": HOSTILE}
    first = data["views"][0]["points"][0]["id"]
    dom, console = browse(page(data), f"#{first}")
    assert console == []
    body = dom[dom.index("<body"):dom.index('id="run-data"')]
    assert "<b " not in body and "&lt;b id=" in body  # shown, not obeyed
    assert every(f">{id}</button>" in body for id in ids(data)) and f"Network {first}" in body
    assert f"arch='{first}'" in body and "Not measured: no gpu-v100 here" in body
    assert body.count("<circle") >= 2 * len(ids(data)) and 'class="heat"' in body


@pytest.mark.parametrize("stage", GONE)
def test_a_browser_draws_a_run_on_its_way(run: Run, stage: str, browse: Callable[..., tuple[str, list[str]]]) -> None:
    for name in GONE[stage][0]:
        path = run.file(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    dom, console = browse(page(collect(run)))
    drawn = dom[:dom.index('id="run-data"')]
    assert console == [] and ("No picks yet" in drawn) == (stage != "fine-tuning")
    assert ("Not measured yet" in drawn) == (stage == "fine-tuning") and "no gpu-v100 here" not in drawn


def priced(letter: str, cpu: float, gpu: float, **more: Any) -> Card:
    return cards.card(letter * 12, {"cpu": cpu, "gpu": gpu}, **more)


A, B, C, D, E = (letter * 12 for letter in "abcde")
FRONT = cards.front([priced("a", 1, 3), priced("b", 2, 1), priced("c", 3, 2, dominated_on_test=True)],
              dominated=[priced("d", 4, 4)],
              too_large=[priced("e", 5, 5, sram_kb={"cpu": 9.0}, flash_kb={"cpu": 9.0})],
              fronts={"cpu": [A, C], "gpu": [B, C]}, on_several=[C])
STANDING = {"cpu": {A: "front", B: "dominated", C: "front, dominated on test", D: "dominated"},
            "gpu": {A: "dominated", B: "front", C: "front, dominated on test", D: "dominated"}}


def test_table_page_and_picture_say_the_same_of_a_pick(run: Run, capsys: pytest.CaptureFixture[str],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    run.file("front.json").write_text(json.dumps(FRONT.to_json()))
    data = collect(run)
    views = {view["target"]: {p["id"]: p["standing"] for p in view["points"]} for view in data["views"]}
    assert views == {target: {**words, E: "too large"} for target, words in STANDING.items()}, data["notes"]
    drawn: dict[str, list[set[str]]] = {}
    monkeypatch.setattr(figures, "_draw_points", lambda axes, cards, target, name, *_: drawn.setdefault(
        f"{target} {name.split()[0]}", []).append({one.id for one in cards}))
    figures.draw_front(FRONT, io.BytesIO())
    for target, ids_ in STANDING.items():
        assert drawn[f"{target} front"] == [{id for id, word in ids_.items() if word.startswith("front")}]
        assert drawn[f"{target} picks"] == [{id for id, word in ids_.items() if word == "dominated"}]
    render.front(FRONT)
    table = {line.split()[0]: re.split(r" {3,}", line.strip()) for line in capsys.readouterr().out.splitlines()
             if re.match(r" [a-z]+ {3}", line)}
    titles = table.pop("id")
    assert list(table) == [A, B, C, D]
    for target, ids_ in STANDING.items():
        assert {id: row[titles.index(f"standing {target}")] for id, row in table.items()} == ids_


def test_the_losses_of_all_picks_are_of_one_kind(run: Run) -> None:
    """The largest has no teacher; what is drawn of the others is not what the teacher adds."""
    data = collect(run)
    tuned = run.events(events.FineTuned)
    assert "the largest pick" in data["finetune_title"]
    front = run.read_json("front.json")
    largest = max([*front["front"], *front.get("dominated", [])], key=lambda card: card["macs"])["id"]
    assert every((epoch.label_loss == epoch.loss) == (epoch.id == largest) for epoch in tuned)
    assert {id: [e["loss"] for e in curve] for id, curve in data["finetune"].items()} == {
        id: [epoch.label_loss for epoch in tuned if epoch.id == id] for id in data["finetune"]}


@pytest.mark.parametrize(("distill", "said"), [("none", "the labels"), ("grow", "the smaller ones have learned)"),
                                               ("hints", "its answers as well)")])
def test_the_curves_say_who_taught_whom(run: Run, distill: str, said: str) -> None:
    run.write_json("config.json", {**run.config, "train": {**run.config["train"], "distill": distill}})
    assert collect(run)["finetune_title"].endswith(said)


def test_the_console_would_tell(run: Run, browse: Callable[..., tuple[str, list[str]]]) -> None:
    broken = page(collect(run)).replace("showPruning();", "nothingOfTheKind();", 1)
    assert any("nothingOfTheKind" in line for line in browse(broken)[1])
