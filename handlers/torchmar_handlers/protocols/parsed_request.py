"""One parsed request: its instances, and the function that makes one reply of their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torchmar_handlers.common.reply import Reply
from torchmar_handlers.request import BadRequest, Request

# Returns more keys of an error, from its status and message.
ErrorKeys = Callable[[int, str], Mapping[str, Any]]


class HandlerInfo(Protocol):
    """The part of a handler that the protocols use."""

    named: bool
    max_instances: int
    max_json_depth: int

    def rows(self, request: Request) -> list[Any] | None:
        """Return the instances of a plain body that holds several; None where it is one."""

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        """Return the answers as named columns, for protocols that answer in such; None: they are one."""

    def served_as(self) -> tuple[str, str]:
        """Return the model's name and version."""


@dataclass(slots=True)
class ParsedRequest:
    """The instances of one request; ``reply`` takes an answer for each.

    ``many``: errors name their instance. ``error_key``: the key under which clients of the protocol expect the
    message, beside TorchServe's ``message``. It can be pickled, but for
    the handler that ``reply`` may refer to: a server may have two processes answer a request, see
    `torchmar_handlers.base.BaseHandler.prepare_handle`.
    """

    parts: Sequence[Request]
    reply: Callable[[Sequence[Any]], Reply]
    many: bool = True
    error_key: str = ""

    def error_reply(
        self, status: int, message: str, position: int | None = None, error_keys: ErrorKeys = lambda *_: {}
    ) -> Reply:
        """Return an error as a client of this protocol reads it, with the keys that the handler adds."""
        if self.many and position is not None:
            message = f"instance {position}: {message}"
        own = {self.error_key: message} if self.error_key else {}
        return Reply.error(status, message, **{**error_keys(status, message), **own})


def instances(value: Any, what: str, limit: int) -> list[Any]:
    """Return a list of instances. Raises BadRequest when it is none, empty, or longer than ``limit`` (413)."""
    if not isinstance(value, list):
        raise BadRequest(f"{what} is not an array")
    if not value:
        raise BadRequest(f"{what} is empty")
    check_instance_count(len(value), limit)
    return value


def check_instance_count(count: int, limit: int) -> None:
    """Raise BadRequest (413) when a request holds more instances than are allowed."""
    if count > limit:
        raise BadRequest(f"the request has {count} instances; {limit} are allowed", 413)
