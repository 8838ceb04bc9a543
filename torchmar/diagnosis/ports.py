"""Whether the ports that a server wants are free."""

from __future__ import annotations

from collections.abc import Iterator

from torchmar.diagnosis.finding import Finding, error, ok
from torchmar.engines import addresses
from torchmar.engines.server_records import ServerRecord
from torchmar.errors import BindError, EngineError, PropertiesError
from torchmar.properties import Properties

_TAKEN = " is taken by "


def check(config: Properties, running: ServerRecord | None) -> Iterator[Finding]:
    """Yield who listens on a port of the configuration, unless it is the server itself."""
    try:
        wanted = config.addresses()
    except PropertiesError as problem:
        yield error("ports", problem.message, problem.hint)
        return
    mine, free = [], []
    taken: dict[str, list[tuple[str, BindError]]] = {}  # by whom
    for address in wanted:
        name = address.unix or str(address.port)
        holder = None if address.unix else addresses.listener_of(address.port)
        # Who listens at a socket that is a file the system does not tell.
        if running and (address.unix or (holder and holder.pid == running.pid)):
            mine.append(name)
            continue
        try:
            addresses.check_free(address)
        except BindError as problem:
            taken.setdefault(problem.message.partition(_TAKEN)[2], []).append((name, problem))
        except EngineError as problem:
            yield error("ports", problem.message, problem.hint)
        else:
            free.append(name)
    for whom, problems in taken.items():
        names = ", ".join(name for name, _ in problems)
        first = problems[0][1]
        alone = len(problems) == 1 or not whom
        yield error("ports", first.message if alone else f"{names} are taken by {whom}", first.hint)
    if mine:
        yield ok("ports", f"{', '.join(mine)} are the server's")
    if free:
        yield ok("ports", f"{', '.join(free)} are free")
