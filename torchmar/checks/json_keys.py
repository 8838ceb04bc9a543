"""Keys that occur twice in an object of a JSON file: no reader reports them."""

from __future__ import annotations

import json


def repeated_keys(text: bytes) -> list[str]:
    """Return the keys that occur twice in an object, at any depth, in the order of the file; none if it is not JSON."""
    repeated: dict[str, None] = {}

    def note(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        repeated.update(
            dict.fromkeys(key for key in keys if keys.count(key) > 1) if len(keys) != len(set(keys)) else {}
        )
        return dict(pairs)

    try:
        json.loads(text.decode(), object_pairs_hook=note)
    except (ValueError, RecursionError):
        return []
    return list(repeated)
