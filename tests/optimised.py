"""What ONNX Runtime makes of a graph, for tests of what it fuses."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime


def node_kinds(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Kinds of the nodes that are run, after ONNX Runtime's optimisation."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
