"""OpenVINO models in float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchmar.optimizing.process import exporting, processor
from torchmar.optimizing.process.captured import Captured
from torchmar.optimizing.process.jobs import Made, NotApplicable
from torchmar.optimizing.process.source import Source

FILES = ("model.xml", "model.bin")


def make_openvino(source: Source, inputs: Sequence[Captured], folder: Path, dtype: str | None = None) -> Made:
    """Write the weights as a model of OpenVINO that computes in ``dtype``; None: float32.

    Raises:
        NotApplicable: the weights are an OpenVINO model already, or in a format that OpenVINO does not read.
    """
    from torchmar_handlers.weights import openvino_ir

    options = {} if dtype is None else {"dtype": dtype}
    needs = () if dtype is None else processor.needs(dtype)
    if dtype is not None and not needs:
        raise NotApplicable(f"this processor has no instructions for {dtype}, and OpenVINO computes with float32 then")
    if source.format == "OPENVINO":
        if dtype is None:
            raise NotApplicable("the original is an OpenVINO model: this is the baseline")
        return Made(options=options, needs=needs, packages=("openvino",))
    openvino = openvino_ir.imported()
    openvino.save_model(exporting.openvino(source, inputs), folder / FILES[0], compress_to_fp16=False)
    return Made(options=options, files=FILES, needs=needs, packages=("openvino",))
