"""Requests are sent to a replica with the fewest."""

from __future__ import annotations

from dataclasses import dataclass, field

from torchmar.cluster.balancer import Balancer


@dataclass(eq=False)
class Replica:
    ready: bool = True
    jobs: list[int] = field(default_factory=list)

    @property
    def room(self) -> int:
        return 3 - len(self.jobs) if self.ready else 0


def test_requests_are_spread_until_no_replica_has_room() -> None:
    balancer: Balancer[Replica] = Balancer()
    replicas = [Replica(), Replica(ready=False), Replica()]
    for replica in replicas:
        balancer.place(replica)
    while (chosen := balancer.choose()) is not None:
        chosen.jobs.append(0)
        balancer.place(chosen)
        assert abs(len(replicas[0].jobs) - len(replicas[2].jobs)) <= 1
    assert [len(replica.jobs) for replica in replicas] == [3, 0, 3]
    assert (balancer.total, balancer.ready) == (6, 2)


def test_a_replica_that_becomes_ready_is_chosen_and_a_removed_one_is_not() -> None:
    balancer: Balancer[Replica] = Balancer()
    busy, idle = Replica(jobs=[0]), Replica(ready=False)
    balancer.place(busy)
    balancer.place(idle)
    assert balancer.choose() is busy
    idle.ready = True
    balancer.place(idle)
    assert balancer.choose() is idle
    balancer.remove(idle)
    balancer.remove(idle)
    assert balancer.choose() is busy
    assert (balancer.total, balancer.ready) == (1, 1)
