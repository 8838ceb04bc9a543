"""The state of a stream between two chunks: what the model and the segments need of all that came before."""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass

import numpy as np
from pcm import RATES

from torchmar_handlers.request import BadRequest

MEMORY = (2, 128)  # the hidden and the cell state of the model's LSTM

_HEADER = struct.Struct("<4sIQqq")  # magic, rate, samples received, start and end of the segment that is open
_MAGIC = b"svs1"
_NONE = -1


@dataclass(frozen=True)
class Stream:
    """A stream of ``rate`` samples a second, of which ``received`` have come.

    ``memory`` is the model's; ``tail`` are the samples before the next frame that the model sees again, and those
    that do not make a frame yet. ``start`` and ``end`` are those of `segmenter.Segmenter`.
    """

    rate: int
    received: int
    memory: np.ndarray
    tail: np.ndarray
    start: int | None = None
    end: int | None = None

    @classmethod
    def new(cls, rate: int) -> Stream:
        """Return the state before the first sample."""
        return cls(rate, 0, np.zeros(MEMORY, np.float32), np.zeros(context(rate), np.float32))

    @property
    def position(self) -> int:
        """The first sample that the model has not seen."""
        return self.received - (len(self.tail) - context(self.rate))

    def encode(self) -> str:
        """Return the state as a text for clients."""
        open_at = [_NONE if value is None else value for value in (self.start, self.end)]
        head = _HEADER.pack(_MAGIC, self.rate, self.received, *open_at)
        arrays = [array.astype("<f4").tobytes() for array in (self.memory, self.tail)]
        return base64.b64encode(b"".join([head, *arrays])).decode()

    @classmethod
    def decode(cls, text: str) -> Stream:
        """Return the state that `encode` made a text of.

        Raises:
            BadRequest: it is none.
        """
        try:
            content = base64.b64decode(text, validate=True)
            magic, rate, received, *open_at = _HEADER.unpack_from(content)
            values = np.frombuffer(content, "<f4", offset=_HEADER.size).astype(np.float32)
        except (binascii.Error, struct.error, ValueError):
            raise _invalid_state() from None
        size = MEMORY[0] * MEMORY[1]
        if magic != _MAGIC or rate not in RATES or not np.isfinite(values).all():
            raise _invalid_state()
        waiting = len(values) - size - context(rate)
        start, end = (None if value == _NONE else value for value in open_at)
        if not 0 <= waiting < frame(rate) or received < waiting or (received - waiting) % frame(rate):
            raise _invalid_state()
        if any(value is not None and not 0 <= value < received for value in (start, end)):
            raise _invalid_state()
        return cls(rate, received, values[:size].reshape(MEMORY), values[size:], start, end)


@dataclass(frozen=True)
class Clip:
    """A recording, or the next chunk of a stream: the state before it, and its samples.

    ``final``: nothing follows. ``returns_state``: the answer has the state. ``lists``: it has all probabilities.
    """

    stream: Stream
    samples: np.ndarray
    final: bool = True
    returns_state: bool = False
    lists: bool = False

    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what the model sees, ``(frames, context + frame)``, and the samples that are left for later.

        The last frame of a recording is filled up with zeros.
        """
        rate = self.stream.rate
        before, size = context(rate), frame(rate)
        values = np.concatenate([self.stream.tail, self.samples])
        count, left = divmod(len(values) - before, size)
        if self.final and left:
            values = np.concatenate([values, np.zeros(size - left, np.float32)])
            count += 1
        if not count:
            return np.zeros((0, before + size), np.float32), values
        windows = np.lib.stride_tricks.sliding_window_view(values, before + size)[::size]
        return windows[:count], values[count * size :]


def frame(rate: int) -> int:
    """Return the samples of one frame: 32 milliseconds."""
    return rate * 32 // 1000


def context(rate: int) -> int:
    """Return the samples before a frame that the model sees again with it: 4 milliseconds."""
    return rate * 4 // 1000


def _invalid_state() -> BadRequest:
    return BadRequest(
        "the state is not one that this model has returned: send that of the answer to the chunk before, unchanged, or "
        "an empty text with the first chunk"
    )
