"""NumPy's ``.npy`` files, as bodies of requests and answers."""

from __future__ import annotations

import io
import math

import numpy as np

from torchmar_handlers.request import BadRequest

MAGIC = b"\x93NUMPY"
CONTENT_TYPE = "application/x-npy"


_HEADER = 1 << 17  # bytes, more than NumPy's headers have


def read(content: bytes | bytearray) -> np.ndarray:
    """Return the array of a ``.npy`` body; it shares the memory of ``content``, and is writable if ``content`` is.

    NumPy's own reader allocates the size in the header before it compares it with the size of the file.

    Raises:
        BadRequest: the file is damaged, or contains values other than numbers, booleans and texts of fixed length.
    """
    stream = io.BytesIO(memoryview(content)[:_HEADER])
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
    except Exception as error:  # a header is Python text, whose errors raise any exception
        raise BadRequest(f"the .npy file is damaged: {str(error).splitlines()[0] if str(error) else error!r}") from None
    if dtype.kind not in "biufUS" or dtype.itemsize == 0:
        raise BadRequest(f"a .npy file of {dtype} is not taken; send numbers")
    count = math.prod(shape)
    if stream.tell() + count * dtype.itemsize != len(content):
        available = len(content) - stream.tell()
        raise BadRequest(
            f"the .npy file is damaged: {count * dtype.itemsize} bytes of data expected, {available} there"
        )
    array = np.frombuffer(content, dtype, count, stream.tell())
    return array.reshape(shape, order="F" if fortran else "C")


def write(array: np.ndarray) -> bytes:
    """Return the ``.npy`` file of an array."""
    stream = io.BytesIO()
    if array.dtype.hasobject or not (array.flags.c_contiguous or array.flags.f_contiguous):
        np.save(stream, array, allow_pickle=False)
        return stream.getvalue()
    # As np.save does it, except for the content, which np.save copies twice.
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
    return b"".join([stream.getvalue(), array.ravel(order="K").view(np.uint8).data])
