"""The error of requests that cannot be answered before their deadline."""

from __future__ import annotations

import math

from torchmar.server.api_error import ApiError


class DeadlineError(ApiError):
    """A request cannot be answered before its deadline, and is not run."""

    def __init__(self, message: str, retry_seconds: float = 1.0) -> None:
        headers = {"Retry-After": str(max(1, math.ceil(retry_seconds)))}
        super().__init__(503, "ServiceUnavailableException", message, headers)
