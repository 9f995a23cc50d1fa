"""Settings: precedence, every mistake one line with its key, a fingerprint that does not depend on how it was said."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from every import every
from hostile import read_or_refused
from hypothesis import given
from hypothesis import strategies as st

from nas.config.gates import Projection, Proxyless
from nas.config.search import Config, default_run_dir, fingerprint, resolve
from nas.errors import UserError

CPU = {"target": ["cpu"]}


def test_precedence_is_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text("target: cpu\nseed: 3\nlimit: 500\ntrain: {lr: 0.2, batch: 32}\n")
    config = resolve(file, ["train.lr=0.3"], {"seed": 4, "limit": None})
    assert (config.seed, config.limit, config.train.lr, config.train.batch) == (4, 500, 0.3, 32)
    default = Config(target=["cpu"])
    assert (config.space, config.gates) == (default.space, default.gates) == ("ghost", default.gates)
    assert config.train == default.train.model_copy(update={"lr": 0.3, "batch": 32})


def test_values_have_the_types_of_yaml() -> None:
    config = resolve(None, ["train.lr=1e-3", "budget_ms=[2, 0.5, 2.0]", "prune=false", "size=null", "gates.tau_end=1"],
                     CPU)
    assert (config.train.lr, config.budget_ms, config.prune, config.size) == (0.001, [0.5, 2.0], False, None)
    assert config.gates.tau_end == 1.0
    assert resolve(None, ["train={lr: 0.7}", "target=cpu"], {}).train.lr == 0.7


@pytest.mark.parametrize(("overrides", "flags", "expected"), [
    (["sed=1"], CPU, ["sed=1", "sed: unknown key", "did you mean 'seed'?"]),
    (["train.rate=1"], CPU, ["train.rate", "unknown key", "train.lr"]),
    (["train=5"], CPU, ["train=5", "expected batch"]),
    (["train.lr.x=5"], CPU, ["train.lr.x=5", "number"]),
    (["train.lr=fast"], CPU, ["train.lr=fast", "'fast'"]),
    (["train.lr=0"], CPU, ["train.lr=0", "greater than 0"]),
    (["train.lr=.nan"], CPU, ["train.lr=.nan", "nan"]),
    (["train.batch=true"], CPU, ["train.batch=true", "integer"]),
    (["seed=1.5"], CPU, ["seed=1.5", "integer"]),
    (["seed=1", "seed=2"], CPU, ["seed", "given twice", "seed=2"]),
    (["seed=1"], {**CPU, "seed": 2}, ["seed: given twice, seed and seed=1"]),
    (["lr"], CPU, ["'lr'", "key=value"]),
    (["=3"], CPU, ["key=value"]),
    (["width=["], CPU, ["width=[", "not YAML"]),
    (["width={a: 1, a: 2}"], CPU, ["not YAML", "stands twice"]),
    (["gates.tau_end=9"], CPU, ["tau_end 9 is above tau_start 2"]),
    (["gates.latency=lambda"], CPU, ["gates.latency=lambda", "'projection'", "'dual'", "'mnas'", "'lambda'"]),
    (["gates.dual.rho=2"], CPU, ["gates.dual.rho", "dual has no effect with latency=projection"]),
    (["gates.fbnet.alpha=0.5"], CPU, ["fbnet has no effect with latency=projection", "gates.latency=fbnet"]),
    (["gates.latency=fbnet", "gates.fbnet.alpha=0"], CPU, ["gates.fbnet.alpha=0", "greater than 0"]),
    (["gates.latency=fbnet", "gates.fbnet.gamma=1"], CPU, ["gates.fbnet.gamma: unknown key", "gates.fbnet.beta"]),
    (["gates.fbnet=2"], CPU, ["gates.fbnet", "expected alpha, beta"]),
    (["gates.latency=mnas", "gates.mnas.beta=0.07"], CPU, ["gates.mnas.beta=0.07", "less than 0"]),
    (["gates.latency=proxyless", "gates.proxyless.beta=1"], CPU, ["beta has no effect with form=add"]),
    (["gates.latency=proxyless", "gates.proxyless={form: mul, weight: 1}"], CPU, ["weight has no effect", "form=mul"]),
    (["gates.latency=dual", "gates.relaxation=single"], CPU, ["relaxation single learns no gates", "two-path"]),
    (["gates.update=single", "gates.relaxation=single"], CPU, ["update=single", "gates.relaxation=two-path"]),
    (["gates.widths=enumerated", "gates.relaxation=single"], CPU, ["widths=enumerated", "gates.relaxation=two-path"]),
    (["gates.update=joint"], CPU, ["gates.update=joint", "'bilevel' or 'single'"]),
    (["train.inplace=js"], CPU, ["train.inplace=js", "'kl' or 'alpha'"]),
    (["train.policy=trivial"], CPU, ["train.policy=trivial", "'none', 'trivialaugment' or 'randaugment'"]),
    (["train.erase=1.5"], CPU, ["train.erase=1.5", "less than or equal to 1"]),
    (["train.ema=1"], CPU, ["train.ema=1", "less than 1"]),
    (["train.ema=-0.1"], CPU, ["train.ema=-0.1", "greater than or equal to 0"]),
    (["train.finetune_ema=1"], CPU, ["train.finetune_ema=1", "less than 1"]),
    (["train.mix=mix"], CPU, ["train.mix=mix", "'none', 'mixup', 'cutmix' or 'both'"]),
    (["train.mix=both", "train.finetune_epochs=0"], CPU, ["train.mix=both: mix has no effect without fine-tuning"]),
    (["train.finetune_ema=0.9", "train.finetune_epochs=0"], CPU, [
        "train.finetune_ema=0.9: finetune_ema has no effect without fine-tuning (finetune_epochs=0)"]),
    ([], {}, ["target", "nas targets"]),
    ([], {"target": []}, ["target", "at least 1"]),
    ([], {"target": ["a", "a"]}, ["target", "once"]),
    ([], {**CPU, "seed": -1}, ["seed", "-1"]),
    ([], {**CPU, "threads": 0}, ["threads", "(got 0)"]),
    ([], {**CPU, "size": 4}, ["size", "8"]),
    ([], {**CPU, "width": 9.0}, ["width", "8"]),
    ([], {**CPU, "width": float("nan")}, ["width", "nan"]),
    ([], {**CPU, "budget_ms": [1.0, 0.0]}, ["budget_ms", "greater than 0"]),
    ([], {**CPU, "budget_ms": [float("inf")]}, ["budget_ms", "finite"]),
    (["prune=leaves"], CPU, ["prune=leaves", "'blocks' or 'layers'"]),
    ([], {**CPU, "exits.method": "bost"}, ["exits.method: ", "'boost'", "'bost'"]),
    ([], {**CPU, "selector": "magic"}, ["selector", "'evolution', 'bayes' or 'random'", "'magic'"]),
    (["objective=mnas-soft"], CPU, ["mnas-soft has no effect with selector=ilp", "evolution or bayes"]),
    (["judge_images=0"], CPU, ["judge_images=0", "greater than or equal to 1"]),
    (["shrink=2", "selector=bayes"], CPU, ["shrink=2 has no effect with selector=bayes", "set selector=evolution"]),
    (["objective=mnas", "selector=bayes"], CPU, ["objective=mnas", "'mnas-soft' or 'mnas-hard'"]),
    ([], {**CPU, "train_on": "tpu"}, ["train_on", "'tpu'"]),
    ([], {**CPU, "limit": 0}, ["limit", "(got 0)"]),
])
def test_a_mistake_names_where_it_stands(overrides: list[str], flags: dict[str, object], expected: list[str]) -> None:
    with pytest.raises(UserError) as error:
        resolve(None, overrides, flags)
    assert every(part in str(error.value) for part in expected), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("overrides", [["train.accumulate=3"], ["train.mix=both", "train.finetune_epochs=0"],
                                       ["gates.tau_end=9"]])
def test_settings_that_do_not_go_together_are_not_printed_once_more(overrides: list[str]) -> None:
    with pytest.raises(UserError) as error:
        resolve(None, overrides, CPU)
    assert overrides[0].split("=")[0].split(".")[1] in str(error.value) and "(got " not in str(error.value)


@pytest.mark.parametrize(("text", "expected"), [
    ("a: 1\nseed: [", "line 2 is not"), ("- 1", "list"),
    ("seed: 1\nseed: 2", "stands twice"), ("seed: x", "seed: input"),
    ("train: [1]", "train: expected"), ("trian: {}", "did you mean 'train'"), ("1: 2", "1: unknown key"),
    ("target: cpu\nbudget_ms: [1, -2]", "budget_ms: input should be greater"), ("{a: &a [*a]}: 1", "YAML"),
    ("a: !!python/object:os.system x", "YAML"),
])
def test_a_mistake_in_a_file_names_the_file(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        resolve(file, [], {"target": ["cpu"]} if "target" not in text else {})
    assert str(error.value).startswith(str(file)) and expected in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, expected in (("none.yaml", "No such file"), ("binary", "UTF-8"), ("", "directory")):
        with pytest.raises(UserError, match=expected):
            resolve(tmp_path / name, [], CPU)
    (tmp_path / "empty").write_text("")
    assert resolve(tmp_path / "empty", [], CPU) == resolve(None, [], CPU)


@given(st.dictionaries(st.sampled_from([*Config.model_fields, "train.lr", "gates.every", "x"]),
                       st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                                        st.sampled_from(["lr", "batch", "tau_end", "y"]), inner, max_size=2),
                                    max_leaves=4), max_size=4))
def test_any_value_gives_settings_or_one_line(values: dict[str, object]) -> None:
    texts = [f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix(chr(10) + '...' + chr(10))}"
             for key, value in values.items()]
    config = read_or_refused(lambda: resolve(None, texts, {} if "target" in values else CPU), *values)
    assert config is None or kept(config)


@given(st.text(max_size=40) | st.builds("{}={}".format, st.sampled_from([*Config.model_fields, "train.lr"]),
                                        st.text(max_size=6) | st.integers() | st.floats() | st.booleans()))
def test_any_text_gives_settings_or_one_line(text: str) -> None:
    config = read_or_refused(lambda: resolve(None, [text], {} if text.startswith("target=") else CPU),
                             text.partition("=")[0] or text)
    assert config is None or kept(config)


def kept(config: Config) -> bool:
    """Whether the settings that a run writes, and the same in a file of the user's, are these."""
    recorded = json.loads(json.dumps(config.to_json(), allow_nan=False))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "c.yaml")
        file.write_text(yaml.safe_dump(recorded))
        return Config.from_json(recorded, "x") == config == resolve(file, [], {})


