"""The console's API as an OpenAPI 3.0.1 document, the answer to ``GET /console/api/v1``."""

from __future__ import annotations

from typing import Any

from torchmar.server.api.openapi_parts import (
    BINARY,
    FLAG,
    JSON,
    TEXT,
    Parameter,
    Schema,
    array,
    document,
    operation,
    record,
    reference,
    response,
    whole_number,
)
from torchmar.server.telemetry.events import KINDS

_TOKEN = "management"
_NUMBER: Schema = {"type": "number"}
_INTEGER: Schema = {"type": "integer"}
_TIME: Schema = {"type": "number", "description": "Seconds since 1970."}
_ROOT = "/console/api/v1"
_NAME = Parameter("path", "model_name", TEXT, "Name of the model.")
_VERSION = Parameter("path", "model_version", TEXT, "Version of the model.")
_MODEL_QUERY = Parameter("query", "model", TEXT, "Only this model; default: all.")
_VERSION_QUERY = Parameter("query", "version", TEXT, "Only this version of it; default: all.")
_BYTES = {"application/octet-stream": BINARY}
_ERRORS = {
    "400": "The token is wrong, or a parameter",
    "401": "Neither a token nor a session",
    "403": "The token or the session may only read, or a page of another site sent the request",
    "404": "No such model, version or sample",
}


def _nullable(schema: Schema, description: str = "") -> Schema:
    return {**schema, "nullable": True, **({"description": description} if description else {})}


def _nullable_array(description: str) -> Schema:
    return {"type": "array", "items": _nullable(_NUMBER), "description": description}


