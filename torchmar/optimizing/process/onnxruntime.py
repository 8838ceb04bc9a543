"""ONNX Runtime, float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchmar.optimizing.process import exporting
from torchmar.optimizing.process.captured import Captured
from torchmar.optimizing.process.jobs import Made, NotApplicable
from torchmar.optimizing.process.source import Source

FILE = "model.onnx"
_TENSORRT = ("TensorrtExecutionProvider", "CUDAExecutionProvider")


def make_onnxruntime(source: Source, inputs: Sequence[Captured], folder: Path, tensorrt: bool = False) -> Made:
    """Write the weights as an ONNX model.

    Args:
        source: the original.
        inputs: recorded inputs.
        folder: folder for the file.
        tensorrt: whether ONNX Runtime runs the model by TensorRT.

    Raises:
        NotApplicable: the weights are an ONNX model already, cannot become one, or the installed ONNX Runtime has no
            TensorRT.
    """
    if tensorrt:
        import onnxruntime

        if _TENSORRT[0] not in onnxruntime.get_available_providers():
            raise NotApplicable(f"the installed ONNX Runtime has no {_TENSORRT[0]}: pip install onnxruntime-gpu")
        if source.format == "ONNX":
            return Made(options={"providers": list(_TENSORRT)}, packages=("onnxruntime-gpu",))
    exporting.onnx(source, inputs, folder / FILE)
    options = {"providers": list(_TENSORRT)} if tensorrt else {}
    return Made(options=options, files=(FILE,), packages=("onnxruntime-gpu" if tensorrt else "onnxruntime",))
