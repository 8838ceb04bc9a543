"""Weights that several workers have loaded, stored in memory once.

The first worker copies its large tensors and arrays one after the other to a file in memory, and replaces them by
private mappings of the file at the same addresses; then the file is sealed against writes. Every other worker compares
its tensors with the file, byte by byte, and does the same. Python, torch and the handler notice no difference, even
with views, tied weights and TorchScript. Pages that a worker writes to later become its private copies.
Weights that differ between workers stay in each worker's own memory.

Only memory that glibc has requested from the system for a single allocation is replaced: glibc returns it as a whole,
so that no later allocation can get a part of it. `prepare` makes glibc allocate all large memory in this way while the
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

_LEAST = 1 << 20  # size of a tensor or array below which sharing is not worthwhile
_MOST = 10_000  # number of tensors and arrays, because a process can have at most 65,530 mappings
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # parameters of mallopt
_LARGEST_THRESHOLD = 32 << 20  # size up to which glibc raises its threshold automatically
_SAMPLES = 16  # number of a buffer's pages in its digest
_PAGE = mmap.PAGESIZE
_HEAD = struct.Struct("<Q")
_WORD = ctypes.sizeof(ctypes.c_size_t)
_IS_MMAPPED, _FLAGS = 2, 7  # bits of a chunk's size
_FIXED, _NO_RESERVE = 0x10, 0x4000  # flags of mmap
_FAILED = ctypes.c_void_p(-1).value


class _Buffer(NamedTuple):
    """The whole pages of a tensor or array: address and size in bytes."""

    address: int
    size: int


class WeightsFile:
    """A file in memory for the workers of one model; it is closed with the object.

    Attributes:
        descriptor: descriptor of the file.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("model-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.descriptor)


def available() -> bool:
    """Return whether the system supports such files; only Linux does."""
    return sys.platform == "linux" and hasattr(os, "memfd_create")


def prepare() -> None:
    """Let glibc use a separate mapping for each large allocation, until `share`; call it before the model is loaded."""
    gc.freeze()  # existing objects do not belong to the model
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LEAST)


def share(descriptor: int) -> int:
    """Replace loaded weights of this process by mappings of the shared file; return the number of shared bytes.

    Args:
        descriptor: descriptor of a `WeightsFile`; it is closed.
    """
    try:
        # Another thread of the handler could write while its memory is replaced.
        if sys.platform != "linux" or _threads() > 1:
            return 0
        owners, buffers = _find()
        # The lock belongs to the process, not to the open file, which workers share. It ends if the process dies.
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        try:
            published = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
            return (_replace if published else _publish)(descriptor, buffers)
        finally:
            fcntl.lockf(descriptor, fcntl.LOCK_UN)
            del owners
    except Exception as error:  # for example, no memory for the file: each worker then keeps its own weights
        sys.stdout.write(f"weights are not shared with other workers: {error}\n")
        return 0
    finally:
        leave(descriptor)


def leave(descriptor: int) -> None:
    """Undo `prepare`, and close the file."""
    os.close(descriptor)
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
        libc.malloc_trim(0)


def _threads() -> int:
    """Return the number of Python's threads, including those that `threading` does not know, or not started."""
    python = ctypes.pythonapi
    python.PyInterpreterState_Get.restype = ctypes.c_void_p
    for function in (python.PyInterpreterState_ThreadHead, python.PyThreadState_Next):
        function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    count, thread = 0, python.PyInterpreterState_ThreadHead(python.PyInterpreterState_Get())
    while thread:
        count, thread = count + 1, python.PyThreadState_Next(thread)
    return count


