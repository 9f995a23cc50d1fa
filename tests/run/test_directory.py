"""Run directories: reopened, locked, moved, cut short, on a disk that is full or read-only."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from every import every

from nas.arch import SKIP, Arch, Op
from nas.errors import UserError
from nas.run import checkpoint, events
from nas.run.directory import Run
from nas.run.records import HeldOut
from nas.supernet.drop import Drop
from nas.training.epochs import EntryTest, Pruning

CONFIG = {"space": "ghost", "seed": 0, "train": {"lr": 0.1, "batch": 96}}
HOLD = "import sys; from nas.run.directory import Run\nwith Run(__import__('pathlib').Path(sys.argv[1])).lock():\n" \
       "    print('held', flush=True); sys.stdin.read()"


def test_a_run_is_created_and_found_again(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "deep" / "run", CONFIG)
    environment = run.read_json("environment.json")
    assert environment["python"] == sys.version.split()[0] and environment["cores"] >= 1
    assert environment["packages"]["torch"] and environment["nas"] and environment["command"][0] == "nas"
    before = run.file("environment.json").read_bytes()
    assert Run.open(run.path, CONFIG) == run == Run.existing(run.path)
    assert run.file("environment.json").read_bytes() == before and run.config == CONFIG


@pytest.mark.parametrize(("config", "expected"), [
    ({**CONFIG, "seed": 1}, ["seed = 0, now 1"]),
    ({**CONFIG, "train": {"lr": 0.2, "batch": 96}}, ["train.lr = 0.1, now 0.2"]),
    ({**CONFIG, "new": None}, ["new = not set, now null"]),
    ({"space": "ghost", "seed": 0, "train": {"lr": 0.1}}, ["train.batch = 96, now not set"]),
])
def test_changed_settings_are_refused(tmp_path: Path, config: dict[str, object], expected: list[str]) -> None:
    Run.open(tmp_path / "run", CONFIG)
    with pytest.raises(UserError) as error:
        Run.open(tmp_path / "run", config)
    assert all(part in str(error.value) for part in [*expected, "give another run", str(tmp_path)])
    assert Run.existing(tmp_path / "run").config == CONFIG


def test_a_free_setting_may_change(tmp_path: Path) -> None:
    Run.open(tmp_path, {**CONFIG, "data_dir": "a"})
    assert Run.open(tmp_path, {**CONFIG, "data_dir": "b"}, free=["data_dir"]).config["data_dir"] == "b"


def test_something_else_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    (tmp_path / "file").touch()
    for path, expected in (("photos", "cat.png"), ("file", "a file")):
        with pytest.raises(UserError, match=expected):
            Run.open(tmp_path / path, CONFIG)
    for path, expected in (("photos", "not a run directory"), ("file", "not a run"), ("none", "no such run")):
        with pytest.raises(UserError, match=expected):
            Run.existing(tmp_path / path)
    assert sorted(p.name for p in (tmp_path / "photos").iterdir()) == ["cat.png"]


def test_a_run_whose_creation_was_cut_short_is_created(tmp_path: Path) -> None:
    for name in ("lock", "environment.json", ".config.json.abc.tmp"):
        (tmp_path / name).touch()
    run = Run.open(tmp_path, CONFIG)
    assert run.config == CONFIG and run.read_json("environment.json")["python"]
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of tmp_path/run."""
    Run.open(tmp_path / "run", CONFIG)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None and it.stdout.readline() == "held\n"
        yield it
        it.kill()


def test_the_lock_keeps_a_second_process_out_and_dies_with_its_holder(
        tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    run = Run.existing(tmp_path / "run")
    with pytest.raises(UserError, match=f"in use by process {holder.pid}"), run.lock():
        pytest.fail("the lock was given twice")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with run.lock():
        assert run.file("lock").read_text() == f"{os.getpid()}\n"
    with run.lock():  # and is given back
        pass


def test_the_lock_is_given_back_after_an_error_and_sweeps_torn_writes(tmp_path: Path) -> None:
    run = Run.open(tmp_path, CONFIG)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / ".a.onnx.xyz.tmp").write_bytes(b"half")
    with pytest.raises(ZeroDivisionError), run.lock():
        assert not list((tmp_path / "onnx").iterdir())
        raise ZeroDivisionError
    with run.lock():
        pass


def test_a_moved_run_is_the_same_run(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "a", CONFIG)
    run.stage("done.json", lambda: [1])
    shutil.move(run.path, tmp_path / "b")
    assert every(str(tmp_path) not in file.read_text() for file in (tmp_path / "b").iterdir())
    moved = Run.open(tmp_path / "b", CONFIG)
    assert moved.stage("done.json", lambda: pytest.fail("made twice")) == [1]


