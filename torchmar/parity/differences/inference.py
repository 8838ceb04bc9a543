"""Inference: predictions, KServe and SageMaker: documented differences."""

from __future__ import annotations

from torchmar.parity.known_difference import KnownDifference

DIFFERENCES = (
    KnownDifference(
        id="kserve-live",
        what="`GET /` and `GET /v1/models` at the inference API",
        torchserve="405; 404",
        builtin='`{"status": "alive"}`, without a token; `{"models": [...]}`',
        reason="part of KServe's protocol",
        cases=".*/(root|v1: list)",
        aspects="status|body|content type",
        first="405|404",
        second="200|alive|models",
    ),
    KnownDifference(
        id="ping",
        what="`/ping` while workers do not load",
        torchserve="Healthy for `maxRetryTimeoutInSec` (300 s), then 500",
        builtin=(
            "immediately: 500 `Unhealthy` when no worker of a default version answers, 200 `Partial "
            "Healthy` when some do not; also 500 until all models of the configuration are loaded, and "
            "while one of them could not be loaded"
        ),
        reason="the health should be the current one",
    ),
    KnownDifference(
        id="v2-ready",
        what="`/v2/health/ready`",
        torchserve="always `true`",
        builtin=(
            '503 `{"ready": false}` while no worker of a default version answers that should have workers, '
            "and when `/ping` returns 500"
        ),
        reason="ready should mean that requests are answered",
    ),
    KnownDifference(
        id="kserve-models",
        what="`GET /v1/models/M`, `/v2/models/M`, `/v2/models/M/ready` at the inference API",
        torchserve="404",
        builtin='answered as by KServe; 503 with `"ready": false` when no worker answers',
        reason="part of KServe's protocol",
        cases=(
            ".*/(v1: model|v2: model|v2: ready|v1 without workers|v2 ready without workers|no such model, "
            "v[12]( ready)?)"
        ),
        aspects="status|body",
    ),
    KnownDifference(
        id="kserve-methods",
        what="`POST` and other methods at `/v1/models/M` and `/v2/models/M`, which are for `GET`",
        torchserve="404",
        builtin="405",
        reason="the path exists, the method does not",
        cases=".*/v1: model with POST",
        aspects="status|body|content type",
    ),
    KnownDifference(
        id="kserve-content-type",
        what="a JSON body below `/v1` and `/v2` with another type, as `curl -d` sends it",
        torchserve="read as a form, which loses it, or as bytes",
        builtin="JSON, for any type",
        reason="these protocols have only JSON bodies",
        cases=".*/v[12]: .*raw.*",
        aspects="status|body|content type",
    ),
    KnownDifference(
        id="kserve-errors",
        what="errors below `/v1` and `/v2`, including the handler's own",
        torchserve="`code`, `type`, `message`, or the output of the handler",
        builtin="JSON that also has the message as `error`",
        reason="KServe's clients read it there",
        cases=".*/(v[12]: .*|v[12] .*|no such model, v[12].*|v2: nonsense)",
        aspects="body|content type",
        second="error",
    ),
    KnownDifference(
        id="kserve-versions",
        what="`/v1/models/M/versions/V:predict`, `/v2/models/M/versions/V/...`",
        torchserve="501 `Model versioning is not yet supported.`",
        builtin="served",
        reason="part of KServe's protocol",
        cases=".*/(v1: a version|v2: version.*|v2: infer a version)",
        aspects="status|body|content type",
        first="501|not yet supported|application/json",
    ),
    KnownDifference(
        id="kserve-verbs",
        what="`/v1/models/M:predictfoo`",
        torchserve="predicts",
        builtin="404",
        reason="no such verb exists",
    ),
    KnownDifference(
        id="v2-extensions",
        what=(
            "`/v2/models/M/config`, `/v2/models/M/stats`, `/v2/models/stats`, `POST /v2/repository/index`; "
            "binary outputs, `classification`; `Accept-Encoding` of an inference request"
        ),
        torchserve="404; JSON only; ignored",
        builtin=(
            "as Triton has them; gzip and deflate. Shared memory, tracing, logging, loading and generation: "
            "501 with the reason"
        ),
        reason="Triton's clients use them",
    ),
    KnownDifference(
        id="v2-server",
        what="`/v2`",
        torchserve="`Torchserve`, its version, `extenstion`",
        builtin="`torchmar`, its version, `extensions`",
        reason="it is another server",
        cases=".*/v2: server",
        aspects="body",
    ),
    KnownDifference(
        id="sagemaker",
        what="`/invocations` without `model_name`",
        torchserve="the only model of `load_models`",
        builtin="the only model that is registered",
        reason="it is not important how the model was registered",
        cases=".*/invocations",
        aspects="status|body|content type",
    ),
    KnownDifference(
        id="authorization",
        what="the client's `Authorization` header, with tokens on",
        torchserve="passed to the handler",
        builtin="not passed",
        reason="the token is for the server",
        cases=".*/token of a client",
        aspects="body",
        first="<inference token>",
    ),
    KnownDifference(
        id="form-cut-off",
        what="a multipart body that is truncated, empty or invalid",
        torchserve="200 with a row that lacks parts",
        builtin="400 BadRequestException with the reason",
        reason="a part of a request should not be answered like the whole",
        cases=".*/parts(, and no body| cut off| without an end)",
        aspects="status|body|content type",
    ),
    KnownDifference(
        id="form-twice",
        what="a form with two parts of the same name",
        torchserve="the handler gets the last one",
        builtin="400 BadRequestException",
        reason="no part of a request should be lost",
        cases=".*/(parts of one name|form, one name twice)",
        aspects="status|body|content type",
    ),
    KnownDifference(
        id="form-names",
        what="a multipart part without a name; an empty boundary",
        torchserve="500 with a Java exception",
        builtin="400 BadRequestException",
        reason="the request is wrong, not the server",
    ),
    KnownDifference(
        id="event-stream",
        what="`Accept: text/event-stream`",
        torchserve="ignored",
        builtin=(
            "the parts of a streamed answer are server-sent events, an error in the middle is an event `error`; "
            "every event stream has `Cache-Control: no-cache`"
        ),
        reason="browsers and clients of event streams read no other format",
        cases="stream/typed",  # its handler sends the type of an event stream
        aspects="cache-control|expires|pragma",
        second="^(no-cache)?$",
    ),
    KnownDifference(
        id="generators",
        what="a method `handle` or `postprocess` that is a generator",
        torchserve="503 `Invalid model predict output`",
        builtin="each list that it yields is sent at once, as with `send_intermediate_predict_response`",
        reason="it is how Python writes a stream",
    ),
    KnownDifference(
        id="envelopes",
        what="`service_envelope=kserve` and `kservev2` with several requests in a batch; with a handler of torchmar",
        torchserve="503 for all of the batch; the handler gets the `instances` or `inputs` alone",
        builtin="each request is sent to the handler alone; the handler gets the requests as they are, in batches",
        reason="a request should not affect others; handlers of torchmar read both protocols themselves",
    ),
    KnownDifference(
        id="routes",
        what="paths that `torchmar_routes` or `PUT /routes/PATH` lead to a model",
        torchserve="404",
        builtin="as `/predictions/NAME`",
        reason="clients of other services keep their URL",
    ),
    KnownDifference(
        id="form-fields",
        what="forms with more than 1,000 fields",
        torchserve="accepted",
        builtin="400 BadRequestException",
        reason="a small request should not take seconds",
    ),
    KnownDifference(
        id="form-pairs",
        what="an urlencoded form with an empty pair, an empty name or `%zz`",
        torchserve="500 ErrorDataDecoderException",
        builtin="read as browsers write it",
        reason="it can be read",
    ),
    KnownDifference(
        id="form-lines",
        what="an urlencoded form with a line break in a value",
        torchserve="truncated there",
        builtin="kept; only a final one is removed",
        reason="no part of a request should be lost",
    ),
    KnownDifference(
        id="json-blank",
        what="`Content-Type: application/json ; q=1`",
        torchserve="not recognised as JSON",
        builtin="JSON",
        reason="RFC 9110, 8.3.1",
    ),
    KnownDifference(
        id="batch-failure",
        what="a handler that raises for a batch of several requests",
        torchserve="every request gets the error",
        builtin="each request is sent to the handler again alone, and only the one that fails gets the error",
        reason="a request should not affect others",
    ),
    KnownDifference(
        id="batch-length",
        what="a handler that returns a list of another length for a batch",
        torchserve="503 for all",
        builtin="each request is sent again alone, then and for later batches",
        reason="as above",
    ),
    KnownDifference(
        id="header-lines",
        what="a handler that sets a header with a line break",
        torchserve="500 `Worker died.`, and the worker is started again",
        builtin="500; the worker continues",
        reason="one request should not delay the others",
        cases="moods/sets_two_lines",
        aspects="body",
    ),
    KnownDifference(
        id="prediction-code",
        what="`PredictionException` with code 413",
        torchserve="507",
        builtin="413",
        reason="the handler selected it",
    ),
)
