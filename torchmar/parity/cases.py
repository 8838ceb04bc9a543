"""The requests that are sent to both engines: a table of valid and invalid requests.

Placeholders in paths and headers: ``{name}`` and ``{version}`` of the model, ``{type}``, the content type of its first
sample. In bodies: ``{name}``, ``{sample}`` and ``{base64}``, the content of that sample. In authorization headers:
``{token}`` is the token of the case's API; ``{inference}``, ``{management}`` and ``{API}`` are those of the key file.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Api = Literal["inference", "management", "metrics"]

JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
PARTS = {"Content-Type": "multipart/form-data; boundary=x"}
SAMPLE = {"Content-Type": "{type}"}
KSERVE_V1 = b'{"instances": [{"data": "{base64}"}]}'
KSERVE_V2 = b'{"id": "1", "inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}]}'

MAX_REQUEST_SIZE = 6_553_500  # bytes; the limit with which the engines are started, TorchServe's default


@dataclass(frozen=True)
class Case:
    """A request of the comparison.

    Attributes:
        name: a description.
        method: the HTTP method.
        path: the path and query.
        body: the body.
        headers: the headers, without ``Host``, ``Content-Length`` and ``Accept-Encoding``.
        api: API that the request is sent to.
        authorization: header ``Authorization``; empty: it is not sent.
        chunked: whether the body is sent in two chunks.
        settles: whether the next case waits until all workers are ready.
        seconds: the longest time to wait for a response.
    """

    name: str
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    api: Api = "inference"
    authorization: str = "Bearer {token}"
    chunked: bool = False
    settles: bool = False
    seconds: float = 60.0


def _part(name: str, content: bytes, *, file: str = "", content_type: str = "") -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"'
    head += f'; filename="{file}"' if file else ""
    head += f"\r\nContent-Type: {content_type}" if content_type else ""
    return head.encode() + b"\r\n\r\n" + content + b"\r\n"


_END = b"--x--\r\n"
_PREDICT = "/predictions/{name}"

# Bodies and queries of predictions.
BODIES = (
    Case("no body", "POST", _PREDICT),
    Case("no body, a content type", "POST", _PREDICT, b"", JSON),
    Case("no content type", "POST", _PREDICT, b"{sample}"),
    Case("nonsense", "POST", _PREDICT, b"\x00\xff\xfe not anything", {"Content-Type": "application/octet-stream"}),
    Case("nonsense as JSON", "POST", _PREDICT, b"\x00\xff\xfe not anything", JSON),
    Case("nonsense as text", "POST", _PREDICT, b"\xf0\x28\x8c\x28", TEXT),
    Case("text", "POST", _PREDICT, "Käse".encode(), TEXT),
    Case("text with a charset", "POST", _PREDICT, b"K\xe4se", {"Content-Type": "text/plain; charset=latin-1"}),
    Case("JSON without sense", "POST", _PREDICT, b'{"unexpected": [1, {"deep": null}]}', JSON),
    Case("JSON cut off", "POST", _PREDICT, b'{"data": [1, 2', JSON),
    Case("JSON with a charset", "POST", _PREDICT, b'{"data": 1}', {"Content-Type": "application/json; charset=utf-8"}),
    Case("JSON in another case", "POST", _PREDICT, b'{"data": 1}', {"Content-Type": "Application/JSON"}),
    Case("JSON of a subtype", "POST", _PREDICT, b'{"data": 1}', {"Content-Type": "application/ld+json"}),
    Case("JSON null", "POST", _PREDICT, b"null", JSON),
    Case("JSON number", "POST", _PREDICT, b"12", JSON),
    Case("JSON NaN", "POST", _PREDICT, b"[NaN, Infinity]", JSON),
    Case("JSON base64", "POST", _PREDICT, b'{"data": "{base64}"}', JSON),
    Case("JSON with instances", "POST", _PREDICT, KSERVE_V1, JSON),
    Case("JSON twice the same key", "POST", _PREDICT, b'{"data": 1, "data": 2}', JSON),
    Case("a large integer", "POST", _PREDICT, b'{"data": 123456789012345678901234567890}', JSON),
    Case("chunked", "POST", _PREDICT, b"{sample}", SAMPLE, chunked=True),
    Case("expects 100-continue", "POST", _PREDICT, b"{sample}", {**SAMPLE, "Expect": "100-continue"}),
    Case("gzip", "POST", _PREDICT, gzip.compress(b'{"data": 1}', mtime=0), {**JSON, "Content-Encoding": "gzip"}),
    Case("accepts gzip", "POST", _PREDICT, b"{sample}", {**SAMPLE, "Accept-Encoding": "gzip, deflate"}),
    Case("accepts nothing there is", "POST", _PREDICT, b"{sample}", {**SAMPLE, "Accept": "audio/ogg"}),
    Case("part called data", "POST", _PREDICT, _part("data", b"{sample}", content_type="image/png") + _END, PARTS),
    Case("part called body", "POST", _PREDICT, _part("body", b"{sample}") + _END, PARTS),
    Case("part with a file", "POST", _PREDICT, _part("data", b"{sample}", file="a.png") + _END, PARTS),
    Case("parts of two names", "POST", _PREDICT, _part("data", b"1") + _part("more", b"2", file="b") + _END, PARTS),
    Case("parts of one name", "POST", _PREDICT, _part("data", b"1") + _part("data", b"2") + _END, PARTS),
    Case("part of JSON", "POST", _PREDICT, _part("data", b'{"a": 1}', content_type="application/json") + _END, PARTS),
    Case("part of text", "POST", _PREDICT, _part("data", b"a", content_type="text/plain") + _END, PARTS),
    Case("part without content", "POST", _PREDICT, _part("data", b"") + _END, PARTS),
    Case("parts, and none there", "POST", _PREDICT, _END, PARTS),
    Case("parts, and no body", "POST", _PREDICT, b"", PARTS),
    Case("parts cut off", "POST", _PREDICT, _part("data", b"{sample}")[:-20], PARTS),
    Case("parts without an end", "POST", _PREDICT, _part("data", b"{sample}"), PARTS),
    Case("parts without a boundary", "POST", _PREDICT, b"{sample}", {"Content-Type": "multipart/form-data"}),
    Case("parts of another kind", "POST", _PREDICT, b"{sample}", {"Content-Type": "multipart/mixed; boundary=x"}),
    Case("form", "POST", _PREDICT, b"data=a+b%21&more=1", FORM),
    Case("form, one name twice", "POST", _PREDICT, b"data=1&data=2", FORM),
    Case("form without values", "POST", _PREDICT, b"data", FORM),
    Case("form in another charset", "POST", _PREDICT, b"data=%E4%ff", FORM),
    Case("query", "POST", f"{_PREDICT}?data=a+b%21&more=1"),
    Case("query, one name twice", "POST", f"{_PREDICT}?data=1&data=2"),
    Case("query and body", "POST", f"{_PREDICT}?data=1&body=2", b"{sample}", SAMPLE),
    Case("query and JSON", "POST", f"{_PREDICT}?more=1", b'{"data": 1}', JSON),
    Case("query and parts", "POST", f"{_PREDICT}?data=1", _part("data", b"2") + _END, PARTS),
    Case("query without a value", "POST", f"{_PREDICT}?data", b"{sample}", SAMPLE),
    Case("query without a name", "POST", f"{_PREDICT}?=1&", b"{sample}", SAMPLE),
    Case("query of nonsense", "POST", f"{_PREDICT}?%zz=%f", b"{sample}", SAMPLE),
)

# Paths and methods of one model.
PATHS = (
    Case("GET", "GET", f"{_PREDICT}?data=1"),
    Case("GET with a body", "GET", _PREDICT, b"{sample}", SAMPLE),
    Case("PUT", "PUT", _PREDICT, b"{sample}", SAMPLE),
    Case("PATCH", "PATCH", _PREDICT, b"{sample}", SAMPLE),
    Case("DELETE", "DELETE", _PREDICT),
    Case("HEAD", "HEAD", _PREDICT),
    Case("OPTIONS of a model", "OPTIONS", _PREDICT),
    Case("unknown method", "BREW", _PREDICT),
    Case("a slash behind", "POST", f"{_PREDICT}/", b"{sample}", SAMPLE),
    Case("two slashes", "POST", "//predictions/{name}", b"{sample}", SAMPLE),
    Case("version with a slash behind", "POST", f"{_PREDICT}/{{version}}/", b"{sample}", SAMPLE),
    Case("more than a version", "POST", f"{_PREDICT}/{{version}}/more", b"{sample}", SAMPLE),
    Case("no such version", "POST", f"{_PREDICT}/9.99", b"{sample}", SAMPLE),
    Case("explained: no such version", "POST", "/explanations/{name}/9.99", b"{sample}", SAMPLE),
    Case("explained: no body", "POST", "/explanations/{name}"),
    Case("explained: nonsense", "POST", "/explanations/{name}", b"\x00\xff\xfe not anything", JSON),
    Case("explained with GET", "GET", "/explanations/{name}?data=1"),
    Case("path in another case", "POST", "/Predictions/{name}", b"{sample}", SAMPLE),
    Case("a fragment", "POST", f"{_PREDICT}#more", b"{sample}", SAMPLE),
    Case("header explain of a client", "POST", _PREDICT, b"{sample}", {**SAMPLE, "explain": "True"}),
    Case("header describe of a client", "POST", _PREDICT, b"{sample}", {**SAMPLE, "describe": "True"}),
    Case("token of a client", "POST", _PREDICT, b"{sample}", {**SAMPLE, "Show-Token": "yes"}),
    Case("request id of a client", "POST", _PREDICT, b"{sample}", {**SAMPLE, "x-request-id": "mine"}),
    Case("closes", "POST", _PREDICT, b"{sample}", {**SAMPLE, "Connection": "close"}),
    Case("from an origin", "POST", _PREDICT, b"{sample}", {**SAMPLE, "Origin": "https://example.com"}),
    Case("v1: model", "GET", "/v1/models/{name}"),
    Case("v1: model with POST", "POST", "/v1/models/{name}", b"{sample}", SAMPLE),
    Case("v1: predict", "POST", "/v1/models/{name}:predict", KSERVE_V1, JSON),
    Case("v1: predict, raw", "POST", "/v1/models/{name}:predict", b"{sample}", SAMPLE),
    Case("v1: predict with GET", "GET", "/v1/models/{name}:predict"),
    Case("v1: explain", "POST", "/v1/models/{name}:explain", KSERVE_V1, JSON),
    Case("v1: nonsense", "POST", "/v1/models/{name}:dance", KSERVE_V1, JSON),
    Case("v1: a version", "POST", "/v1/models/{name}/versions/{version}:predict", KSERVE_V1, JSON),
    Case("v1: version as torchserve", "POST", "/v1/models/{name}/{version}:predict", KSERVE_V1, JSON),
    Case("v2: model", "GET", "/v2/models/{name}"),
    Case("v2: ready", "GET", "/v2/models/{name}/ready"),
    Case("v2: version", "GET", "/v2/models/{name}/versions/{version}"),
    Case("v2: version, ready", "GET", "/v2/models/{name}/versions/{version}/ready"),
    Case("v2: infer", "POST", "/v2/models/{name}/infer", KSERVE_V2, JSON),
    Case("v2: infer a version", "POST", "/v2/models/{name}/versions/{version}/infer", KSERVE_V2, JSON),
    Case("v2: infer version as torchserve", "POST", "/v2/models/{name}/{version}/infer", KSERVE_V2, JSON),
    Case("v2: infer, cut off", "POST", "/v2/models/{name}/infer", KSERVE_V2[:-9], JSON),
    Case("v2: infer with GET", "GET", "/v2/models/{name}/infer"),
    Case("v2: explain", "POST", "/v2/models/{name}/explain", KSERVE_V2, JSON),
    Case("SageMaker: invoke", "POST", "/models/{name}/invoke", b"{sample}", SAMPLE),
    Case("SageMaker: invocations", "POST", "/invocations?model_name={name}", b"{sample}", SAMPLE),
    Case("describe", "GET", "/models/{name}", api="management"),
    Case("describe: a version", "GET", "/models/{name}/{version}", api="management"),
    Case("describe: all", "GET", "/models/{name}/all", api="management"),
    Case("describe: customized", "GET", "/models/{name}?customized=true", api="management"),
    Case("describe: a version, customized", "GET", "/models/{name}/{version}?customized=true", api="management"),
)

# Requests that do not concern a model.
SERVER = (
    Case("ping", "GET", "/ping"),
    Case("ping with POST", "POST", "/ping"),
    Case("root", "GET", "/"),
    Case("root with POST", "POST", "/", b"{}", JSON),
    Case("OPTIONS of all", "OPTIONS", "/"),
    Case("OPTIONS *", "OPTIONS", "*"),
    Case("api-description", "GET", "/api-description"),
    Case("no such path", "GET", "/nowhere"),
    Case("no such path with POST", "POST", "/nowhere", b"x", TEXT),
    Case("no such model", "POST", "/predictions/unknown", b"x", TEXT),
    Case("no such model, explained", "POST", "/explanations/unknown", b"x", TEXT),
    Case("no such model, v1", "GET", "/v1/models/unknown"),
    Case("no such model, v1 predict", "POST", "/v1/models/unknown:predict", KSERVE_V1, JSON),
    Case("no such model, v2", "GET", "/v2/models/unknown"),
    Case("no such model, v2 ready", "GET", "/v2/models/unknown/ready"),
    Case("no such model, v2 infer", "POST", "/v2/models/unknown/infer", KSERVE_V2, JSON),
    Case("no such model, SageMaker", "POST", "/models/unknown/invoke", b"x", TEXT),
    Case("no such model, with spaces", "POST", "/predictions/un%20known%2f", b"x", TEXT),
    Case("no model", "POST", "/predictions", b"x", TEXT),
    Case("no model, a slash", "POST", "/predictions/", b"x", TEXT),
    Case("no model, explained", "POST", "/explanations/", b"x", TEXT),
    Case("invocations", "POST", "/invocations", b"x", TEXT),
    Case("v1: list", "GET", "/v1/models"),
    Case("v2: server", "GET", "/v2"),
    Case("v2: live", "GET", "/v2/health/live"),
    Case("v2: health ready", "GET", "/v2/health/ready"),
    Case("v2: nonsense", "GET", "/v2/health/well"),
    Case("management at the inference API", "GET", "/models", authorization="Bearer {management}"),
    Case("metrics at the inference API", "GET", "/metrics"),
    Case("inference at the management API", "POST", "/predictions/{name}", b"x", TEXT, api="management"),
    Case("ping at the management API", "GET", "/ping", api="management"),
    Case("preflight", "OPTIONS", _PREDICT,
         headers={"Origin": "https://example.com", "Access-Control-Request-Method": "POST"}),
    Case("preflight of a stranger", "OPTIONS", _PREDICT,
         headers={"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}),
    Case("too large", "POST", _PREDICT, b"a" * (MAX_REQUEST_SIZE + 1), TEXT),
    Case("as large as it may be", "POST", _PREDICT, b"x" * MAX_REQUEST_SIZE, TEXT),
    Case("metrics", "GET", "/metrics", api="metrics"),
    Case("metrics, one", "GET", "/metrics?name[]=ts_inference_requests_total", api="metrics"),
    Case("metrics, two", "GET", "/metrics?name[]=ts_inference_requests_total&name[]=MemoryUsed", api="metrics"),
    Case("metrics, none", "GET", "/metrics?name[]=nothing", api="metrics"),
    Case("metrics without a token", "GET", "/metrics", api="metrics", authorization=""),
    Case("metrics with POST", "POST", "/metrics", api="metrics"),
    Case("metrics, no such path", "GET", "/nowhere", api="metrics"),
    Case("metrics, ping", "GET", "/ping", api="metrics"),
    Case("metrics, OPTIONS", "OPTIONS", "/", api="metrics"),
)  # fmt: skip

# Requests with and without tokens.
_GUARDED: tuple[tuple[str, str, str, Api], ...] = (
    ("predict", "POST", _PREDICT, "inference"),
    ("ping", "GET", "/ping", "inference"),
    ("no such path", "GET", "/nowhere", "inference"),
    ("OPTIONS", "OPTIONS", "/", "inference"),
    ("list", "GET", "/models", "management"),
    ("token", "GET", "/token?type=inference", "management"),
)
_CREDENTIALS = (
    ("no token", ""),
    ("a wrong token", "Bearer nonsense"),
    ("an empty token", "Bearer "),
    ("no scheme", "{token}"),
    ("another scheme", "Basic {token}"),
    ("scheme in another case", "bearer {token}"),
    ("two spaces", "Bearer  {token}"),
    ("more behind", "Bearer {token} more"),
    ("the inference token", "Bearer {inference}"),
    ("the management token", "Bearer {management}"),
    ("the API key", "Bearer {API}"),
)
TOKENS = tuple(
    Case(f"{subject}: {credentials}", method, path, api=api, authorization=authorization)
    for subject, method, path, api in _GUARDED
    for credentials, authorization in _CREDENTIALS
    # With the API key, this request would renew a token, which is a separate case.
    if (subject, credentials) != ("token", "the API key")
)


def _manage(name: str, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Case:
    # Replicas of a cluster need more time to start than workers.
    return Case(name, method, path, body, headers or {}, "management", settles=method != "GET", seconds=180.0)


# Management calls, in this order: each depends on the previous ones. The archives {name}-{version}.mar and
# {name}-2.0.mar are in the model store, and the first is registered.
MANAGEMENT = (
    _manage("list", "GET", "/models"),
    _manage("list one", "GET", "/models?limit=1"),
    _manage("list none", "GET", "/models?limit=0"),
    _manage("list too many", "GET", "/models?limit=1000"),
    _manage("list a negative number", "GET", "/models?limit=-1"),
    _manage("list nonsense", "GET", "/models?limit=many"),
    _manage("list from a place", "GET", "/models?next_page_token=1"),
    _manage("list from beyond", "GET", "/models?next_page_token=100"),
    _manage("list from a negative place", "GET", "/models?next_page_token=-1"),
    _manage("list from nonsense", "GET", "/models?next_page_token=there"),
    _manage("list, a slash behind", "GET", "/models/"),
    _manage("list with an unknown parameter", "GET", "/models?colour=red"),
    _manage("models with PATCH", "PATCH", "/models"),
    _manage("models with DELETE", "DELETE", "/models"),
    _manage("models with PUT", "PUT", "/models"),
    _manage("OPTIONS", "OPTIONS", "/"),
    _manage("OPTIONS of models", "OPTIONS", "/models"),
    _manage("root", "GET", "/"),
    _manage("api-description", "GET", "/api-description"),
    _manage("no such path", "GET", "/nowhere"),
    _manage("workflows", "GET", "/workflows"),
    _manage("describe an unknown model", "GET", "/models/unknown"),
    _manage("describe a version of an unknown model", "GET", "/models/unknown/1.0"),
    _manage("describe all of an unknown model", "GET", "/models/unknown/all"),
    _manage("describe no such version", "GET", "/models/{name}/9.99"),
    _manage("describe with nonsense", "GET", "/models/{name}?customized=nonsense"),
    _manage("describe too deep", "GET", "/models/{name}/1.0/more"),
    _manage("register without a URL", "POST", "/models"),
    _manage("register an empty URL", "POST", "/models?url="),
    _manage("register what is not there", "POST", "/models?url=nothing.mar"),
    _manage("register what is above", "POST", "/models?url=../{name}-2.0.mar"),
    _manage("register an absolute path", "POST", "/models?url=/etc/passwd"),
    _manage("register a file outside", "POST", "/models?url=file:///etc/passwd"),
    _manage("register a URL that is not allowed", "POST", "/models?url=https://example.com/x.mar"),
    _manage("misspelt parameter", "POST", "/models?url=nothing.mar&batchSize=2"),
    _manage("register a URL that is none", "POST", "/models?url=nonsense:%20x"),
    _manage("register no archive", "POST", "/models?url=broken.mar"),
    _manage("register the same again", "POST", "/models?url={name}-{version}.mar"),
    _manage("register, batch size nonsense", "POST", "/models?url={name}-2.0.mar&batch_size=many"),
    _manage("unregister batch size nonsense", "DELETE", "/models/{name}/2.0"),
    _manage("register, response timeout nonsense", "POST", "/models?url={name}-2.0.mar&response_timeout=long"),
    _manage("unregister response timeout nonsense", "DELETE", "/models/{name}/2.0"),
    _manage("register, workers nonsense", "POST", "/models?url={name}-2.0.mar&initial_workers=many"),
    _manage("unregister workers nonsense", "DELETE", "/models/{name}/2.0"),
    _manage("register, synchronous nonsense", "POST",
            "/models?url={name}-2.0.mar&model_name=sync&synchronous=perhaps&initial_workers=1"),
    _manage("what came of it", "GET", "/models/sync"),
    _manage("unregister it", "DELETE", "/models/sync"),
    _manage("register, batch size 0", "POST", "/models?url={name}-2.0.mar&model_name=zero&batch_size=0"),
    _manage("batch size 0", "GET", "/models/zero"),
    _manage("unregister batch size 0", "DELETE", "/models/zero"),
    _manage("register, batch size -1", "POST", "/models?url={name}-2.0.mar&model_name=less&batch_size=-1"),
    _manage("batch size -1", "GET", "/models/less"),
    _manage("unregister batch size -1", "DELETE", "/models/less"),
    _manage("register, workers -1", "POST", "/models?url={name}-2.0.mar&model_name=none&initial_workers=-1"),
    _manage("workers -1", "GET", "/models/none"),
    _manage("unregister workers -1", "DELETE", "/models/none"),
    _manage("register, runtime nonsense", "POST", "/models?url={name}-2.0.mar&model_name=run&runtime=cobol"),
    _manage("unregister runtime nonsense", "DELETE", "/models/run"),
    _manage("register, a handler that is not there", "POST",
            "/models?url={name}-2.0.mar&model_name=hand&handler=nothing&initial_workers=1"),
    _manage("what came of the handler", "GET", "/models/hand"),
    _manage("register what does not load", "POST", "/models?url=fails-1.0.mar&initial_workers=1"),
    _manage("what came of what does not load", "GET", "/models/fails"),
    _manage("unregister what does not load", "DELETE", "/models/fails"),
    _manage("register without workers", "POST", "/models?url={name}-2.0.mar&model_name=idle"),
    _manage("without workers", "GET", "/models/idle"),
    Case("predict without workers", "POST", "/predictions/idle", b"x", TEXT),
    Case("explain without workers", "POST", "/explanations/idle", b"x", TEXT),
    Case("v1 without workers", "GET", "/v1/models/idle"),
    Case("v2 ready without workers", "GET", "/v2/models/idle/ready"),
    _manage("customized without workers", "GET", "/models/idle?customized=true"),
    _manage("unregister without workers", "DELETE", "/models/idle"),
    _manage("register with all there is", "POST",
            "/models?url={name}-2.0.mar&model_name=all&batch_size=4&max_batch_delay=7&initial_workers=2"
            "&response_timeout=33&startup_timeout=44&runtime=python&handler=handler&synchronous=true&s3_sse_kms=false"),
    _manage("with all there is", "GET", "/models/all/2.0"),
    _manage("unregister with all there is", "DELETE", "/models/all/2.0"),
    _manage("register in JSON", "POST", "/models",
            b'{"url": "{name}-2.0.mar", "model_name": "json", "batch_size": 3, "initial_workers": 1}', JSON),
    _manage("in JSON", "GET", "/models/json"),
    _manage("unregister in JSON", "DELETE", "/models/json"),
    _manage("register in a form", "POST", "/models", b"url={name}-2.0.mar&model_name=form", FORM),
    _manage("in a form", "GET", "/models/form"),
    _manage("unregister in a form", "DELETE", "/models/form"),
    _manage("register in JSON, cut off", "POST", "/models", b'{"url": "', JSON),
    _manage("register later", "POST",
            "/models?url={name}-2.0.mar&initial_workers=1&synchronous=false"),
    _manage("registered later", "GET", "/models/{name}/2.0"),
    _manage("the default is as it was", "GET", "/models/{name}"),
    _manage("both", "GET", "/models/{name}/all"),
    Case("predict with the new one", "POST", "/predictions/{name}/2.0", b"x", TEXT),
    _manage("scale", "PUT", "/models/{name}?min_worker=2&synchronous=true"),
    _manage("scaled", "GET", "/models/{name}"),
    _manage("scale later", "PUT", "/models/{name}?min_worker=1&max_worker=3"),
    _manage("scaled later", "GET", "/models/{name}"),
    _manage("scale at most", "PUT", "/models/{name}?max_worker=1&synchronous=true"),
    _manage("scaled at most", "GET", "/models/{name}"),
    _manage("scale without numbers", "PUT", "/models/{name}?synchronous=true"),
    _manage("scaled without numbers", "GET", "/models/{name}"),
    _manage("scale with max below min", "PUT", "/models/{name}?min_worker=2&max_worker=1"),
    _manage("scale below nothing", "PUT", "/models/{name}?min_worker=-1"),
    _manage("scaled below nothing", "GET", "/models/{name}"),
    _manage("scale to many", "PUT", "/models/{name}?min_worker=many"),
    _manage("scale, batch size", "PUT", "/models/{name}?batch_size=8&min_worker=1&synchronous=true"),
    _manage("scale, timeout", "PUT", "/models/{name}?timeout=nonsense&min_worker=1&synchronous=true"),
    _manage("scaled with more", "GET", "/models/{name}"),
    _manage("scale an unknown model", "PUT", "/models/unknown?min_worker=1"),
    _manage("scale no such version", "PUT", "/models/{name}/9.99?min_worker=1"),
    _manage("scale a version to none", "PUT", "/models/{name}/2.0?min_worker=0&max_worker=0&synchronous=true"),
    _manage("scaled to none", "GET", "/models/{name}/2.0"),
    Case("predict with none", "POST", "/predictions/{name}/2.0", b"x", TEXT),
    _manage("scale a version to one", "PUT", "/models/{name}/2.0?min_worker=1&synchronous=true"),
    _manage("set the default", "PUT", "/models/{name}/2.0/set-default"),
    _manage("the default is another", "GET", "/models/{name}"),
    Case("predict with the default", "POST", _PREDICT, b"x", TEXT),
    _manage("set the same default", "PUT", "/models/{name}/2.0/set-default"),
    _manage("set no such default", "PUT", "/models/{name}/9.99/set-default"),
    _manage("set the default of an unknown model", "PUT", "/models/unknown/1.0/set-default"),
    _manage("set a default without a version", "PUT", "/models/{name}/set-default"),
    _manage("set a default with GET", "GET", "/models/{name}/2.0/set-default"),
    _manage("unregister an unknown model", "DELETE", "/models/unknown"),
    _manage("unregister no such version", "DELETE", "/models/{name}/9.99"),
    _manage("unregister the default", "DELETE", "/models/{name}/2.0"),
    _manage("unregister without a version", "DELETE", "/models/{name}"),
    _manage("unregister the other", "DELETE", "/models/{name}/{version}"),
    _manage("the other is gone", "GET", "/models/{name}/{version}"),
    _manage("unregister the last", "DELETE", "/models/{name}/2.0"),
    _manage("the last is gone", "GET", "/models/{name}"),
    Case("predict with what is gone", "POST", _PREDICT, b"x", TEXT),
    _manage("register anew", "POST", "/models?url={name}-{version}.mar&initial_workers=1"),
    Case("predict anew", "POST", _PREDICT, b"x", TEXT),
    Case("renew the inference token", "GET", "/token?type=inference", api="management", authorization="Bearer {API}"),
    Case("ping with the new token", "GET", "/ping"),
    Case("renew the management token", "GET", "/token?type=management", api="management",
         authorization="Bearer {API}"),
    _manage("list with the new token", "GET", "/models"),
    Case("renew nonsense", "GET", "/token?type=nonsense", api="management", authorization="Bearer {API}"),
    Case("renew nothing", "GET", "/token", api="management", authorization="Bearer {API}"),
    Case("renew with POST", "POST", "/token?type=inference", api="management", authorization="Bearer {API}"),
    # At the end, because TorchServe accepts a name that no later path can address.
    _manage("register under a bad name", "POST", "/models?url={name}-{version}.mar&model_name=a%20b"),
    _manage("register under a path", "POST", "/models?url={name}-{version}.mar&model_name=../up"),
)  # fmt: skip
