"""Where the built-in server is meant to answer otherwise than TorchServe, and why.

The table of docs/server.md is made of this one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torchmar.parity.answers import Deviation


@dataclass(frozen=True)
class Difference:
    """A difference that is meant.

    Attributes:
        id: what reports call it.
        cases: which it is about: a regular expression for all of ``MODEL/CASE``.
        aspects: which parts of the answer, as a regular expression: ``status|body``.
        torchserve: what TorchServe does, in Markdown.
        ours: what the built-in server does.
        why: the reason.
        first: what TorchServe's answer is, where that tells it from others: a regular expression for a part of it.
        second: likewise, ours.
    """

    id: str
    cases: str
    aspects: str
    torchserve: str
    ours: str
    why: str
    first: str = ""
    second: str = ""

    def explains(self, deviation: Deviation) -> bool:
        """Tell whether a deviation is this difference."""
        return bool(
            re.fullmatch(self.cases, deviation.case)
            and re.fullmatch(self.aspects, deviation.aspect)
            and re.search(self.first, deviation.first)
            and re.search(self.second, deviation.second)
        )


# Those that no request shows have no cases.
DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "connection-after-error",
        ".*",
        "connection",
        "closes the connection after every error",
        "keeps it open, unless where the request ends is not known",
        "clients need not connect again for a 404",
        first="^close$",
        second="^keep-alive$",
    ),
    Difference(
        "reason",
        ".*",
        "reason",
        "leaves the words of the status line out where a handler answered",
        "the usual ones, `OK`",
        "nothing reads them, and some clients show them",
        first="^$",
    ),
    Difference(
        "number-limits",
        "protocol/(register, |unregister )?batch size 0",
        "status|body",
        "registers `batch_size` below 1, `max_batch_delay` below 0 and timeouts below 1; no request is ever answered",
        "400 BadRequestException",
        "a model that never answers helps nobody",
    ),
    Difference(
        "worker-limits",
        "",
        "",
        "starts any number of workers",
        "400 BadRequestException above 1,024",
        "a slip of the finger should not take the machine down",
    ),
    Difference(
        "workers-below-none",
        "protocol/scaled? below nothing",
        "status|body",
        "`min_worker` below 0 is a 500 IndexOutOfBoundsException that takes every worker away",
        "400 BadRequestException",
        "an error should change nothing",
    ),
    Difference(
        "model-name",
        "protocol/register under a path",
        "status|body",
        "takes a `model_name` with `/` or control characters, which can then not be asked for or removed",
        "400 InvalidModelException",
        "what is registered has to be reachable",
    ),
    Difference(
        "bad-json",
        "protocol/register in JSON, cut off",
        "status|body",
        "500 with an exception of Java for a registration whose body is no JSON, no object, or empty",
        "400 BadRequestException",
        "the request is wrong, not the server",
    ),
    Difference(
        "json-delay",
        "protocol/in JSON",
        "body",
        "a registration in JSON without `max_batch_delay` gets -10000 ms",
        "100 ms, as without JSON",
        "it is a slip of TorchServe's",
        first="-10000",
        second="100",
    ),
    Difference(
        "no-archive",
        "protocol/register no archive",
        "body",
        "says `Model name is not defined.` of a file that is no archive",
        "says what is wrong with the file; archives with names outside their folder, bombs and the like are refused",
        "the message should name the cause",
    ),
    Difference(
        "config-timeouts",
        "",
        "",
        "a `model-config.yaml` without `responseTimeout` or `startupTimeout` sets them to 120 s, whatever else says",
        "what `models=`, the registration or the server's defaults say",
        "what a file does not say should not count",
    ),
    Difference(
        "config-modes",
        "",
        "",
        "sequence batching, continuous batching, `parallelType`, `torchrun`, `asyncCommunication`, `useVenv`",
        "400 InvalidModelException that names the key",
        "not built; better told at once than found out",
    ),
    Difference(
        "runtime-cpp",
        "",
        "",
        "the runtime `lsp` runs C++",
        "400 InvalidModelException",
        "not built",
    ),
    Difference(
        "load-failure",
        ".*/(load|register, a handler that is not there|register what does not load)",
        "body",
        "500 `Failed to start workers for model M version: V`",
        "the same, then `: ` and the last line of the traceback",
        "the reason should not have to be looked for in a log",
        first="Failed to start workers",
        second="Failed to start workers",
    ),
    Difference(
        "load-timeout",
        "",
        "",
        "a registration whose workers do not load within `startup_timeout` is a 500 and stays, without workers",
        "500, and nothing stays",
        "an error should change nothing",
    ),
    Difference(
        "management-waits",
        "",
        "",
        "other management calls wait for a registration",
        "they do not",
        "health checks should not fail while a large model loads",
    ),
    Difference(
        "describe-failure",
        ".*/(describe.*|what came of.*|scaled.*|registered later)",
        "body",
        "a worker that loads, or never will, is `UNLOADING`, and nothing says why",
        "`LOADING`; a further key `failure` has the traceback until a worker comes up",
        "the reason should not have to be looked for in a log",
        second="'failure'|'LOADING'",
    ),
    Difference(
        "describe-memory",
        "",
        "",
        "`memoryUsage` is 0 until system metrics were collected",
        "what the worker uses now",
        "a number should be right",
    ),
    Difference(
        "describe-customized",
        "protocol/describe: .*customized",
        "body",
        "`customized=true` shows the handler the request's headers, with the management token",
        "it does not",
        "handlers have no business with that token",
        first="<management token>",
    ),
    Difference(
        "describe-order",
        ".*/(both|describe: all)",
        "body",
        "versions in the order of a hash table",
        "in the order in which they were registered",
        "an order that one can rely on",
    ),
    Difference(
        "ready",
        "",
        "",
        "`GET /v1/models/M` at the management API says ready if there are workers, though none loads",
        "ready if a worker answers",
        "ready should mean ready",
    ),
    Difference(
        "set-default",
        "",
        "",
        "`set-default` takes a version without workers: every request is 503 from then on",
        "409 ConflictStatusException that names the call to scale it, while the present default answers",
        "a switch should not be an outage",
    ),
    Difference(
        "set-default-method",
        "protocol/set a default with GET",
        "status|body",
        "`GET` and `DELETE /models/M/V/set-default` describe and remove the **default** version",
        "405",
        "nobody who sends that means it",
    ),
    Difference(
        "drain",
        "",
        "",
        "requests that run or wait are dropped when their version is unregistered or scaled down",
        "they are answered first, for at most `response_timeout`",
        "no request should be lost",
    ),
    Difference(
        "page-token",
        "",
        "",
        "a `next_page_token` near 2^31 makes a negative one",
        "no token",
        "there is no such page",
    ),
    Difference(
        "options-star",
        r"protocol/OPTIONS \*",
        "status|body|content type",
        "`OPTIONS *` is a 500",
        "405",
        "the request is wrong, not the server",
        first="500|StringIndexOutOfBounds|NullPointer|Exception",
    ),
    Difference(
        "openapi",
        ".*/(OPTIONS.*|api-description|preflight.*)",
        "body",
        "OpenAPI documents in TorchServe's words",
        "the same paths and methods in ours",
        "they describe the server that answers",
    ),
    Difference(
        "workflows",
        "protocol/workflows",
        "status|body",
        "workflows, which run code even where the model API is closed",
        "404",
        "not built",
    ),
    Difference(
        "gpus",
        "",
        "",
        "workers go round robin over all models' GPUs, from GPU 1",
        "round robin for each version, from GPU 0",
        "GPU 0 should not be the last to work",
    ),
    Difference(
        "metrics-methods",
        "protocol/metrics( with POST|, OPTIONS)",
        "status|body|content type",
        "`/metrics` answers any method; `OPTIONS /` of that API is a document of its one path",
        "405 for all but GET; 404",
        "nothing is posted there",
    ),
    Difference(
        "more-metrics",
        ".*/(metrics.*|what was measured)",
        "body",
        "counts requests and adds up their time",
        "has besides `torchmar_*` histograms of queue time, batch sizes and latency",
        "percentiles need histograms",
        first=r"^\[\]$",
        second="torchmar_",
    ),
)


def documented(deviation: Deviation) -> Difference | None:
    """Return the difference that a deviation is; None for one that nobody meant."""
    return next((one for one in DIFFERENCES if one.explains(deviation)), None)


def markdown() -> str:
    """Return the table of docs/server.md."""
    rows = [("", "TorchServe 0.12.0", "here", "why"), ("---",) * 4]
    rows += [(f"`{one.id}`", one.torchserve, one.ours, one.why) for one in DIFFERENCES]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