def test_a_stage_is_made_once_and_looks_the_same_before_and_after(tmp_path: Path) -> None:
    run = Run.open(tmp_path, CONFIG)
    calls = []
    for _ in range(2):
        assert run.stage("a.json", lambda: {"pair": (1, 2), "n": calls.append(0)}) == {"pair": [1, 2], "n": None}
    assert len(calls) == 1
    assert [event.name for event in run.events(events.Stage)] == ["a.json"]
    with pytest.raises(ZeroDivisionError):
        run.stage("b.json", lambda: 1 / 0)
    assert not run.has("b.json")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\x00\x00", b"[" * 100_000])
def test_a_broken_artefact_is_named(tmp_path: Path, content: bytes) -> None:
    run = Run.open(tmp_path, CONFIG)
    run.file("front.json").write_bytes(content)
    with pytest.raises(UserError, match=r"front\.json: truncated or not JSON; delete it"):
        run.stage("front.json", lambda: 1)
    run.file("config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json: truncated or not JSON; start a new run"):
        Run.open(tmp_path, CONFIG)
    run.file("config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json"):
        Run.open(tmp_path, CONFIG)


def test_a_missing_artefact_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"front\.json: missing"):
        Run.open(tmp_path, CONFIG).read_json("front.json")


def test_a_write_that_fails_leaves_the_old_artefact(tmp_path: Path) -> None:
    run = Run.open(tmp_path, CONFIG)
    run.write("w.bin", lambda file: file.write(b"old"))
    with pytest.raises(ZeroDivisionError):
        run.write("w.bin", lambda file: (file.write(b"new"), 1 / 0))
    assert run.file("w.bin").read_bytes() == b"old" and not list(tmp_path.glob(".*"))


def test_an_input_is_kept_and_may_not_change(tmp_path: Path) -> None:
    run = Run.open(tmp_path, CONFIG)
    run.keep("space.yaml", b"name: a")
    run.keep("space.yaml", b"name: a")
    with pytest.raises(UserError, match=r"space\.yaml"):
        run.keep("space.yaml", b"name: b")


def tuned(epoch: int) -> events.FineTuned:
    return events.FineTuned(id="abc", epoch=epoch, loss=1.0, seconds=1.0)


class Weights:
    """A training of 200 kB."""

    done = 1

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "weights": torch.zeros(50_000)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]


def test_the_log_survives_a_torn_line(tmp_path: Path) -> None:
    run = Run.open(tmp_path, CONFIG)
    run.log(tuned(1))
    with run.file("log.jsonl").open("ab") as file:
        file.write(b'{"event": "finetune", "epoch": 2, "lo')
    assert [event.epoch for event in run.events(events.FineTuned)] == [1]
    run.log(tuned(3))
    run.log(events.Stage(name="a.json", seconds=1.0))
    assert [event.epoch for event in run.events(events.FineTuned)] == [1, 3]
    assert [event.event for event in run.events(events.AnyEvent)] == ["finetune", "finetune", "stage"]
    assert every(event.time for event in run.events(events.AnyEvent))
    run.file("log.jsonl").write_bytes(b"torn")  # not even one whole line
    run.log(tuned(4))
    assert [event.epoch for event in run.events(events.FineTuned)] == [4]


ARCH = Arch("tiny", 16, (SKIP, Op("ghost", (("kernel", 3),))))
LOGGED = [
    events.Stage(name="a.json", seconds=1.5), events.Phase(name="selection", place="selections/x/", seconds=0.5),
    events.Introduction(lines=["digits: 10 images", "a \"quoted\"\nline"]),
    events.TableCopied(target="cpu", file="tables/cpu.json", came="here"),
    events.Compiled(target="npu", what="skip", sram_bytes=2**40, flash_bytes=0, vela="5.1"),
    events.Epoch(phase="warmup", epoch=0, grad_norm=math.inf, seconds=1.0, entry=EntryTest(
        smallest_loss=2.0, largest_loss=1.0, smallest_accuracy=0.5, largest_accuracy=0.75)),
    events.Epoch(phase="search", epoch=1, gate_loss=-math.inf, seconds=1.0, pruning=Pruning(
        dropped=(Drop("layer", 2, "mbconv(kernel=3)", 0.5, ((0.25, 1e-5),)),), branches=3, parameters=9,
        skip_share=0.0)),
    events.FineTuned(id="abc", epoch=2, loss=0.125, label_loss=0.25, held_out=0.5, seconds=1.0),
    events.Raced(id="abc", place="", epochs=2, loss=0.5, accuracy=0.5, accuracy_se=0.1),
    events.BranchRaced(branch="mbconv(kernel=3)", round=1, images=1500.5, loss=math.inf),
    events.ExitsTrained(id="abc", epoch=2, loss=0.125, seconds=1.0),
    events.Judged(id=ARCH.id, arch=ARCH, state="", loss=math.inf, accuracy=0.5, accuracy_se=0.1),
    events.Timed(id="abc", target="cpu", costs="f00", ms=0.1, drift=None),
    events.ExitsTimed(kept=[0, 2], confidence="entropy", prefix_ms=[0.1, 0.2]),
    events.Selected(place="", rank_agreement={"cpu": None}, held_out={"cpu": {"gates": HeldOut(
        n=9, loss=-0.5, accuracy=0.5)}})]


