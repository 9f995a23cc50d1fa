"""Recognises what a file is by its content, for messages about files that are not what was expected."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

HEAD = 512  # bytes that are looked at


@dataclass(frozen=True)
class Format:
    """Names a format, as in a sentence, with advice for a user who wanted weights from such a file, or an ONNX file."""

    text: str
    for_weights: str = ""
    for_onnx: str = ""


_TORCHS = "weights are read from PyTorch's files"
_AGAIN = "fetch it again"
_EXPORT = "export the network it holds to ONNX where it was made: torch.onnx.export"

ONNX = Format("an ONNX file", "give it in place of the network's name, without weights")
SAFETENSORS = Format("a safetensors file", "", "weights without their network: torch.onnx.export writes both")
TORCH = Format("a file of torch.save", "", "weights without their network: torch.onnx.export writes both")
SCRIPT = Format("a TorchScript archive", "save its weights alone: torch.save(torch.jit.load(FILE).state_dict(), "
                                         "'weights.pth')", _EXPORT)
PROGRAM = Format("a program of torch.export", "save its weights alone: torch.save(torch.export.load(FILE).state_dict, "
                                              "'weights.pth')", _EXPORT)
TFLITE = Format("a TensorFlow Lite file", _TORCHS, "of a pick of a run there is the same in 8 bits as ONNX: export it "
                                                   "as int8-onnx")
KERAS = Format("a Keras or HDF5 file", _TORCHS, "export the network it holds to ONNX")
LFS = Format("a pointer of Git LFS, not the file itself", "fetch it: git lfs pull", "fetch it: git lfs pull")
HTML = Format("a web page", f"the download failed: {_AGAIN}", f"the download failed: {_AGAIN}")
EMPTY = Format("an empty file", _AGAIN, _AGAIN)
FOLDER = Format("a directory")
ARCHIVE = Format("an archive", "unpack it", "unpack it")
JSON = Format("a JSON file", "give the file that holds the tensors")
NUMPY = Format("a file of NumPy", _TORCHS)
UNKNOWN = Format("a file of no known format")

_BEGINNINGS: tuple[tuple[bytes, Format], ...] = (
    (b"version https://git-lfs", LFS), (b"\x89HDF", KERAS), (b"\x93NUMPY", NUMPY), (b"\x1f\x8b", ARCHIVE),
    (b"\x80\x02", TORCH), (b"BZh", ARCHIVE), (b"\xfd7zXZ", ARCHIVE), (b"7z\xbc\xaf", ARCHIVE))


def not_onnx(path: Path) -> str | None:
    """Returns the message that a file is not ONNX and what to do; None where it is ONNX or its format is unknown."""
    kind = format_of(path)
    if kind in (ONNX, UNKNOWN):
        return None
    return f"{path}: {kind.text}, not an ONNX file" + (f"; {kind.for_onnx}" if kind.for_onnx else "")


def format_of(path: Path) -> Format:
    """Returns the format of a file that exists. Raises OSError where it cannot be read."""
    if path.is_dir():
        return FOLDER
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return EMPTY
    if head[4:8] == b"TFL3":
        return TFLITE
    if head[:2] == b"PK":
        return _of_zip(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return SAFETENSORS
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return HTML
    if text.startswith((b"{", b"[")):
        return JSON
    return ONNX if _is_onnx(path) else ARCHIVE if head[257:262] == b"ustar" else UNKNOWN


def _of_zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return TORCH  # cut off: whatever reads it says so
    inside = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return SCRIPT
    if "archive_format" in inside or any(name.endswith(("models/model.json", "serialized_exported_program.json"))
                                         for name in names):
        return PROGRAM
    if "data.pkl" in inside:
        return TORCH
    return KERAS if any(name.endswith(".h5") for name in names) else ARCHIVE


def _is_onnx(path: Path) -> bool:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's own classes have no public base
        return False
    return model.ir_version > 0 and len(model.graph.node) > 0
