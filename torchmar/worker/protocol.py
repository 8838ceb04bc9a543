"""What a TorchServe frontend and its worker say to each other, as bytes.

The frames are those of ``ts/protocol/otf_message_handler.py`` in TorchServe 0.12.0: lengths
are 32-bit, big-endian and signed, -1 ends a list. Speaking them lets a worker process use
TorchServe's own decoder and service, odd corners included.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence

from torchmar.exchange import Answer, Request

_END = struct.pack("!i", -1)


def encode_requests(requests: Sequence[Request]) -> bytes:
    """Return the frame that asks for the answers to a batch."""
    frame = bytearray(b"I")
    for number, request in enumerate(requests):
        frame += _text(str(number))
        own = {"explain": str(request.explain), "content-type": request.content_type, "Accept": request.accept}
        headers = {**request.headers, **own}
        for name, value in headers.items():
            frame += _text(name) + _text(value)
        frame += _END + _text("body") + _text(request.content_type) + struct.pack("!i", len(request.body))
        frame += request.body + _END
    return bytes(frame + _END)


def read_answers(receive: Callable[[int], bytes]) -> list[Answer]:
    """Read the frame that answers a batch; ``receive(n)`` returns exactly n bytes."""

    def number() -> int:
        (value,) = struct.unpack("!i", receive(4))
        return int(value)

    def text() -> str:
        return receive(number()).decode()

    code, message = number(), text()
    answers = []
    while (length := number()) != -1:
        receive(length)  # the request's id: answers come in the order of the requests
        content_type, status, _phrase = text(), number(), text()
        headers = {text().lower(): text() for _ in range(number())}
        body = receive(number())
        if code != 200:
            # The whole batch failed: the frontend makes the body itself.
            status, body, content_type = code, _error(code, message), "application/json"
        if content_type:
            headers["content-type"] = content_type
        answers.append(Answer(status, body, headers))
    return answers


def read_loaded(receive: Callable[[int], bytes]) -> tuple[int, str]:
    """Read the frame that answers the loading of a model: a status (200 is well) and a message."""
    code, length = struct.unpack("!ii", receive(8))
    message = receive(length).decode()
    receive(4)  # the end of a list that is always empty
    return code, message


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("!i", len(data)) + data


def _error(code: int, message: str) -> bytes:
    said = {"code": code, "type": "InternalServerException", "message": message}
    return json.dumps(said, indent=2).encode() + b"\n"
