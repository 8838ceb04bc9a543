"""Metrics: documented differences."""

from __future__ import annotations

from torchmar.parity.known_difference import KnownDifference

DIFFERENCES = (
    KnownDifference(
        id="metrics-more",
        what="additional metrics",
        torchserve="`WorkerThreadTime`, of a Java thread",
        builtin="`torchmar_*`: histograms of queue time, batch size and latency",
        reason="percentiles need histograms; there is no such thread",
        cases=".*/(metrics.*|what was measured)",
        aspects="body",
        first=r"^\[('WorkerThreadTime[^']*')?\]$",
        second=r"^\[('(torchmar_|Requests5XX|QueueTime)[^']*'(, )?)*\]$",
    ),
    KnownDifference(
        id="metrics-version",
        what="`model_version` of `ts_inference_requests_total` and the latencies",
        torchserve="the version in the request: `default` for requests without a version",
        builtin="the version that answered",
        reason="after set-default, one series should not contain two versions",
    ),
    KnownDifference(
        id="metrics-failed",
        what="latency and queue time of failed requests",
        torchserve="they count as requests, but their time does not, so that means are too small",
        builtin="both are counted",
        reason="a mean should be right",
    ),
    KnownDifference(
        id="metrics-grpc",
        what="`Requests2XX`, `Requests4XX`, `Requests5XX` over gRPC",
        torchserve="not counted",
        builtin="counted by the equivalent HTTP status",
        reason="requests over gRPC are requests",
    ),
    KnownDifference(
        id="metrics-system",
        what="system metrics",
        torchserve="measured every `metric_time_interval`; `CPUUtilization` is 0 or 100",
        builtin="measured when they are read; the mean since the previous reading",
        reason="the number should be right",
    ),
    KnownDifference(
        id="metrics-mode",
        what="`/metrics` with `metrics_mode=log` or `legacy`",
        torchserve="an empty answer",
        builtin="the metrics",
        reason="a client that reads metrics needs them",
        cases=".*/metrics.*",
        aspects="body",
        first="^$",
        second=r"^\['",
    ),
    KnownDifference(
        id="metrics-methods",
        what="other paths and methods at the metrics API",
        torchserve="every path and method but `OPTIONS /` answers with the metrics",
        builtin="404; 405 for methods but GET and HEAD; `OPTIONS /` describes the API in other words",
        reason="metrics are only read",
        cases=".*/metrics( with POST|, OPTIONS)",
        aspects="status|body|content type",
    ),
    KnownDifference(
        id="metrics-name",
        what="`?name[]=` with the name of a histogram",
        torchserve="nothing; only the names of its lines work",
        builtin="all its lines",
        reason="the name selects the metric",
    ),
    KnownDifference(
        id="metrics-labels",
        what="a handler's metric with a comma or colon in a label value",
        torchserve="truncated, or the label is lost",
        builtin="complete",
        reason="no data should be lost",
    ),
    KnownDifference(
        id="metrics-series",
        what="labels of handlers' metrics with an unlimited number of values",
        torchserve="all are kept",
        builtin="1,000 series for each model; further ones are dropped, with one warning",
        reason="memory is limited",
    ),
    KnownDifference(
        id="metrics-gone",
        what="a metric of a model that is unregistered",
        torchserve="kept",
        builtin="its series are removed",
        reason="it has no value any more",
    ),
    KnownDifference(
        id="metrics-dimensions",
        what="a number of dimensions in `metrics_config` that does not fit the metric",
        torchserve="an error in the log at every update",
        builtin="the metric is not shown",
        reason="one report is enough",
    ),
    KnownDifference(
        id="metrics-config",
        what="a `metrics_config` that cannot be read",
        torchserve="an error in the log, and no metrics",
        builtin="the server does not start; the error has the reason",
        reason="a clear error is better than missing metrics",
    ),
)
