"""The number of replicas of an application by the number of its requests; Ray Serve's controller calls this module."""

from __future__ import annotations

from typing import Any

DEMAND = "torchmar_demand"  # key of the number that each replica reports: requests of all fronts that wait or run
POLICY = f"{__name__}:replicas"  # the name by which Ray Serve imports the function


def replicas(context: Any) -> tuple[float, dict[str, Any]]:
    """Return the number of replicas for an `AutoscalingContext`; Ray Serve applies limits and delays.

    Fronts send their requests to replicas directly, so that Ray Serve's own counts are 0. Every replica reports the
    number of requests of all fronts that are connected to it; a new replica is not connected to all fronts yet.
    """
    reported = (context.aggregated_metrics or {}).get(DEMAND) or {}
    if not reported:
        return context.target_num_replicas, {}
    return max(reported.values()) / context.config.get_target_ongoing_requests(), {}
