"""Functions that write a model in another format, for processes with torch.

Each gets a model, an example, the dimensions of any size and a path, and returns notes about the result::

    to_onnx(model, (images,), ({0: "batch"},), Path("model.onnx"))

`EXPORTERS` has all of them. They raise `torchmar.conversion.process.Rejected` with the operation that cannot be
exported and its place in the model's source. They do not compare answers, which the caller does in a new process.
"""

from __future__ import annotations

from collections.abc import Callable

from torchmar.conversion.exporters.aotinductor import to_aoti
from torchmar.conversion.exporters.exported import to_export
from torchmar.conversion.exporters.model import Axes, Model
from torchmar.conversion.exporters.onnx_model import to_onnx
from torchmar.conversion.exporters.openvino_ir import to_openvino
from torchmar.conversion.exporters.torchscript import to_torchscript_script, to_torchscript_trace

__all__ = [
    "EXPORTERS",
    "Axes",
    "Model",
    "to_aoti",
    "to_export",
    "to_onnx",
    "to_openvino",
    "to_torchscript_script",
    "to_torchscript_trace",
]

EXPORTERS: dict[str, Callable[..., list[str]]] = {
    "torchscript-trace": to_torchscript_trace,
    "torchscript-script": to_torchscript_script,
    "onnx": to_onnx,
    "export": to_export,
    "aoti": to_aoti,
    "openvino": to_openvino,
}
