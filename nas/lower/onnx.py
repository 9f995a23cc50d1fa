"""A module as one self-contained ONNX file: weights inside, batch dynamic, batch norms folded, metadata filled in.

What is measured and what is deployed come from the same ``lower``, so that the latencies are those of the network
that is handed out. The graph is made by ``nas.lower.emit`` and by ``torch.onnx`` for modules that it has no rule for.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from nas.errors import UserError
from nas.files import write_atomic
from nas.lower.emit import OPSET, NoRule, emit

MAX_BYTES = 2**31 - 1  # of a protobuf message; beyond it the weights would have to live outside the file


def export(module: nn.Module, path: Path, *, in_ch: int, size: int, metadata: dict[str, str],
           batch: int | str = "N") -> None:
    """Writes ``input`` [batch, in_ch, size, size] -> ``output`` atomically; ``metadata`` becomes ``metadata_props``.

    Raises UserError if the weights do not fit into one file.
    """
    model = lower(module, in_ch=in_ch, size=size, batch=batch)
    if model.ByteSize() > MAX_BYTES:
        raise UserError(f"{path}: {model.ByteSize() / 2**30:.1f} GiB of weights do not fit into one ONNX file (2 GiB)")
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    write_atomic(path, lambda file: file.write(data))


def lower(module: nn.Module, *, in_ch: int, size: int, batch: int | str = "N") -> onnx.ModelProto:
    """The graph in eval mode: milliseconds a block through ``emit``, seconds where it needs ``torch.onnx``."""
    try:
        return emit(module, in_ch=in_ch, size=size, batch=batch)
    except NoRule:
        return through_torch(module, in_ch=in_ch, size=size, batch=batch)


def through_torch(module: nn.Module, *, in_ch: int, size: int, batch: int | str = "N") -> onnx.ModelProto:
    """The same graph from PyTorch's own exporter; whatever it prints goes to stderr."""
    x = torch.zeros(2 if isinstance(batch, str) else batch, in_ch, size, size)
    shapes = ({0: torch.export.Dim(batch)},) if isinstance(batch, str) else None
    training = module.training
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(module.eval(), (x,), dynamo=True, dynamic_shapes=shapes, opset_version=OPSET,
                                        input_names=["input"], output_names=["output"], verbose=False)
    finally:
        module.train(training)
    assert program is not None
    return program.model_proto
