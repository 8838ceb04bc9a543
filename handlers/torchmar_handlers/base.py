"""The base class of all handlers: TorchServe's own, but each request of a batch is handled independently."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from ts.torch_handler import base_handler as stock
from ts.utils.util import PredictionException, load_label_mapping

from torchmar_handlers.common import batch as batches
from torchmar_handlers.common import envelopes, faults, samples, signatures
from torchmar_handlers.common.forward import forward
from torchmar_handlers.common.metrics import Metrics
from torchmar_handlers.common.options import Options
from torchmar_handlers.common.reply import Reply
from torchmar_handlers.protocols import open_inference
from torchmar_handlers.request import Request
from torchmar_handlers.weights import first_layer, optimized

_WARM_CALLS = 3  # TorchScript's profiling executor records one call of a shape and compiles in the next
_CPU = torch.device("cpu")
_LABELS = "index_to_name.json"
_SAMPLES_FAIL = "a sample of the archive fails with them, with the error above"
_MOST_THREADS = 1_024  # limit of threads, because a typing error should not overload the machine


class BaseHandler(stock.BaseHandler):  # type: ignore[misc]
    """A handler that handles each request of a batch independently.

    The methods that a handler overrides, in the order of their calls:

    * ``decode(request)``: one request to one input; ``BadRequest`` fails that request only;
    * ``preprocess(inputs)``: the inputs of a batch to the model's input;
    * ``inference(batch)``: the model;
    * ``postprocess(output)``: the model's output to a list with one answer per request;
    * ``explain_handle(batch, requests)``: one explanation per request;
    * ``error_keys(status, message)``: more keys of an error, for clients that expect them.

    Override ``postprocess_handle(output, requests)`` for answers that need the requests, too, and
    ``predict_handle(batch, requests)`` for those that need what ``preprocess`` returned.
    A request with several instances (KServe, TensorFlow Serving) is passed to these methods as several requests.

    ================= =========================== ===================================================
    option            default                     meaning
    ================= =========================== ===================================================
    threads           cores divided by maxWorkers threads of torch, and of decoding, in this worker
    optimized         none                        faster weights, served where the machine has what they
                                                  need; see `torchmar_handlers.weights.optimized`
    warm_up           true                        answer the archive's samples before clients come
    max_instances     1024                        instances in a request; more get 413
    max_json_depth    32                          levels of JSON in a request; more get 400
    max_forward_batch 64, or the batch size       instances in one forward pass at the most
    ================= =========================== ===================================================

    and those of `torchmar_handlers.weights`.
    """

    #: Whether ``decode`` may run in several threads at once, which is useful if it releases the GIL.
    parallel_decode: ClassVar[bool] = False
    #: Whether bodies of requests and answers may contain tensors as bytes (``Inference-Header-Content-Length``).
    takes_binary_tensors: ClassVar[bool] = True
    #: Whether an instance of named columns or tensors stays a mapping if it has only one of them.
    named: bool = False
    #: The weights of ``model``; None: ``load_model`` is overridden and sets another model.
    served_weights: optimized.ServedWeights | None = None
    _fault_of_optimized = ""

    def initialize(self, context: Any) -> None:
        """Load the model; ``options`` is the ``handler`` section of the configuration.

        Torch gets this worker's share of the cores, because workers that all use every core
        are slower together than one alone.

        Raises:
            OptionError: an option has an invalid value.
            torchmar_handlers.weights.LoadError: the weights cannot be loaded.
        """
        config = context.model_yaml_config or {}
        properties = context.system_properties
        manifest = context.manifest or {"model": {}}  # a folder without a manifest, in SageMaker's layout
        model = manifest["model"]
        folder = Path(properties.get("model_dir"))
        self.context, self.manifest, self.model_yaml_config = context, manifest, config
        self.options = Options(config.get("handler"))
        self.device = _device(properties.get("gpu_id"))
        self.map_location = self.device.type
        share = _share_of_cores(config.get("maxWorkers"))
        threads = self.options.integer("threads", share, low=1, high=max(_MOST_THREADS, share))
        self.executor = _Decoders(threads) if self.parallel_decode and threads > 1 else None
        torch.set_num_threads(threads)
        batch_size = int(properties.get("batch_size") or 1)
        self.max_instances = self.options.integer("max_instances", 1024, low=1)
        self.max_json_depth = self.options.integer("max_json_depth", 32, low=1)
        self.max_forward_batch = self.options.integer("max_forward_batch", max(64, batch_size), low=1)
        self._inference_seconds = 0.0
        self.measures = Metrics()
        self.known_inputs = faults.KnownInputs(self)
        self.load_model(folder, model.get("serializedFile"), model.get("modelFile"), threads)
        self.mapping = self.load_labels(folder)
        self.initialized = True

    def load_model(self, folder: Path, serialized_file: str | None, model_file: str | None, threads: int) -> None:
        """Set ``model`` from files of the archive in ``folder``."""
        self.model_pt_path = str(folder / serialized_file) if serialized_file else None
        self.served_weights = optimized.load(
            folder,
            serialized_file,
            model_file,
            self.device,
            self.options,
            threads=threads,
            pt2=self.model_yaml_config.get("pt2"),
            fault=self._fault_of_optimized,
        )
        self.model, self.dtype = self.served_weights.model, self.served_weights.dtype

    def load_labels(self, folder: Path) -> Any:
        """Return the names of the classes, from ``index_to_name.json`` of the archive; None: it has none."""
        return load_label_mapping(str(folder / _LABELS)) if (folder / _LABELS).is_file() else None

    def label(self, index: int) -> str:
        """Return the label of a class."""
        return str((self.mapping or {}).get(str(index), index))

    def reject_optimized(self, fault: str) -> bool:
        """Prevent optimised weights from being loaded again; ``initialize`` then loads the original ones.

        Args:
            fault: the problem of the weights, for the log.

        Returns:
            Whether optimised weights are served now.
        """
        if self.served_weights is None or not self.served_weights.optimized:
            return False
        self._fault_of_optimized = fault
        return True

    def explaining(self, requests: Sequence[Request]) -> optimized.Explaining:
        """Return the model that explains: ``model`` unless it has optimised weights without gradients.

        If it is another model, the header ``Explain-Weights`` of the responses names its weights.
        """
        if self.served_weights is None:
            return optimized.Explaining(self.model, self.dtype)
        explaining = self.served_weights.explaining()
        if explaining.weights is not None:
            for request in requests:
                self.context.set_response_header(request.index, "Explain-Weights", explaining.weights)
        return explaining

    def warm_up(self, context: Any) -> None:
        """Answer the archive's samples, one by one and in a full batch, as the last step of ``initialize``.

        Steps that are slow at first (TorchScript compiles in the first calls of every shape) run here,
        and do not delay the first clients. Explanations are omitted: most workers never compute
        one. The option ``warm_up: false`` disables the warm-up.

        Raises:
            OptionError: the configuration has an option that a handler of this package does not know.
        """
        warms_up = self.options.flag("warm_up", True)
        # A user's handler may read further options later.
        if type(self).__module__.partition(".")[0] == __name__.partition(".")[0]:
            self.options.reject_unknown()
        properties = context.system_properties
        predicted = self.sample_requests() if warms_up else []
        for size in sorted({1, int(properties.get("batch_size") or 1)}) if predicted else ():
            batch = [predicted[index % len(predicted)] for index in range(size)]
            for _ in range(_WARM_CALLS):
                replies = batches.answer(self, batch)
                if any(reply.status >= 500 for reply in replies) and self.reject_optimized(_SAMPLES_FAIL):
                    # Properties that a handler has read from the model, such as names of inputs, were those of the
                    # optimised weights.
                    self.initialize(context)
                    return

    def sample_requests(self) -> list[Request]:
        """Return the samples of the archive that request predictions."""
        requests = samples.read(self.context.system_properties.get("model_dir"))
        return [request for request in requests if not request.wants_explanation]

    def typical_inputs(self) -> Iterator[Any]:
        """Yield decoded inputs that the model may accept, for archives without samples.

        If the model accepts one of them, its failure for another input is a fault of that input. Here they are tensors
        of zeros that the first layer of the model suggests.
        """
        for tensor in first_layer.typical_inputs(self.model) if isinstance(self.model, torch.nn.Module) else ():
            yield tensor[0]

    def decode(self, request: Request) -> Any:
        """Return the input of one request: the row itself, unless overridden."""
        return request.row

    def group(self, decoded: Any) -> Hashable:
        """Return the properties that inputs must have in common for one forward pass: shape and type of tensors."""
        if isinstance(decoded, torch.Tensor | np.ndarray):
            return tuple(decoded.shape), decoded.dtype
        return None

    def preprocess(self, inputs: Sequence[Any]) -> Any:
        """Stack decoded inputs (tensors or arrays of one shape) to a batch on the model's device."""
        if isinstance(inputs[0], np.ndarray) and self.device == _CPU:
            # As np.stack does for arrays of one shape, in a fifth of the time if they are small.
            return torch.from_numpy(np.array(inputs))
        if self.device.type != "cuda":
            return torch.stack([torch.as_tensor(value) for value in inputs]).to(self.device)
        tensors = [torch.as_tensor(value) for value in inputs]
        # Pinned memory is copied without the driver's own staging copy, and while the CPU continues.
        shape = (len(tensors), *tensors[0].shape)
        batch = torch.empty(shape, dtype=tensors[0].dtype, pin_memory=True)
        return torch.stack(tensors, out=batch).to(self.device, non_blocking=True)

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the model's output for a batch: a tensor, a tuple of them or a mapping of named ones."""
        started = time.perf_counter()
        with torch.inference_mode():
            batch = (data, *args) if args else data
            output = forward(self.model, batch, device=self.device, dtype=self.dtype, **kwargs)
        if self.device != _CPU and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._inference_seconds += time.perf_counter() - started
        return output

    def predict_handle(self, batch: Any, requests: Sequence[Request]) -> Sequence[Any]:
        """Return one prediction per request: ``postprocess_handle(inference(batch), requests)`` unless overridden.

        A server can run the steps before and after the model in other processes only if this method is not overridden.
        """
        return self.postprocess_handle(self.inference(batch), requests)

    def postprocess_handle(self, output: Any, requests: Sequence[Request]) -> Sequence[Any]:
        """Return one prediction per request: ``postprocess(output)`` unless overridden."""
        answers: Sequence[Any] = self.postprocess(output)
        return answers

    def explain_handle(self, batch: Any, requests: Sequence[Request]) -> Sequence[Any]:
        """Return one explanation per request; a handler without explanations raises."""
        raise PredictionException(f"{type(self).__name__} has no explanations", 501)

    def rows(self, request: Request) -> list[Any] | None:
        """Return the instances of a plain body with several; None: the body is one instance (here always)."""
        return None

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        """Return answers as named columns, for clients of the Open Inference Protocol and of TensorFlow Serving.

        Here, these are the outputs that `signature` names, if every answer is an object with these keys. Otherwise
        None is returned: the answers become one column ``output`` of numbers, of texts, or of JSON.
        """
        names = [output["name"] for output in self.signature()["outputs"]]
        if not names or not all(isinstance(answer, Mapping) and answer.keys() >= set(names) for answer in answers):
            return None
        return {name: [answer[name] for answer in answers] for name in names}

    def error_keys(self, status: int, message: str) -> Mapping[str, Any]:
        """Return further keys of an error, in addition to TorchServe's ``code``, ``type`` and ``message``; here none.

        They are for clients that expect another form of errors, such as
        ``{"success": false, "error": message}``. Errors that the server itself sends do not have them.
        """
        return {}

    def signature(self) -> signatures.Signature:
        """Return the inputs and outputs of the model as tensors of the Open Inference Protocol.

        Returns:
            ``inputs`` and ``outputs``: a list each of ``name``, ``datatype`` and ``shape``, where -1 is any size; an
            empty list (here both) if they are not known.
        """
        return signatures.of()

    def served_as(self) -> tuple[str, str]:
        """Return the model's name and version."""
        model = self.manifest["model"]
        return str(model.get("modelName", "")), str(model.get("modelVersion", ""))

    def described_weights(self) -> dict[str, Any]:
        """Return the weights that are served, for descriptions; empty: the archive has no optimised weights."""
        current = self.served_weights
        return {"weights": current.description()} if current and (current.optimized or current.reason) else {}

    def handle(self, data: Sequence[Any], context: Any) -> list[Any]:
        """Answer a batch; the returned list always has the length of ``data``."""
        started = time.perf_counter()
        self.context = context
        self._inference_seconds = 0.0
        if enveloped := envelopes.has_instances():
            decoded, replies = self._answer_each(envelopes.requests(data, context, self.max_instances))
            bodies = []
        else:
            decoded, replies = self.answer_plain(data, context) or self._answer_rows(data, context)
            bodies = [reply.send(context, index) for index, reply in enumerate(replies)]
        total = time.perf_counter() - started
        self._measure(context, replies, total=total, decoding=decoded - started, inference=self._inference_seconds)
        return [answer for reply in replies for answer in envelopes.answers(reply)] if enveloped else bodies

    def answer_plain(self, data: Sequence[Any], context: Any) -> tuple[float, list[Reply]] | None:
        """Answer a batch of the simplest requests in fewer steps than `handle`, with the same replies.

        Returns:
            The time at which all inputs were decoded, by `time.perf_counter`, and the replies. None (here always):
            `handle` answers, because there are other requests, or an error.
        """
        return None

    def _answer_rows(self, data: Sequence[Any], context: Any) -> tuple[float, list[Reply]]:
        """Answer a batch of any requests; see `answer_plain`."""
        requests = [Request.of(index, row, context) for index, row in enumerate(data)]
        decoded, replies = self._answer_each(requests)
        if max([reply.status for reply in replies], default=200) >= 400:
            replies = self._readable_by_torchserve(requests, replies)
        return decoded, replies

    def _answer_each(self, requests: Sequence[Request]) -> tuple[float, list[Reply]]:
        self._inference_seconds = 0.0  # without the time of the attempt in `answer_plain`
        halves = batches.decode(self, requests)
        decoded = time.perf_counter()
        return decoded, batches.finish(self, halves)

    def _readable_by_torchserve(self, requests: Sequence[Request], replies: Sequence[Reply]) -> list[Reply]:
        """Return replies in which errors have a form that TorchServe can send over gRPC."""
        if len(replies) == 1 and open_inference.from_torchserves_grpc(requests[0]):
            # No other request of the batch would fail with it, and TorchServe turns the exception into a status.
            raise PredictionException(replies[0].message, replies[0].status)
        return [
            open_inference.readable_by_torchserve(request, reply, self)
            for request, reply in zip(requests, replies, strict=True)
        ]

    def prepare_handle(self, data: Sequence[Any], context: Any) -> tuple[dict[int, Any], dict[int, Any]]:
        """Run the first half of `handle`, without the model, for servers that run it in separate processes.

        Returns:
            The input of `finish_handle`, and the answers to requests that are already answered, because they are
            rejected; both by index in ``data``; each request is in one of the two. The former can be pickled, except
            for this handler itself, which the unpickling process must replace with its own.
        """
        started = time.perf_counter()
        self.context = context
        requests = [Request.of(index, row, context) for index, row in enumerate(data)]
        halves = batches.decode(self, requests)
        seconds = (time.perf_counter() - started) / max(1, len(requests))
        replies = {index: half for index, half in enumerate(halves) if isinstance(half, Reply)}
        if replies:
            total = seconds * len(replies)
            self._measure(context, list(replies.values()), total=total, decoding=total)
        waiting = {index: (half, seconds) for index, half in enumerate(halves) if index not in replies}
        return waiting, {index: reply.send(context, index) for index, reply in replies.items()}

    def finish_handle(self, prepared: Sequence[Any], context: Any) -> list[Any]:
        """Run the second half of `handle` for the results of `prepare_handle`, of one or several calls.

        ``context`` belongs to the batch that they form now.
        """
        started = time.perf_counter()
        self.context = context
        self._inference_seconds = 0.0
        replies = batches.finish(self, [half for half, _ in prepared])
        bodies = [reply.send(context, index) for index, reply in enumerate(replies)]
        decoding = sum(seconds for _, seconds in prepared)
        total = decoding + time.perf_counter() - started
        self._measure(context, replies, total=total, decoding=decoding, inference=self._inference_seconds)
        return bodies

    def start_handle(self, data: Sequence[Any], context: Any) -> tuple[dict[int, Any], dict[int, Any]]:
        """Run the steps of `handle` up to the model, for servers that run the steps after it in other processes.

        Returns:
            The same as from `inference_handle`.
        """
        started = time.perf_counter()
        self.context = context
        halves = batches.decode(self, [Request.of(index, row, context) for index, row in enumerate(data)])
        return self._infer(halves, [(time.perf_counter() - started) / len(halves)] * len(halves), context)

    def inference_handle(self, prepared: Sequence[Any], context: Any) -> tuple[dict[int, Any], dict[int, Any]]:
        """Run the model for the results of `prepare_handle`, of one or several calls.

        Returns:
            The input of `reply_handle`, which can be pickled like that of `finish_handle`, and the answers to requests
            that need no further step, such as failed ones; both by index in ``prepared``.
        """
        self.context = context
        return self._infer([half for half, _ in prepared], [seconds for _, seconds in prepared], context)

    def reply_handle(self, outputs: Sequence[Any], context: Any) -> list[Any]:
        """Run the steps of `handle` after the model, for the results of `inference_handle` or `start_handle`."""
        started = time.perf_counter()
        self.context = context
        replies = batches.conclude(self, [inferred for inferred, _ in outputs])
        bodies = [reply.send(context, index) for index, reply in enumerate(replies)]
        before, decoding, inference = (sum(times) for times in zip(*(times for _, times in outputs), strict=True))
        total = before + time.perf_counter() - started
        self._measure(context, replies, total=total, decoding=decoding, inference=inference)
        return bodies

    def _infer(
        self, halves: Sequence[batches.Decoded | Reply], decoding: Sequence[float], context: Any
    ) -> tuple[dict[int, Any], dict[int, Any]]:
        """Return the input of `reply_handle`, each with its seconds so far: in total, for decoding, for the model."""
        started = time.perf_counter()
        self._inference_seconds = 0.0
        results = batches.infer(self, halves)
        share = (time.perf_counter() - started) / len(results)
        inference = self._inference_seconds / len(results)
        times = [(seconds + share, seconds, inference) for seconds in decoding]
        replies = {index: result for index, result in enumerate(results) if isinstance(result, Reply)}
        if replies:
            total, decoded, model = (sum(column) for column in zip(*(times[index] for index in replies), strict=True))
            self._measure(context, list(replies.values()), total=total, decoding=decoded, inference=model)
        waiting = {index: (result, times[index]) for index, result in enumerate(results) if index not in replies}
        return waiting, {index: reply.send(context, index) for index, reply in replies.items()}

    def _measure(
        self, context: Any, replies: Sequence[Reply], *, total: float, decoding: float, inference: float = 0.0
    ) -> None:
        rejected = len([reply for reply in replies if 400 <= reply.status < 500])
        size = len(replies)
        self.measures.add(
            context.metrics, size=size, rejected=rejected, total=total, decoding=decoding, inference=inference
        )


