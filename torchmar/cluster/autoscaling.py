"""The number of replicas of an application by the requests that its fronts have; Ray Serve's controller calls this."""

from __future__ import annotations

from typing import Any

DEMAND = "torchmar_demand"  # requests of all fronts that wait or run, which each replica reports
POLICY = f"{__name__}:replicas"  # as Ray Serve imports it


def replicas(context: Any) -> tuple[float, dict[str, Any]]:
    """Return the number of replicas for an `AutoscalingContext`; Ray Serve applies limits and delays.

    Fronts send their requests to replicas themselves, so that Ray Serve's own counts are 0. Every replica reports the
    requests of all fronts that are connected to it; one that has just started does not know all of them yet.
    """
    reported = (context.aggregated_metrics or {}).get(DEMAND) or {}
    if not reported:
        return context.target_num_replicas, {}
    return max(reported.values()) / context.config.get_target_ongoing_requests(), {}