_WORKER = record(
    {
        "id": TEXT,
        "state": {"type": "string", "enum": ["READY", "LOADING", "UNLOADING"]},
        "pid": _INTEGER,
        "gpu": _nullable(_INTEGER, "The index of its GPU; null: the CPU."),
        "memory": {**_INTEGER, "format": "int64", "description": "Resident bytes."},
        "started": _TIME,
        "stage": {"type": "string", "description": "preprocess or postprocess; empty: it has the model."},
    }
)
_MODEL_VERSION = record(
    {
        "version": TEXT,
        "url": {"type": "string", "description": "Of its registration."},
        "digest": TEXT,
        "size": _nullable({**_INTEGER, "format": "int64"}, "Bytes of the archive; null: it is a folder."),
        "modified": _nullable(_NUMBER, "When the archive's file was last changed, in seconds since 1970."),
        "handler": TEXT,
        "description": TEXT,
        "state": {"type": "string", "enum": ["ready", "starting", "restarting", "crash_looping", "no workers"]},
        "ready": _INTEGER,
        "min_workers": _INTEGER,
        "max_workers": _INTEGER,
        "pending": {**_INTEGER, "description": "Requests that wait for a worker."},
        "device": {"type": "string", "enum": ["cpu", "gpu"]},
        "batch_size": _INTEGER,
        "max_batch_delay_ms": _NUMBER,
        "response_timeout_s": _NUMBER,
        "queue_size": _INTEGER,
        "failure": {"type": "string", "description": "The traceback of its workers; empty: they load."},
        "workers": array(reference("Worker")),
    }
)
_COLUMNS = record(
    {
        "time": {**array(_NUMBER), "description": "Seconds since 1970, at the end of each second."},
        "requests": {**array(_NUMBER), "description": "Requests a second."},
        "failed": _nullable_array(
            "Of these, requests answered with a status other than 2xx; null: unknown for a single model."
        ),
        "mean_ms": _nullable_array("Latency, from arrival to the end of the handler; null: no request."),
        "p50_ms": _nullable_array("Median latency."),
        "p95_ms": _nullable_array("95 % of the requests were not slower."),
        "p99_ms": _nullable_array("99 % of the requests were not slower."),
        "queue_ms": _nullable_array("Mean time until a worker got the request."),
        "queue_p99_ms": _nullable_array("99 % of the requests waited no longer."),
        "failures": {
            **array(_nullable({"type": "object", "additionalProperties": _INTEGER})),
            "description": "Failed requests by status, or by its class, such as 5XX.",
        },
        "batches": {
            **array(_nullable(array(_INTEGER))),
            "description": "Batches by size: of sizes up to each of batch_sizes, and above all of these.",
        },
        "ready": {**array(_INTEGER), "description": "Ready workers."},
        "wanted": {**array(_INTEGER), "description": "The configured number of workers."},
        "pending": {**array(_INTEGER), "description": "Requests that waited for a worker."},
    }
)
_SUMMARY: dict[str, Schema] = {
    "file": TEXT,
    "size": _nullable({**_INTEGER, "format": "int64"}, "Bytes; null: it is a folder."),
    "modified": _TIME,
    "registered": {
        **array(record({"model": TEXT, "version": TEXT})),
        "description": "Models and versions that are registered from it.",
    },
    "name": TEXT,
    "version": TEXT,
    "description": TEXT,
    "error": {"type": "string", "description": "Why it cannot be opened; empty: it can."},
}
_SCHEMAS: dict[str, Schema] = {
    "Archives": record({"folder": TEXT, "more": _INTEGER, "archives": array(record(_SUMMARY))}),
    "Archive": record(
        {
            **_SUMMARY,
            "digest": TEXT,
            "handler": TEXT,
            "weights": TEXT,
            "config": TEXT,
            "samples": array(
                record(
                    {
                        "number": _INTEGER,
                        "name": TEXT,
                        "explain": FLAG,
                        "status": _INTEGER,
                        "expect": {"nullable": True, "description": "The answer expected; null: any."},
                    }
                )
            ),
            "member_count": _INTEGER,
            "members": array(record({"name": TEXT, "size": _INTEGER})),
            "findings": array(reference("Finding")),
            "reports": array(reference("Report")),
        }
    ),
    "Report": record(
        {
            "name": {"type": "string", "description": "Name of its file; empty: it is in the archive."},
            "kind": {"type": "string", "description": "optimize, tune, bench or parity; empty: unknown."},
            "created": TEXT,
            "machine": TEXT,
            "sentences": array(TEXT),
            "columns": array(TEXT),
            "rows": array(array(TEXT)),
            "page": {"type": "string", "description": "The HTML file of the same name; empty: there is none."},
            "error": TEXT,
        }
    ),
    "SampleAnswers": record({"answers": array(reference("SampleAnswer"))}),
    "SampleAnswer": record(
        {
            "number": _INTEGER,
            "time": _TIME,
            "milliseconds": _NUMBER,
            "status": _INTEGER,
            "type": TEXT,
            "size": _INTEGER,
            "text": {"type": "string", "description": "Its first 4,000 characters; empty: it is no text."},
            "differences": {**array(TEXT), "description": "Differences from the expected answer; empty: it is right."},
        }
    ),
    "Stored": record({"file": TEXT}),
    "Operation": record(
        {
            "id": TEXT,
            "kind": {"type": "string", "enum": ["apply", "promote", "rollback"]},
            "model": {"type": "string", "description": "For promote and rollback: the model."},
            "version": {"type": "string", "description": "For promote and rollback: the new default version."},
            "state": {
                "type": "string",
                "enum": ["running", "done", "rejected", "failed", "stopped", "interrupted"],
                "description": "rejected: a version was not promoted; interrupted: the server ended meanwhile.",
            },
            "started": _TIME,
            "ended": _nullable(_TIME),
            "stopping": FLAG,
            "planned": array(record({"verb": TEXT, "text": TEXT})),
            "steps": array(
                record(
                    {
                        "verb": TEXT,
                        "text": TEXT,
                        "seconds": _nullable(_NUMBER, "null: it runs."),
                        "note": TEXT,
                        "failed": FLAG,
                    }
                )
            ),
            "outcome": _nullable({"type": "object"}, "The result; null: it is running."),
        }
    ),
    "Rollout": record(
        {
            "operation": _nullable({"allOf": [reference("Operation")]}, "The last change; null: there was none."),
            "applied": _nullable(_NUMBER, "When a deployment was last applied, in seconds since 1970."),
            "deployment": {
                "type": "string",
                "description": "The deployment that was last applied; empty: unknown, or the client may only read.",
            },
        }
    ),
    "RolloutState": record(
        {
            "deployment": {"type": "string", "description": "The server's state as a deployment."},
            "rollbacks": {
                "type": "object",
                "additionalProperties": record({"version": TEXT, "reason": TEXT}),
                "description": "By model, the version that a rollback makes the default, or why there is none.",
            },
        }
    ),
    "Plan": record(
        {
            "problems": array(record({"line": _INTEGER, "place": TEXT, "message": TEXT, "hint": TEXT})),
            "plan": _nullable({"type": "object"}, "Output of torchmar plan --json, with the digest for apply."),
        }
    ),
    "Finding": record(
        {
            "code": TEXT,
            "severity": {"type": "string", "enum": ["error", "warning"]},
            "place": TEXT,
            "cause": TEXT,
            "remedy": TEXT,
        }
    ),
    "Worker": _WORKER,
    "ModelVersion": _MODEL_VERSION,
    "Model": record(
        {
            "name": TEXT,
            "default": TEXT,
            "labels": {"type": "object", "additionalProperties": TEXT},
            "versions": array(reference("ModelVersion")),
        }
    ),
    "Models": record({"models": array(reference("Model"))}),
    "Server": record(
        {
            "torchmar": {"type": "string", "description": "The version of torchmar."},
            "engine": {"type": "string", "description": "The server: torchmar, or another one, such as TorchServe."},
            "not_reported": {
                **array(TEXT),
                "description": "Keys of this API without values from the server; logs, samples, archives, steps "
                "(of a request's time).",
            },
            "pid": _INTEGER,
            "started": _nullable(_TIME),
            "now": _TIME,
            "health": {"type": "string", "enum": ["Healthy", "Partial Healthy", "Unhealthy"]},
            "loading": {**FLAG, "description": "Whether the models of the start are still being loaded."},
            "not_loaded": array(record({"model": TEXT, "url": TEXT, "message": TEXT})),
            "warnings": array(TEXT),
            "addresses": record({"inference": TEXT, "management": TEXT}),
            "grpc": record({"inference": TEXT, "management": TEXT}),
            "model_store": TEXT,
            "tokens": {**FLAG, "description": "Whether requests need a token."},
            "right": {"type": "string", "enum": ["management", "read"]},
            "may_register": FLAG,
            "may_upload": {**FLAG, "description": "Whether the console puts archives into the model store."},
            "largest_upload": {**_INTEGER, "description": "Bytes of a request: max_request_size."},
            "machine": _nullable(
                record({"cores": _INTEGER, "load": _NUMBER, "memory_used": _INTEGER, "memory_total": _INTEGER})
            ),
        }
    ),
    "History": record({"batch_sizes": array(_NUMBER), "columns": _COLUMNS}),
    "VersionLoad": record(
        {
            "model": TEXT,
            "version": TEXT,
            "requests": {**_NUMBER, "description": "Requests a second."},
            "failed": _nullable(_NUMBER),
            "mean_ms": _nullable(_NUMBER),
            "p50_ms": _nullable(_NUMBER),
            "p95_ms": _nullable(_NUMBER),
            "p99_ms": _nullable(_NUMBER),
            "queue_ms": _nullable(_NUMBER),
            "queue_p99_ms": _nullable(_NUMBER),
            "failures": _nullable({"type": "object", "additionalProperties": _INTEGER}),
            "batches": _nullable(array(_INTEGER)),
            "seconds": {**_NUMBER, "description": "Length of the history in seconds."},
            "request_count": _INTEGER,
            "failed_count": _nullable(_INTEGER),
        }
    ),
    "Load": record({"versions": array(reference("VersionLoad"))}),
    "Event": record(
        {
            "number": _INTEGER,
            "time": _TIME,
            "kind": {"type": "string", "enum": list(KINDS)},
            "text": TEXT,
            "model": TEXT,
            "version": TEXT,
            "worker": TEXT,
        }
    ),
    "Events": record({"events": array(reference("Event"))}),
    "LogEntry": record(
        {
            "number": _INTEGER,
            "time": _TIME,
            "level": TEXT,
            "model": TEXT,
            "version": TEXT,
            "worker": TEXT,
            "request_id": TEXT,
            "text": TEXT,
        }
    ),
    "LogEntries": record({"entries": array(reference("LogEntry"))}),
    "Form": record(
        {
            "kind": {"type": "string", "enum": ["image", "text", "table", "other"]},
            "handler": TEXT,
            "explains": _nullable(FLAG, "Whether the handler explains; null: unknown."),
            "pictures": {**FLAG, "description": "Whether predictions can also be pictures."},
            "inputs": array({"type": "object"}),
            "outputs": array({"type": "object"}),
            "image": {"type": "object"},
            "labels": {"type": "object", "additionalProperties": TEXT},
            "samples": array({"type": "object"}),
        }
    ),
    "SignIn": record({}, {"code": TEXT, "token": TEXT}),
    "SignedIn": record({"right": {"type": "string", "enum": ["management", "read"]}}),
    "Code": record({"code": {"type": "string", "description": "Opens one session, within ten minutes."}}),
    "Status": record({"status": TEXT}),
}


