"""A handler that returns its input, so that a protocol's view of a request shows."""

# This file travels alone, as the handler of an archive.
from typing import Any


def handle(rows: Any, context: Any) -> Any:
    """Return each row and its headers."""
    if rows is None:
        return None
    # Where an archive lies is every server's own affair.
    system = {name: value for name, value in context.system_properties.items() if name != "model_dir"}
    return [
        {
            "row": {name: _shown(value) for name, value in row.items()},
            "headers": _headers(context.get_all_request_header(number)),
            "model": [context.model_name, context.manifest["model"]["modelVersion"]],
            "system": {name: str(value) for name, value in sorted(system.items())},
        }
        for number, row in enumerate(rows)
    ]


def _headers(asked: Any) -> Any:
    # A server may keep its tokens to itself, which is one question and not one in every request.
    secret = () if "Show-Token" in asked else ("Authorization",)
    return {name: str(value) for name, value in asked.items() if name not in secret}


def _shown(value: Any) -> Any:
    kind = type(value).__name__
    return [kind, value.decode("latin-1") if isinstance(value, bytes | bytearray) else value]
