"""The errors (503) of requests that a version cannot run, with TorchServe's texts if it has one."""

from __future__ import annotations

import time

from torchmar.server.api_error import ApiError
from torchmar.server.workers.deadline_error import DeadlineError
from torchmar.server.workers.pool_options import PoolOptions

# The texts follow the model's name; TorchServe has the first text for all of these cases.
_NO_WORKER = (
    "has no worker to serve inference request. Please use scale workers API to add workers. If this is a sequence "
    "inference, please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
)
_QUEUE_FULL = (
    "has {} requests waiting{}, as many as job_queue_size={} admits. Try again later, add workers, or raise "
    "job_queue_size (jobQueueSize in model-config.yaml)."
)
_NO_TICKET = "has no idle worker, and useJobTicket admits no waiting requests. Try again later, or add workers."
_DO_NOT_LOAD = "has no worker that loads. The management API describes the model with the reason (failure)."
_TOO_LATE = (
    "cannot answer before the deadline of the request: in {:.3g} ms, while a response is expected in {:.0f} ms, with "
    "{} waiting before it. Try again later, send fewer requests, or add workers."
)
_RETRY_SECONDS, _RETRY_WITHOUT_WORKERS_SECONDS = 1, 10  # values of Retry-After


def no_worker(options: PoolOptions) -> ApiError:
    """Return the error if there are no workers."""
    return _error(options, _NO_WORKER, _RETRY_WITHOUT_WORKERS_SECONDS)


def does_not_load(options: PoolOptions) -> ApiError:
    """Return the error if no worker loads."""
    return _error(options, _DO_NOT_LOAD, _RETRY_SECONDS)


def queue_full(options: PoolOptions, pending: int, *, loading: bool) -> ApiError:
    """Return the error if ``pending`` requests wait; with ``loading``, for workers that are not ready yet."""
    state = " while its workers are still being loaded" if loading else ""
    return _error(options, _QUEUE_FULL.format(pending, state, options.queue_size), _RETRY_SECONDS)


def no_ticket(options: PoolOptions) -> ApiError:
    """Return the error if no worker is idle, and requests must not wait."""
    return _error(options, _NO_TICKET, _RETRY_SECONDS)


def check_deadline(options: PoolOptions, deadline: float, seconds: float, waiting: int) -> None:
    """Check whether the deadline of a request can be met.

    Args:
        options: options of the version.
        deadline: deadline of the request, by `time.monotonic`.
        seconds: seconds until its reply.
        waiting: number of requests before it.

    Raises:
        DeadlineError: 503; the deadline cannot be met.
    """
    if (remaining := deadline - time.monotonic()) < seconds:
        text = _TOO_LATE.format(max(0.0, remaining) * 1e3, seconds * 1e3, waiting)
        raise DeadlineError(f'Model "{options.name}" {text}', seconds - remaining)


def _error(options: PoolOptions, reason: str, retry_seconds: int) -> ApiError:
    # The text for a request without a version; callers that know the version replace it.
    message = f'Model "{options.name}" {reason}'
    return ApiError(503, "ServiceUnavailableException", message, {"Retry-After": str(retry_seconds)})
