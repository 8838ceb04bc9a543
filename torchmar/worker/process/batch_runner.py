"""Run batches through the handler as TorchServe's service does; a failed batch is repeated request by request.

A handler sees what it sees under TorchServe: ``ts.service.Service``'s rows, context and codes, except
that with ``isolate`` a batch that fails as a whole is asked once more, one request at a time. Then the
request that made it fail is the only one that does, and handlers that know only batches of one are right, too.
"""

from __future__ import annotations

import io
import json
import logging
import os
import struct
import time
from collections.abc import Iterator
from typing import Any

from .frames import loads, orjson

log = logging.getLogger("ts.service")
UNSUPPORTED = "Unsupported model output data type."

# One answer: status, content type, headers, body, and what is wrong if the handler failed.
Answer = tuple[int, str, dict[str, str], Any, str]


class Failed(Exception):
    """A batch that has no answers: the code and message that each of its requests gets."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class BatchRunner:
    """A loaded model that answers batches; one at a time."""

    def __init__(self, service: Any, connection: Any, *, isolate: bool) -> None:
        from ts.context import RequestProcessor

        self._context = service.context
        self._handle = service._entry_point
        self._processor = RequestProcessor
        self._parts, self._isolate = connection, isolate
        # Set for a handler that has answered a batch with a list of another length.
        self._alone = False
        self._decodes = os.environ.get("TS_DECODE_INPUT_REQUEST", "true") == "true"

    def answer(self, batch: list[Any], bodies: memoryview) -> tuple[list[Answer], float]:
        """Return an answer for each request of a BATCH frame, and the handler's seconds."""
        started = time.perf_counter()
        rows, processors, ids = self._read(batch, bodies)
        answers: list[Answer] = []
        self._parts.begun = False
        if self._alone and len(rows) > 1:
            answers = self._one_by_one(rows, processors, ids)
        else:
            try:
                answers = self._ask(rows, processors, ids)
            except Failed as failed:
                if len(rows) == 1 or not self._isolate or self._parts.begun:
                    answers = [_refused(failed)] * len(rows)
                else:
                    log.info("a batch of %d failed (%s); each is asked alone", len(rows), failed.message)
                    answers = self._one_by_one(rows, processors, ids)
                    if failed.message == _MISMATCH and any(one[0] < 400 for one in answers):
                        self._alone = True
        return answers, time.perf_counter() - started

    def _one_by_one(self, rows: list[Any], processors: list[Any], ids: list[str]) -> list[Answer]:
        answers: list[Answer] = []
        for index, (row, processor, name) in enumerate(zip(rows, processors, ids, strict=True)):
            # What the failed batch has set already is not the answer's.
            fresh = self._processor(processor.get_request_properties())
            self._parts.first = index
            try:
                answers += self._ask([row], [fresh], [name])
            except Failed as failed:
                answers.append(_refused(failed))
        self._parts.first = 0
        return answers

    def _ask(self, rows: list[Any], processors: list[Any], ids: list[str]) -> list[Answer]:
        context = self._context
        context.request_ids = names = dict(enumerate(ids))
        context.request_processor = processors
        context.metrics.request_ids = names
        context.cl_socket = self._parts
        # Handlers may change the list and the rows, and these may be asked again.
        given = [dict(row) for row in rows]
        try:
            document = self._handle(given, context)
        except MemoryError:
            log.error("System out of memory", exc_info=True)
            raise Failed(507, "Out of resources") from None
        except Exception as error:
            code, message = getattr(error, "error_code", None), getattr(error, "message", None)
            if type(error).__name__ == "PredictionException" and isinstance(code, int):
                log.error("Prediction error", exc_info=True)
                raise Failed(code, str(message)) from None
            if "CUDA" in str(error):
                log.error("CUDA out of memory", exc_info=True)
                raise Failed(507, "Out of resources") from None
            log.warning("Invoking custom service failed.", exc_info=True)
            raise Failed(503, "Prediction failed") from None
        if not isinstance(document, list):
            log.warning("model: %s, Invalid return type: %s.", context.model_name, type(document))
            raise Failed(503, "Invalid model predict output")
        if len(document) != len(rows):
            log.warning(
                "model: %s, number of batch response mismatched, expect: %d, got: %d.",
                context.model_name,
                len(rows),
                len(document),
            )
            raise Failed(503, _MISMATCH)
        return list(self._encoded(document, processors))

    def _encoded(self, document: list[Any], processors: list[Any]) -> Iterator[Answer]:
        criteria = self._context.stopping_criteria
        for index, (value, processor) in enumerate(zip(document, processors, strict=True)):
            headers = processor.get_response_headers()
            if criteria:
                stop = criteria[index](value)
                if stop is not None:
                    headers["ts_stream_next"] = "false" if stop else "true"
            elif headers.get("ts_stream_next") == "true":
                headers["ts_stream_next"] = "false"
            status = processor.get_response_status_code()
            try:
                body = encode(value)
            except TypeError:
                log.warning("Unable to serialize model output.", exc_info=True)
                if not self._isolate:
                    raise Failed(503, UNSUPPORTED) from None
                yield _refused(Failed(503, UNSUPPORTED))
                continue
            kind = headers.get("content-type") or ""
            yield (
                200 if status is None else int(status),
                str(kind),
                {str(k): str(v) for k, v in headers.items()},
                body,
                "",
            )

    def _read(self, batch: list[Any], bodies: memoryview) -> tuple[list[dict[str, Any]], list[Any], list[str]]:
        rows, processors, ids = [], [], []
        start = 0
        for name, headers, inputs in batch:
            row: dict[str, Any] = {}
            seen: dict[str, Any] = {}
            for field, kind, size in inputs:
                row[field] = self._value(kind, bodies[start : start + size])
                seen[field] = {"content-type": kind}
                start += size
            seen.update(headers)
            rows.append(row)
            processors.append(self._processor(seen))
            ids.append(name)
        return rows, processors, ids

    def _value(self, kind: str, content: memoryview) -> Any:
        if self._decodes:
            if kind == "application/json":
                try:
                    if orjson is not None and _LONG in bytes(content).translate(_DIGITS):
                        raise ValueError  # orjson makes numbers of more than 64 bits floats
                    return loads(content)
                except ValueError:
                    try:
                        return json.loads(bytes(content))  # NaN, and what else Python alone takes for JSON
                    except (ValueError, RecursionError):
                        log.warning("Failed json decoding of input data. Forwarding encoded payload", exc_info=True)
            elif kind.startswith("text"):
                try:
                    return str(content, "utf-8")
                except UnicodeDecodeError:
                    log.warning("Failed utf-8 decoding of input data. Forwarding encoded payload", exc_info=True)
        return bytearray(content)