def description(tokens: bool) -> dict[str, Any]:
    """Return the document; ``tokens``: whether requests need a token or a session."""
    token = _TOKEN if tokens else ""
    paths = {
        _ROOT: {
            "get": operation("consoleApi", "Describe this API.", {"200": response("A document", {"type": "object"})})
        },
        f"{_ROOT}/server": _get("consoleServer", "Describe the server.", "Server", token),
        f"{_ROOT}/models": _get(
            "consoleModels", "Describe all models, with their versions and workers.", "Models", token
        ),
        f"{_ROOT}/models/{{model_name}}": _get("consoleModel", "Describe a model.", "Model", token, _NAME),
        f"{_ROOT}/load": _get(
            "consoleLoad",
            "Return the load of each version in the last ten minutes as one; without those that got no request.",
            "Load",
            token,
            _MODEL_QUERY,
        ),
        f"{_ROOT}/history": _get(
            "consoleHistory",
            "Return the load of the last ten minutes, a value for each second.",
            "History",
            token,
            _MODEL_QUERY,
            _VERSION_QUERY,
            Parameter("query", "since", _NUMBER, "Only after this time, in seconds since 1970."),
        ),
        f"{_ROOT}/events": _get(
            "consoleEvents",
            "Return the latest events: models registered and scaled, defaults switched, workers started and died.",
            "Events",
            token,
            Parameter("query", "after", whole_number(0), "Only events after this number."),
        ),
        f"{_ROOT}/logs": _get(
            "consoleLogs",
            "Return the latest entries of the logs.",
            "LogEntries",
            token,
            _MODEL_QUERY,
            _VERSION_QUERY,
            Parameter("query", "worker", TEXT, "Only this worker; default: all."),
            Parameter("query", "limit", whole_number(0), "The most entries; default: 2000, which are kept."),
        ),
        f"{_ROOT}/archives": {
            **_get("consoleArchives", "List the archives of the model store.", "Archives", token),
            "post": operation(
                "consoleStore",
                "Put an archive into the model store, if the server would register it; nothing of it is run.",
                {"200": response("It is there", reference("Stored"))},
                errors={
                    **_ERRORS,
                    "403": "A reader, or enable_model_api or torchmar_console_uploads is false",
                    "409": "There is another file of this name",
                    "413": "It is larger than max_request_size",
                },
                parameters=(Parameter("query", "file", TEXT, "Its file name."),),
                body=_BYTES,
                token=token,
            ),
        },
        f"{_ROOT}/archives/{{file}}/reports/{{report}}": {
            "get": operation(
                "consoleReport",
                "Return the HTML file of a report that is beside an archive.",
                {"200": response("A page without scripts", TEXT, "text/html")},
                errors=_ERRORS,
                parameters=(
                    Parameter("path", "file", TEXT, "File name of the archive."),
                    Parameter("path", "report", TEXT, "File name of the report."),
                ),
                token=token,
            )
        },
        f"{_ROOT}/archives/{{file}}": _get(
            "consoleArchive",
            "Inspect and check an archive of the model store.",
            "Archive",
            token,
            Parameter("path", "file", TEXT, "Its file name."),
        ),
        f"{_ROOT}/archives/check": {
            "post": operation(
                "consoleCheck",
                "Inspect and check an archive that the request contains; nothing of it is run, and it is not kept.",
                {"200": response("What the checks find", reference("Archive"))},
                errors={**_ERRORS, "413": "It is larger than max_request_size"},
                parameters=(Parameter("query", "file", TEXT, "Its file name, whose suffix tells its form."),),
                body=_BYTES,
                token=token,
            )
        },
        **_of_rollouts(token),
        f"{_ROOT}/stream": {
            "get": operation(
                "consoleStream",
                "Send events: first snapshot, with models, history and events; then tick every second, with the "
                "changes. lost: the server of this console does not answer.",
                {"200": response("Events, until the client disconnects", TEXT, "text/event-stream")},
                errors={**_ERRORS, "503": "Too many streams are open"},
                parameters=(
                    _MODEL_QUERY,
                    _VERSION_QUERY,
                    Parameter("query", "logs", FLAG, "Whether to send log entries, too."),
                ),
                token=token,
            )
        },
        **_of_trials(token),
        f"{_ROOT}/sign-in": {
            "post": operation(
                "consoleSignIn",
                "Open a session with a code or a token; the response sets a cookie.",
                {"200": response("Signed in", reference("SignedIn"))},
                errors=_ERRORS,
                body={JSON: reference("SignIn")},
            )
        },
        f"{_ROOT}/sign-out": {
            "post": operation(
                "consoleSignOut", "End a session.", {"200": response("Ended", reference("Status"))}, errors=_ERRORS
            )
        },
        f"{_ROOT}/code": {
            "post": operation(
                "consoleCode",
                "Return a code for a link that signs a browser in: /console?code=CODE. It needs a token.",
                {"200": response("A code", reference("Code"))},
                errors=_ERRORS,
                token=token,
            )
        },
    }
    text = (
        "The JSON API of the console. Browsers have a session, by a cookie; clients send a token of management, or "
        "that of a reader for calls that change nothing. `/console/api/v1/management/...` are the calls of the "
        "management API for browsers with a session."
    )
    return document("torchmar console", text, paths, _SCHEMAS, token=token)


