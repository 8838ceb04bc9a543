"""Models in OpenVINO's intermediate representation (``model.xml`` with ``model.bin``), run by OpenVINO on the CPU."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmar_handlers.weights.exported_model import ExportedModel, Input
from torchmar_handlers.weights.load_error import LoadError, summary

logger = logging.getLogger(__name__)

_DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
    "boolean": torch.bool,
}
_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
# On CPUs, OpenVINO computes with half the bits of these types, and drops the upper bits of integers without an error.
_NARROWED = {torch.int64: torch.int32, torch.float64: torch.float32}


class OpenVino(ExportedModel):
    """A model of OpenVINO, as a module; several outputs are a tuple in the order of ``output_names``."""

    def __init__(
        self, compiled: Any, inputs: Sequence[Input], output_names: Sequence[str], device: torch.device
    ) -> None:
        super().__init__(inputs, output_names)
        self._request = compiled.create_infer_request()
        self._stateful = bool(self._request.query_state())
        self._device = device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on inputs given by position or by name; the outputs are on the worker's device.

        Raises:
            ValueError: an input has another shape, or a number that OpenVINO would change.
            TypeError: inputs are missing, unknown or of another type.
            RuntimeError: the model cannot compute with them.
        """
        values = self.arrange(args, kwargs)
        if self._stateful:  # the state after one request must not change the answer of the next
            self._request.reset_state()
        arrays = [_checked(value.detach().cpu(), place) for place, value in enumerate(values)]
        # Inputs are read without a copy; outputs are copied, because the next call overwrites them.
        try:
            answer = self._request.infer(dict(enumerate(arrays)), share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise RuntimeError(reason(error)) from error
        outputs = [self._of_numpy(output) for output in answer.to_tuple()]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _of_numpy(self, output: Any) -> Any:
        return output.tolist() if output.dtype.kind in "SUO" else torch.from_numpy(output).to(self._device)


def load(path: Path, device: torch.device, threads: int, dtype: torch.dtype | None = None) -> OpenVino:
    """Return a model; its weights, in the file with the same name and ``.bin`` beside it, are mapped.

    Args:
        path: file ``.xml``.
        device: device of the inputs and outputs; the model itself runs on the CPU.
        threads: threads of the model.
        dtype: type of the computation; None: float32, on any processor.

    Raises:
        LoadError: the model is damaged, its weights are missing, it has an input that is no tensor, or OpenVINO is
            missing.
    """
    try:
        openvino = imported()
    except ImportError as error:
        raise LoadError(
            f"{path.name} is an OpenVINO model, and OpenVINO is not installed: `pip install openvino`, or name it in "
            "the archive's requirements"
        ) from error
    core = shared_core()
    model = _read(openvino, core, path)
    inputs = [_input(path, port, name) for port, name in zip(model.inputs, names(model.inputs, "input"), strict=True)]
    output_names = names(model.outputs, "output")
    settings = {
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # with pinning, all workers would run on the first cores
        # The default is bfloat16 if the processor has it, and answers would depend on the machine.
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype or torch.float32],
        "EXECUTION_MODE_HINT": "ACCURACY" if dtype in (None, torch.float32) else "PERFORMANCE",
    }
    try:
        compiled = core.compile_model(_with_known_types(openvino, model), "CPU", settings)
    except Exception as error:  # RuntimeError, and errors of its plugin
        raise LoadError(
            f"{path.name} is an OpenVINO model that OpenVINO {openvino.__version__} cannot run on this processor: "
            f"{reason(error)}"
        ) from error
    if device.type != "cpu":
        logger.warning(
            "%s: OpenVINO has no support for this GPU, so the model runs on the CPU: set deviceType: cpu", path.name
        )
    return OpenVino(compiled, inputs, output_names, device)


def imported() -> Any:
    """Import OpenVINO without the package that sends statistics about its use.

    ``openvino`` requires ``openvino-telemetry`` and sends an event when it is imported. If that package cannot be
    imported, OpenVINO uses its own empty replacement.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    if "openvino" not in sys.modules:
        # In Python, None marks a module that must not be imported.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@functools.cache
def shared_core() -> Any:
    """Return the Core of this process, which loads and runs all of its models.

    A Core that runs a model on the CPU sets the thread's stack for signal handlers, and restores the previous stack
    when it ends. If several end in the order of their creation, the last one restores the stack of a Core that has
    ended, and the next signal with a handler, such as Ctrl-C, kills the process.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    return imported().Core()


def names(ports: Sequence[Any], kind: str) -> list[str]:
    """Return the names of inputs or outputs: the shortest name of each; numbered if names are not unique."""
    shortest = [min(port.get_names(), key=lambda name: (len(name), name), default="") for port in ports]
    if all(shortest) and len(set(shortest)) == len(shortest):
        return shortest
    return [f"{kind}_{place}" for place in range(len(shortest))]


def reason(error: BaseException) -> str:
    """Return an error of OpenVINO on one line, without places in its source code."""
    lines = [line.strip() for line in str(error).splitlines()]
    messages = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return summary(RuntimeError(" ".join(messages or lines)))


def _read(openvino: Any, core: Any, path: Path) -> Any:
    weights = path.with_suffix(".bin")
    try:
        return core.read_model(path, weights) if weights.is_file() else core.read_model(path)
    except Exception as error:  # RuntimeError, and errors of its readers
        cause = (
            "it is damaged" if weights.is_file() else f"the archive lacks {weights.name}, its weights; it is damaged"
        )
        raise LoadError(
            f"{path.name} is an OpenVINO model that OpenVINO {openvino.__version__} cannot load: {cause}, or needs a "
            f"newer OpenVINO ({reason(error)})"
        ) from error


def _input(path: Path, port: Any, name: str) -> Input:
    kind, shape = port.element_type.get_type_name(), port.partial_shape
    if kind not in _DTYPES and kind != "bf16":
        raise LoadError(f"{path.name}: the input {name!r} is {kind}; a handler gives tensors of numbers")
    sizes = None if shape.rank.is_dynamic else tuple(None if size.is_dynamic else size.get_length() for size in shape)
    return Input(name, _DTYPES.get(kind, torch.float32), sizes)


def _with_known_types(openvino: Any, model: Any) -> Any:
    """Return the model with float32 and int64 in place of types that NumPy does not have, such as bfloat16."""
    processor = openvino.preprocess.PrePostProcessor(model)
    changed = False
    for ports, part in ((model.inputs, processor.input), (model.outputs, processor.output)):
        for place, port in enumerate(ports):
            kind = port.element_type
            if kind.get_type_name() not in (*_DTYPES, "string"):
                part(place).tensor().set_element_type(openvino.Type.f32 if kind.is_real() else openvino.Type.i64)
                changed = True
    return processor.build() if changed else model


def _checked(value: torch.Tensor, place: int) -> np.ndarray[Any, Any]:
    """Return an input as an array.

    Raises:
        ValueError: the input has numbers that OpenVINO would change.
    """
    if narrow := _NARROWED.get(value.dtype):
        limits: Any = torch.finfo(narrow) if narrow.is_floating_point else torch.iinfo(narrow)
        finite = value[value.isfinite()] if narrow.is_floating_point else value
        if finite.numel() and (finite.min() < limits.min or finite.max() > limits.max):
            name = str(narrow).removeprefix("torch.")
            raise ValueError(f"input {place} has a number beyond {name}, which OpenVINO computes with")
    return np.ascontiguousarray(value.numpy())
