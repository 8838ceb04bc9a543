"""Configuration, start and snapshots: documented differences."""

from __future__ import annotations

from torchmar.parity.known_difference import KnownDifference

DIFFERENCES = (
    KnownDifference(
        id="config-values",
        what="a wrong value in `config.properties`",
        torchserve="a Java stack trace, or silently the default",
        builtin="the server does not start; the error has file, key, value and an example of each",
        reason="all mistakes are reported at once",
    ),
    KnownDifference(
        id="config-blanks",
        what="blanks at the end of a number",
        torchserve="NumberFormatException",
        builtin="ignored",
        reason="they are not visible",
    ),
    KnownDifference(
        id="allowed-urls",
        what="`allowed_urls` not set",
        torchserve="any URL",
        builtin="only the model store",
        reason="a registration runs code",
    ),
    KnownDifference(
        id="keystore",
        what="`keystore`",
        torchserve="Java's keystores",
        builtin="refused where an address is https, with the commands that convert it",
        reason="there is no Java",
    ),
    KnownDifference(
        id="snapshots",
        what="snapshots (`logs/config/*`)",
        torchserve=(
            "all are kept; they lack a handler that a registration named, and contain a file's name instead "
            "of a URL; the server ends if an archive is missing; `--models` is silently ignored if there is "
            "a snapshot"
        ),
        builtin=(
            "the last 100 of each run; they contain handlers and URLs; a missing archive is reported, and "
            "the others are served; `--models` is ignored with a warning if there is a snapshot; `torchmar "
            "serve` restores the models of its last run from `state.json` in the run folder"
        ),
        reason="a restart should serve what was served, or report what it cannot serve",
    ),
    KnownDifference(
        id="startup",
        what="requests for models that are loaded at the start, before they are registered",
        torchserve="connection refused: the ports are opened later",
        builtin="wait up to 30 s, then 503 with `Retry-After`; other models are served",
        reason="one slow download should not block the server",
    ),
    KnownDifference(
        id="startup-failure",
        what="a model of `load_models` or of a snapshot that cannot be loaded",
        torchserve="a line in the log; if the archive of a snapshot is missing, the server ends",
        builtin=(
            "named by the command that starts the server, by the 404 for this model, and in "
            "`/v2/repository/index`; `DELETE /models/M` removes it from the list"
        ),
        reason="a model that is not served should be reported",
    ),
    KnownDifference(
        id="queue-full",
        what="503 for a full queue, and for a model whose workers do not load",
        torchserve="the text for a model without workers; if workers do not load, requests wait",
        builtin="three texts, one of which names `job_queue_size`; at once; `Retry-After`",
        reason="an error should contain its cause",
        cases=".*/((predict|explain|customized) without workers|predict with none)",
        aspects="retry-after",
        first="^$",
        second="^[0-9]+$",
    ),
    KnownDifference(
        id="command",
        what="the `torchserve` command (here `torchmar-serve`)",
        torchserve="returns at once; key file and logs in the current folder; `--log-config`, `--plugins-path`",
        builtin=(
            "returns when the models are loaded; run folder `.torchmar`, the key file linked from the "
            "current folder; these flags have no effect"
        ),
        reason="scripts need not poll",
    ),
)
