"""Whether the nodes of a cluster have room for replicas; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources that a replica needs, or that a node has; ``memory`` in bytes, ``others`` by name."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory: float = 0.0
    others: Mapping[str, float] = field(default_factory=dict)

    def show(self) -> str:
        """Return the resources as text: ``2 CPUs, 0.5 GPUs, 4.0 GiB``."""
        texts = [f"{self.cpus:g} CPUs"]
        if self.gpus:
            texts.append(f"{self.gpus:g} GPUs")
        if self.memory:
            texts.append(f"{self.memory / _GIB:.1f} GiB of memory")
        texts += [f"{amount:g} {name}" for name, amount in sorted(self.others.items())]
        return ", ".join(texts)

    def only(self, needs: Resources) -> Resources:
        """Return these resources, with only those of ``others`` that ``needs`` has too."""
        return replace(self, others={name: self.others.get(name, 0.0) for name in needs.others})

    def times(self, needs: Resources) -> int:
        """Return how many times ``needs`` fits into these resources."""
        pairs = [(self.cpus, needs.cpus), (self.gpus, needs.gpus), (self.memory, needs.memory)]
        pairs += [(self.others.get(name, 0.0), amount) for name, amount in needs.others.items()]
        # Ray counts in steps of 1/10000; sums of fractions are not exact.
        return min((int((available + 1e-6) / amount) for available, amount in pairs if amount), default=1 << 30)


def problem(needs: Resources, count: int, nodes: Mapping[str, Resources], *, free: bool = False) -> str:
    """Return why ``count`` replicas do not fit, in one sentence with numbers; empty: they fit.

    Args:
        needs: resources of each replica.
        count: number of replicas.
        nodes: resources of each node, by its name.
        free: whether ``nodes`` are the free resources of the nodes, not all resources.
    """
    if not nodes:
        return "the cluster has no node"
    fitting = {name: node.times(needs) for name, node in nodes.items()}
    if sum(fitting.values()) >= count:
        return ""
    verb = "has free" if free else "has"
    listed = "; ".join(f"node {name} {verb} {node.only(needs).show()}" for name, node in _largest(nodes))
    if not any(fitting.values()):
        return f"a replica needs {needs.show()}, and no node {verb} as much: {listed}"
    return f"{count} replicas need {needs.show()} each, and there is room for {sum(fitting.values())}: {listed}"


_SHOWN = 8  # number of nodes in a message


def _largest(nodes: Mapping[str, Resources]) -> Sequence[tuple[str, Resources]]:
    ordered = sorted(nodes.items(), key=lambda item: (-item[1].gpus, -item[1].cpus, item[0]))
    return ordered[:_SHOWN]
