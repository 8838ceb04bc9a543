"""One parsed request: its instances, and the function that makes one reply from their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torchmar_handlers.common.reply import Reply
from torchmar_handlers.request import BadRequest, Request

# Returns further keys of an error, for its status and message.
ErrorKeys = Callable[[int, str], Mapping[str, Any]]


class HandlerInfo(Protocol):
    """The methods of a handler that the protocols use."""

    named: bool
    max_instances: int
    max_json_depth: int

    def rows(self, request: Request) -> list[Any] | None:
        """Return the instances of a plain body with several; None: the body is one instance."""

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        """Return the answers as named columns, for protocols that use columns; None: they are one column."""

    def served_as(self) -> tuple[str, str]:
        """Return the model's name and version."""


@dataclass(slots=True)
class ParsedRequest:
    """The instances of one request; ``reply`` makes one reply from an answer for each.

    ``many``: whether errors name their instance. ``error_key``: the key in which clients of the protocol expect the
    message, in addition to TorchServe's ``message``. The object can be pickled, except for
    the handler to which ``reply`` may refer: two processes of a server may share the work for a request, see
    `torchmar_handlers.base.BaseHandler.prepare_handle`.
    """

    parts: Sequence[Request]
    reply: Callable[[Sequence[Any]], Reply]
    many: bool = True
    error_key: str = ""

    def error_reply(
        self, status: int, message: str, position: int | None = None, error_keys: ErrorKeys = lambda *_: {}
    ) -> Reply:
        """Return an error in the form of this protocol, with the keys that the handler adds."""
        if self.many and position is not None:
            message = f"instance {position}: {message}"
        error_field = {self.error_key: message} if self.error_key else {}
        return Reply.error(status, message, **{**error_keys(status, message), **error_field})


def instances(value: Any, subject: str, limit: int) -> list[Any]:
    """Return a list of instances. Raises BadRequest if it is no list, empty, or longer than ``limit`` (413)."""
    if not isinstance(value, list):
        raise BadRequest(f"{subject} is not an array")
    if not value:
        raise BadRequest(f"{subject} is empty")
    check_instance_count(len(value), limit)
    return value


def check_instance_count(count: int, limit: int) -> None:
    """Raise BadRequest (413) if a request has more instances than are allowed."""
    if count > limit:
        raise BadRequest(f"the request has {count} instances; {limit} are allowed", 413)
