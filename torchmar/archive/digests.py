"""``MAR-INF/SHA256SUMS``: the digest of every other member, and of the whole content.

The file has the format of coreutils' ``sha256sum`` in text mode, so that
``sha256sum -c MAR-INF/SHA256SUMS`` checks an extracted archive. The archive's own digest
is the SHA-256 of this file: it identifies the content, regardless of the file's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torchmar.errors import ArchiveError

PATH = "MAR-INF/SHA256SUMS"
_HEX_LENGTH = 64


new = hashlib.sha256
"""Start a digest."""


def show(digests: Mapping[str, str]) -> bytes:
    """Return the text of ``SHA256SUMS`` for hexadecimal digests by member name, sorted by name."""
    return "".join(_line(name, digest) for name, digest in sorted(digests.items())).encode()


def parse(text: bytes) -> dict[str, str]:
    """Return the digests by member name.

    Raises:
        ArchiveError: a line does not have the format of ``sha256sum``.
    """
    digests = {}
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
        escaped = line.startswith("\\")
        digest, separator, name = line.removeprefix("\\").partition("  ")
        if not separator or len(digest) != _HEX_LENGTH:
            raise ArchiveError(f"{PATH}:{number}: not a line that sha256sum would write")
        digests[name.replace("\\n", "\n").replace("\\\\", "\\") if escaped else name] = digest
    return digests


def archive_digest(sums: bytes) -> str:
    """Return the digest of an archive: the SHA-256 of its ``SHA256SUMS``, in hexadecimal."""
    return hashlib.sha256(sums).hexdigest()


def _line(name: str, digest: str) -> str:
    # sha256sum escapes names with a backslash or a newline and marks the line with a leading backslash.
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
    mark = "\\" if escaped != name else ""
    return f"{mark}{digest}  {escaped}\n"
