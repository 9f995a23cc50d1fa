"""Writes TFLite files (https://ai.google.dev/edge/litert, schema version 3) with the classes of the ``tflite`` package.

One subgraph, built tensor by tensor and operator by operator; nothing here knows what the operators compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.errors import UserError

Array = np.ndarray[Any, Any]
ALIGNMENT = 16  # bytes, of the weights: the schema's force_align
MISSING = "this needs the extra npu: pip install '.[npu]' (Python 3.13 or older)"


@dataclass(frozen=True)
class Quantization:
    """Says what stored integers stand for: real = scale * (stored - zero); one pair, or one a slice along ``axis``."""

    scale: Array
    zero: Array
    axis: int = 0

    @staticmethod
    def of(scale: float, zero: int) -> Quantization:
        return Quantization(np.array([scale], np.float32), np.array([zero], np.int64))


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None
    data: Array | None


@dataclass(frozen=True)
class _Operator:
    code: int
    inputs: Sequence[int]
    outputs: Sequence[int]
    options: str | None
    fields: dict[str, Any]


class Model:
    """Collects tensors and operators, of which ``serialize`` makes a TFLite file.

    Raises UserError where the package ``tflite`` is missing.
    """

    def __init__(self) -> None:
        try:
            import flatbuffers
            import tflite
        except ImportError:
            raise UserError(MISSING) from None
        self._schema: Any = tflite
        self._builder: Any = flatbuffers.Builder(1 << 16)
        self._tensors: list[_Tensor] = []
        self._operators: list[_Operator] = []

    def tensor(self, name: str, shape: Sequence[int], dtype: str = "int8", quantization: Quantization | None = None,
               data: Array | None = None) -> int:
        """Adds a tensor, with ``data`` a constant one, and returns its index."""
        self._tensors.append(_Tensor(name, tuple(map(int, shape)), dtype, quantization, data))
        return len(self._tensors) - 1

    def constant(self, name: str, data: Array, quantization: Quantization | None = None) -> int:
        return self.tensor(name, data.shape, str(data.dtype), quantization, data)

    def operator(self, code: str, inputs: Sequence[int], outputs: Sequence[int], options: str | None = None,
                 **fields: Any) -> None:
        """Adds an operator that reads and writes the tensors of these indices.

        ``code`` is a name of the schema's BuiltinOperator, ``options`` one of its tables, with ``fields`` in it.
        """
        self._operators.append(_Operator(getattr(self._schema.BuiltinOperator, code), inputs, outputs, options, fields))

    def serialize(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """Writes the file for a graph from the tensors ``inputs`` to the tensors ``outputs`` (indices)."""
        codes = sorted({operator.code for operator in self._operators})
        tensors = self._offsets([self._tensor(number, tensor) for number, tensor in enumerate(self._tensors)])
        operators = self._offsets([self._operator(operator, codes) for operator in self._operators])
        graph = self._table("SubGraph", Tensors=tensors, Operators=operators, Inputs=self._ints(inputs),
                            Outputs=self._ints(outputs), Name=self._builder.CreateString("main"))
        kinds = [self._table("OperatorCode", DeprecatedBuiltinCode=min(code, 127), BuiltinCode=code, Version=1)
                 for code in codes]
        buffers = [self._table("Buffer"), *(self._buffer(tensor) for tensor in self._tensors)]  # buffer 0 stays empty
        model = self._table("Model", Version=3, Subgraphs=self._offsets([graph]), OperatorCodes=self._offsets(kinds),
                            Buffers=self._offsets(buffers), Description=self._builder.CreateString("nas"))
        self._builder.Finish(model, file_identifier=b"TFL3")
        return bytes(self._builder.Output())

    def _tensor(self, number: int, tensor: _Tensor) -> int:
        quantization = {} if tensor.quantization is None else {"Quantization": self._quantization(tensor.quantization)}
        return self._table("Tensor", Name=self._builder.CreateString(tensor.name), Shape=self._ints(tensor.shape),
                           Type=getattr(self._schema.TensorType, tensor.dtype.upper()), Buffer=number + 1,
                           **quantization)

    def _quantization(self, value: Quantization) -> int:
        scale = self._builder.CreateNumpyVector(value.scale.astype(np.float32))
        zero = self._builder.CreateNumpyVector(value.zero.astype(np.int64))
        return self._table("QuantizationParameters", Scale=scale, ZeroPoint=zero, QuantizedDimension=value.axis)

    def _operator(self, operator: _Operator, codes: list[int]) -> int:
        how = {}
        if operator.options is not None:
            how = {"BuiltinOptionsType": getattr(self._schema.BuiltinOptions, operator.options),
                   "BuiltinOptions": self._table(operator.options, **operator.fields)}
        return self._table("Operator", OpcodeIndex=codes.index(operator.code), Inputs=self._ints(operator.inputs),
                           Outputs=self._ints(operator.outputs), **how)

    def _buffer(self, tensor: _Tensor) -> int:
        if tensor.data is None:
            return self._table("Buffer")
        data = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), np.uint8)
        self._builder.Prep(ALIGNMENT, data.size)
        return self._table("Buffer", Data=self._builder.CreateNumpyVector(data))

    def _table(self, kind: str, **fields: Any) -> int:
        self._call(f"{kind}Start")
        for name, value in fields.items():
            self._call(f"{kind}Add{name}", value)
        return int(self._call(f"{kind}End"))

    def _call(self, name: str, *args: Any) -> Any:
        function: Callable[..., Any] = getattr(self._schema, name)
        return function(self._builder, *args)

    def _ints(self, values: Sequence[int]) -> int:
        return int(self._builder.CreateNumpyVector(np.array(values, np.int32)))

    def _offsets(self, values: Sequence[int]) -> int:
        self._builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self._builder.PrependUOffsetTRelative(value)
        return int(self._builder.EndVector())


def operators_of(model: bytes) -> list[tuple[str, str]]:
    """Lists (name of its output, kind) of every operator of a file that ``Model`` wrote, in order."""
    import tflite

    kinds = {code: name for name, code in vars(tflite.BuiltinOperator).items() if isinstance(code, int)}
    file = tflite.Model.GetRootAs(model)
    graph = file.Subgraphs(0)
    operators = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    return [(graph.Tensors(operator.Outputs(0)).Name().decode(),
             kinds[file.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()]) for operator in operators]
