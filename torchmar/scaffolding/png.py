"""A grey image as PNG, written without an image library: the base install has none.

https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import struct
import zlib


def grey(width: int, height: int) -> bytes:
    """Return a PNG of a horizontal ramp from black to white, 8 bits of grey for each pixel."""
    row = b"\0" + bytes(255 * column // max(1, width - 1) for column in range(width))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * height, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
