"""One network from scratch: which one it is, that it continues exactly, that it leaves a run like others."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from every import every
from tiny_search import Quiet
from tiny_space import TINY

from nas import cli
from nas.arch import Arch
from nas.config.search import resolve
from nas.errors import UserError
from nas.pipeline import finetune, train_one
from nas.plan import Layout, macs, params, plan
from nas.report.run_data import collect
from nas.run import events
from nas.run.directory import Run
from nas.run.records import Front
from nas.run.settings import Baseline

SETTINGS = ["train.finetune_epochs=3", "train.batch=16", "train.policy=trivialaugment", "train.erase=0.25",
            "train.mix=both", "train.finetune_ema=0.5"]


def settings(space_file: Path, *more: str, **flags: object) -> Baseline:
    given = {"space": str(space_file), "arch": "largest", "data": "digits", "size": 16, "limit": 160,
             "threads": 1, **flags}
    return resolve(None, [*SETTINGS, *more], given, Baseline)


def trained(config: Baseline, path: Path, progress: Quiet | None = None, given: Arch | None = None) -> dict:
    run = Run.open(path, config.to_json())
    with run.lock():
        return train_one.train_network(config, run, given, progress or Quiet()).to_json()


def test_the_largest_and_the_smallest_are_so_slot_by_slot(tiny: Layout) -> None:
    for what, best in (("largest", max), ("smallest", min)):
        arch = train_one.choose_arch(tiny, what, 0)
        for slot, op in zip(tiny.slots, arch.ops, strict=True):
            key = slot.key(op)
            costs = [macs(other) if (other := slot.key(one)) else 0 for one in slot.ops]
            assert (macs(key) if key else 0) == best(costs)


def test_a_random_one_is_of_its_seed(tiny: Layout) -> None:
    one, again, other = (train_one.choose_arch(tiny, "random", seed) for seed in (3, 3, 4))
    assert one == again != other


@pytest.fixture(scope="module")
def whole(space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "whole"
    trained(settings(space_file, target=["gpu-v100"]), path)
    return path


def test_it_leaves_weights_card_and_onnx(whole: Path) -> None:
    run = Run.existing(whole)
    (point,) = run.read_json("front.json")["front"]
    card = run.read_json(f"archs/{point['id']}/card.json")
    assert (whole / card["onnx"]).is_file() and run.has(f"archs/{card['id']}/weights.safetensors")
    keys = plan(run_layout(run), Arch.from_json(card["arch"]))
    assert card["macs"] == sum(map(macs, keys)) and card["params"] == sum(map(params, keys))
    p, n = card["accuracy"], card["test_images"]
    assert card["accuracy_se"] == pytest.approx(math.sqrt(p * (1 - p) / n)) and card["relative_diff"] < 1e-4
    assert card["ms"]["gpu-v100"] > 0 and card["measured_ms"] == {"gpu-v100": None}  # not here
    losses = [event.loss for event in run.events(events.FineTuned)]
    assert len(losses) == 3 and losses[-1] < losses[0]


def run_layout(run: Run) -> Layout:
    from nas.plan import Task, layout
    from nas.space import Space

    return layout(Space.load(str(run.file("space.yaml"))), Task(16, 3, 10))


def test_interrupted_at_many_moments_it_ends_with_the_same_bytes(whole: Path, space_file: Path, tmp_path: Path) -> None:
    kills, done = 0, None
    while done is None:
        try:
            done = trained(settings(space_file, target=["gpu-v100"]), tmp_path / "cut", Quiet(stop_at=13))
        except KeyboardInterrupt:
            kills += 1
            assert kills < 30
    assert kills >= 2
    for name in ("weights.safetensors", "arch.json"):
        (one,), (two,) = (list(path.glob(f"archs/*/{name}")) for path in (whole, tmp_path / "cut"))
        assert one.read_bytes() == two.read_bytes()
    fronts = [json.loads((path / "front.json").read_text()) for path in (tmp_path / "cut", whole)]
    assert fronts[0] == fronts[1]


def test_averaged_weights_are_delivered(space_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[finetune.FineTuning]()
    own = finetune.FineTuning
    monkeypatch.setattr(finetune, "FineTuning", lambda *given: made.append(own(*given)) or made[-1])
    trained(settings(space_file), tmp_path / "run")
    (tuning,), (file,) = made, (tmp_path / "run").glob("archs/*/weights.safetensors")
    assert tuning.average is not None
    delivered = safetensors.torch.load_file(file)
    averaged = tuning.average.net.state_dict()
    assert every(torch.equal(tensor, averaged[name]) for name, tensor in delivered.items())
    latest = dict(tuning.model.named_parameters())
    assert any(not torch.equal(tensor, delivered[name]) for name, tensor in latest.items())


def test_a_finished_one_does_not_introduce_its_images_again(whole: Path, space_file: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    begun, again = Quiet(), Quiet()
    with pytest.raises(KeyboardInterrupt):
        begun.stop_at = 1
        trained(settings(space_file, target=["gpu-v100"]), tmp_path / "new", begun)
    trained(settings(space_file, target=["gpu-v100"]), tmp_path / "run", again)
    assert any(note.startswith("splits: ") for note in begun.notes) and not again.notes


def test_its_run_can_be_reported(whole: Path) -> None:
    page_data = collect(Run.existing(whole))
    assert page_data["state"] == "finished" and not page_data["notes"] and len(page_data["networks"]) == 1
    assert len(next(iter(page_data["finetune"].values()))) == 3


@pytest.mark.parametrize(("more", "flags", "message"), [
    (["budgets=3"], {}, "budgets has no effect in nas train"), (["train.ema=0.9"], {}, "train.ema has no effect"),
    (["train.lr=0.1"], {}, "train.lr has no effect"), (["gates.lr=0.1"], {}, "gates has no effect"),
    (["max_ms=2.0"], {}, "max_ms has no effect"), (["exits.method=boost"], {}, "exits has no effect"),
    (["train.attend=best-up"], {}, "train.attend has no effect"), (["train.attend_to=4"], {}, "attend_to has no")])
def test_settings_of_a_search_are_refused(space_file: Path, more: list[str], flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(space_file, *more, **flags)


def test_an_arch_of_another_space_is_refused(space_file: Path, tmp_path: Path) -> None:
    other = Arch("ghost", 32, ())
    with pytest.raises(UserError, match="architecture of ghost at 32 with 0 slots does not fit tiny at 16"):
        trained(settings(space_file, arch=other.id), tmp_path / "run", given=other)


def call(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    return (int(end.value.code or 0), *capfd.readouterr())


def test_the_command(whole: Path, space_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--space", str(space_file), "--data", "digits", "--limit", "160", "--threads", "1", *SETTINGS[1:]]
    arch = next(whole.glob("archs/*/arch.json"))
    code, out, err = call(capfd, *words, "--arch", str(arch), "--epochs", "1", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["front"][0]["id"] == arch.parent.name and result["front"][0]["ms"] == {}
    assert Path(result["run"]).name.startswith(f"tiny-train-{arch.parent.name}-digits-")
    assert call(capfd, *words, "--arch", str(arch), "--epochs", "1")[1].endswith(f"{result['run']}\n")  # at once
    assert call(capfd, "export", result["run"], "--out", "files")[0] == 0 and list(Path("files").glob("*.onnx"))
    assert call(capfd, "report", result["run"])[0] == 0
    assert "has no target, so there is no latency to draw" in call(capfd, "report", result["run"], "--png")[2]
    assert "this run has no target" in call(capfd, "export", result["run"], "--budget-ms", "1")[2]
    code, out, err = call(capfd, *words)
    assert code == 2 and err == "nas: --arch: which network? give largest, smallest, random, or an arch.json\n"
    code, out, err = call(capfd, *words, "--arch", "none.json")
    assert code == 2 and err.startswith("nas: --arch none.json: No such file")
    Path("broken.json").write_text("{}")
    assert call(capfd, *words, "--arch", "broken.json")[2].startswith("nas: --arch broken.json: architecture: expected")


def test_a_space_of_one_network_needs_no_name(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = {**TINY, "name": "one", "skip": False, "ops": {"mbconv": {"kernel": [3], "se": [0], "hidden": {"min": 2,
                                                                                                     "max": 2}}}}
    Path("one.yaml").write_text(yaml.safe_dump(one))
    code, out, err = call(capfd, "train", "--space", "one.yaml", "--data", "digits", "--limit", "60", "--size", "16",
                          "--epochs", "1", "--threads", "1", "--json")
    assert code == 0, err
    assert json.loads(out)["space"] == "one"


def test_a_config_file_names_space_and_network(whole: Path, space_file: Path, tmp_path: Path,
                                               capfd: pytest.CaptureFixture[str],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[Baseline, Arch | None]] = []

    def train_network(settings: Baseline, run: Run, given: Arch | None, progress: object) -> Front:
        asked.append((settings, given))
        return Front(run=str(run.path), space="tiny", target=[], front=[])

    monkeypatch.setattr(train_one, "train_network", train_network)
    arch = next(whole.glob("archs/*/arch.json"))
    for name, more in (("smallest", {"space": str(space_file), "size": 16}),
                       (str(arch), {"space": str(space_file)})):
        Path("settings.yaml").write_text(yaml.safe_dump({"arch": name, **more}))
        code, _, err = call(capfd, "train", "--config", "settings.yaml", "--json")
        assert code == 0, err
    (first, none), (second, given) = asked
    assert (first.arch, first.space, first.size, none) == ("smallest", str(space_file), 16, None)
    assert given and (second.arch, second.space, second.size) == (given.id, str(space_file), given.size)
    assert given.id == arch.parent.name
    assert call(capfd, "train", "arch=random", f"space={space_file}", "--json")[0] == 0
    assert asked[-1][0].arch == "random"
    Path("settings.yaml").write_text(yaml.safe_dump({"space": str(space_file)}))
    assert "--arch: which network?" in call(capfd, "train", "--config", "settings.yaml")[2]