def encode(value: Any) -> Any:
    """Return what a handler answered as bytes, laid out as TorchServe does.

    Raises:
        TypeError: it is nothing that can be sent.
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
            pass  # numbers beyond 64 bits, keys that are no strings: Python's own knows more
        else:
            # Where the two write it alike; orjson has null for NaN, and characters beyond ASCII as they are.
            if b"null" not in text and text.isascii():
                return text
    return json.dumps(value, indent=2).encode()


def _refused(failed: Failed) -> Answer:
    document = {"code": failed.code, "type": "InternalServerException", "message": failed.message}
    # The message beside the body is for clients that do not speak HTTP.
    return failed.code, "application/json", {}, json.dumps(document, indent=2).encode() + b"\n", failed.message


class Parts:
    """Stands where handlers have TorchServe's socket: what they send before the answer goes on as PART frames.

    ``ts.handler_utils.utils.send_intermediate_predict_response`` writes the wire format of
    ``ts/protocol/otf_message_handler.py``: 32-bit signed sizes, big-endian, -1 after the last answer.
    """

    def __init__(self, send: Any) -> None:
        self._send = send
        self.first = 0  # index in the batch of the first request that the handler sees
        self.begun = False  # whether a client has parts of an answer, which cannot be made again

    def sendall(self, data: bytes | bytearray) -> None:
        """Send what ``create_predict_response`` wrote for requests of the batch."""
        view, place = memoryview(data), 0
        self.begun = True

        def number() -> int:
            nonlocal place
            (value,) = struct.unpack_from("!i", view, place)
            place += 4
            return int(value)

        def some() -> memoryview:
            nonlocal place
            size = number()
            place += size
            return view[place - size : place]

        code, message = number(), str(some(), "utf-8")
        index = self.first
        while (size := number()) != -1:
            place += size  # the request's id: answers come in the order of the requests
            kind, status, _phrase = str(some(), "utf-8"), number(), some()
            headers = {str(some(), "utf-8"): str(some(), "utf-8") for _ in range(number())}
            body = some()
            wrong = ""
            if code != 200:
                status, kind, headers, body, wrong = _refused(Failed(code, message))
            self._send([index, status, kind, headers, len(body), wrong], [body])
            index += 1


_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG = b"0" * 19
_MISMATCH = "number of batch response mismatched"
_LAYOUT = (
    0 if orjson is None else orjson.OPT_INDENT_2 | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
)
