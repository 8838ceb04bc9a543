"""Python objects with their tensors in memory that two processes share.

The layout: the sizes of a pickle and of its buffers, then their content, each at an address with alignment for any
    type.
Tensors and arrays are buffers: their memory is written unchanged, and the reader maps it.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import struct
from io import BytesIO
from typing import Any

_ALIGNED = 64  # bytes
_AT_ONCE = 512  # buffers per call; systems accept 1024
_excluded: Any = None


def exclude(value: Any) -> None:
    """Write only a reference in place of ``value``, which every reader must have."""
    global _excluded
    _excluded = value


def write(address: str, value: Any) -> None:
    """Write an object to the memory at an address.

    Raises:
        OSError: the memory does not exist, or is too small.
        Exception: the object cannot be pickled.
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    contents = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    head = struct.pack(f"<{1 + len(contents)}Q", len(contents), *map(len, contents))
    pieces: list[Any] = []
    offset = 0
    for piece in (head, *contents):
        pieces += [piece, bytes(-len(piece) % _ALIGNED)]
        offset += len(piece) + len(pieces[-1])
    with _Opened(address) as descriptor:
        os.ftruncate(descriptor, offset)
        _write(descriptor, pieces)


def read(address: str) -> Any:
    """Return the object at an address; its tensors are views of a private mapping.

    Raises:
        OSError: the memory does not exist.
    """
    with _Opened(address) as descriptor:
        mapped = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY))
    (count,) = struct.unpack_from("<Q", mapped)
    sizes = struct.unpack_from(f"<{count}Q", mapped, 8)
    offset, contents = 8 * (1 + count), []
    for size in sizes:
        offset += -offset % _ALIGNED
        contents.append(mapped[offset : offset + size])
        offset += size
    return pickle.loads(contents[0], buffers=contents[1:])


class _Opened:
    """The memory at an address, ``PATH INODE``; the inode shows whether the path still belongs to the same memory."""

    def __init__(self, address: str) -> None:
        self._path, _, self._inode = address.rpartition(" ")

    def __enter__(self) -> int:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        if os.fstat(self._descriptor).st_ino != int(self._inode):
            os.close(self._descriptor)
            raise FileNotFoundError(f"the memory at {self._path} has been freed")
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _write(descriptor: int, pieces: list[Any]) -> None:
    views = [memoryview(piece) for piece in pieces if len(piece)]
    while views:
        written = os.writev(descriptor, views[:_AT_ONCE])
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if value is _excluded:
            return _get_excluded, ()
        return _reduced(value) if type(value).__name__ == "Tensor" else NotImplemented


def _get_excluded() -> Any:
    return _excluded


def _reduced(value: Any) -> Any:
    """Reduce a plain tensor to a buffer of its bytes; other tensors are reduced by torch."""
    import torch

    plain = type(value) is torch.Tensor and value.layout == torch.strided and value.device.type == "cpu"
    if not plain or value.requires_grad or value.is_quantized or value.is_complex() or value.is_neg():
        return NotImplemented
    flat = value.contiguous().reshape(-1)
    if flat.stride() != (1,):  # a single element of a larger tensor is contiguous with any stride
        flat = flat.clone(memory_format=torch.contiguous_format)
    content = flat.view(torch.uint8).numpy()
    return _tensor, (pickle.PickleBuffer(content), value.dtype, tuple(value.shape))


def _tensor(content: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    import torch

    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).reshape(shape)
