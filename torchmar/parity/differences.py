"""Documented differences between the built-in server and TorchServe, with their reasons.

The table of docs/differences.md is made of this one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torchmar.parity.responses import Mismatch


@dataclass(frozen=True)
class KnownDifference:
    """An intended difference; its texts are Markdown.

    Attributes:
        id: its name in reports.
        what: the situation.
        torchserve: what TorchServe does.
        ours: what the built-in server does.
        why: the reason.
        cases: a regular expression for the whole of ``MODEL/CASE``; empty if no case shows the difference.
        aspects: a regular expression for the parts of the answer that differ: ``status|body``.
        first: a regular expression for a part of TorchServe's answer, where it distinguishes the difference.
        second: the same for the answer of the built-in server.
    """

    id: str
    what: str
    torchserve: str
    ours: str
    why: str
    cases: str = ""
    aspects: str = ""
    first: str = ""
    second: str = ""

    def explains(self, deviation: Mismatch) -> bool:
        """Return whether a deviation is this difference."""
        return bool(
            re.fullmatch(self.cases, deviation.case)
            and re.fullmatch(self.aspects, deviation.aspect)
            and re.search(self.first, deviation.first)
            and re.search(self.second, deviation.second)
        )


DIFFERENCES: tuple[KnownDifference, ...] = (
    # HTTP
    KnownDifference(
        "connection-after-error",
        "the connection after an error",
        "closed",
        "kept open, unless the end of the request is unknown",
        "clients need not connect again after a 404",
        cases=".*",
        aspects="connection",
        first="^close$",
        second="^keep-alive$",
    ),
    KnownDifference(
        "connection-close",
        "`Connection: close` in a request",
        "`connection: keep-alive` in the answer; then the connection is closed",
        "`connection: close`",
        "RFC 9112, 9.6",
        cases=".*/closes",
        aspects="connection",
    ),
    KnownDifference(
        "reason",
        "the reason phrase of the status line when a handler answered",
        "the handler's, or none",
        "the standard one",
        "no client depends on it (RFC 9112, 4)",
        cases=".*",
        aspects="reason",
    ),
    KnownDifference(
        "request-id",
        "`x-request-id` of metrics, preflights and messages that are not HTTP",
        "a number",
        "none",
        "no log contains it",
        cases=".*/(metrics.*|what was measured|preflight.*|a method that nobody knows|too large|sets_two_lines)",
        aspects="x-request-id",
        second="^$",
    ),
    KnownDifference(
        "method",
        "methods that HTTP does not have (`FOO`)",
        "handled as `POST`",
        "400",
        "a typing error should not run a model",
        cases=".*/a method that nobody knows",
        aspects="status|body|content type|connection",
    ),
    KnownDifference(
        "method-odd",
        "`TRACE`, and methods of WebDAV, at the inference API",
        "run the model",
        "405",
        "these methods do not mean a prediction",
    ),
    KnownDifference(
        "allow",
        "a method that a path does not have (405)",
        "no `Allow`",
        "`Allow` with the methods of the path",
        "RFC 9110, 15.5.6",
        cases=".*",
        aspects="allow",
        first="^$",
    ),
    KnownDifference(
        "content-encoding",
        "`Content-Encoding: gzip` and `deflate` in a request",
        "passed to the handler without decoding",
        "decoded up to `max_request_size`, for every handler, without the header; other codings get 415",
        "clients compress, and handlers expect JSON and images",
        cases=".*/gzip",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "expect",
        "`Expect` in a request",
        "not passed to the handler",
        "passed to the handler",
        "headers belong to the client",
        cases=".*/expects 100-continue",
        aspects="body",
        first=r"^\{'headers': \{\}\}$",
        second=r"^\{'headers': \{'Expect': '100-continue'\}\}$",
    ),
    KnownDifference(
        "absolute-target", "the request target `http://host/predictions/M`", "404", "served", "RFC 9112, 3.2.2"
    ),
    KnownDifference(
        "percent", "`%zz` in a path", "403 IllegalArgumentException", "used literally: 404", "no such path exists"
    ),
    KnownDifference(
        "header-limits",
        "request lines above 4,096 bytes, headers above 8,192",
        "400",
        "accepted up to 16,384 and 65,536",
        "tokens and cookies can be long",
    ),
    KnownDifference(
        "body-limit",
        "a body larger than `max_request_size`",
        "413 without a body or headers",
        "413 BadRequestException with the limit",
        "an error should contain its cause",
        cases=".*/too large",
        aspects="(?!status).*",
    ),
    KnownDifference(
        "response-limit",
        "an answer larger than `max_response_size`",
        "500 `Worker died.`, and the worker is started again",
        "500 that names both sizes; the worker continues",
        "one request should not delay the others",
    ),
    KnownDifference(
        "options-star",
        "`OPTIONS *`",
        "500",
        "405",
        "the request is wrong, not the server",
        cases=r".*/OPTIONS \*",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "openapi",
        "OpenAPI documents, and `OPTIONS` of a model",
        "TorchServe's texts; they contain `/prediction/M`, which does not exist",
        "the paths and methods that exist",
        "they describe the server that answers",
        cases=".*/(OPTIONS.*|api-description|root)",
        aspects="body",
    ),
    KnownDifference(
        "api-description-methods",
        "`/api-description` at the management API with other methods than `GET`, `HEAD` and `OPTIONS`",
        "answered as `GET`",
        "405",
        "a wrong method should be reported",
    ),
    KnownDifference(
        "preflight",
        "a CORS preflight",
        "an OpenAPI document, or 404 for an unknown model",
        "headers only",
        "browsers do not use the body",
        cases=".*/preflight.*",
        aspects="status|body|content type",
    ),
    KnownDifference("tls", "TLS", "1.2 with two ciphers", "1.2 and later", "current ciphers"),
    KnownDifference(
        "tls-key",
        "`https` without a key",
        "creates a self-signed certificate",
        "the server does not start; the error has the command that makes one",
        "clients would have to trust every certificate",
    ),
    KnownDifference(
        "token-length",
        "keys in `key_file.json`",
        "8 characters",
        "32; the file is replaced in one step",
        "8 characters can be guessed",
    ),
    KnownDifference(
        "token-path",
        "`/token` anywhere in a path or header of a management request",
        "requires the API key",
        "only the path `/token` does",
        "an error of TorchServe",
    ),
    KnownDifference(
        "token-scheme",
        "`bearer` in place of `Bearer` before a token",
        "400 InvalidKeyException",
        "accepted",
        "RFC 9110, 11.1",
        cases=".*: scheme in another case",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "token-fixed",
        "tokens",
        "random, and new after each start",
        "the same, or fixed by `torchmar_inference_token_file`, `torchmar_management_token_file` or "
        "variables; `GET /token` is 409 for a fixed one",
        "several replicas, and clients without the key file, need tokens that stay the same",
    ),
    KnownDifference(
        "health-token",
        "health checks without a token, or with a wrong one: `/ping`, `/v2/health/live`, `/v2/health/ready`; gRPC "
        "`Ping`, `ServerLive`, `ServerReady`",
        "400 InvalidKeyException",
        "answered; `torchmar_health_token=true` requires a token",
        "probes of Kubernetes and load balancers have no token",
        cases=".*/ping: .*",
        aspects="status|body|content type",
    ),
    # Inference
    KnownDifference(
        "kserve-live",
        "`GET /` and `GET /v1/models` at the inference API",
        "405; 404",
        '`{"status": "alive"}`, without a token; `{"models": [...]}`',
        "part of KServe's protocol",
        cases=".*/(root|v1: list)",
        aspects="status|body|content type",
        first="405|404",
        second="200|alive|models",
    ),
    KnownDifference(
        "ping",
        "`/ping` while workers do not load",
        "Healthy for `maxRetryTimeoutInSec` (300 s), then 500",
        "immediately: 500 `Unhealthy` when no worker of a default version answers, 200 `Partial Healthy` when"
        " some do not; also 500 until all models of the configuration are loaded, and while one of them could"
        " not be loaded",
        "the health should be the current one",
    ),
    KnownDifference(
        "v2-ready",
        "`/v2/health/ready`",
        "always `true`",
        '503 `{"ready": false}` while no worker of a default version answers that should have workers, and '
        "when `/ping` returns 500",
        "ready should mean that requests are answered",
    ),
    KnownDifference(
        "kserve-models",
        "`GET /v1/models/M`, `/v2/models/M`, `/v2/models/M/ready` at the inference API",
        "404",
        'answered as by KServe; 503 with `"ready": false` when no worker answers',
        "part of KServe's protocol",
        cases=".*/(v1: model|v2: model|v2: ready|v1 without workers|v2 ready without workers|"
        "no such model, v[12]( ready)?)",
        aspects="status|body",
    ),
    KnownDifference(
        "kserve-methods",
        "`POST` and other methods at `/v1/models/M` and `/v2/models/M`, which are for `GET`",
        "404",
        "405",
        "the path exists, the method does not",
        cases=".*/v1: model with POST",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "kserve-content-type",
        "a JSON body below `/v1` and `/v2` with another type, as `curl -d` sends it",
        "read as a form, which loses it, or as bytes",
        "JSON, for any type",
        "these protocols have only JSON bodies",
        cases=".*/v[12]: .*raw.*",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "kserve-errors",
        "errors below `/v1` and `/v2`, including the handler's own",
        "`code`, `type`, `message`, or the output of the handler",
        "JSON that also has the message as `error`",
        "KServe's clients read it there",
        cases=".*/(v[12]: .*|v[12] .*|no such model, v[12].*|v2: nonsense)",
        aspects="body|content type",
        second="error",
    ),
    KnownDifference(
        "kserve-versions",
        "`/v1/models/M/versions/V:predict`, `/v2/models/M/versions/V/...`",
        "501 `Model versioning is not yet supported.`",
        "served",
        "part of KServe's protocol",
        cases=".*/(v1: a version|v2: version.*|v2: infer a version)",
        aspects="status|body|content type",
        first="501|not yet supported|application/json",
    ),
    KnownDifference("kserve-verbs", "`/v1/models/M:predictfoo`", "predicts", "404", "no such verb exists"),
    KnownDifference(
        "v2-extensions",
        "`/v2/models/M/config`, `/v2/models/M/stats`, `/v2/models/stats`, `POST /v2/repository/index`; binary"
        " outputs, `classification`; `Accept-Encoding` of an inference request",
        "404; JSON only; ignored",
        "as Triton has them; gzip and deflate. Shared memory, tracing, logging, loading and generation: 501 with the "
        "reason",
        "Triton's clients use them",
    ),
    KnownDifference(
        "v2-server",
        "`/v2`",
        "`Torchserve`, its version, `extenstion`",
        "`torchmar`, its version, `extensions`",
        "it is another server",
        cases=".*/v2: server",
        aspects="body",
    ),
    KnownDifference(
        "sagemaker",
        "`/invocations` without `model_name`",
        "the only model of `load_models`",
        "the only model that is registered",
        "it is not important how the model was registered",
        cases=".*/invocations",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "authorization",
        "the client's `Authorization` header, with tokens on",
        "passed to the handler",
        "not passed",
        "the token is for the server",
        cases=".*/token of a client",
        aspects="body",
        first="<inference token>",
    ),
    KnownDifference(
        "form-cut-off",
        "a multipart body that is truncated, empty or invalid",
        "200 with a row that lacks parts",
        "400 BadRequestException with the reason",
        "a part of a request should not be answered like the whole",
        cases=".*/parts(, and no body| cut off| without an end)",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "form-twice",
        "a form with two parts of the same name",
        "the handler gets the last one",
        "400 BadRequestException",
        "no part of a request should be lost",
        cases=".*/(parts of one name|form, one name twice)",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "form-names",
        "a multipart part without a name; an empty boundary",
        "500 with a Java exception",
        "400 BadRequestException",
        "the request is wrong, not the server",
    ),
    KnownDifference(
        "form-fields",
        "forms with more than 1,000 fields",
        "accepted",
        "400 BadRequestException",
        "a small request should not take seconds",
    ),
    KnownDifference(
        "form-pairs",
        "an urlencoded form with an empty pair, an empty name or `%zz`",
        "500 ErrorDataDecoderException",
        "read as browsers write it",
        "it can be read",
    ),
    KnownDifference(
        "form-lines",
        "an urlencoded form with a line break in a value",
        "truncated there",
        "kept; only a final one is removed",
        "no part of a request should be lost",
    ),
    KnownDifference(
        "json-blank", "`Content-Type: application/json ; q=1`", "not recognised as JSON", "JSON", "RFC 9110, 8.3.1"
    ),
    KnownDifference(
        "batch-failure",
        "a handler that raises for a batch of several requests",
        "every request gets the error",
        "each request is sent to the handler again alone, and only the one that fails gets the error",
        "a request should not affect others",
    ),
    KnownDifference(
        "batch-length",
        "a handler that returns a list of another length for a batch",
        "503 for all",
        "each request is sent again alone, then and for later batches",
        "as above",
    ),
    KnownDifference(
        "header-lines",
        "a handler that sets a header with a line break",
        "500 `Worker died.`, and the worker is started again",
        "500; the worker continues",
        "one request should not delay the others",
        cases="moods/sets_two_lines",
        aspects="body",
    ),
    KnownDifference("prediction-code", "`PredictionException` with code 413", "507", "413", "the handler selected it"),
    # Management
    KnownDifference(
        "numbers",
        "query parameters of the management API that should be numbers and are not, or exceed 32 bits, or are"
        " below 0 (`limit=many`)",
        "ignored, or 500",
        "400 BadRequestException that names the parameter",
        "a typing error should not select the default",
        cases=".*/(list (a negative number|nonsense|from a negative place|from nonsense)|scale, .*|(un)?register.*|"
        "scale to many)",
        aspects="status|body",
        second="^40[04]$|must be a whole number|ModelVersionNotFoundException",
    ),
    KnownDifference(
        "number-limits",
        "`response_timeout` below 1, `startup_timeout` below 0 (except -1, the default)",
        "registered; every request loses its worker, or no worker loads",
        "400 BadRequestException",
        "such a model could never answer",
    ),
    KnownDifference(
        "batch-size",
        "`batch_size` below 1, `max_batch_delay` below 0",
        "described as given; batches have one request",
        "used and described as 1 and 0",
        "a description should be true",
        cases=".*/(batch size 0|describe.*|what came of.*)",
        aspects="body",
        first="'batchSize': 0",
        second="'batchSize': 1",
    ),
    KnownDifference(
        "startup-timeout",
        "`startup_timeout=0`, `default_startup_timeout=0`",
        "no worker ever loads",
        "no limit",
        "this is what 0 is meant for",
    ),
    KnownDifference(
        "worker-limits",
        "`initial_workers`, `min_worker` above 1,024",
        "starts them",
        "400 BadRequestException",
        "a typing error should not overload the machine",
    ),
    KnownDifference(
        "workers-below-none",
        "`min_worker` below 0",
        "500 IndexOutOfBoundsException, and all workers end",
        "400 BadRequestException",
        "an error should change nothing",
        cases=".*/scaled? below nothing",
        aspects="status|body",
    ),
    KnownDifference(
        "model-name",
        "`model_name` with `/` or control characters",
        "registered; it can then be neither used nor removed",
        "400 InvalidModelException",
        "a registered model must be reachable",
        cases=".*/register under a path",
        aspects="status|body",
    ),
    KnownDifference(
        "bad-json",
        "a registration whose body is not JSON, not an object, or has another type where a number is expected",
        "500 with a Java exception",
        "400 BadRequestException",
        "the request is wrong, not the server",
        cases=".*/register in JSON, cut off",
        aspects="status|body",
    ),
    KnownDifference(
        "empty-json",
        "a registration whose JSON is empty or `null`",
        "500 NullPointerException",
        "400 `Parameter url is required.`",
        "as above",
    ),
    KnownDifference(
        "json-delay",
        "a registration in JSON without `max_batch_delay`",
        "-10000 ms",
        "100 ms",
        "the same default as without JSON",
        cases=".*/in JSON",
        aspects="body",
        first="-10000",
        second="100",
    ),
    KnownDifference(
        "flags",
        "`synchronous` and other flags of a management call with a value other than true and false",
        "false",
        "400 BadRequestException that names the parameter",
        "a typing error should not select the default",
        cases=".*/(register, synchronous nonsense|what came of it|unregister it|describe with nonsense)",
        aspects="status|body",
        second="^40[04]$|neither true nor false|ModelNotFoundException",
    ),
    KnownDifference(
        "misspelt-parameter",
        "a misspelt parameter of a management call (`batchSize`, `initial_worker`); another unknown one",
        "ignored",
        "400 BadRequestException that names the similar parameter; ignored, with a line in `server.log`",
        "a typing error should not select the default",
        cases=".*/misspelt.*",
        aspects="status|body",
    ),
    KnownDifference(
        "json-query",
        "a registration with a JSON body and a query",
        "the query is ignored",
        "parameters that the body does not have are read from the query",
        "no part of a request should be lost",
    ),
    KnownDifference(
        "load-failure",
        "a registration whose workers do not load",
        "500 `Failed to start workers for model M version: V`",
        "the same, then `: ` and the last line of the traceback",
        "users should not need to search the reason in a log",
        cases=".*/(load|register, a handler that is not there|register what does not load)",
        aspects="body",
        first="Failed to start workers",
        second="Failed to start workers",
    ),
    KnownDifference(
        "load-timeout",
        "a registration whose workers do not load within `startup_timeout`",
        "500, and the version stays, without workers",
        "500, and nothing is registered",
        "an error should change nothing",
    ),
    KnownDifference(
        "management-waits",
        "a registration that takes long",
        "other management calls wait for it",
        "other calls are answered",
        "health checks should not fail while a large model loads",
    ),
    KnownDifference(
        "describe-failure",
        "a worker that is loading, or that cannot load",
        "`UNLOADING`, without a reason",
        "`LOADING`; the additional key `failure` has the traceback until a worker answers",
        "users should not need to search the reason in a log",
        cases=".*/(describe.*|what came of.*|scaled.*|registered later)",
        aspects="body",
        second="'failure'|'LOADING'",
    ),
    KnownDifference(
        "describe-memory",
        "`memoryUsage`",
        "0 until system metrics are collected",
        "the current memory of the worker",
        "the number should be right",
    ),
    KnownDifference(
        "describe-customized",
        "describe with `customized=true`",
        "passes the request's headers to the handler, with the management token",
        "does not pass them",
        "handlers must not get this token",
        cases=".*/describe: .*customized",
        aspects="body",
        first="'content-length'",
    ),
    KnownDifference(
        "describe-order",
        "describe with `all`",
        "versions in the order of a hash table",
        "versions in the order of their registration",
        "a reliable order",
        cases=".*/(both|describe: all)",
        aspects="body",
    ),
    KnownDifference(
        "ready",
        "`GET /v1/models/M` at the management API",
        "ready if there are workers, even if none loads",
        "ready if a worker answers",
        "ready should mean that requests are answered",
    ),
    KnownDifference(
        "set-default",
        "`set-default` to a version without workers that answer, while the current default answers",
        "200, and every following request is 503",
        "409 ConflictStatusException that names the call to scale it",
        "a switch should not cause an outage",
    ),
    KnownDifference(
        "set-default-method",
        "`GET` and `DELETE /models/M/V/set-default`",
        "describe and remove the **default** version",
        "405",
        "the request does not mean this",
        cases=".*/set a default with GET",
        aspects="status|body",
    ),
    KnownDifference(
        "drain",
        "unregistering or scaling down, with requests running or waiting",
        "these get no answer",
        "they are answered first, within `response_timeout`",
        "no request should be lost",
    ),
    KnownDifference("page-token", "`next_page_token` near 2^31", "a negative token", "no token", "no such page exists"),
    KnownDifference(
        "workflows",
        "`/workflows`",
        "run code even if the model API is disabled",
        "404",
        "not supported",
        cases=".*/workflows",
        aspects="status|body",
    ),
    KnownDifference(
        "gpus",
        "GPUs of workers",
        "round robin over all models, from GPU 1",
        "round robin for each version, from GPU 0",
        "GPU 0 should not be the last one to be used",
    ),
    # Archives
    KnownDifference(
        "no-archive",
        "a file that is not a zip file",
        "400 `Model name is not defined.`; 500 without the ending .mar",
        "400 that names the reason",
        "an error should contain its cause",
        cases=".*/register no archive",
        aspects="body",
    ),
    KnownDifference(
        "archive-check",
        "an archive with an error that `torchmar check` finds",
        "registers, and its workers fail",
        "400 InvalidModelException with the finding; `torchmar_check_archives=false` disables this",
        "none of its code should run first",
        cases=".*/load",
        aspects="status|body",
        first=r"^500$|'message'",
        second=r"^400$|MAR\d{3}|names no handler",
    ),
    KnownDifference(
        "manifest",
        "an invalid manifest",
        "400 `Failed to parse signature.json.`",
        "400 with what is wrong in it",
        "an error should contain its cause",
        cases=".*/load",
        aspects="body",
        first="signature.json",
    ),
    KnownDifference(
        "file-url",
        "a `file://` URL in the model store, or a URL whose file name exists there",
        "500 `Model file already exists`",
        "registered",
        "the file exists",
    ),
    KnownDifference(
        "download-copy",
        "a registration by http(s) or `file://`",
        "copied into the model store, and removed from there with the model",
        "nothing is written there",
        "the store belongs to the user",
    ),
    KnownDifference(
        "outside-folder",
        "a registration with the path of any folder of the machine",
        "registered, regardless of `allowed_urls`",
        "404 unless `allowed_urls` matches it as a `file://` URL, or the configuration or command line names it",
        "a registration should not be able to read every folder",
        cases=".*/register an absolute path",
        aspects="body",
        second="outside the model store",
    ),
    KnownDifference(
        "store-folder",
        "a registration of `folder/x.mar`",
        "the store's `x.mar`",
        "the store's `folder/x.mar` if there is one, or else its `x.mar`",
        "this is what the request names",
    ),
    KnownDifference(
        "redirect",
        "a redirection of a download",
        "followed to any address",
        "followed if `allowed_urls` matches the target; otherwise 404",
        "a redirection would bypass the list",
    ),
    KnownDifference(
        "download-size", "a download", "no limit", "`torchmar_max_download_size` (20 GiB)", "the disk has a limit"
    ),
    KnownDifference(
        "download-error",
        "`DownloadArchiveException`, `Failed to save model`",
        "the URL",
        "the URL, and the reason in parentheses",
        "an error should contain its cause",
    ),
    KnownDifference(
        "s3",
        "S3 URLs",
        "signed with the credentials of the environment",
        "fetched as any https URL; `s3://` is 404 with a hint at presigned URLs",
        "not supported",
    ),
    KnownDifference(
        "extraction",
        "extraction",
        "for every registration",
        "once for all registrations of one content",
        "a second version of a large model need not wait",
    ),
    KnownDifference(
        "requirements",
        "requirements of an archive",
        "installed into the extracted archive; deadlock after 64 KB of output; no reason when it fails",
        "installed into a folder beside it; no deadlock; the answer has pip's last lines",
        "an error should contain its cause",
    ),
    KnownDifference(
        "config-timeouts",
        "`model-config.yaml` without `responseTimeout` or `startupTimeout`",
        "120 s, regardless of the registration and the defaults of the server",
        "the value of `models=`, else of the registration, else the server's default",
        "a file should not override values that it does not contain",
    ),
    KnownDifference(
        "config-modes",
        "`sequenceBatching`, `continuousBatching`, `parallelType`, `torchrun`, `asyncCommunication`, "
        "`useVenv` in `model-config.yaml`",
        "supported",
        "400 InvalidModelException that names the key",
        "not supported; a clear error is better than a silent difference",
    ),
    KnownDifference(
        "runtime-cpp", "the runtime `lsp` (C++)", "supported", "400 InvalidModelException", "not supported"
    ),
    # Configuration
    KnownDifference(
        "config-values",
        "a wrong value in `config.properties`",
        "a Java stack trace, or silently the default",
        "the server does not start; the error has file, key, value and an example of each",
        "all mistakes are reported at once",
    ),
    KnownDifference(
        "config-blanks", "blanks at the end of a number", "NumberFormatException", "ignored", "they are not visible"
    ),
    KnownDifference(
        "allowed-urls", "`allowed_urls` not set", "any URL", "only the model store", "a registration runs code"
    ),
    KnownDifference(
        "keystore",
        "`keystore`",
        "Java's keystores",
        "refused where an address is https, with the commands that convert it",
        "there is no Java",
    ),
    KnownDifference(
        "snapshots",
        "snapshots (`logs/config/*`)",
        "all are kept; they lack a handler that a registration named, and contain a file's name instead of a "
        "URL; the server ends if an archive is missing; `--models` is silently ignored if there is a snapshot",
        "the last 100 of each run; they contain handlers and URLs; a missing archive is reported, and the "
        "others are served; `--models` is ignored with a warning if there is a snapshot; `torchmar serve` "
        "neither writes nor restores snapshots",
        "a restart should serve what was served, or report what it cannot serve",
    ),
    KnownDifference(
        "startup",
        "requests for models that are loaded at the start, before they are registered",
        "connection refused: the ports are opened later",
        "wait up to 30 s, then 503 with `Retry-After`; other models are served",
        "one slow download should not block the server",
    ),
    KnownDifference(
        "startup-failure",
        "a model of `load_models` or of a snapshot that cannot be loaded",
        "a line in the log; if the archive of a snapshot is missing, the server ends",
        "named by the command that starts the server, by the 404 for this model, and in "
        "`/v2/repository/index`; `DELETE /models/M` removes it from the list",
        "a model that is not served should be reported",
    ),
    KnownDifference(
        "queue-full",
        "503 for a full queue, and for a model whose workers do not load",
        "the text for a model without workers; if workers do not load, requests wait",
        "three texts, one of which names `job_queue_size`; at once; `Retry-After`",
        "an error should contain its cause",
        cases=".*/((predict|explain|customized) without workers|predict with none)",
        aspects="retry-after",
        first="^$",
        second="^[0-9]+$",
    ),
    KnownDifference(
        "command",
        "the `torchserve` command (here `torchmar-serve`)",
        "returns at once; key file and logs in the current folder; `--log-config`, `--plugins-path`",
        "returns when the models are loaded; run folder `.torchmar`, the key file linked from the current "
        "folder; these flags have no effect",
        "scripts need not poll",
    ),
    # Metrics
    KnownDifference(
        "metrics-more",
        "additional metrics",
        "`WorkerThreadTime`, of a Java thread",
        "`torchmar_*`: histograms of queue time, batch size and latency",
        "percentiles need histograms; there is no such thread",
        cases=".*/(metrics.*|what was measured)",
        aspects="body",
        first=r"^\[('WorkerThreadTime[^']*')?\]$",
        second=r"^\[('(torchmar_|Requests5XX|QueueTime)[^']*'(, )?)*\]$",
    ),
    KnownDifference(
        "metrics-version",
        "`model_version` of `ts_inference_requests_total` and the latencies",
        "the version in the request: `default` for requests without a version",
        "the version that answered",
        "after set-default, one series should not contain two versions",
    ),
    KnownDifference(
        "metrics-failed",
        "latency and queue time of failed requests",
        "they count as requests, but their time does not, so that means are too small",
        "both are counted",
        "a mean should be right",
    ),
    KnownDifference(
        "metrics-grpc",
        "`Requests2XX`, `Requests4XX`, `Requests5XX` over gRPC",
        "not counted",
        "counted by the equivalent HTTP status",
        "requests over gRPC are requests",
    ),
    KnownDifference(
        "metrics-system",
        "system metrics",
        "measured every `metric_time_interval`; `CPUUtilization` is 0 or 100",
        "measured when they are read; the mean since the previous reading",
        "the number should be right",
    ),
    KnownDifference(
        "metrics-mode",
        "`/metrics` with `metrics_mode=log` or `legacy`",
        "an empty answer",
        "the metrics",
        "a client that reads metrics needs them",
        cases=".*/metrics.*",
        aspects="body",
        first="^$",
        second=r"^\['",
    ),
    KnownDifference(
        "metrics-methods",
        "other paths and methods at the metrics API",
        "every path and method but `OPTIONS /` answers with the metrics",
        "404; 405 for methods but GET and HEAD; `OPTIONS /` describes the API in other words",
        "metrics are only read",
        cases=".*/metrics( with POST|, OPTIONS)",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "metrics-name",
        "`?name[]=` with the name of a histogram",
        "nothing; only the names of its lines work",
        "all its lines",
        "the name selects the metric",
    ),
    KnownDifference(
        "metrics-labels",
        "a handler's metric with a comma or colon in a label value",
        "truncated, or the label is lost",
        "complete",
        "no data should be lost",
    ),
    KnownDifference(
        "metrics-series",
        "labels of handlers' metrics with an unlimited number of values",
        "all are kept",
        "1,000 series for each model; further ones are dropped, with one warning",
        "memory is limited",
    ),
    KnownDifference(
        "metrics-gone",
        "a metric of a model that is unregistered",
        "kept",
        "its series are removed",
        "it has no value any more",
    ),
    KnownDifference(
        "metrics-dimensions",
        "a number of dimensions in `metrics_config` that does not fit the metric",
        "an error in the log at every update",
        "the metric is not shown",
        "one report is enough",
    ),
    KnownDifference(
        "metrics-config",
        "a `metrics_config` that cannot be read",
        "an error in the log, and no metrics",
        "the server does not start; the error has the reason",
        "a clear error is better than missing metrics",
    ),
    # gRPC
    KnownDifference(
        "grpc-stream-one",
        "gRPC: `StreamPredictions` to a handler that sends no intermediate answers",
        "the worker is ended",
        "one answer",
        "a stream can have one part",
    ),
    KnownDifference(
        "grpc-unary-many",
        "gRPC: `Predictions` to a handler that sends intermediate answers",
        "the first part, and the worker is lost for seconds",
        "all parts, joined",
        "no data should be lost",
    ),
    KnownDifference(
        "grpc-stream-two",
        "gRPC: `StreamPredictions2`",
        "only for models with `sequenceBatching`; another model loses its worker",
        "for any model: requests of a stream are answered in order, an error is a `status`; the sequence is "
        "not bound to a worker",
        "one request should not delay the others",
    ),
    KnownDifference(
        "grpc-codes",
        "gRPC: codes of errors of the management API",
        "INTERNAL (13) or UNKNOWN for most",
        "the equivalent of the HTTP status: NOT_FOUND (5) for 404, ABORTED (10) for 409, UNAVAILABLE (14) for 503",
        "a client must know which calls it can repeat",
    ),
    KnownDifference(
        "grpc-conflict",
        "gRPC: `RegisterModel` of a registered version",
        "UNKNOWN without a message",
        "ABORTED, ConflictStatusException",
        "an error should contain its cause",
    ),
    KnownDifference(
        "grpc-default",
        "gRPC: `UnregisterModel` of a default version while there are others",
        "UNKNOWN without a message",
        "PERMISSION_DENIED, InvalidModelVersionException",
        "as above",
    ),
    KnownDifference(
        "grpc-scale-name", "gRPC: `ScaleWorker` without a name", "UNKNOWN without a message", "NOT_FOUND", "as above"
    ),
    KnownDifference(
        "grpc-unregister-name",
        "gRPC: `UnregisterModel` without a name",
        "`Parameter url is required.`",
        "`Parameter model_name is required.`",
        "as above",
    ),
    KnownDifference(
        "grpc-customized",
        "gRPC: `DescribeModel` with `customized`: unknown model; failing handler",
        "INTERNAL; no answer, and the worker is lost",
        "NOT_FOUND; the handler's error",
        "as above",
    ),
    KnownDifference(
        "grpc-size",
        "gRPC: a request larger than `max_request_size`",
        "RST_STREAM (CANCELLED)",
        "RESOURCE_EXHAUSTED",
        "as above",
    ),
    KnownDifference(
        "grpc-status",
        "gRPC: `Predictions` where a handler sets a status of 400 or more for one request (`set_response_status`)",
        "OK, with the error as the prediction",
        "the equivalent code, with the message of the error",
        "an error should not look like an answer",
    ),
    KnownDifference(
        "grpc-health",
        "gRPC: `grpc.health.v1.Health` and `grpc.reflection.v1` (and `v1alpha`) on both ports",
        "UNIMPLEMENTED",
        "answered without a token; the health is that of `/v2/health/ready`",
        "Kubernetes and grpcurl use them",
    ),
    KnownDifference(
        "grpc-open-inference",
        "gRPC: the service of the Open Inference Protocol",
        "`org.pytorch.serve.grpc.openinference.GRPCInferenceService`, with `ts_open_inference_protocol=true`",
        "this one and `inference.GRPCInferenceService`, unless `ts_open_inference_protocol=false`",
        "KServe's and Triton's clients use the latter",
    ),
    KnownDifference(
        "grpc-bytes",
        "gRPC: BYTES in `ModelInfer`",
        "handlers get base64; outputs are the JSON texts, with quotes",
        "handlers of torchmar get the bytes that were sent, and their outputs have no quotes; other handlers "
        "get texts as over REST, except over TorchServe's own service, where they get what TorchServe passes",
        "a text is not its base64",
    ),
    KnownDifference(
        "grpc-open-inference-errors",
        "gRPC: `ModelInfer` of an unknown model; without workers; with an answer of status 400 or more",
        "INTERNAL; INTERNAL; `Worker died.`",
        "NOT_FOUND; UNAVAILABLE; the equivalent code, with the handler's message",
        "a client must know what to do next",
    ),
    KnownDifference(
        "grpc-metadata",
        "gRPC: `ServerMetadata`, `ModelStreamInfer`, `ModelConfig`, `ModelStatistics`, `RepositoryIndex`",
        "UNIMPLEMENTED",
        "answered; other extensions of Triton are UNIMPLEMENTED with the reason",
        "the protocol or Triton's clients have them",
    ),
    KnownDifference(
        "grpc-model-metadata",
        "`inputs` and `outputs` in `ModelMetadata` (gRPC) and `/v2/models/M`",
        "empty; 404",
        "names, datatypes and shapes, if the handler describes them",
        "clients build requests from them",
    ),
    KnownDifference(
        "grpc-ready",
        "gRPC: `ServerReady`, `Ping`, `ModelReady` while workers are missing",
        "ready, Healthy",
        "not ready, Unhealthy",
        "ready should mean that requests are answered",
    ),
    KnownDifference(
        "grpc-raw",
        "gRPC: `ModelInfer` with `raw_input_contents`, `outputs` or `parameters`",
        "ignored: the handler gets empty data, and the answer has all outputs",
        "read, also FP16 and BF16, and answered in `raw_output_contents`; passed to the handler",
        "clients send it",
    ),
    KnownDifference(
        "grpc-datatype",
        "gRPC: `ModelInfer` with an unknown datatype, with NaN, or with an answer that does not follow the protocol",
        "`Worker died.`, or UNKNOWN without a message",
        "INVALID_ARGUMENT; INTERNAL with the reason; the worker continues",
        "one request should not delay the others",
    ),
    KnownDifference(
        "grpc-deadline",
        "gRPC: a request whose deadline is over, or whose client has cancelled it",
        "runs in any case",
        "does not run, unless a worker has already started it",
        "its answer cannot be delivered",
    ),
)


def documented(deviation: Mismatch) -> KnownDifference | None:
    """Return the documented difference of a deviation; None if it is not documented."""
    return next((one for one in DIFFERENCES if one.explains(deviation)), None)


def markdown() -> str:
    """Return the table of docs/differences.md."""
    rows = [("what", "TorchServe 0.12.0", "here", "why"), ("---",) * 4]
    rows += [(one.what, one.torchserve, one.ours, f"{one.why} (`{one.id}`)") for one in DIFFERENCES]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
