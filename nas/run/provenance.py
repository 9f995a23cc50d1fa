"""Defines where and by what a run and its networks are made, as their files say it."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from pydantic import Field

from nas import __version__
from nas.latency.meta import Meta
from nas.record import Record

FORMAT = 2  # of a run directory, in its environment.json; a run that does not say it is of the first
_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "optuna")


class Environment(Record):
    """Holds ``environment.json``: where and with what a run was made."""

    nas: str = Field(description="version")
    format: int = Field(description="of the run directory")
    revision: str | None = Field(default=None, description="commit of the checkout, + where files differ")
    python: str
    packages: dict[str, str] = Field(description="version by name")
    platform: str
    processor: str
    cores: int | None = Field(default=None, description="that the process may use")
    command: list[str]

    @staticmethod
    def here() -> Environment:
        """Returns the machine, packages and command of this process."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return Environment(
            nas=__version__, format=FORMAT, revision=_revision(), python=platform.python_version(),
            packages={name: version for name in _PACKAGES if (version := _version(name))},
            platform=platform.platform(), processor=_processor(), cores=cores, command=["nas", *sys.argv[1:]])


class UserFile(Record):
    """Names a file of the user's own operators by its content."""

    file: str
    sha256: str
    operators: list[str]


class UserFiles(Record):
    """Holds ``ops.json``: the files of the user's own operators that a run's space needs."""

    files: list[UserFile]


class Provenance(Record):
    """Says where and by what a network was made."""

    run: str = Field(description="name of the run directory")
    space: str
    data: str = Field(description="name of the images")
    fingerprint: str = Field(description="digest of the images")
    seed: int
    targets: dict[str, Meta] = Field(description="by target, what its latency table says of itself")
    environment: Environment
    ops: list[UserFile] = Field(default=[], description="files of the user's own operators")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _revision() -> str | None:
    """Returns the commit of this code's checkout, ``+`` where files differ; None where it is installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    return None
