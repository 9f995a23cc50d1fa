"""Every advice in an error is followed, and works; a message names the flag that was typed, and one that there is."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import typer
from cards import card, front
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tiny_search import config_of, searched_once

from nas import cli
from nas.cli.base import app
from nas.cli.wording import flags_of
from nas.errors import UserError
from nas.files import shipped
from nas.pipeline import check_space
from nas.pipeline.front import full_id
from nas.run.directory import Run
from nas.units import rounded_up

GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = GROUP.commands
FLAG = re.compile(r"(?<![\w/.-])--[a-z][a-z0-9-]*")
SEARCH = "search --space tiny.yaml --target gpu-v100 --size 16 --limit 160"
Told = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def finished(space_file: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("advice")
    shutil.copy(space_file, place)
    searched_once(config_of(space_file), place / "run", shared)
    return place


@pytest.fixture
def tell(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
         ) -> Iterator[Told]:
    """``tell("nas export ...") -> (exit code, all that was printed)``, beside a finished run; nothing is trained anew:
    where training would begin, it ends as if interrupted, with 130.
    """
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    write_models(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "data.yaml").write_text("data: digit\n")
    monkeypatch.chdir(tmp_path)

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("nas.pipeline.supernet.train_supernet", stop)
    check, answers, listed = check_space.check, dict[str, Any](), shipped("search_spaces", ".yaml")

    def examine(name: str, *given: Any) -> Any:
        """One shipped space stands for all in their list."""
        key = "mbconv" if name in listed else name
        return answers[key] if key in answers else answers.setdefault(key, check(key, *given))

    monkeypatch.setattr(check_space, "check", examine)
    monkeypatch.setattr("nas.pipeline.train_one.train_network", stop)
    monkeypatch.setattr("nas.pipeline.exits.add.add", stop)

    def run(command: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(shlex.split(command))
        return int(end.value.code or 0), "".join(capfd.readouterr())

    yield run


def write_models(place: Path) -> None:
    """``open.onnx``: a convolution whose image may be of any size; ``strange.onnx``: an operator without a kernel."""
    for name, kind in (("open", "Relu"), ("strange", "Det")):
        side = "S" if name == "open" else 8
        weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 3, 3, 3], [0.0] * 108)
        nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4), helper.make_node(kind, ["c"], ["y"])]
        entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, side, side])
        exit_ = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, name, [entry], [exit_], [weights])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
                  place / f"{name}.onnx")


@dataclass(frozen=True)
class Case:
    """A mistake, what its message has to say, and the command that follows it: ``{1}`` is what the message gave."""

    mistake: str
    says: str
    follow: str
    code: int = 0


CASES = [
    # settings are called as they were typed
    Case(f"{SEARCH} --data digit", r"nas: --data: no 'digit' .*did you mean '(\w+)'", SEARCH + " --data {1}", 130),
    Case(f"{SEARCH} data=digit", r"nas: data: no 'digit' .*did you mean '(\w+)'", SEARCH + " data={1}", 130),
    Case(f"{SEARCH} --config data.yaml", r"nas: data.yaml: data: .*did you mean '(\w+)'", SEARCH + " --data {1}", 130),
    Case("search --target params --size 16 --limit 160 --space gost", r"nas: --space: no 'gost'; did you mean '(\w+)'",
         "search --target params --size 16 --limit 160 --space {1}", 130),
    Case("spaces --check gost", r"nas: --check: no 'gost'; did you mean '(\w+)'",
         "spaces --check {1} --size 32 --target macs"),
    Case("compare --target gpu-v100 --spaces gost --spaces ghost", r"nas: --spaces: no 'gost'; did you mean '(\w+)'",
         "spaces --check {1} --size 32 --target macs"),
    Case("search --space tiny.yaml --target params --size 16 --limit 3",
         r"nas: --limit: 3 is less .* give (\d+) or more",
         "search --space tiny.yaml --target params --size 16 --limit {1}", 130),
    Case(f"{SEARCH} train.augment=flop", r"nas: train.augment: no 'flop'; did you mean '([\w-]+)'",
         SEARCH + " train.augment={1}", 130),
    Case("train --space tiny.yaml --arch largest --target gpu-v100 --epochs 200000",
         r"nas: --epochs: .* less than or equal to (\d+)",
         "train --space tiny.yaml --arch largest --target gpu-v100 --epochs {1}", 130),
    Case("train --space tiny.yaml --arch largest --epochs 3 train.finetune_epochs=2",
         "nas: train.finetune_epochs: given twice, --epochs and train.finetune_epochs=2",
         "train --space tiny.yaml --arch largest --epochs 3", 130),
    Case("sample --target gpu-v10 --out s", r"nas: --target gpu-v10: did you mean '([\w-]+)'",
         "sample --target {1} --space tiny.yaml --size 16 -n 2 --out s"),
    # --out
    Case("export run --out file", "nas: --out file: a file; give a folder", "export run --out folder"),
    Case("report run --out .", "nas: --out .: a folder; give a file in it", "report run --out ./page.html"),
    Case("report run --png --out .", "nas: --out .: a folder; give a file in it", "report run --png --out ./page.png"),
    Case("report run --tensorboard --out file", "nas: --out file: a file; give a folder", "report run --out new"),
    Case("profile --space tiny.yaml --out .", "nas: --out .: a folder; give a file in it", "--help"),
    Case("exits run --data digits --out file --arch none", "nas: --out file: a file; give a folder", "--help"),
    Case("sample --target gpu-v100 --space tiny.yaml --size 16 -n 2 --out run", "--out run: .* give a new or empty",
         "sample --target gpu-v100 --space tiny.yaml --size 16 -n 2 --out empty"),
    # ids
    Case("export run --arch nope", r"nas: --arch nope: no such pick; there are (\w+)", "export run --arch {1} --out o"),
    Case("evaluate run", r"nas: --arch: which pick\? (\w+)", "evaluate run --arch {1}"),
    Case("exits run", r"nas: run: which pick\? --arch takes one of (\w+)", "evaluate run --arch {1}"),
    # runs
    Case("select nowhere", "nas: nowhere: no such run directory; nas search makes one", "--help"),
    # models
    Case("predict open.onnx --target gpu-v100", "open; give them with --size", "predict open.onnx --target gpu-v100 "
         "--size 8"),
    Case("predict strange.onnx --target gpu-v100", "no kernel is known for .*; --allow-unknown leaves",
         "predict strange.onnx --target gpu-v100 --allow-unknown"),
    Case("predict open.onnx --size 8 --target cpu-emerald-rapids", "instead: nas (measure [^ ]+)$", "{1} --size 8"),
    Case("predict none.onnx --target gpu-v100", "none.onnx: no such file", "--help"),
    # options
    Case("spaces --ops my.py", "nas: --ops: goes with --check FILE", "spaces --check tiny.yaml --size 16"),
    Case("spaces --markdown", "nas: --markdown: goes with --target", "spaces --markdown --target macs --size 32"),
    Case("report run --png --tensorboard", "give one of the two", "report run --png"),
    Case("settings nothing", "nas: nothing: no setting begins so; nas (settings) lists", "{1}"),
    Case("serach", r"see nas (--help)", "{1}"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.mistake)
def test_the_advice_is_followed(tell: Told, case: Case) -> None:
    code, said = tell(case.mistake)
    last = said.splitlines()[-1]
    match = re.search(case.says, last)
    assert code == 2 and match, said
    assert mentioned(last) <= flags_of(COMMANDS[case.mistake.split()[0]]) if " " in case.mistake else True
    code, said = tell(case.follow.replace("{1}", match[1] if match.groups() else ""))
    assert code == case.code, said


def mentioned(message: str) -> set[str]:
    """Flags that a message speaks of, without those of other commands that it quotes."""
    return set(FLAG.findall(re.sub(r"\bnas [a-z]+ [^;:]*", "", message.removeprefix("nas: "))))


def test_a_run_in_use_is_said_in_words_of_the_command(tell: Told) -> None:
    with Run.existing("run").lock():
        for command in ("select run", "export run", f"{SEARCH} --run run"):
            code, said = tell(command)
            last = said.splitlines()[-1]
            other = "--run" if command.startswith("search") else "RUN"
            assert code == 2 and (last.endswith(f"wait, or give another {other}") or "began with" in last)


FRONTS = {"": front([card("abcdef012345"), card("abcdff012345")], dominated=[card("abcd")]),
          "selections/a/": front([card("123456789abc"), card("abcdef012345")])}


@pytest.mark.parametrize(("text", "id"), [("abcdef012345", "abcdef012345"), ("abcde", "abcdef012345"),
                                         ("abcdf", "abcdff012345"), ("abcd", "abcd"), ("1234", "123456789abc")])
def test_the_beginning_of_an_id_stands_for_it(text: str, id: str) -> None:
    assert full_id(FRONTS, text) == id


@pytest.mark.parametrize(("text", "says"), [("123", "at least 4 characters"), ("", "no such pick"),
                                            ("ffff", "no such pick")])
def test_what_is_no_beginning(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        full_id(FRONTS, text)


def test_two_ids_that_begin_alike() -> None:
    fronts = {"": front([card("abcdef"), card("abcdff")])}
    with pytest.raises(UserError, match="arch=abcd: is the beginning of abcdef and abcdff; give more of it"):
        full_id(fronts, "abcd")


@given(st.floats(1e-6, 1e6))
def test_a_least_value_that_is_shown_can_be_met(value: float) -> None:
    assert value <= float(rounded_up(value)) <= value * 1.0011 + 1e-12 or value > 9999


def test_commands_take_the_beginning_of_an_id(tell: Told, finished: Path) -> None:
    id = Run.existing(finished / "run").read_json("front.json")["front"][0]["id"]
    assert tell(f"export run --arch {id[:6]} --format int8-onnx --out o --json")[0] == 0
    assert tell(f"evaluate run --arch {id[:6]}")[0] == 0
    assert [path.name.partition(".")[0] for path in Path("o").iterdir()] == [id]


def test_a_budget_that_no_network_needs_is_said(tell: Told) -> None:
    code, said = tell("select run --budget-ms 50")
    assert code == 0 and re.search(r"--budget-ms 50: above the largest network, 0\.\d+ ms on gpu-v100", said)
    code, said = tell(f"{SEARCH} --budget-ms 50")
    assert code == 130 and "above the largest network" in said
    code, said = tell(f"{SEARCH} --budget-ms 0.1")
    assert code == 130 and "above the largest" not in said