def _get(identity: str, text: str, schema: str, token: str, *parameters: Parameter) -> dict[str, Any]:
    ok = {"200": response(schema, reference(schema))}
    return {"get": operation(identity, text, ok, errors=_ERRORS, parameters=parameters, token=token)}


def _of_rollouts(token: str) -> dict[str, Any]:
    number: Schema = {"type": "number"}
    deployment: Schema = {"type": "string", "description": "The text of a deployment.yaml."}
    changes = {
        "apply": (
            "Apply the plan of a deployment.",
            record({"deployment": deployment, "plan": {"type": "string", "description": "The digest of the plan."}}),
        ),
        "promote": (
            "Make a version the default if it passes its tests.",
            record(
                {"model": TEXT, "version": TEXT},
                {"compare": FLAG, "max_regression": number, "max_differences": number, "tolerance": number},
            ),
        ),
        "rollback": ("Make a version the default again, at once.", record({"model": TEXT, "version": TEXT})),
    }
    paths: dict[str, Any] = {
        f"{_ROOT}/rollout": _get("consoleRollout", "Describe the last change.", "Rollout", token),
        f"{_ROOT}/rollout/state": _get(
            "consoleRolloutState", "Return the state as a deployment, and possible rollbacks.", "RolloutState", token
        ),
        f"{_ROOT}/rollout/plan": {
            "post": operation(
                "consolePlan",
                "Return how the server differs from a deployment; change nothing.",
                {"200": response("The plan, or the problems of the deployment", reference("Plan"))},
                errors=_ERRORS,
                body={"application/json": record({"deployment": deployment})},
                token=token,
            )
        },
        f"{_ROOT}/rollout/stop": {
            "post": operation(
                "consoleStop",
                "Stop the running change, and undo the steps that can be undone.",
                {"200": response("It stops", {"type": "object"})},
                errors={**_ERRORS, "409": "No change is running"},
                token=token,
            )
        },
    }
    for name, (text, schema) in changes.items():
        paths[f"{_ROOT}/rollout/{name}"] = {
            "post": operation(
                f"console{name.capitalize()}",
                text,
                {"200": response("It has begun", reference("Operation"))},
                errors={**_ERRORS, "409": "Another change is running"},
                body={"application/json": schema},
                token=token,
            )
        }
    return paths


