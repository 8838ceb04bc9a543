"""Weights that several workers have loaded, held in memory once.

The first worker copies its large tensors and arrays to a file in memory, one after the other, and replaces them by
private mappings of the file at the same addresses; then the file is sealed against writes. Every other worker compares
its tensors with the file, byte by byte, and does the same. Python, torch and the handler see no difference, whatever
they hold: views, tied weights, TorchScript. Pages that are written to afterwards become copies of that worker's own.
Weights that differ between workers stay where they are.

Only memory that glibc took from the system for one allocation is replaced: it is given back as a whole, so that no
later allocation meets it. `prepare` has all large allocations of the loading made so.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import json
import mmap
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

if sys.platform == "linux":
    import fcntl

_LEAST = 1 << 20  # bytes of a tensor or array that is worth it
_MOST = 10_000  # of these; a process has at most 65,530 mappings
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt
_SETTLED = 32 << 20  # bytes, up to which glibc raises its threshold by itself
_SAMPLES = 16  # pages of a buffer that its digest is made of
_PAGE = mmap.PAGESIZE
_HEAD = struct.Struct("<Q")
_WORD = ctypes.sizeof(ctypes.c_size_t)
_IS_MMAPPED, _FLAGS = 2, 7  # of a chunk's size
_FIXED, _NO_RESERVE = 0x10, 0x4000  # of mmap
_FAILED = ctypes.c_void_p(-1).value


class _Buffer(NamedTuple):
    """The whole pages of a tensor or array: address and size in bytes."""

    address: int
    size: int


class WeightsFile:
    """A file in memory for the workers of one model; it is closed when nothing refers to it any more.

    Attributes:
        descriptor: of the file.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("model-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.descriptor)


def available() -> bool:
    """Tell whether the system has such files, which is Linux's."""
    return sys.platform == "linux" and hasattr(os, "memfd_create")


def prepare() -> None:
    """Have large allocations made from mappings of their own, until `share`; call before the model is loaded."""
    gc.freeze()  # what is there already is none of the model
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LEAST)


def share(descriptor: int) -> int:
    """Put mappings of the workers' common file in the place of what this process has loaded; return how many bytes.

    Args:
        descriptor: of a `WeightsFile`; it is closed.
    """
    try:
        # A thread of the handler could write while its memory is replaced.
        if sys.platform != "linux" or _threads() > 1:
            return 0
        owners, buffers = _find()
        # By process, not by open file: workers have the same one. It ends with the process, should that die.
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        try:
            published = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
            return (_replace if published else _publish)(descriptor, buffers)
        finally:
            fcntl.lockf(descriptor, fcntl.LOCK_UN)
            del owners
    except Exception as error:  # such as no memory for the file: each worker keeps its own
        sys.stdout.write(f"weights are not shared with other workers: {error}\n")
        return 0
    finally:
        leave(descriptor)


def leave(descriptor: int) -> None:
    """Undo `prepare`, and close the file."""
    os.close(descriptor)
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _SETTLED)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _SETTLED)
        libc.malloc_trim(0)


def _threads() -> int:
    """Return how many threads Python has, also those that `threading` does not know or that have yet to begin."""
    python = ctypes.pythonapi
    python.PyInterpreterState_Get.restype = ctypes.c_void_p
    for function in (python.PyInterpreterState_ThreadHead, python.PyThreadState_Next):
        function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    count, thread = 0, python.PyInterpreterState_ThreadHead(python.PyInterpreterState_Get())
    while thread:
        count, thread = count + 1, python.PyThreadState_Next(thread)
    return count


