"""Describes systems for Vela to compile for: four of its own ``vela.ini``, and boards of users from such a file.

A board's file is in Vela's format with one section more: ``[nas]`` names the accelerator, the system configuration and
the memory mode. Vela passes over keys that it does not know and numbers that it cannot read; here they are refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from configparser import ConfigParser
from configparser import Error as IniError
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nas.errors import UserError
from nas.files import nearest
from nas.latency.meta import Conditions

SUFFIX = ".ini"
ACCELERATORS = {f"ethos-u{number}-{macs}": (f"EthosU{number}", macs, 1) for number, sizes in
                ((55, (32, 64, 128, 256)), (65, (256,)), (85, (128, 256, 512, 1024, 2048))) for macs in sizes}
ACCELERATORS["ethos-u65-512"] = ("EthosU65", 256, 2)  # name -> architecture, MACs a cycle and core, cores: as Vela has
SYSTEM, MODE = "System_Config.", "Memory_Mode."
_CHOICE = ("accelerator", "system_config", "memory_mode")
_PORTS = ("axi0_port", "axi1_port")
_NUMBERS = {SYSTEM: ("core_clock", *(f"{memory}_{key}" for memory in ("Sram", "Dram", "OnChipFlash", "OffChipFlash")
                                     for key in ("clock_scale", "ports_used", "burst_length", "read_latency",
                                                 "write_latency", "max_reads", "max_writes"))),
            MODE: ("arena_cache_size",)}
_WORDS = {SYSTEM: _PORTS, MODE: ("const_mem_area", "arena_mem_area", "cache_mem_area")}


@dataclass(frozen=True)
class Target:
    """Describes an NPU in a system of memories (their clock, bandwidth and latency).

    ``ini`` is the text of a board's file, empty where Vela's own ``vela.ini`` describes the system.
    """

    name: str
    accelerator: str
    system_config: str
    memory_mode: str
    ini: str = ""

    @property
    def architecture(self) -> str:
        return ACCELERATORS[self.accelerator][0]

    @property
    def macs(self) -> int:
        """Returns the multiply-adds a cycle, of all cores."""
        return ACCELERATORS[self.accelerator][1] * ACCELERATORS[self.accelerator][2]

    @cached_property
    def clock_hz(self) -> float:
        return float(_inherited(self._sections, SYSTEM + self.system_config)["core_clock"])

    @cached_property
    def arena(self) -> str | None:
        """Returns the bytes that Vela tries to keep to in the arena; None where the memory mode says nothing."""
        return _inherited(self._sections, MODE + self.memory_mode).get("arena_cache_size")

    @property
    def config(self) -> str:
        """Returns the description of the system that Vela reads."""
        _, macs, cores = ACCELERATORS[self.accelerator]
        return (f"[architecture]\nmacs={macs}\ncores={cores}\n[vela]\nsystem_config_name={self.system_config}\n"
                f"memory_mode_name={self.memory_mode}\n{self.ini or _velas_ini()}")

    def conditions(self, version: str) -> Conditions:
        """Returns what figures depend on that this version of Vela counts; ``recorded_target`` reads the system."""
        digest = hashlib.sha256(self.ini.encode()).hexdigest()[:16]
        return Conditions(
            device=self.name, processor=f"{self.architecture}, {self.macs} MACs a cycle", runtime="vela",
            runtime_version=version, precision="int8", threads=1, batch=1, clock="cycles of Vela's performance report",
            system_config=self.system_config, memory_mode=self.memory_mode, core_clock_mhz=self.clock_hz / 1e6,
            accelerator=self.accelerator if self.ini else None, vela_ini=self.ini or None,
            vela_ini_sha256=digest if self.ini else None)

    @cached_property
    def _sections(self) -> ConfigParser:
        return _parsed(self.ini or _velas_ini(), "vela.ini")


TARGETS = {name: Target(name, name, system, "Shared_Sram") for name, system in (
    ("ethos-u55-128", "Ethos_U55_High_End_Embedded"), ("ethos-u55-256", "Ethos_U55_High_End_Embedded"),
    ("ethos-u65-256", "Ethos_U65_Embedded"), ("ethos-u85-256", "Ethos_U85_SYS_Flash_High"))}


def recorded_target(conditions: Conditions) -> Target | None:
    """Returns the system that figures were compiled for; None where Vela did not make them.

    Raises UserError for a board whose accelerator is unknown or whose system is not told.
    """
    name, accelerator = conditions.device, conditions.accelerator
    if conditions.vela_ini is None:
        return TARGETS.get(name)
    if accelerator not in ACCELERATORS or not (conditions.system_config and conditions.memory_mode):
        raise UserError(f"table of {name}: meta: accelerator, system_config and memory_mode are not as nas profile "
                        "wrote them: profile the board anew")
    return Target(name, accelerator, conditions.system_config, conditions.memory_mode, conditions.vela_ini)


def read_board(path: Path) -> Target:
    """Reads a board, named after its file. Raises UserError, one line with the file, for whatever is wrong with it."""
    try:
        ini = _parsed(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    chosen = dict(ini["nas"]) if ini.has_section("nas") else {}
    for key in (*chosen, *_CHOICE):
        if key not in _CHOICE:
            raise UserError(f"{path}: [nas] {key}: unknown key; {nearest(key, _CHOICE)}")
        if not chosen.get(key):
            raise UserError(f"{path}: [nas] {key}: missing; the section [nas] needs {', '.join(_CHOICE)}")
    accelerator, system, mode = (chosen[key] for key in _CHOICE)
    if accelerator not in ACCELERATORS:
        raise UserError(f"{path}: accelerator {accelerator}: {nearest(accelerator, ACCELERATORS)}")
    text = _section(path, ini, SYSTEM, system) + _section(path, ini, MODE, mode)
    return Target(path.stem, accelerator, system, mode, text)


def _section(path: Path, ini: ConfigParser, kind: str, name: str) -> str:
    """Returns a section with all that it inherits as text. Raises UserError for a key or value that Vela lacks."""
    try:
        values = _inherited(ini, kind + name)
    except KeyError as error:
        there = [section for section in ini.sections() if section.startswith(kind)]
        raise UserError(f"{path}: no section [{error.args[0]}]; there are: {', '.join(there) or 'none'}") from None
    for key, value in values.items():
        if key not in (*_NUMBERS[kind], *_WORDS[kind]):
            raise UserError(f"{path}: [{kind}{name}] {key}: unknown key, which Vela would pass over; "
                            f"{nearest(key, (*_NUMBERS[kind], *_WORDS[kind]))}")
        if key in _NUMBERS[kind] and not _number(value):
            raise UserError(f"{path}: [{kind}{name}] {key}: {value!r} is not a number from 0")
    if kind == SYSTEM and not float(values.get("core_clock", 0)) > 0:
        raise UserError(f"{path}: [{kind}{name}] core_clock: missing or 0; in Hz, for example core_clock=500e6")
    return "\n".join([f"[{kind}{name}]", *(f"{key}={value}" for key, value in values.items()), ""])


def _inherited(ini: ConfigParser, section: str) -> dict[str, str]:
    """Returns a section's values over those of the sections that it inherits. Raises KeyError for a missing section."""
    chain: list[str] = []
    while section and section not in chain:
        if not ini.has_section(section):
            raise KeyError(section)
        chain.append(section)
        section = ini[section].get("inherit", "")
    merged = {key: value for name in reversed(chain) for key, value in ini[name].items()}
    return {key: value for key, value in merged.items() if key != "inherit"}


def _number(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False


def _parsed(text: str, where: str) -> ConfigParser:
    ini = ConfigParser(interpolation=None)
    ini.optionxform = str  # type: ignore[method-assign, assignment]  # Vela tells capitals apart
    try:
        ini.read_string(text, where)
    except IniError as error:
        raise UserError(f"{where}: not an .ini file: {' '.join(str(error).split())}") from None
    return ini


def _velas_ini() -> str:
    package = importlib.util.find_spec("ethosu")
    assert package is not None and package.submodule_search_locations is not None
    return (Path(next(iter(package.submodule_search_locations))) / "config_files/Arm/vela.ini").read_text("utf-8")
