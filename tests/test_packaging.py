"""Packaging: the lists agree with the folders, and what is installed finds its data from anywhere."""

from __future__ import annotations

import configparser
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from every import every

import nas
from nas.files import folder, shipped

ROOT = Path(__file__).parent.parent
DATA = {"search_spaces": ".yaml", "latency_tables": ".json"}
ASK = """
import json, sys, nas
from nas.files import folder, shipped
from nas.plan import Task, layout
from nas.space import Space
names = {kind: shipped(kind, suffix) for kind, suffix in json.loads(sys.argv[1]).items()}
slots = [len(layout(Space.load(name), Task(32, 3, 10)).slots) for name in names["search_spaces"]]
print(json.dumps({"names": names, "slots": slots, "at": [nas.__file__, str(folder("search_spaces"))]}))
"""


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_packages_are_the_folders() -> None:
    folders = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "nas").rglob("__init__.py")}
    assert set(setup()["options"]["packages"].split()) == folders | {f"nas.{kind}" for kind in DATA}
    assert every((file.parent / "__init__.py").exists() for file in (ROOT / "nas").rglob("*.py"))


def test_the_data_folders_are_mapped_and_every_file_in_them_is_shipped() -> None:
    config = setup()
    mapped = dict(line.split(" = ") for line in config["options"]["package_dir"].strip().splitlines())
    assert mapped == {f"nas.{kind}": kind for kind in DATA}
    for kind in DATA:
        patterns = [part.strip() for part in config["options.package_data"][f"nas.{kind}"].split(",")]
        files = {file.name for file in (ROOT / kind).rglob("*") if file.is_file()}
        assert files == {file.name for pattern in patterns for file in (ROOT / kind).glob(pattern)}


def test_a_checkout_finds_its_data_beside_the_package() -> None:
    assert folder("search_spaces") == ROOT / "search_spaces"
    assert {"ghost", "mbconv"} <= set(shipped("search_spaces", ".yaml"))


def test_the_entry_point_and_the_version_exist() -> None:
    from nas.cli import main

    config = setup()
    assert config["options.entry_points"]["console_scripts"].strip() == "nas = nas.cli:main" and callable(main)
    assert config["metadata"]["version"] == "attr: nas.__version__" and nas.__version__.count(".") == 2
    assert "Apache License" in (ROOT / "LICENSE").read_text() and config["metadata"]["license"] == "Apache-2.0"


def test_hosted_ci_runs_the_script_on_the_oldest_and_the_newest_python() -> None:
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    oldest, newest = job["strategy"]["matrix"]["python"]
    assert setup()["options"]["python_requires"] == f">={oldest}" and newest.startswith("3.") and newest != oldest
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a user has: the project without anything that was built in it."""
    place = tmp_path_factory.mktemp("source") / "nas"
    place.mkdir()
    for name in ("nas", *DATA, "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, place)
    return place


def command(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def environment(place: Path) -> Path:
    """A fresh virtual environment that sees this one's dependencies, but no nas."""
    command(sys.executable, "-m", "venv", "--without-pip", place, cwd=place.parent)
    packages = next(place.glob("lib*/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin" / "python"


def install(python: Path, *what: str | Path) -> set[str]:
    """Names of what came into site-packages."""
    packages = next(python.parent.parent.glob("lib*/python*/site-packages"))
    before = {path.name for path in packages.iterdir()}
    command(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-build-isolation",
            "--no-index", *what, cwd=packages)
    return {path.name for path in packages.iterdir()} - before


def check(python: Path, elsewhere: Path) -> list[str]:
    """Asks an installed nas, from a folder that is not the checkout; returns where it lies."""
    value = json.loads(command(python, "-c", ASK, json.dumps(DATA), cwd=elsewhere))
    assert value["names"] == {kind: shipped(kind, suffix) for kind, suffix in DATA.items()}
    assert len(value["slots"]) == len(value["names"]["search_spaces"]) and min(value["slots"]) >= 1
    spaces = json.loads(command(python.parent / "nas", "spaces", "--json", cwd=elsewhere))
    assert [space["name"] for space in spaces] == value["names"]["search_spaces"]
    return [str(path) for path in value["at"]]


@pytest.mark.slow
def test_a_wheel_built_from_the_sdist(source: Path, tmp_path: Path) -> None:
    command(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ".", cwd=source)
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        assert {"LICENSE", "search_spaces/ghost.yaml"} <= {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        assert {"nas/search_spaces/ghost.yaml", "nas/py.typed"} <= set(archive.namelist())
    assert tops == {"nas", f"nas-{nas.__version__}.dist-info"}
    python = environment(tmp_path / "venv")
    assert install(python, wheel) == tops
    package, spaces = check(python, tmp_path)
    assert str(tmp_path / "venv") in package and str(tmp_path / "venv") in spaces


@pytest.mark.slow
def test_an_editable_install(source: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    came = install(python, "--editable", source)
    assert f"nas-{nas.__version__}.dist-info" in came and "nas" not in came
    assert check(python, tmp_path) == [str(source / "nas" / "__init__.py"), str(source / "search_spaces")]
