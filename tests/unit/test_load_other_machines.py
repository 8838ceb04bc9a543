"""torchmar.load.other_machines: replicas on other machines, by the server's metrics."""

from __future__ import annotations

from torchmar.load import other_machines
from torchmar.load.other_machines import OtherMachines
from torchmar.metrics import Reading, parse

HERE, THERE = "127.0.0.1 (a)", "198.51.100.7 (b)"


def reading(*replicas: tuple[str, str, float]) -> Reading:
    """Return metrics with node, id and CPU seconds of replicas."""
    lines = []
    for node, replica, seconds in replicas:
        labels = f'{{model_name="m",model_version="1.0",node="{node}",replica="{replica}",}}'
        lines.append(f"torchmar_replica_cpu_seconds_total{labels} {seconds}")
        lines.append(f"torchmar_replica_memory_bytes{labels} 1000")
    return Reading(0.0, parse("\n".join(lines)))


def test_only_replicas_on_other_machines_count_and_new_ones_from_their_begin() -> None:
    before = reading((HERE, "1", 5.0), (THERE, "2", 5.0), (THERE, "ended", 9.0))
    now = reading((HERE, "1", 50.0), (THERE, "2", 6.5), (THERE, "new", 2.0))
    here = {"127.0.0.1"}
    others = other_machines.between(before, now, here)
    assert others == OtherMachines(replicas=2, cpu_seconds=3.5, memory_bytes=2000)
    assert other_machines.has_any(now, here)
    assert not other_machines.has_any(reading((HERE, "1", 5.0)), here)
    assert not other_machines.has_any(None, here)