def test_the_fingerprint_is_of_the_settings_not_of_how_they_were_said(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("seed: 1\nbudget_ms: [0.5, 1]")
    same = [resolve(file, [], CPU), resolve(None, ["budget_ms=[1.0, 0.5, 1]", "seed=1"], {"target": ["cpu"]}),
            resolve(None, [], {"target": ["cpu"], "seed": 1, "budget_ms": [1.0, 0.5], "data_dir": "elsewhere"})]
    assert len({fingerprint(config) for config in same}) == 1
    other = [resolve(None, [text], CPU) for text in ("seed=1", "train.lr=0.2", "gates.every=2", "prune=false")]
    assert len({fingerprint(config) for config in [*same, *other]}) == 5


def test_terms_get_their_own_settings() -> None:
    gates = resolve(None, ["gates={latency: proxyless, proxyless: {form: mul, beta: 1}}"], CPU).gates
    assert gates.term == Proxyless(form="mul", beta=1.0)
    assert resolve(None, [], CPU).gates.term == Projection()


def test_the_default_run_directory_has_a_safe_name() -> None:
    config = resolve(None, [], {"target": ["gpu-v100", "tables/my cpu.json"], "data": "/a b/../photos of/cäts/",
                                "space": "spaces/../mine.yaml"})
    assert str(default_run_dir(config)) == f"runs/mine-gpu-v100+my_cpu-c_ts-{fingerprint(config)}"
    dots = resolve(None, [], {"target": [".."], "data": ".", "space": "ghost@0.5"})
    name = default_run_dir(dots).name
    assert name.startswith("ghost@0.5-") and "/" not in name and ".." not in name


def test_settings_need_no_torch() -> None:
    code = "import sys, nas.config.search, nas.run.directory; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