class _Decoders:
    """Threads that decode; each runs torch's operators without further threads.

    OpenMP creates a separate team of threads for each thread that starts a parallel operator. With
    a team for each decoder, there would be more threads than cores, which wait actively for each other.
    The threads are started when they are needed first, and end before the process forks.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        if hasattr(os, "register_at_fork"):
            reference = weakref.ref(self)

            def end_threads() -> None:
                if (decoders := reference()) is not None:
                    decoders.end()

            os.register_at_fork(before=end_threads)

    def map(self, function: Callable[[Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        """Return the results of a function for all values, in order."""
        if self._pool is None:
            # The number is also that of the process, which is set again: no thread may start after that.
            before = torch.get_num_threads()
            self._pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
            barrier = threading.Barrier(self._threads)
            list(self._pool.map(lambda _: barrier.wait(), range(self._threads)))
            torch.set_num_threads(before)
        return self._pool.map(function, values)

    def end(self) -> None:
        """End the threads, if they were started."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _device(gpu: Any) -> torch.device:
    """Return the device that the server has assigned to this worker."""
    if gpu is not None and torch.cuda.is_available():
        return torch.device("cuda", int(gpu))
    if gpu is not None and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _share_of_cores(workers: Any) -> int:
    """Return a worker's share of the cores that this process may use, one core at least."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers) if isinstance(workers, int) and workers > 0 else cores
