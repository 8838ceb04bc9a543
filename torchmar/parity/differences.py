"""Where the built-in server is meant to answer otherwise than TorchServe, and why.

The table of docs/differences.md is made of this one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torchmar.parity.responses import Mismatch


@dataclass(frozen=True)
class KnownDifference:
    """A difference that is meant; what is said of it is Markdown.

    Attributes:
        id: what reports call it.
        what: what it is about.
        torchserve: what TorchServe does.
        ours: what the built-in server does.
        why: the reason.
        cases: which show it: a regular expression for all of ``MODEL/CASE``; empty for one that none shows.
        aspects: in which parts of the answer, as a regular expression: ``status|body``.
        first: what TorchServe's answer is, where that tells it from others: a regular expression for a part of it.
        second: likewise, ours.
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
        """Tell whether a deviation is this difference."""
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
        "an error",
        "closes the connection",
        "keeps it open, unless where the request ends is not known",
        "clients need not connect again for a 404",
        cases=".*",
        aspects="connection",
        first="^close$",
        second="^keep-alive$",
    ),
    KnownDifference(
        "connection-close",
        "`Connection: close` in a request",
        "`connection: keep-alive` in the answer, and closes",
        "`connection: close`",
        "RFC 9112, 9.6",
        cases=".*/closes",
        aspects="connection",
    ),
    KnownDifference(
        "reason",
        "the words of the status line where a handler answered",
        "the handler's, or none",
        "the usual ones",
        "nothing depends on them (RFC 9112, 4)",
        cases=".*",
        aspects="reason",
    ),
    KnownDifference(
        "request-id",
        "`x-request-id` of metrics, preflights and what is no HTTP",
        "a number",
        "none",
        "no log has it",
        cases=".*/(metrics.*|what was measured|preflight.*|a method that nobody knows|too large|sets_two_lines)",
        aspects="x-request-id",
        second="^$",
    ),
    KnownDifference(
        "method",
        "methods that are none of HTTP (`FOO`)",
        "taken for `POST`",
        "400",
        "a slip should not run a model",
        cases=".*/a method that nobody knows",
        aspects="status|body|content type|connection",
    ),
    KnownDifference(
        "method-odd",
        "`TRACE`, and methods of WebDAV and the like, at the inference API",
        "run the model",
        "405",
        "they are meant to run nothing",
    ),
    KnownDifference(
        "allow",
        "a method that a path does not have (405)",
        "no `Allow`",
        "`Allow` with the methods that it has",
        "RFC 9110, 15.5.6",
        cases=".*",
        aspects="allow",
        first="^$",
    ),
    KnownDifference(
        "content-encoding",
        "`Content-Encoding: gzip` and `deflate` in a request",
        "handed to the handler as it was sent",
        "decoded within `max_request_size`, for every handler, which does not see the header; 415 for other codings",
        "clients compress, and handlers read JSON and images",
        cases=".*/gzip",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "expect",
        "`Expect` in a request",
        "not handed to the handler",
        "handed to it",
        "headers are the client's",
        cases=".*/expects 100-continue",
        aspects="body",
        first=r"^\{'headers': \{\}\}$",
        second=r"^\{'headers': \{'Expect': '100-continue'\}\}$",
    ),
    KnownDifference(
        "absolute-target", "`http://host/predictions/M` as the target of a request", "404", "served", "RFC 9112, 3.2.2"
    ),
    KnownDifference(
        "percent", "`%zz` in a path", "403 IllegalArgumentException", "taken as it stands: 404", "there is no such path"
    ),
    KnownDifference(
        "header-limits",
        "request lines above 4,096 bytes, headers above 8,192",
        "400",
        "taken up to 16,384 and 65,536",
        "tokens and cookies grow",
    ),
    KnownDifference(
        "body-limit",
        "a body larger than `max_request_size`",
        "413 without a body or headers",
        "413 BadRequestException with the limit",
        "an error should say its cause",
        cases=".*/too large",
        aspects="(?!status).*",
    ),
    KnownDifference(
        "response-limit",
        "an answer larger than `max_response_size`",
        "500 `Worker died.`, and the worker is started again",
        "500 that names both sizes; the worker lives",
        "one request should not cost the others",
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
        "in TorchServe's words; `/prediction/M`, which is not there",
        "the paths and methods that there are",
        "they describe the server that answers",
        cases=".*/(OPTIONS.*|api-description|root)",
        aspects="body",
    ),
    KnownDifference(
        "api-description-methods",
        "`/api-description` at the management API with other methods than `GET`, `HEAD` and `OPTIONS`",
        "answered like `GET`",
        "405",
        "a slip should be said",
    ),
    KnownDifference(
        "preflight",
        "a CORS preflight",
        "answered with an OpenAPI document, 404 for a model that is not there",
        "answered with headers alone",
        "nobody reads it",
        cases=".*/preflight.*",
        aspects="status|body|content type",
    ),
    KnownDifference("tls", "TLS", "1.2 with two ciphers", "1.2 and later", "the ciphers of today"),
    KnownDifference(
        "tls-key",
        "`https` without a key",
        "a self-signed certificate is made",
        "the server does not start, and says how to make one",
        "clients would have to trust anybody",
    ),
    KnownDifference(
        "token-length",
        "keys in `key_file.json`",
        "8 characters",
        "32; the file is replaced in one step",
        "8 can be guessed",
    ),
    KnownDifference(
        "token-path",
        "`/token` anywhere in a path or header of a management request",
        "asks for the API key",
        "only the path `/token` does",
        "it is an accident of TorchServe's",
    ),
    KnownDifference(
        "token-scheme",
        "`bearer` in place of `Bearer` before a token",
        "400 InvalidKeyException",
        "taken",
        "RFC 9110, 11.1",
        cases=".*: scheme in another case",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "token-fixed",
        "tokens",
        "random, and other ones after each start",
        "likewise, or fixed by `torchmar_inference_token_file`, `torchmar_management_token_file` or variables; "
        "`GET /token` is 409 for a fixed one",
        "replicas and clients of others need one token that stays",
    ),
    KnownDifference(
        "health-token",
        "health checks without a token, or with a wrong one: `/ping`, `/v2/health/live`, `/v2/health/ready`; gRPC "
        "`Ping`, `ServerLive`, `ServerReady`",
        "400 InvalidKeyException",
        "answered; `torchmar_health_token=true` asks for a token",
        "probes of Kubernetes and load balancers have none",
        cases=".*/ping: .*",
        aspects="status|body|content type",
    ),
    # Inference
    KnownDifference(
        "kserve-live",
        "`GET /` and `GET /v1/models` at the inference API",
        "405; 404",
        '`{"status": "alive"}`, without a token; `{"models": [...]}`',
        "KServe has them",
        cases=".*/(root|v1: list)",
        aspects="status|body|content type",
        first="405|404",
        second="200|alive|models",
    ),
    KnownDifference(
        "ping",
        "`/ping` while workers do not load",
        "Healthy for `maxRetryTimeoutInSec` (300 s), then 500",
        "at once: 500 `Unhealthy` when no worker of a default version answers, 200 `Partial Healthy` when some do not; "
        "500, too, until all models of the configuration are loaded, and while one of them could not be",
        "health should mean health",
    ),
    KnownDifference(
        "v2-ready",
        "`/v2/health/ready`",
        "always `true`",
        '503 `{"ready": false}` while a default version that should have workers has none that answers, and as `/ping`',
        "ready should mean ready",
    ),
    KnownDifference(
        "kserve-models",
        "`GET /v1/models/M`, `/v2/models/M`, `/v2/models/M/ready` at the inference API",
        "404",
        'answered as KServe has it; 503 with `"ready": false` when no worker answers',
        "KServe asks for them",
        cases=".*/(v1: model|v2: model|v2: ready|v1 without workers|v2 ready without workers|"
        "no such model, v[12]( ready)?)",
        aspects="status|body",
    ),
    KnownDifference(
        "kserve-methods",
        "`POST` and other methods at `/v1/models/M` and `/v2/models/M`, which are read with `GET`",
        "404",
        "405",
        "the path is there, the method is not",
        cases=".*/v1: model with POST",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "kserve-content-type",
        "a JSON body below `/v1` and `/v2` that is sent as another type, as `curl -d` does",
        "a form, which loses it, or bytes",
        "JSON, whatever the type is",
        "these protocols have no other bodies",
        cases=".*/v[12]: .*raw.*",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "kserve-errors",
        "errors below `/v1` and `/v2`, the handler's own with them",
        "`code`, `type`, `message`, or what the handler wrote",
        "JSON that has the message as `error`, too",
        "KServe's clients look for it there",
        cases=".*/(v[12]: .*|v[12] .*|no such model, v[12].*|v2: nonsense)",
        aspects="body|content type",
        second="error",
    ),
    KnownDifference(
        "kserve-versions",
        "`/v1/models/M/versions/V:predict`, `/v2/models/M/versions/V/...`",
        "501 `Model versioning is not yet supported.`",
        "served",
        "KServe has them",
        cases=".*/(v1: a version|v2: version.*|v2: infer a version)",
        aspects="status|body|content type",
        first="501|not yet supported|application/json",
    ),
    KnownDifference("kserve-verbs", "`/v1/models/M:predictfoo`", "predicts", "404", "there is no such verb"),
    KnownDifference(
        "v2-extensions",
        "`/v2/models/M/config`, `/v2/models/M/stats`, `/v2/models/stats`, `POST /v2/repository/index`; binary outputs, "
        "`classification`; `Accept-Encoding` of a request for inference",
        "404; JSON only; not looked at",
        "as Triton has them; gzip and deflate. Shared memory, tracing, logging, loading and generation: 501 with the "
        "reason",
        "Triton's clients ask for them",
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
        "how it came to be there is no matter",
        cases=".*/invocations",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "authorization",
        "the client's `Authorization` header, with tokens on",
        "handed to the handler",
        "not handed to it",
        "the token is the server's",
        cases=".*/token of a client",
        aspects="body",
        first="<inference token>",
    ),
    KnownDifference(
        "form-cut-off",
        "a multipart body that is cut off, empty or none",
        "200 with a row that lacks parts",
        "400 BadRequestException that says why",
        "half a request should not be answered as a whole one",
        cases=".*/parts(, and no body| cut off| without an end)",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "form-twice",
        "a form with two parts of one name",
        "the handler sees the last",
        "400 BadRequestException",
        "nothing of a request should be lost without a word",
        cases=".*/(parts of one name|form, one name twice)",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "form-names",
        "a multipart part without a name; an empty boundary",
        "500 with an exception of Java",
        "400 BadRequestException",
        "the request is wrong, not the server",
    ),
    KnownDifference(
        "form-fields",
        "forms with more than 1,000 fields",
        "taken",
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
        "cut off there",
        "kept; only a final one is dropped",
        "nothing of a request should be lost",
    ),
    KnownDifference(
        "json-blank", "`Content-Type: application/json ; q=1`", "not taken for JSON", "JSON", "RFC 9110, 8.3.1"
    ),
    KnownDifference(
        "batch-failure",
        "a handler that raises for a batch of several requests",
        "every request gets the error",
        "the batch is asked again one by one, and only who made it fail gets the error",
        "a request should not pay for its neighbours",
    ),
    KnownDifference(
        "batch-length",
        "a handler that answers a batch with a list of another length",
        "503 for all",
        "asked one by one from then on",
        "likewise",
    ),
    KnownDifference(
        "header-lines",
        "a header with a line break that a handler sets",
        "500 `Worker died.`, and the worker is started again",
        "500; the worker lives",
        "one request should not cost the others",
        cases="moods/sets_two_lines",
        aspects="body",
    ),
    KnownDifference("prediction-code", "`PredictionException` with code 413", "507", "413", "the handler chose it"),
    # Management
    KnownDifference(
        "numbers",
        "numbers in queries of the management API that are none, beyond 32 bits, or below 0 (`limit=many`)",
        "ignored, or 500",
        "400 BadRequestException that names the parameter",
        "a slip should not be taken for the default",
        cases=".*/(list (a negative number|nonsense|from a negative place|from nonsense)|scale, .*|(un)?register.*|"
        "scale to many)",
        aspects="status|body",
        second="^40[04]$|must be a whole number|ModelVersionNotFoundException",
    ),
    KnownDifference(
        "number-limits",
        "`response_timeout` below 1, `startup_timeout` below 0 (but -1, which is the default)",
        "registered with them; every request loses its worker, or no worker comes up",
        "400 BadRequestException",
        "a model that never answers helps nobody",
    ),
    KnownDifference(
        "batch-size",
        "`batch_size` below 1, `max_batch_delay` below 0",
        "described as they are; batches are of one request",
        "taken for 1 and 0, and described so",
        "a description should be true",
        cases=".*/(batch size 0|describe.*|what came of.*)",
        aspects="body",
        first="'batchSize': 0",
        second="'batchSize': 1",
    ),
    KnownDifference(
        "startup-timeout",
        "`startup_timeout=0`, `default_startup_timeout=0`",
        "no worker ever comes up",
        "no limit",
        "it is what who writes it wants",
    ),
    KnownDifference(
        "worker-limits",
        "`initial_workers`, `min_worker` above 1,024",
        "starts them",
        "400 BadRequestException",
        "a slip should not take the machine down",
    ),
    KnownDifference(
        "workers-below-none",
        "`min_worker` below 0",
        "500 IndexOutOfBoundsException that takes every worker away",
        "400 BadRequestException",
        "an error should change nothing",
        cases=".*/scaled? below nothing",
        aspects="status|body",
    ),
    KnownDifference(
        "model-name",
        "`model_name` with `/` or control characters",
        "registered; it can not be asked for or removed again",
        "400 InvalidModelException",
        "what is registered has to be reachable",
        cases=".*/register under a path",
        aspects="status|body",
    ),
    KnownDifference(
        "bad-json",
        "a registration whose body is no JSON, no object, or has no number where one belongs",
        "500 with an exception of Java",
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
        "likewise",
    ),
    KnownDifference(
        "json-delay",
        "a registration in JSON without `max_batch_delay`",
        "-10000 ms",
        "100 ms",
        "as without JSON",
        cases=".*/in JSON",
        aspects="body",
        first="-10000",
        second="100",
    ),
    KnownDifference(
        "flags",
        "`synchronous` and other flags of a management call that are neither true nor false",
        "taken for false",
        "400 BadRequestException that names the parameter",
        "a slip should not be taken for the default",
        cases=".*/(register, synchronous nonsense|what came of it|unregister it|describe with nonsense)",
        aspects="status|body",
        second="^40[04]$|neither true nor false|ModelNotFoundException",
    ),
    KnownDifference(
        "misspelt-parameter",
        "a parameter of a management call that is misspelt (`batchSize`, `initial_worker`); another that there is not",
        "ignored",
        "400 BadRequestException that names the one that was probably meant; ignored, with a line in `server.log`",
        "a setting that nobody chose should not be silent",
        cases=".*/misspelt.*",
        aspects="status|body",
    ),
    KnownDifference(
        "json-query",
        "a registration with a JSON body and a query",
        "the query is ignored",
        "it says what the body does not",
        "nothing of a request should be lost",
    ),
    KnownDifference(
        "load-failure",
        "a registration whose workers do not load",
        "500 `Failed to start workers for model M version: V`",
        "the same, then `: ` and the last line of the traceback",
        "the reason should not have to be looked for in a log",
        cases=".*/(load|register, a handler that is not there|register what does not load)",
        aspects="body",
        first="Failed to start workers",
        second="Failed to start workers",
    ),
    KnownDifference(
        "load-timeout",
        "a registration whose workers do not load within `startup_timeout`",
        "500, and the version stays, without workers",
        "500, and nothing stays",
        "an error should change nothing",
    ),
    KnownDifference(
        "management-waits",
        "a registration that takes long",
        "other management calls wait for it",
        "they do not",
        "health checks should not fail while a large model loads",
    ),
    KnownDifference(
        "describe-failure",
        "a worker that loads, or never will",
        "`UNLOADING`, and nothing says why",
        "`LOADING`; a further key `failure` has the traceback until a worker comes up",
        "the reason should not have to be looked for in a log",
        cases=".*/(describe.*|what came of.*|scaled.*|registered later)",
        aspects="body",
        second="'failure'|'LOADING'",
    ),
    KnownDifference(
        "describe-memory",
        "`memoryUsage`",
        "0 until system metrics were collected",
        "what the worker uses now",
        "a number should be right",
    ),
    KnownDifference(
        "describe-customized",
        "describe with `customized=true`",
        "hands the handler the request's headers, with the management token",
        "does not",
        "handlers have no business with that token",
        cases=".*/describe: .*customized",
        aspects="body",
        first="'content-length'",
    ),
    KnownDifference(
        "describe-order",
        "describe with `all`",
        "versions in the order of a hash table",
        "in the order in which they were registered",
        "an order that one can rely on",
        cases=".*/(both|describe: all)",
        aspects="body",
    ),
    KnownDifference(
        "ready",
        "`GET /v1/models/M` at the management API",
        "ready if there are workers, though none loads",
        "ready if a worker answers",
        "ready should mean ready",
    ),
    KnownDifference(
        "set-default",
        "`set-default` to a version without workers that answer, while the present default answers",
        "200, and every request is 503 from then on",
        "409 ConflictStatusException that names the call to scale it",
        "a switch should not be an outage",
    ),
    KnownDifference(
        "set-default-method",
        "`GET` and `DELETE /models/M/V/set-default`",
        "describe and remove the **default** version",
        "405",
        "nobody who sends that means it",
        cases=".*/set a default with GET",
        aspects="status|body",
    ),
    KnownDifference(
        "drain",
        "unregistering or scaling down, with requests running or waiting",
        "these are never answered",
        "they are answered first, for at most `response_timeout`",
        "no request should be lost",
    ),
    KnownDifference(
        "page-token", "`next_page_token` near 2^31", "a negative token", "no token", "there is no such page"
    ),
    KnownDifference(
        "workflows",
        "`/workflows`",
        "run code even where the model API is closed",
        "404",
        "not built",
        cases=".*/workflows",
        aspects="status|body",
    ),
    KnownDifference(
        "gpus",
        "GPUs of workers",
        "round robin over all models, from GPU 1",
        "round robin for each version, from GPU 0",
        "GPU 0 should not be the last to work",
    ),
    # Archives
    KnownDifference(
        "no-archive",
        "a file that is no zip",
        "400 `Model name is not defined.`; 500 without the ending .mar",
        "400 that says what it is",
        "an error should say its cause",
        cases=".*/register no archive",
        aspects="body",
    ),
    KnownDifference(
        "archive-check",
        "an archive with an error that `torchmar check` finds",
        "registers, and its workers fail",
        "400 InvalidModelException with the finding; `torchmar_check_archives=false` lets it pass",
        "nothing of it should run first",
        cases=".*/load",
        aspects="status|body",
        first=r"^500$|'message'",
        second=r"^400$|MAR\d{3}|names no handler",
    ),
    KnownDifference(
        "manifest",
        "a manifest that is none",
        "400 `Failed to parse signature.json.`",
        "400 that says what is wrong with it",
        "an error should say its cause",
        cases=".*/load",
        aspects="body",
        first="signature.json",
    ),
    KnownDifference(
        "file-url",
        "a `file://` URL in the model store, or a URL whose file name is there",
        "500 `Model file already exists`",
        "works",
        "it is there",
    ),
    KnownDifference(
        "download-copy",
        "a registration by http(s) or `file://`",
        "copied into the model store, and removed from there with the model",
        "nothing is written there",
        "the store is the user's",
    ),
    KnownDifference(
        "outside-folder",
        "a registration by the path of a folder anywhere on the machine",
        "works, whatever `allowed_urls` says",
        "404 unless `allowed_urls` matches it as a `file://` URL, or the configuration or command line names it",
        "who may register should not read every folder",
        cases=".*/register an absolute path",
        aspects="body",
        second="outside the model store",
    ),
    KnownDifference(
        "store-folder",
        "a registration of `folder/x.mar`",
        "the store's `x.mar`",
        "the store's `folder/x.mar` if there is one, or else its `x.mar`",
        "it was asked for",
    ),
    KnownDifference(
        "redirect",
        "a redirection of a download",
        "followed to anywhere",
        "followed where `allowed_urls` matches; 404 otherwise",
        "it would be a way around the list",
    ),
    KnownDifference(
        "download-size", "a download", "no limit", "`torchmar_max_download_size` (20 GiB)", "a disk is not endless"
    ),
    KnownDifference(
        "download-error",
        "`DownloadArchiveException`, `Failed to save model`",
        "the URL",
        "the URL, and why in parentheses",
        "an error should say its cause",
    ),
    KnownDifference(
        "s3",
        "S3 URLs",
        "signed with the credentials of the environment",
        "fetched as any https URL; `s3://` is 404 with a word on presigned URLs",
        "not built",
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
        "into a folder beside; no deadlock; the answer has pip's last lines",
        "an error should say its cause",
    ),
    KnownDifference(
        "config-timeouts",
        "`model-config.yaml` without `responseTimeout` or `startupTimeout`",
        "120 s, whatever the registration and the server's defaults say",
        "`models=`, then the registration, then the server's defaults",
        "what a file does not say should not count",
    ),
    KnownDifference(
        "config-modes",
        "`sequenceBatching`, `continuousBatching`, `parallelType`, `torchrun`, `asyncCommunication`, "
        "`useVenv` in `model-config.yaml`",
        "done",
        "400 InvalidModelException that names the key",
        "not built; better told at once than found out",
    ),
    KnownDifference("runtime-cpp", "the runtime `lsp` (C++)", "done", "400 InvalidModelException", "not built"),
    # Configuration
    KnownDifference(
        "config-values",
        "a wrong value in `config.properties`",
        "a Java stack trace, or a default in silence",
        "the server does not start; file, key, value and an example of each are told",
        "all mistakes at once",
    ),
    KnownDifference(
        "config-blanks", "blanks at the end of a number", "NumberFormatException", "left out", "nobody sees them"
    ),
    KnownDifference(
        "allowed-urls", "`allowed_urls` not set", "everything", "the model store alone", "a registration runs code"
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
        "without end; they lack a handler that a registration named, and have a file's name for a URL; the server ends "
        "if an archive is gone; `--models` beside a snapshot is dropped in silence",
        "of each run the last 100; handlers and URLs are in them; what is gone is named, and the rest served; "
        "`--models` beside a snapshot is dropped with a warning; `torchmar serve` neither writes nor restores any",
        "a restart should bring back what was served, or say what it cannot",
    ),
    KnownDifference(
        "startup",
        "requests for models that are loaded at the start, before they are registered",
        "no connection: the ports are opened afterwards",
        "wait up to 30 s, then 503 with `Retry-After`; other models are served",
        "one slow download should not close the server",
    ),
    KnownDifference(
        "startup-failure",
        "a model of `load_models` or of a snapshot that cannot be loaded",
        "a line in the log; without the archive of a snapshot the server ends",
        "named by the command that starts the server, by the 404 for that model, and in `/v2/repository/index`; "
        "`DELETE /models/M` gives it up",
        "what is to be served is served, or it is said that it is not",
    ),
    KnownDifference(
        "queue-full",
        "503 for a full queue, and for a model whose workers do not load",
        "the text for a model without workers; with workers that do not load, requests wait",
        "three texts, of which one names `job_queue_size`; at once; `Retry-After`",
        "an error should say its cause",
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
        "folder; these flags mean nothing",
        "scripts need not poll",
    ),
    # Metrics
    KnownDifference(
        "metrics-more",
        "metrics besides",
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
        "what the request named: `default` for requests without a version",
        "the version that answered",
        "a set-default should not mix two versions in one series",
    ),
    KnownDifference(
        "metrics-failed",
        "latency and queue time of failed requests",
        "counted as requests, their time is not: means are too small",
        "both are counted",
        "a mean should be one",
    ),
    KnownDifference(
        "metrics-grpc",
        "`Requests2XX`, `Requests4XX`, `Requests5XX` over gRPC",
        "not counted",
        "counted by the status that REST would have",
        "a request is a request",
    ),
    KnownDifference(
        "metrics-system",
        "system metrics",
        "looked at every `metric_time_interval`; `CPUUtilization` is 0 or 100",
        "looked at when asked for; the mean since the look before",
        "a number should be right",
    ),
    KnownDifference(
        "metrics-mode",
        "`/metrics` with `metrics_mode=log` or `legacy`",
        "an empty answer",
        "the metrics",
        "there is a reason why one asks",
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
        "nothing is posted there",
        cases=".*/metrics( with POST|, OPTIONS)",
        aspects="status|body|content type",
    ),
    KnownDifference(
        "metrics-name",
        "`?name[]=` with the name of a histogram",
        "nothing; only the names of its lines",
        "all its lines",
        "it was asked for",
    ),
    KnownDifference(
        "metrics-labels",
        "a handler's metric with an awkward label value (a comma or colon)",
        "cut off, or the label lost",
        "as it is",
        "nothing should be lost",
    ),
    KnownDifference(
        "metrics-series",
        "labels of handlers' metrics with ever new values",
        "every one kept",
        "1,000 series for each model, then left out, with one warning",
        "memory is not endless",
    ),
    KnownDifference(
        "metrics-gone",
        "a metric of a model that is unregistered",
        "stays",
        "its series are dropped",
        "it has no value any more",
    ),
    KnownDifference(
        "metrics-dimensions",
        "a dimension count in `metrics_config` that does not fit the metric",
        "an error in the log at every update",
        "the metric is not shown",
        "once is enough",
    ),
    KnownDifference(
        "metrics-config",
        "a `metrics_config` that cannot be read",
        "an error in the log, and no metrics",
        "the server does not start, and says why",
        "better told at once than found out",
    ),
    # gRPC
    KnownDifference(
        "grpc-stream-one",
        "gRPC: `StreamPredictions` to a handler that sends no intermediate answers",
        "the worker is killed",
        "one answer",
        "a stream may have one part",
    ),
    KnownDifference(
        "grpc-unary-many",
        "gRPC: `Predictions` to a handler that sends intermediate answers",
        "the first part, and the worker is lost for seconds",
        "all parts, put together",
        "nothing should be lost",
    ),
    KnownDifference(
        "grpc-stream-two",
        "gRPC: `StreamPredictions2`",
        "for models with `sequenceBatching` only; it loses the worker of any other",
        "for any model: requests of a stream are answered in order, an error is a `status`; no worker "
        "is kept for a sequence",
        "one request should not cost the others",
    ),
    KnownDifference(
        "grpc-codes",
        "gRPC: codes of errors of the management API",
        "INTERNAL (13) or UNKNOWN for most",
        "those of their statuses: NOT_FOUND (5) for 404, ABORTED (10) for 409, UNAVAILABLE (14) for 503",
        "a client should know what to repeat",
    ),
    KnownDifference(
        "grpc-conflict",
        "gRPC: `RegisterModel` of a version that is there",
        "UNKNOWN without a word",
        "ABORTED, ConflictStatusException",
        "an error should say its cause",
    ),
    KnownDifference(
        "grpc-default",
        "gRPC: `UnregisterModel` of a default version that is not the last",
        "UNKNOWN without a word",
        "PERMISSION_DENIED, InvalidModelVersionException",
        "likewise",
    ),
    KnownDifference(
        "grpc-scale-name", "gRPC: `ScaleWorker` without a name", "UNKNOWN without a word", "NOT_FOUND", "likewise"
    ),
    KnownDifference(
        "grpc-unregister-name",
        "gRPC: `UnregisterModel` without a name",
        "`Parameter url is required.`",
        "`Parameter model_name is required.`",
        "likewise",
    ),
    KnownDifference(
        "grpc-customized",
        "gRPC: `DescribeModel` with `customized`: unknown model; failing handler",
        "INTERNAL; no answer, and the worker is lost",
        "NOT_FOUND; the handler's error",
        "likewise",
    ),
    KnownDifference(
        "grpc-size",
        "gRPC: a request larger than `max_request_size`",
        "RST_STREAM (CANCELLED)",
        "RESOURCE_EXHAUSTED",
        "likewise",
    ),
    KnownDifference(
        "grpc-status",
        "gRPC: `Predictions` where a handler sets a status of 400 and more for one request (`set_response_status`)",
        "OK, with the error as the prediction",
        "the code of that status, with the message of the error",
        "an error should not look like an answer",
    ),
    KnownDifference(
        "grpc-health",
        "gRPC: `grpc.health.v1.Health` and `grpc.reflection.v1` (and `v1alpha`) on both ports",
        "UNIMPLEMENTED",
        "answered, without a token; health follows `/v2/health/ready`",
        "Kubernetes and grpcurl ask for them",
    ),
    KnownDifference(
        "grpc-open-inference",
        "gRPC: the service of the Open Inference Protocol",
        "`org.pytorch.serve.grpc.openinference.GRPCInferenceService`, with `ts_open_inference_protocol=true`",
        "that and `inference.GRPCInferenceService`, unless `ts_open_inference_protocol=false`",
        "KServe's and Triton's clients call the latter",
    ),
    KnownDifference(
        "grpc-bytes",
        "gRPC: BYTES in `ModelInfer`",
        "handlers get base64; outputs as they stand in JSON, with quotes",
        "handlers of torchmar get what was sent, and their outputs have no quotes; other handlers get texts as over "
        "REST, but for TorchServe's own service, which treats theirs as TorchServe does",
        "a text is not its base64",
    ),
    KnownDifference(
        "grpc-open-inference-errors",
        "gRPC: `ModelInfer` of an unknown model; without workers; with an answer of status 400 and more",
        "INTERNAL; INTERNAL; `Worker died.`",
        "NOT_FOUND; UNAVAILABLE; the code of that status, with the handler's message",
        "a client should know what to do next",
    ),
    KnownDifference(
        "grpc-metadata",
        "gRPC: `ServerMetadata`, `ModelStreamInfer`, `ModelConfig`, `ModelStatistics`, `RepositoryIndex`",
        "UNIMPLEMENTED",
        "answered; other extensions of Triton's are UNIMPLEMENTED with the reason",
        "the protocol, or Triton's clients, have them",
    ),
    KnownDifference(
        "grpc-model-metadata",
        "`inputs` and `outputs` in `ModelMetadata` (gRPC) and `/v2/models/M`",
        "empty; 404",
        "names, datatypes and shapes, as far as the handler knows them",
        "clients make requests of them",
    ),
    KnownDifference(
        "grpc-ready",
        "gRPC: `ServerReady`, `Ping`, `ModelReady` while workers are missing",
        "ready, Healthy",
        "not ready, Unhealthy",
        "ready should mean ready",
    ),
    KnownDifference(
        "grpc-raw",
        "gRPC: `ModelInfer` with `raw_input_contents`, `outputs` or `parameters`",
        "dropped: the handler gets empty data, and answers with all outputs",
        "read, FP16 and BF16 too, and answered in `raw_output_contents`; handed to the handler",
        "clients send it",
    ),
    KnownDifference(
        "grpc-datatype",
        "gRPC: `ModelInfer` with a datatype that is none, NaN, or an answer that is not of the protocol",
        "`Worker died.`, or UNKNOWN without a word",
        "INVALID_ARGUMENT; INTERNAL with the reason; the worker lives",
        "one request should not cost the others",
    ),
    KnownDifference(
        "grpc-deadline",
        "gRPC: a deadline, or a client that ends its call",
        "the request is run all the same",
        "it is not run, if no worker has begun it",
        "nobody waits for it",
    ),
)


def documented(deviation: Mismatch) -> KnownDifference | None:
    """Return the difference that a deviation is; None for one that nobody meant."""
    return next((one for one in DIFFERENCES if one.explains(deviation)), None)


def markdown() -> str:
    """Return the table of docs/differences.md."""
    rows = [("what", "TorchServe 0.12.0", "here", "why"), ("---",) * 4]
    rows += [(one.what, one.torchserve, one.ours, f"{one.why} (`{one.id}`)") for one in DIFFERENCES]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
