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
    """One difference, as people read it.

    Attributes:
        sign: ``+`` added, ``~`` changed, ``-`` removed, ``!`` drift: a difference that no action removes.
        what: model and version.
        lines: the values that differ, and the reason for the chosen actions.
        failing: whether registered workers do not respond.
    """

    sign: Sign
    what: str
    lines: tuple[str, ...] = ()
    failing: bool = False


@dataclass
class Draft:
    """Changes and actions collected so far.

    The phases run in the order in which no request is lost: everything new, then the switches of default
    versions, then, after a drain, everything old.

    Attributes:
        index: the model store.
        folder: the folder that file names of the deployment are relative to.
        taken: the archive names in the model store, planned ones included.
        changes: the differences.
        up: what adds versions, or workers to versions without traffic.
        scale_up: what adds workers to versions with traffic. Of all that is new only this cannot be undone
            without losing requests, so it comes last.
        switches: changes of default versions.
        drains: the versions to drain.
        down: what removes workers and versions.
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

    def add_change(self, sign: Sign, what: str, *lines: str, failing: bool = False) -> None:
        """Add a difference."""
        self.changes.append(Change(sign, what, lines, failing))

    def ordered_actions(self) -> tuple[Action, ...]:
        """Return the actions of all phases in their order."""
        drain = [actions.Drain(tuple(self.drains))] if self.drains else []
        return (*self.up, *self.scale_up, *self.switches, *drain, *self.down)