@pytest.mark.parametrize("event", LOGGED, ids=lambda event: event.event)
def test_an_event_is_read_as_it_was_logged_and_by_no_other_kind(tmp_path: Path, event: events.Event) -> None:
    run = Run.open(tmp_path, CONFIG)
    run.log(event)
    (read,) = run.events(type(event))
    assert read.time and replace(read, time="") == event
    for kind in {type(other) for other in LOGGED} - {type(event)}:
        assert run.events(kind) == []


def test_every_kind_of_event_is_tried() -> None:
    assert {type(event) for event in LOGGED} == {*events.Event.__subclasses__()} - {events.AnyEvent}


def test_a_figure_that_is_no_number_is_read_as_one(tmp_path: Path) -> None:
    run = Run.open(tmp_path, CONFIG)
    run.log(events.FineTuned(id="abc", epoch=0, loss=math.nan, seconds=1.0))
    (read,) = run.events(events.FineTuned)
    assert math.isnan(read.loss) and b"NaN\"" in run.file("log.jsonl").read_bytes()  # a text: JSON has no such number


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(tmp_path, CONFIG)
    run.write_json("a.json", 1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.json: No space left on device; free some space"):
        run.write_json("a.json", 2)
    assert run.read_json("a.json") == 1 and not list(tmp_path.glob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    run = Run.open(small_disk / "run", CONFIG)
    run.write_json("done.json", [1])
    with pytest.raises(UserError, match="No space left"):
        run.write("weights.bin", lambda file: file.write(bytes(200_000)))
    with pytest.raises(UserError, match=r"state\.pt: No space left"):  # PyTorch's word for it is another
        checkpoint.save(run, "state.pt", Weights())
    with pytest.raises(UserError, match="No space left"):
        for _ in range(200):
            run.log(events.Introduction(lines=["x" * 1000]))
    assert run.read_json("done.json") == [1] and not run.has("weights.bin")
    whole = run.events(events.Introduction)
    assert whole and every(event.lines == ["x" * 1000] for event in whole)
    (small_disk / "run" / "log.jsonl").unlink()
    run.log(tuned(0))  # it goes on
    assert [event.epoch for event in run.events(events.FineTuned)] == [0]


def test_a_read_only_disk_is_one_line(small_disk: Path) -> None:
    Run.open(small_disk / "run", CONFIG)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="Read-only file system"), Run.existing(small_disk / "run").lock():
        pytest.fail("locked on a read-only disk")
    with pytest.raises(UserError, match="Read-only file system"):
        Run.open(small_disk / "other", CONFIG)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_a_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        Run.open(tmp_path / "run", CONFIG)
    tmp_path.chmod(0o700)


def test_a_refused_beginning_leaves_nothing_and_a_second_one_removes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such space"), Run.open_locked(tmp_path / "a", CONFIG):
        raise UserError("no such space")
    assert not (tmp_path / "a").exists()
    with Run.open_locked(tmp_path / "a", CONFIG) as first:
        # as of a process that began at the same moment, and so found no directory either
        second = Run.open_locked(tmp_path / "a", CONFIG)
        with pytest.raises(UserError, match="in use by process"), second:
            pass
        assert first.has("config.json")
        first.log(tuned(0))
    with pytest.raises(UserError, match="later"), Run.open_locked(tmp_path / "a", CONFIG):
        raise UserError("later")
    assert (tmp_path / "a" / "config.json").is_file()


def test_a_refused_beginning_leaves_an_empty_directory_empty(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="no such target"), Run.open_locked(tmp_path / "a", CONFIG):
        raise UserError("no such target")
    assert (tmp_path / "a").is_dir() and Run.fresh(tmp_path / "a")
    with Run.open_locked(tmp_path / "a", {**CONFIG, "seed": 1}) as mended:
        assert mended.has("config.json") and not Run.fresh(tmp_path / "a")


def test_a_lock_mends_its_own_run_and_not_one_inside(tmp_path: Path) -> None:
    run, inner = Run.open(tmp_path / "run", CONFIG), Run.open(tmp_path / "run" / "exits" / "a", CONFIG)
    for place in (run.path / "archs", inner.path / "deep"):
        place.mkdir()
        (place / ".x.tmp").write_bytes(b"half")
    with run.lock():
        assert not (run.path / "archs" / ".x.tmp").exists() and (inner.path / "deep" / ".x.tmp").exists()
    with inner.lock():
        assert not (inner.path / "deep" / ".x.tmp").exists()


def test_places_of_fronts(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", {})
    assert run.places() == [""]
    for name in ("b", "a-2", "a"):
        run.write_json(f"selections/{name}/front.json", {"target": [], "front": [], "dominated": [], "budgets": []})
    run.file("selections/unfinished").mkdir()
    assert run.places() == ["", "selections/a/", "selections/a-2/", "selections/b/"]