def _of_trials(token: str) -> dict[str, Any]:
    of_version = f"{_ROOT}/models/{{model_name}}/{{model_version}}"
    sample = Parameter("path", "number", _INTEGER, "Number of the sample.")
    paths: dict[str, Any] = {
        f"{of_version}/form": _get(
            "consoleForm",
            "Describe the requests that a version takes, with its samples.",
            "Form",
            token,
            _NAME,
            _VERSION,
        ),
        f"{of_version}/samples/{{number}}": {
            "get": operation(
                "consoleSample",
                "Return the body of a sample.",
                {"200": response("The body", BINARY, "application/octet-stream")},
                errors=_ERRORS,
                parameters=(_NAME, _VERSION, sample),
                token=token,
            )
        },
    }
    paths[f"{of_version}/samples"] = _get(
        "consoleSampleAnswers", "Return the last answers to samples.", "SampleAnswers", token, _NAME, _VERSION
    )
    paths[f"{of_version}/samples/{{number}}/run"] = {
        "post": operation(
            "consoleRunSample",
            "Send a sample to its version, and compare the answer.",
            {"200": response("The answer", reference("SampleAnswer"))},
            errors=_ERRORS,
            parameters=(_NAME, _VERSION, sample),
            token=token,
        )
    }
    for verb, text in (("predict", "Run a request"), ("explain", "Explain the answer to a request")):
        paths[f"{of_version}/{verb}"] = {
            "post": operation(
                f"console{verb.capitalize()}",
                f"{text}; Server-Timing has the milliseconds of its steps.",
                {"200": response("The model's answer", BINARY, "application/octet-stream")},
                errors={**_ERRORS, "500": "A worker died", "503": "No worker is ready, or the model failed"},
                parameters=(_NAME, _VERSION),
                body=_BYTES,
                token=token,
            )
        }
    return paths
