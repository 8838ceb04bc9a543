"""The check whether the ports of a configuration are free."""

from __future__ import annotations

from collections.abc import Iterator

from torchmar.diagnosis.finding import Finding, error, ok
from torchmar.engines import addresses
from torchmar.engines.server_records import ServerRecord
from torchmar.errors import BindError, EngineError, PropertiesError
from torchmar.properties import Properties

_TAKEN = " is taken by "


def check(config: Properties, running: ServerRecord | None) -> Iterator[Finding]:
    """Yield the processes that listen on the configuration's ports, which may be the server itself."""
    try:
        configured = config.addresses()
    except PropertiesError as problem:
        yield error("ports", problem.message, problem.hint)
        return
    own_ports, free = [], []
    taken: dict[str, list[tuple[str, BindError]]] = {}  # ports by the description of the process
    for address in configured:
        name = address.unix or str(address.port)
        listener = None if address.unix else addresses.listener_of(address.port)
        # The system does not report the process that listens on a Unix socket.
        if running and (address.unix or (listener and listener.pid == running.pid)):
            own_ports.append(name)
            continue
        try:
            addresses.check_free(address, wait=0)
        except BindError as problem:
            taken.setdefault(problem.message.partition(_TAKEN)[2], []).append((name, problem))
        except EngineError as problem:
            yield error("ports", problem.message, problem.hint)
        else:
            free.append(name)
    for process, problems in taken.items():
        names = ", ".join(name for name, _ in problems)
        first = problems[0][1]
        single = len(problems) == 1 or not process
        yield error("ports", first.message if single else f"{names} are taken by {process}", first.hint)
    if own_ports:
        yield ok("ports", f"{', '.join(own_ports)} are the server's")
    if free:
        yield ok("ports", f"{', '.join(free)} are free")
