"""ONNX models, run by ONNX Runtime."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmar_handlers.weights.exported_model import ExportedModel, Input
from torchmar_handlers.weights.load_error import LoadError, summary

logger = logging.getLogger(__name__)

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int8)": torch.int8,
    "tensor(int16)": torch.int16,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}

# The time for which an idle thread waits actively, the same as for OpenMP's threads in workers. ONNX Runtime's default
# is milliseconds, which take the cores of other workers. Versions before 1.26 ignore this option.
_ACTIVE_WAIT_US = "50"

_ON_GPU = ("TensorrtExecutionProvider", "CUDAExecutionProvider")


class Onnx(ExportedModel):
    """An ONNX model, as a module: one output is returned alone, several as a tuple in the order of ``output_names``."""

    def __init__(self, session: Any, inputs: Sequence[Input], device: torch.device, *, bound: bool) -> None:
        super().__init__(inputs, [output.name for output in session.get_outputs()])
        self._session = session
        self._device = device
        self._bound = bound
        self._types = [output.type for output in session.get_outputs()]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on inputs given by position or by name; the outputs are on the worker's device."""
        values = self.arrange(args, kwargs)
        outputs = self._run_bound(values) if self._bound else self._run(values)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _run(self, values: Sequence[torch.Tensor]) -> list[Any]:
        feeds = {name: value.detach().cpu().numpy() for name, value in zip(self.input_names, values, strict=True)}
        return [self._of_numpy(output) for output in self._session.run(None, feeds)]

    def _run_bound(self, values: Sequence[torch.Tensor]) -> list[Any]:
        """Run with bound memory of the device, where inputs and outputs stay."""
        binding = self._session.io_binding()
        place = (self._device.type, self._device.index or 0)
        # Memory that ONNX Runtime reads must exist until the run ends; torch's references do not ensure that.
        contiguous = [value.detach().to(self._device).contiguous() for value in values]
        for name, value in zip(self.input_names, contiguous, strict=True):
            element = torch.empty((), dtype=value.dtype).numpy().dtype.type
            binding.bind_input(name, *place, element, tuple(value.shape), value.data_ptr())
        for name in self.output_names:
            binding.bind_output(name, *place)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        self._session.run_with_iobinding(binding)
        return [self._of_memory(value, kind) for value, kind in zip(binding.get_outputs(), self._types, strict=True)]

    def _of_numpy(self, output: Any) -> Any:
        if not isinstance(output, np.ndarray) or output.dtype.hasobject:
            return output.tolist() if isinstance(output, np.ndarray) else output
        return torch.from_numpy(output).to(self._device)

    def _of_memory(self, value: Any, kind: str) -> torch.Tensor:
        if hasattr(value, "__dlpack__"):
            # As a capsule: the newer forms of this exchange differ between torch and ONNX Runtime.
            tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(value.__dlpack__())
        else:
            tensor = torch.from_numpy(value.numpy()).to(self._device)
        return tensor.to(torch.bool) if kind == "tensor(bool)" else tensor


def load(path: Path, device: torch.device, threads: int, providers: Sequence[str] = ()) -> Onnx:
    """Return a model for ``device``; ONNX Runtime maps tensors in separate files.

    Args:
        path: file of the model.
        device: device of the inputs and outputs.
        threads: threads of one operator on the CPU.
        providers: ONNX Runtime's providers, the preferred first; empty: those of the device.

    Raises:
        LoadError: the model is damaged, has an input that is no tensor, or ONNX Runtime or a provider is missing.
    """
    # Since 1.29, it sends statistics about models and the machine to Microsoft, unless this is set before it is loaded.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        package = "onnxruntime" if device.type == "cpu" else "onnxruntime-gpu"
        raise LoadError(
            f"{path.name} is an ONNX model, and ONNX Runtime is not installed: `pip install {package}`, or name it "
            "in the archive's requirements"
        ) from error
    available = onnxruntime.get_available_providers()
    if unknown := [name for name in providers if name not in available]:
        raise LoadError(
            f"model-config.yaml: handler.providers: {unknown[0]!r} is none of {', '.join(available)}, "
            f"which the installed ONNX Runtime {onnxruntime.__version__} has"
        )
    usual = ["CUDAExecutionProvider", "CPUExecutionProvider"] if device.type == "cuda" else ["CPUExecutionProvider"]
    chosen = list(providers) or [name for name in usual if name in available]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.spin_duration_us", _ACTIVE_WAIT_US)
    places = [{"device_id": str(device.index or 0)} if name in _ON_GPU else {} for name in chosen]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=chosen, provider_options=places)
    except Exception as error:  # its exceptions share no other base
        raise LoadError(
            f"{path.name} is an ONNX model that ONNX Runtime {onnxruntime.__version__} cannot load: it is damaged, "
            f"lacks a file of its tensors, or needs a newer ONNX Runtime ({summary(error)})"
        ) from error
    on_gpu = any(name in _ON_GPU for name in session.get_providers())
    if device.type == "cuda" and not on_gpu:
        logger.warning(
            "%s: ONNX Runtime has no GPU here (%s), so the model runs on the CPU: `pip install onnxruntime-gpu` in the "
            "place of onnxruntime, or set deviceType: cpu",
            path.name,
            ", ".join(session.get_providers()),
        )
    inputs = [_input(path, tensor) for tensor in session.get_inputs()]
    tensors = all(output.type in _DTYPES for output in session.get_outputs())
    return Onnx(session, inputs, device, bound=device.type == "cuda" and on_gpu and tensors)


def _input(path: Path, tensor: Any) -> Input:
    if tensor.type not in _DTYPES:
        raise LoadError(f"{path.name}: the input {tensor.name!r} is {tensor.type}; a handler gives tensors of numbers")
    return Input(
        tensor.name,
        _DTYPES[tensor.type],
        tuple(size if isinstance(size, int) and size > 0 else None for size in tensor.shape),
    )