def _find() -> tuple[list[Any], list[_Buffer]]:
    """Return the tensors and arrays that were loaded, to keep them alive, and the memory that can be replaced."""
    owners: list[Any] = []
    places: dict[int, int] = {}
    for owner, address, size in _large(gc.get_objects()):
        owners.append(owner)
        places[address] = max(size, places.get(address, 0))
    private = list(_private())
    buffers = []
    for address, size in sorted(places.items())[:_MOST]:
        start, end = -(-address // _PAGE) * _PAGE, (address + size) // _PAGE * _PAGE
        is_private = any(low <= address - 2 * _WORD and end <= high for low, high in private)
        if end > start and is_private and _is_alone(address, size):
            buffers.append(_Buffer(start, end - start))
    return owners, buffers


def _large(objects: list[Any]) -> Iterator[tuple[Any, int, int]]:
    """Yield what owns large memory, its address and its size in bytes."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    for one in objects:
        kind = type(one)
        found: Iterable[Any] = ()
        with contextlib.suppress(Exception):  # of tensors without storage there are many kinds
            if torch and issubclass(kind, torch.Tensor):
                found = [one]
            elif torch and issubclass(kind, torch.jit.ScriptModule):
                found = [*one.parameters(), *one.buffers()]  # of what is C++ alone Python has no object
            for tensor in found:
                if tensor.device.type == "cpu":
                    storage = tensor.untyped_storage()
                    if storage.nbytes() >= _LEAST and not storage.is_shared():
                        yield storage, storage.data_ptr(), storage.nbytes()
    if numpy:
        for number in range(0, len(objects), 10_000):
            for one in gc.get_referents(*objects[number : number + 10_000]):
                if type(one) is numpy.ndarray and one.base is None and one.nbytes >= _LEAST and one.flags.c_contiguous:
                    yield one, one.ctypes.data, one.nbytes


def _private() -> Iterator[tuple[int, int]]:
    """Yield start and end of the memory that is this process's own, and that no file is behind."""
    start = end = 0
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
            if permissions == "rw-p" and inode == "0" and not name:
                low, high = (int(one, 16) for one in addresses.split("-"))
                # Neighbours that only differ in what they are advised to be, such as huge pages, are one.
                if low != end:
                    yield start, end
                    start = low
                end = high
    yield start, end


def _is_alone(address: int, size: int) -> bool:
    """Tell whether glibc took memory from the system for one allocation alone, by what it writes before it."""
    before, chunk = (ctypes.c_size_t * 2).from_address(address - 2 * _WORD)
    length = chunk & ~_FLAGS
    start = address - 2 * _WORD - before
    return bool(
        chunk & _FLAGS == _IS_MMAPPED
        and before < _PAGE
        and start % _PAGE == 0
        and (before + length) % _PAGE == 0
        and 2 * _WORD + size <= length < 2 * _WORD + size + 2 * _PAGE
    )


def _publish(descriptor: int, buffers: list[_Buffer]) -> int:
    """Move buffers to the file, with a list of them at its start, and seal it; return how many bytes."""
    libc = _libc()
    room = -(-(_HEAD.size + 128 * (1 + len(buffers))) // _PAGE) * _PAGE
    index: list[tuple[str, int, int]] = []
    offset = room
    with contextlib.suppress(Exception):  # such as no memory: what has its place by then is shared
        for buffer in buffers:
            content, written = _view(buffer), 0
            while written < buffer.size:
                written += os.pwrite(descriptor, content[written : written + (1 << 30)], offset + written)
            index.append((_digest(buffer), buffer.size, offset))
            if not _map(libc, buffer, descriptor, offset):
                break
            offset += buffer.size
    text = json.dumps(index).encode()
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    try:
        os.pwrite(descriptor, _HEAD.pack(len(text)) + text, 0)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os._exit(1)  # the next worker would write where the weights of this one are
    return offset - room


def _replace(descriptor: int, buffers: list[_Buffer]) -> int:
    """Map what of the buffers the file has; return how many bytes."""
    libc = _libc()
    (length,) = _HEAD.unpack(os.pread(descriptor, _HEAD.size, 0))
    known: dict[tuple[str, int], list[int]] = {}
    for digest, size, offset in json.loads(os.pread(descriptor, length, _HEAD.size)):
        known.setdefault((digest, size), []).append(offset)
    replaced = 0
    for buffer in buffers:
        for offset in known.get((_digest(buffer), buffer.size), []):
            copy = libc.mmap(None, buffer.size, mmap.PROT_READ, mmap.MAP_PRIVATE, descriptor, offset)
            if copy == _FAILED:
                return replaced
            same = libc.memcmp(buffer.address, copy, buffer.size) == 0
            libc.munmap(copy, buffer.size)
            if not same:
                continue
            if not _map(libc, buffer, descriptor, offset):
                return replaced
            replaced += buffer.size
            break
    return replaced


def _map(libc: Any, buffer: _Buffer, descriptor: int, offset: int) -> bool:
    """Put a private mapping of the file in the place of a buffer; tell whether it is there."""
    access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _NO_RESERVE | _FIXED
    if libc.mmap(buffer.address, buffer.size, access, flags, descriptor, offset) != _FAILED:
        return True
    # The limit of data is reached, and the memory as it was; or else there is none any more, and no going on.
    if libc.mincore(buffer.address, _PAGE, ctypes.create_string_buffer(1)):
        os._exit(1)
    return False


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    return libc


def _digest(buffer: _Buffer) -> str:
    """Return a digest of some pages; buffers with the same one are compared whole."""
    content, pages = _view(buffer), buffer.size // _PAGE
    digest = hashlib.blake2b(digest_size=16)
    for number in range(_SAMPLES):
        start = number * (pages - 1) // (_SAMPLES - 1) * _PAGE
        digest.update(content[start : start + _PAGE])
    return digest.hexdigest()


def _view(buffer: _Buffer) -> memoryview:
    return memoryview((ctypes.c_char * buffer.size).from_address(buffer.address)).cast("B")
