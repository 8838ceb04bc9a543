"""A handler that returns tensors for tensors, for models of any kind that need no other steps."""

from __future__ import annotations

import difflib
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from torchmar_handlers import weights
from torchmar_handlers.arrays import specification
from torchmar_handlers.arrays.decoding import array_of, is_many, numpy_dtype
from torchmar_handlers.arrays.outputs import is_finite, to_numpy
from torchmar_handlers.arrays.specification import described
from torchmar_handlers.base import BaseHandler
from torchmar_handlers.common import npy, signatures
from torchmar_handlers.common.reply import Reply
from torchmar_handlers.protocols import plain_json
from torchmar_handlers.protocols.tensors import datatype
from torchmar_handlers.request import MAPPINGS, TEXTS, BadRequest, NotFinite, Request
from torchmar_handlers.weights import Input, first_layer

_SIZES = (1, 8, 32)  # sizes of dimensions of any size, for trial runs of a model
_BESIDE = "parameters"  # key of a JSON object that is no input
_STEPS_OF_PLAIN = ("rows", "decode", "group", "preprocess", "predict_handle")  # steps that `answer_plain` shortens


class TensorHandler(BaseHandler):
    """Answer tensors with tensors; options in the ``handler`` section of the configuration.

    ============== ======================== ==========================================================
    option         default                  meaning
    ============== ======================== ==========================================================
    inputs         what the weights know    a list of ``name``, ``dtype`` (float32) and ``shape`` of
                                            one instance, without the dimension of the batch; null is
                                            any size, and no shape any shape
    outputs        what the weights know    the names of the outputs, in the model's order; of a model
                                            that returns a dict, those to answer with
    non_finite     refuse                   NaN and infinity in JSON answers: ``refuse`` fails that
                                            request, ``null`` puts null in their place
    ============== ======================== ==========================================================

    ONNX models and exported programs declare their inputs; of TorchScript and eager models, only the names
    are known. Numbers in JSON are then float32 if any has a fraction, else int64, and
    an array is one instance.

    An instance is the array itself, in JSON or ``.npy``, if the model has one input, or
    ``{name: array}``. A body with one dimension more is many instances, as is an array of objects;
    KServe's and TensorFlow Serving's protocols have their own forms. One output is returned as the array
    itself (in ``.npy`` if that was sent, or is accepted), several as ``{name: array}``. Instances
    of different shapes share no forward pass. There are no explanations.
    """

    named = True

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        declared = specification.declared(self.model)
        self.inputs = specification.of_option(self.options.get("inputs"), declared)
        self.by_name = {tensor.name for tensor in self.inputs} <= set(weights.input_names(self.model))
        self.output_names = specification.output_names(self.options.get("outputs"))
        self.non_finite = self.options.text("non_finite", "refuse", choices=("refuse", "null"))
        # An error for numbers that are not finite would make the model run once more.
        has_stock_steps = all(getattr(type(self), name) is getattr(TensorHandler, name) for name in _STEPS_OF_PLAIN)
        self._plain = has_stock_steps and len(self.inputs) == 1 and self.non_finite == "refuse"
        self._taken, self._given = signatures.Observed(), signatures.Observed()
        self._observes = True
        self.warm_up(context)
        self._observes = False

    def rows(self, request: Request) -> list[Any] | None:
        """Return the instances of a body with one dimension more than an instance has."""
        payload = _payload(request)
        if isinstance(payload, list):
            if payload and isinstance(payload[0], MAPPINGS) and all(isinstance(item, MAPPINGS) for item in payload):
                return payload
        elif isinstance(payload, MAPPINGS):
            values = {name: value for name, value in payload.items() if name != _BESIDE}
            if not values or not all(is_many(value, self._input(name)) for name, value in values.items()):
                return None
            counts = {name: len(value) for name, value in values.items()}
            if len(set(counts.values())) > 1:
                message = ", ".join(f"{name}: {count}" for name, count in counts.items())
                raise BadRequest(f"the inputs have different numbers of instances: {message}")
            return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        return list(payload) if len(self.inputs) == 1 and is_many(payload, self.inputs[0]) else None

    def typical_inputs(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield zeros of the known shapes, or of the shapes that the first layer of the model suggests."""
        if all(spec.shape is not None for spec in self.inputs):
            for size in _SIZES:
                yield {
                    spec.name: np.zeros(
                        [size if free is None else free for free in spec.shape or ()],
                        np.float32 if spec.dtype is None else numpy_dtype(spec.dtype),
                    )
                    for spec in self.inputs
                }
        elif len(self.inputs) == 1:
            (only,) = self.inputs
            for tensor in first_layer.typical_inputs(self.model):
                yield {only.name: tensor[0].numpy()}

    def decode(self, request: Request) -> dict[str, np.ndarray]:
        """Return the arrays of one instance by name, in the order of the inputs."""
        payload = _payload(request)
        if payload is None:
            raise BadRequest(f"the body is empty; {self._expected()}")
        if isinstance(payload, list) or not isinstance(payload, MAPPINGS):
            if len(self.inputs) > 1:
                raise BadRequest(f"the model has {len(self.inputs)} inputs; {self._expected()}")
            return {self.inputs[0].name: array_of(payload, self.inputs[0])}
        values = {name: value for name, value in payload.items() if name != _BESIDE}
        if len(self.inputs) == len(values) == 1 and not self.inputs[0].name:
            return {"": array_of(next(iter(values.values())), self.inputs[0])}
        names = [tensor.name for tensor in self.inputs]
        for name in values:
            if name not in names:
                close = difflib.get_close_matches(str(name), names, 1)
                hint = f"did you mean {close[0]!r}?" if close else self._expected()
                raise BadRequest(f"there is no input {str(name)[:60]!r}; {hint}")
        for name in names:
            if name not in values:
                raise BadRequest(f"the input {name!r} is missing; {self._expected()}")
        return {tensor.name: array_of(values[tensor.name], tensor) for tensor in self.inputs}

    def answer_plain(self, data: Sequence[Any], context: Any) -> tuple[float, list[Reply]] | None:
        """Answer a batch of arrays in JSON, all of the same shape, and each one instance of the only input.

        For a small model, the steps of other requests take longer than the model.
        """
        if not self._plain or len(data) > self.max_forward_batch:
            return None
        (spec,) = self.inputs
        arrays: list[np.ndarray] = []
        try:
            for index, row in enumerate(data):
                body = row["body"]
                if type(body) is not list or len(row) > 1 or not plain_json(context, index):
                    return None
                array = array_of(body, spec)
                if not array.size or array.ndim > self.max_json_depth:
                    return None
                if arrays and (array.shape != arrays[0].shape or array.dtype != arrays[0].dtype):
                    return None
                arrays.append(array)
            decoded = time.perf_counter()
            (output,) = self._outputs({spec.name: super().preprocess(arrays)}, len(arrays)).values()
            if not is_finite(output):
                return None
            replies = [Reply.json(answer) for answer in output.tolist()]
        except Exception:  # `handle` repeats it, and distinguishes faults of the input and of the model
            return None
        self.known_inputs.keep({spec.name: arrays[0]})
        return decoded, replies

    def group(self, decoded: dict[str, np.ndarray]) -> Hashable:
        """Return the shapes and types that instances must share to be one batch."""
        return tuple([(array.shape, array.dtype.char) for array in decoded.values()])

    def preprocess(self, inputs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Stack each input, ``(n, ...)``."""
        return {
            name: super(TensorHandler, self).preprocess([instance[name] for instance in inputs]) for name in inputs[0]
        }

    def predict_handle(self, batch: dict[str, torch.Tensor], requests: Sequence[Request]) -> Sequence[Any]:
        """Return the outputs of each instance: an array, or several by name."""
        outputs = self._outputs(batch, len(requests))
        if self._observes:
            self._taken.see({name: tensor.cpu().numpy() for name, tensor in batch.items()})
            self._given.see(outputs)
        finite = all(map(is_finite, outputs.values()))
        return [
            self._answer({name: array[index, ...] for name, array in outputs.items()}, request, finite)
            for index, request in enumerate(requests)
        ]

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        """Return each output under its name."""
        if isinstance(answers[0], Mapping):
            return {name: [answer[name] for answer in answers] for name in answers[0]}
        names = self.output_names or weights.output_names(self.model) or ("output",)
        return {names[0]: answers}

    def signature(self) -> signatures.Signature:
        """Return the inputs that the options or the weights describe, and the outputs of the samples.

        Missing properties of an input are taken from the samples. Outputs have sizes if all inputs have.
        """
        inputs = [self._specified(spec) for spec in self.inputs]
        specified = [spec for spec in inputs if spec is not None]
        sizes = all(signatures.ANY not in spec["shape"][1:] for spec in specified)
        outputs = self._given.tensors(sizes=sizes and len(specified) == len(inputs))
        return signatures.of(specified if len(specified) == len(inputs) else [], outputs)

    def describe_handle(self) -> dict[str, Any]:
        """Return the known names, types and shapes; null means any size."""
        inputs = [
            {
                "name": tensor.name or None,
                "dtype": str(tensor.dtype).removeprefix("torch.") if tensor.dtype else None,
                "shape": None if tensor.shape is None else list(tensor.shape),
            }
            for tensor in self.inputs
        ]
        return {"inputs": inputs, "outputs": list(self.output_names or weights.output_names(self.model)) or None}

    def _outputs(self, batch: dict[str, torch.Tensor], rows: int) -> dict[str, np.ndarray]:
        """Return the model's outputs for a batch by name, each with ``rows`` items."""
        output = self.inference(batch if self.by_name else tuple(batch.values()))
        return {name: to_numpy(value, name, rows) for name, value in self._named(output).items()}

    def _named(self, output: Any) -> dict[str, Any]:
        """Return the model's outputs by name."""
        names = self.output_names or weights.output_names(self.model)
        if isinstance(output, torch.Tensor) and len(names) < 2:
            return {names[0] if names else "output": output}
        if isinstance(output, MAPPINGS):
            missing = [name for name in self.output_names if name not in output]
            if missing:
                raise ValueError(f"the model returns no {missing[0]!r}; it returns {', '.join(output)}")
            return {name: output[name] for name in self.output_names or output}
        values = list(output) if isinstance(output, tuple | list) else [output]
        if not names:
            names = ("output",) if len(values) == 1 else tuple(f"output_{place}" for place in range(len(values)))
        if len(names) != len(values):
            raise ValueError(f"the model returns {len(values)} outputs, and {len(names)} are named: {', '.join(names)}")
        return dict(zip(names, values, strict=True))

    def _answer(self, arrays: dict[str, np.ndarray], request: Request, finite: bool) -> Any:
        answer: dict[str, Any] = dict(arrays)
        if finite:
            return next(iter(answer.values())) if len(answer) == 1 else answer
        in_npy = len(arrays) == 1 and (isinstance(request.payload, np.ndarray) or request.accepts(npy.CONTENT_TYPE))
        for name, array in arrays.items():
            if in_npy or request.as_bytes or array.dtype.kind != "f" or np.isfinite(array).all():
                continue
            if self.non_finite == "null":
                values = array.astype(object)
                values[~np.isfinite(array)] = None
                answer[name] = values.tolist()
                continue
            place = [int(index) for index in np.argwhere(~np.isfinite(array))[0]]
            value = array[tuple(place)]
            raise NotFinite(
                f"the output {name!r} is {value} at {place}, which JSON cannot say; "
                f"accept {npy.CONTENT_TYPE}, or set non_finite: 'null' in the archive"
            )
        return next(iter(answer.values())) if len(answer) == 1 else answer

    def _specified(self, spec: Input) -> signatures.Tensor | None:
        """Return the description of an input; None: its type or its dimensions are not known."""
        tensor = self._taken.tensor(spec.name, sizes=False)
        kind = datatype(numpy_dtype(spec.dtype)) if spec.dtype is not None else tensor["datatype"] if tensor else None
        shape = spec.shape if spec.shape is not None else tensor["shape"][1:] if tensor else None
        return None if kind is None or shape is None else signatures.tensor(spec.name or "input", kind, *shape)

    def _input(self, name: str) -> Input | None:
        return next((spec for spec in self.inputs if spec.name == name), None)

    def _expected(self) -> str:
        inputs = [described(spec) for spec in self.inputs]
        if len(inputs) == 1:
            return f"send {inputs[0]}"
        return f"send an object with {', '.join(inputs)}"


def _payload(request: Request) -> Any:
    """Return the payload, including JSON without a declared type."""
    payload = request.payload
    if isinstance(payload, TEXTS):
        if not payload:
            raise BadRequest("the body is empty")
        if request.whole is None:
            return request.json()
    return payload
