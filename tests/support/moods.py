"""A handler that fails on demand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Make = Callable[..., Path]


# Fails to load while its marker exists; measures the metric that top shows as percentiles.
MOODY = """
import os, time
from ts.metrics.metric_type_enum import MetricTypes


def handle(rows, context):
    if rows is None:
        if os.path.exists({marker!r}):
            raise ValueError("the table of prices is gone")
        return None
    context.metrics.add_metric("HandlerSeconds", 0.02, "s", metric_type=MetricTypes.HISTOGRAM)
    print("a price was requested")
    return ["ok"] * len(rows)
"""
