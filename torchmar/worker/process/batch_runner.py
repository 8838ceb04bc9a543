"""The execution of batches as by TorchServe's service; a failed batch is repeated request by request.

A handler gets the same as under TorchServe: the rows, context and codes of ``ts.service.Service``. But with
``isolate``, a batch that fails as a whole is repeated once, one request at a time. Then only the request that caused
the failure fails, and handlers that only support batches of one request also work.

A handler may also be a generator, which TorchServe does not support: each yielded list is sent at once.
"""

from __future__ import annotations

import io
import json
import logging
import os
import struct
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from types import GeneratorType
from typing import Any

from . import request_log
from .frames import loads, orjson
from .messages import Batch, PartHead
from .step_times import StepTimer

log = logging.getLogger("ts.service")
UNSUPPORTED = "Unsupported model output data type."

# One response: status, content type, headers, body, and an error if the handler failed.
Result = tuple[int, str, dict[str, str], Any, str]


class BatchError(Exception):
    """A batch failed as a whole; code and message are those for each of its requests."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class BatchRunner:
    """A loaded model that runs one batch at a time.

    Args:
        service: TorchServe's service of the model.
        parts: receives streamed parts.
        isolate: whether a failed batch is repeated request by request.
    """

    def __init__(self, service: Any, parts: Parts, *, isolate: bool) -> None:
        from ts.context import RequestProcessor

        self._context = service.context
        self._handle = service._entry_point
        self._processor = RequestProcessor
        self._parts, self._isolate = parts, isolate
        # Set for a handler that has returned a list of a wrong length for a batch.
        self._one_at_a_time = False
        self._decodes = os.environ.get("TS_DECODE_INPUT_REQUEST", "true") == "true"

    def run(
        self, batch: Batch, bodies: Sequence[bytearray | memoryview], timer: StepTimer | None = None
    ) -> tuple[list[Result], float]:
        """Return a response for each request of a BATCH frame, and the seconds of the handler.

        Args:
            batch: document of the frame.
            bodies: bodies of the frame.
            timer: times the batch; None: it is not timed.
        """
        started = time.perf_counter()
        rows, processors, ids = self._read(batch, bodies)
        results: list[Result] = []
        self._parts.started = False
        if self._one_at_a_time and len(rows) > 1:
            results = self._run_one_by_one(rows, processors, ids, timer)
        else:
            try:
                results = self._call_handler(rows, processors, ids)
            except BatchError as error:
                if len(rows) == 1 or not self._isolate or self._parts.started:
                    results = [_error_result(error)] * len(rows)
                else:
                    log.info("a batch of %d failed (%s); it is repeated request by request", len(rows), error.message)
                    results = self._run_one_by_one(rows, processors, ids, timer)
                    if error.message == _MISMATCH and any(result[0] < 400 for result in results):
                        self._one_at_a_time = True
        request_log.end()
        return results, time.perf_counter() - started

    def _run_one_by_one(
        self, rows: list[Any], processors: list[Any], ids: list[str], timer: StepTimer | None
    ) -> list[Result]:
        results: list[Result] = []
        for index, (row, processor, request_id) in enumerate(zip(rows, processors, ids, strict=True)):
            # Headers that the failed batch has set must not be in this response.
            new_processor = self._processor(processor.get_request_properties())
            self._parts.first = index
            if timer:
                timer.index = index
            try:
                results += self._call_handler([row], [new_processor], [request_id])
            except BatchError as error:
                results.append(_error_result(error))
        self._parts.first = 0
        return results

    def _call_handler(self, rows: list[Any], processors: list[Any], ids: list[str]) -> list[Result]:
        context = self._context
        context.request_ids = indexed_ids = dict(enumerate(ids))
        context.request_processor = processors
        context.metrics.request_ids = indexed_ids
        context.cl_socket = self._parts
        request_log.begin(ids, processors)
        # Copies, because handlers may change the list and the rows, which may be needed again.
        copies = [dict(row) for row in rows]
        try:
            document = self._handle(copies, context)
            if isinstance(document, GeneratorType):
                document = self._stream(document, processors)
        except BatchError:
            raise
        except MemoryError:
            log.error("System out of memory", exc_info=True)
            raise BatchError(507, "Out of resources") from None
        except Exception as error:
            code, message = getattr(error, "error_code", None), getattr(error, "message", None)
            if type(error).__name__ == "PredictionException" and isinstance(code, int):
                log.error("Prediction error", exc_info=True)
                raise BatchError(code, str(message)) from None
            if "CUDA" in str(error):
                log.error("CUDA out of memory", exc_info=True)
                raise BatchError(507, "Out of resources") from None
            log.warning("Invoking custom service failed.", exc_info=True)
            raise BatchError(503, "Prediction failed") from None
        if not isinstance(document, list):
            log.warning("model: %s, Invalid return type: %s.", context.model_name, type(document))
            raise BatchError(503, "Invalid model predict output")
        if len(document) != len(rows):
            log.warning(
                "model: %s, number of batch response mismatched, expect: %d, got: %d.",
                context.model_name,
                len(rows),
                len(document),
            )
            raise BatchError(503, _MISMATCH)
        return list(self._encode(document, processors))

    def _stream(self, generator: Generator[Any, None, Any], processors: list[Any]) -> list[Any]:
        """Send each list that a handler yields as parts of the responses; return its last responses.

        These are the returned list of the generator; otherwise they are empty, because everything was sent already.
        """
        while True:
            try:
                values = next(generator)
            except StopIteration as end:
                return [b""] * len(processors) if end.value is None else end.value
            if not isinstance(values, list) or len(values) != len(processors):
                generator.close()
                log.warning("model: %s: yield a list with a response for each request.", self._context.model_name)
                raise BatchError(503, _MISMATCH if isinstance(values, list) else "Invalid model predict output")
            for index, (value, processor) in enumerate(zip(values, processors, strict=True)):
                try:
                    body = encode(value)
                except TypeError:
                    log.warning("Unable to serialize model output.", exc_info=True)
                    raise BatchError(503, UNSUPPORTED) from None
                processor.get_response_headers()["ts_stream_next"] = "true"
                self._parts.send(index, _result(processor, body))

    def _encode(self, document: list[Any], processors: list[Any]) -> Iterator[Result]:
        criteria = self._context.stopping_criteria
        for index, (value, processor) in enumerate(zip(document, processors, strict=True)):
            headers = processor.get_response_headers()
            if criteria:
                stop = criteria[index](value)
                if stop is not None:
                    headers["ts_stream_next"] = "false" if stop else "true"
            elif headers.get("ts_stream_next") == "true":
                headers["ts_stream_next"] = "false"
            try:
                body = encode(value)
            except TypeError:
                log.warning("Unable to serialize model output.", exc_info=True)
                if not self._isolate:
                    raise BatchError(503, UNSUPPORTED) from None
                yield _error_result(BatchError(503, UNSUPPORTED))
                continue
            yield _result(processor, body)

    def _read(
        self, batch: Batch, bodies: Sequence[bytearray | memoryview]
    ) -> tuple[list[dict[str, Any]], list[Any], list[str]]:
        rows, processors, ids = [], [], []
        contents = iter(bodies)
        for request_id, headers, parts in batch:
            row: dict[str, Any] = {}
            properties: dict[str, Any] = {}
            for name, content_type, _ in parts:
                row[name] = self._value(content_type, next(contents))
                properties[name] = {"content-type": content_type}
            properties.update(headers)
            rows.append(row)
            processors.append(self._processor(properties))
            ids.append(request_id)
        return rows, processors, ids

    def _value(self, content_type: str, content: bytearray | memoryview) -> Any:
        if self._decodes:
            if content_type == "application/json":
                try:
                    if orjson is not None and _LONG in bytes(content).translate(_DIGITS):
                        raise ValueError  # orjson would convert numbers of more than 64 bits to floats
                    return loads(content)
                except ValueError:
                    try:
                        return json.loads(bytes(content))  # NaN, and other values that only Python accepts as JSON
                    except (ValueError, RecursionError):
                        log.warning("Failed json decoding of input data. Forwarding encoded payload", exc_info=True)
            elif content_type.startswith("text"):
                try:
                    return str(content, "utf-8")
                except UnicodeDecodeError:
                    log.warning("Failed utf-8 decoding of input data. Forwarding encoded payload", exc_info=True)
        return content if isinstance(content, bytearray) else bytearray(content)


def encode(value: Any) -> Any:
    """Return a handler's result as bytes, in TorchServe's layout.

    Raises:
        TypeError: its type is not supported.
    """
    if isinstance(value, bytes | bytearray):
        return value
    if isinstance(value, str):
        return value.encode()
    import torch

    if isinstance(value, torch.Tensor):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()
    if orjson is not None:
        try:
            text = orjson.dumps(value, option=_LAYOUT)
        except (TypeError, ValueError):
            pass  # numbers of more than 64 bits, keys that are no strings: Python's own module supports them
        else:
            # Only if both write the same text: orjson writes null for NaN, and does not escape non-ASCII characters.
            if b"null" not in text and text.isascii():
                return text
    return json.dumps(value, indent=2).encode()


def _result(processor: Any, body: Any) -> Result:
    """Return the response to a request, with the status and headers that the handler has set."""
    status, headers = processor.get_response_status_code(), processor.get_response_headers()
    return (
        200 if status is None else int(status),
        str(headers.get("content-type") or ""),
        {str(name): str(text) for name, text in headers.items() if name != "content-type"},
        body,
        "",
    )


def _error_result(error: BatchError) -> Result:
    document = {"code": error.code, "type": "InternalServerException", "message": error.message}
    # The message in addition to the body is for clients that do not use HTTP.
    return error.code, "application/json", {}, json.dumps(document, indent=2).encode() + b"\n", error.message


class Parts:
    """A substitute for TorchServe's socket: it forwards the parts of streamed responses as PART frames.

    ``ts.handler_utils.utils.send_intermediate_predict_response`` writes the wire format of
    ``ts/protocol/otf_message_handler.py``: 32-bit signed sizes, big-endian, -1 after the last response.

    Args:
        send: called with the document and the bodies of each frame.

    Attributes:
        first: index in the batch of the first request that the handler has received.
        started: whether a client has received parts of a response, so that the batch cannot be repeated.
    """

    def __init__(self, send: Callable[[PartHead, list[Any]], None]) -> None:
        self._send = send
        self.first = 0
        self.started = False

    def send(self, index: int, part: Result) -> None:
        """Forward a part of the response to a request, by its index among the requests of the handler."""
        self.started = True
        status, content_type, headers, body, error = part
        self._send((self.first + index, status, content_type, headers, len(body), error), [body])

    def sendall(self, data: bytes | bytearray) -> None:
        """Forward the output of ``create_predict_response`` for requests of the batch."""
        view, offset = memoryview(data), 0
        self.started = True

        def read_number() -> int:
            nonlocal offset
            (value,) = struct.unpack_from("!i", view, offset)
            offset += 4
            return int(value)

        def read_bytes() -> memoryview:
            nonlocal offset
            size = read_number()
            offset += size
            return view[offset - size : offset]

        code, message = read_number(), str(read_bytes(), "utf-8")
        index = self.first
        while (size := read_number()) != -1:
            offset += size  # skip the request's id: responses are in the order of the requests
            content_type, status, _phrase = str(read_bytes(), "utf-8"), read_number(), read_bytes()
            headers = {str(read_bytes(), "utf-8"): str(read_bytes(), "utf-8") for _ in range(read_number())}
            body: Any = read_bytes()
            error = ""
            if code != 200:
                status, content_type, headers, body, error = _error_result(BatchError(code, message))
            self._send((index, status, content_type, headers, len(body), error), [body])
            index += 1


_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG = b"0" * 19
_MISMATCH = "number of batch response mismatched"
_LAYOUT = (
    0 if orjson is None else orjson.OPT_INDENT_2 | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
)
