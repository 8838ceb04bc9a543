"""Faults of inputs and of models, distinguished by running the model on another input."""

from __future__ import annotations

import contextlib
import copy
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from ts.utils.util import PredictionException

from torchmar_handlers import protocols
from torchmar_handlers.request import BadRequest, NotFinite, Request

logger = logging.getLogger(__name__)

Step = Callable[[Any, Sequence[Request]], Sequence[Any]]

_SAMPLES = 4
_MODULE = "torch.nn.modules.module"  # the module that calls every model, including TorchScript and exported programs
_RESOURCES = ("CUDA", "allocate memory", "out of memory")  # words in the messages of torch's allocators
_LIBRARIES = ("torch", "onnxruntime", "openvino")
_LONGEST = 300  # characters of an error that a client gets


class Handler(protocols.HandlerInfo, Protocol):
    """The methods of a handler that are needed here."""

    def decode(self, request: Request) -> Any: ...
    def preprocess(self, inputs: Sequence[Any]) -> Any: ...
    def sample_requests(self) -> Sequence[Request]: ...
    def typical_inputs(self) -> Iterator[Any]: ...


class KnownInputs:
    """Inputs that a handler's model accepts, or probably accepts: the archive's samples, or typical inputs.

    Args:
        handler: handler of the model.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._samples: list[tuple[Request, Any]] | None = None
        self._answered: list[Any] = []
        self._keeps = True

    def keep(self, value: Any) -> None:
        """Keep the first input that was answered, for archives without samples."""
        if self._keeps:
            self._keeps = False
            # A copy, because its memory may be a buffer that is used again; an input that cannot be copied is not kept.
            with contextlib.suppress(Exception):
                self._answered.append(copy.deepcopy(value))

    def samples(self) -> list[tuple[Request, Any]]:
        """Return a decoded instance of each of the archive's samples, except samples that are rejected."""
        if self._samples is None:
            samples = []
            for sample in self._handler.sample_requests()[: 2 * _SAMPLES]:
                try:
                    part = protocols.read(sample, self._handler).parts[0]
                    samples.append((part, self._handler.decode(part)))
                except Exception:
                    logger.debug("a sample cannot be read", exc_info=True)
            self._samples = samples
        return self._samples[:_SAMPLES]

    def __iter__(self) -> Iterator[tuple[Request, Any, bool]]:
        """Yield a request, its decoded input, and whether it comes from a client or from the archive's samples."""
        for request, value in self.samples():
            yield request, value, True
        for value in self._answered:
            yield Request(0, {}, {}), value, True
        for value in self._handler.typical_inputs():
            yield Request(0, {}, {}), value, False


def of_step(
    handler: Handler,
    known_inputs: KnownInputs,
    step: Step,
    request: Request,
    value: Any,
    error: Exception,
    *,
    repeat: Callable[[], Any] | None = None,
) -> Any:
    """Return the answer or the exception for a request that failed alone with ``error``.

    If the model then accepts another input, and fails for this one again, the fault is in the input.

    Args:
        handler: handler that failed.
        known_inputs: inputs that the model should accept.
        step: method that failed: of a prediction or an explanation.
        request: request whose options also apply to the explanation of another input.
        value: the decoded input; None: this process does not have it.
        error: exception that was raised.
        repeat: function that returns the answer, in place of ``step`` with the input.

    Returns:
        The answer, if the step succeeds this time; else an exception: BadRequest, or ``error`` itself.
    """
    if not _may_be_the_input(error) or not (isinstance(error, NotFinite) or _is_of_the_model(error)):
        return error
    for other, reference, is_sent in known_inputs:
        try:
            step(handler.preprocess([reference]), [request if request.wants_explanation else other])
        except Exception:
            continue
        try:
            if repeat is not None:
                return repeat()
            (answer,) = step(handler.preprocess([value]), [request])
        except Exception as repeated:
            return _bad_request(value, reference, repeated, is_sent)
        return answer
    return error


def of_reading(known_inputs: KnownInputs, error: Exception) -> Exception:
    """Return the exception for a request that cannot be read: BadRequest if a sample can, else ``error`` itself."""
    if isinstance(error, PredictionException) or not _may_be_the_input(error) or not known_inputs.samples():
        return error
    logger.info("an input cannot be read, and a sample can", exc_info=error)
    return BadRequest(f"the input cannot be read: {_last_line(error)}")


def _may_be_the_input(error: Exception) -> bool:
    """Return whether the content of a request may cause an error, and not memory, files or other resources."""
    if isinstance(error, PredictionException):
        return isinstance(error, NotFinite)
    if isinstance(error, MemoryError | OSError | torch.cuda.OutOfMemoryError):
        return False
    text = str(error)
    return not any(sign in text for sign in _RESOURCES)


def _is_of_the_model(error: Exception) -> bool:
    """Return whether an error was raised while the model ran, and not while a handler processed its output.

    A missing label of a class is a fault of the archive, for any input.
    """
    names = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return _MODULE in names or names[-1].partition(".")[0] in _LIBRARIES


def _bad_request(value: Any, reference: Any, error: Exception, is_sent: bool) -> Exception:
    if isinstance(error, NotFinite):
        return BadRequest(error.message)
    if isinstance(error, PredictionException) or not _may_be_the_input(error):
        return error
    message = "the model cannot take this input"
    dtypes = _kinds(value) != _kinds(reference) or shape(value) == shape(reference)
    expected, actual = shape(reference, dtypes=dtypes), shape(value, dtypes=dtypes)
    if expected and actual and expected != actual:
        prefix = "" if dtypes else "shape " if is_sent else "a shape such as "
        message += f": expected {prefix}{expected}, got {actual}"
    logger.info("an input was rejected: %s", message)
    return BadRequest(f"{message}: {_last_line(error)}")


def shape(value: Any, *, dtypes: bool = False) -> str:
    """Return the shapes of a decoded input as text, ``[1, 28, 28]``; empty: it has none.

    Args:
        value: a tensor or an array, an object with such ``values``, or several by name or position.
        dtypes: whether to write the types of the numbers before their shapes.
    """
    value = _inner(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        dtype = f"{str(value.dtype).removeprefix('torch.')} " if dtypes else ""
        return f"{dtype}{list(value.shape)}"
    if isinstance(value, Mapping):
        texts = {name: shape(element, dtypes=dtypes) for name, element in value.items()}
        return ", ".join(f"{name}: {text}" if name and len(texts) > 1 else text for name, text in texts.items() if text)
    if isinstance(value, tuple):
        return ", ".join(text for item in value if (text := shape(item, dtypes=dtypes)))
    return ""


def _inner(value: Any) -> Any:
    """Return the ``values`` of an object that has them, as inputs of images do; tensors have a method of this name."""
    return value if isinstance(value, torch.Tensor | np.ndarray | Mapping) else getattr(value, "values", value)


def _kinds(value: Any) -> list[bool]:
    """Return for each tensor whether it has whole numbers, or bytes of an image, which the model takes as floats."""
    value = _inner(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        return [not str(value.dtype).removeprefix("torch.").startswith(("float", "bfloat", "uint8"))]
    several = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else ()
    return [kind for item in several for kind in _kinds(item)]


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[-1].strip()}".removesuffix(": ")
    # TorchScript repeats the name of an exception before its message.
    text = text.replace(f"{type(error).__name__}: {type(error).__name__}: ", f"{type(error).__name__}: ")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
