"""A plan under construction: its changes, and its actions by phase."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torchmar.deployment import actions
from torchmar.deployment.actions import Action
from torchmar.deployment.store_index import StoreIndex

Sign = Literal["+", "~", "-", "!"]


@dataclass(frozen=True)
class Change:
    """One difference, in a form for people.

    Attributes:
        sign: ``+`` added, ``~`` changed, ``-`` removed, ``!`` drift: a difference that no action can remove.
        what: model and version.
        lines: differing values, and the reason for the actions.
        failing: whether registered workers do not respond.
    """

    sign: Sign
    what: str
    lines: tuple[str, ...] = ()
    failing: bool = False


@dataclass
class Draft:
    """Changes and actions that were collected so far.

    The phases run in an order that loses no request: first everything new, then the switches of default versions, then,
    after a drain, everything old.

    Attributes:
        index: the model store.
        folder: folder to which file names in the deployment are relative.
        taken: names of archives in the model store, including planned ones.
        changes: the differences.
        up: actions that add versions, or workers to versions without traffic.
        scale_up: actions that add workers to versions with traffic. They are the only new things that cannot be undone
            without losing requests; therefore they are last.
        switches: changes of default versions.
        drains: the versions to drain.
        down: actions that remove workers and versions.
    """

    index: StoreIndex
    folder: Path
    taken: set[str] = field(default_factory=set)
    changes: list[Change] = field(default_factory=list)
    up: list[Action] = field(default_factory=list)
    scale_up: list[Action] = field(default_factory=list)
    switches: list[Action] = field(default_factory=list)
    drains: list[actions.Drained] = field(default_factory=list)
    down: list[Action] = field(default_factory=list)

    def add_change(self, sign: Sign, title: str, *lines: str, failing: bool = False) -> None:
        """Add a difference."""
        self.changes.append(Change(sign, title, lines, failing))

    def ordered_actions(self) -> tuple[Action, ...]:
        """Return the actions of all phases, in order."""
        drain = [actions.Drain(tuple(self.drains))] if self.drains else []
        return (*self.up, *self.scale_up, *self.switches, *drain, *self.down)
