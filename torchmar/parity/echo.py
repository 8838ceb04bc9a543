"""A handler that returns its input, to show what a server passes to handlers."""

# This file is a handler in an archive: it imports no module of torchmar.
from typing import Any


def handle(rows: Any, context: Any) -> Any:
    """Return each row and its headers."""
    if rows is None:
        return None
    # The folder of an archive differs between servers.
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


def _headers(headers: Any) -> Any:
    # Only one case shows whether a server passes the token on; other responses omit it.
    secret = () if "Show-Token" in headers else ("Authorization",)
    return {name: str(value) for name, value in headers.items() if name not in secret}


def _shown(value: Any) -> Any:
    kind = type(value).__name__
    return [kind, value.decode("latin-1") if isinstance(value, bytes | bytearray) else value]