def _find() -> tuple[list[Any], list[_Buffer]]:
    """Return the loaded tensors and arrays, to keep them alive, and the memory that can be replaced."""
    owners: list[Any] = []
    sizes: dict[int, int] = {}
    for owner, address, size in _large(gc.get_objects()):
        owners.append(owner)
        sizes[address] = max(size, sizes.get(address, 0))
    private = list(_private())
    buffers = []
    for address, size in sorted(sizes.items())[:_MOST]:
        start, end = -(-address // _PAGE) * _PAGE, (address + size) // _PAGE * _PAGE
        is_private = any(low <= address - 2 * _WORD and end <= high for low, high in private)
        if end > start and is_private and _is_alone(address, size):
            buffers.append(_Buffer(start, end - start))
    return owners, buffers


def _large(objects: list[Any]) -> Iterator[tuple[Any, int, int]]:
    """Yield the owners of large memory, with its address and size in bytes."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    for item in objects:
        kind = type(item)
        tensors: Iterable[Any] = ()
        with contextlib.suppress(Exception):  # there are many kinds of tensors without storage
            if torch and issubclass(kind, torch.Tensor):
                tensors = [item]
            elif torch and issubclass(kind, torch.jit.ScriptModule):
                tensors = [*item.parameters(), *item.buffers()]  # their C++ tensors have no Python objects
            for tensor in tensors:
                if tensor.device.type == "cpu":
                    storage = tensor.untyped_storage()
                    if storage.nbytes() >= _LEAST and not storage.is_shared():
                        yield storage, storage.data_ptr(), storage.nbytes()
    if numpy:
        for number in range(0, len(objects), 10_000):
            for item in gc.get_referents(*objects[number : number + 10_000]):
                is_owner = type(item) is numpy.ndarray and item.base is None
                if is_owner and item.nbytes >= _LEAST and item.flags.c_contiguous:
                    yield item, item.ctypes.data, item.nbytes


def _private() -> Iterator[tuple[int, int]]:
    """Yield start and end of this process' private memory that is not mapped from a file."""
    start = end = 0
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
            if permissions == "rw-p" and inode == "0" and not name:
                low, high = (int(number, 16) for number in addresses.split("-"))
                # Neighbours are joined if they only differ in advice, such as huge pages.
                if low != end:
                    yield start, end
                    start = low
                end = high
    yield start, end


def _is_alone(address: int, size: int) -> bool:
    """Return whether glibc has requested memory from the system for a single allocation, by the header before it."""
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
    """Move buffers to the file, with a list of them at its start, and seal it; return the number of bytes."""
    libc = _libc()
    room = -(-(_HEAD.size + 128 * (1 + len(buffers))) // _PAGE) * _PAGE
    index: list[tuple[str, int, int]] = []
    offset = room
    with contextlib.suppress(Exception):  # for example, no memory: buffers that were moved before are shared
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
        os._exit(1)  # otherwise the next worker would overwrite the weights of this one
    return offset - room


def _replace(descriptor: int, buffers: list[_Buffer]) -> int:
    """Map the buffers that are in the file; return the number of bytes."""
    libc = _libc()
    (length,) = _HEAD.unpack(os.pread(descriptor, _HEAD.size, 0))
    offsets: dict[tuple[str, int], list[int]] = {}
    for digest, size, offset in json.loads(os.pread(descriptor, length, _HEAD.size)):
        offsets.setdefault((digest, size), []).append(offset)
    replaced = 0
    for buffer in buffers:
        for offset in offsets.get((_digest(buffer), buffer.size), []):
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
    """Replace a buffer by a private mapping of the file; return whether this succeeded."""
    access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _NO_RESERVE | _FIXED
    if libc.mmap(buffer.address, buffer.size, access, flags, descriptor, offset) != _FAILED:
        return True
    # At the limit of data the memory is unchanged; after other errors it is lost, and the process cannot continue.
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
    """Return a digest of some pages; buffers with equal digests are then compared as a whole."""
    content, pages = _view(buffer), buffer.size // _PAGE
    digest = hashlib.blake2b(digest_size=16)
    for number in range(_SAMPLES):
        start = number * (pages - 1) // (_SAMPLES - 1) * _PAGE
        digest.update(content[start : start + _PAGE])
    return digest.hexdigest()


def _view(buffer: _Buffer) -> memoryview:
    return memoryview((ctypes.c_char * buffer.size).from_address(buffer.address)).cast("B")
