"""Errors for clients of KServe's protocols (v1 and v2): a JSON object with the message as ``error``."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

# A path below /v1 or /v2, also in a target in absolute form, which is the form for proxies.
_PATH = re.compile(rb"(?:https?://[^/?#]*)?/v[12](?:[/?#]|$)", re.IGNORECASE)


def is_kserve(target: bytes) -> bool:
    """Return whether the target of a request line belongs to KServe's v1 or v2 protocol."""
    return _PATH.match(target) is not None


def with_error(body: bytes) -> bytes:
    """Return the body of an error as a JSON object with the key ``error``.

    An object with this key is not changed. Other objects keep their members, and get their ``message`` (or, without
    one, the text of the whole object) under this key; for any other body, its text is the message.

    Source of the key: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol,
    "Inference Response JSON Error Object"; the v1 protocol and TensorFlow Serving have the same.
    """
    text = body.decode("utf-8", "replace").strip()
    document: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(text)
    if not isinstance(document, dict):
        document = {"error": document if isinstance(document, str) else text}
    elif "error" in document:
        return body
    else:
        message = document.get("message")
        document["error"] = message if isinstance(message, str) else text
    # In the same layout as TorchServe's errors, which are indented.
    return json.dumps(document, indent=2 if "\n" in text else None, ensure_ascii=False).encode("utf-8", "replace")
