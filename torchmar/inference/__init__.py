"""The inference API over REST: predictions and explanations from a running server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import quote

from torchmar.connection import Connection, Endpoint
from torchmar.errors import NotFoundError, TorchmarError
from torchmar.exchange import ANY, Request, Response
from torchmar.inference import bodies
from torchmar.inference.many import each
from torchmar.inference.tensors import Tensor

__all__ = ["SWITCHED_ON", "InferenceClient", "Tensor", "each"]

SWITCHED_ON = "the server speaks the Open Inference Protocol with ts_open_inference_protocol=true in config.properties"


class InferenceClient:
    """A client of the inference API. Not for use by several threads at once.

    >>> with InferenceClient() as client:
    ...     print(client.predict("digits", Path("seven.png")))

    Its methods raise ConnectError when there is no server, and ServerError (UnauthorizedError, NotFoundError)
    with the server's or the handler's own words when the status is 300 or more.

    Args:
        server: where it is, or only the address of its inference API; default: the server that runs
            with ``.torchmar``, or TorchServe's own addresses.
        timeout: seconds to wait for an answer.
        retries: how often a call is repeated; a prediction is only if it was never sent.
    """

    def __init__(self, server: Endpoint | str | None = None, timeout: float = 120.0, retries: int = 2) -> None:
        self._server = Endpoint.coerce(server, "inference")
        self._timeout = timeout
        self._retries = retries
        self._connection = Connection(self._server, "inference", timeout, retries)

    def __enter__(self) -> InferenceClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the client can be used again."""
        self._connection.close()

    def request(
        self, name: str, request: Request, version: str | None = None, *, timeout: float | None = None
    ) -> Response:
        """Return the answer of a model's version, or of its default one, to a request."""
        kind = "explanations" if request.explain else "predictions"
        return self._post(f"/{kind}/{_path(name, version)}", request, timeout)

    def predict(
        self,
        name: str,
        data: Any,
        version: str | None = None,
        *,
        accept: str = ANY,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Return what a model predicts for ``data``.

        Args:
            name: which model.
            data: a path, bytes, a text, an array, or whatever JSON can hold.
            version: default: the default one.
            accept: the content type of the answer, for handlers that have several.
            headers: more of them.
            timeout: seconds; default: the client's.

        Returns:
            JSON as Python values, ``application/x-npy`` as an array, a text, or bytes.
        """
        request = bodies.request(data, accept=accept, headers=headers)
        return bodies.value(self.request(name, request, version, timeout=timeout))

    def explain(
        self,
        name: str,
        data: Any,
        version: str | None = None,
        *,
        method: str | None = None,
        target: str | int | None = None,
        n_steps: int | None = None,
        baseline: str | None = None,
        accept: str = ANY,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Return what in ``data`` speaks for a prediction.

        Args:
            name: which model.
            data: as for `predict`.
            version: default: the default one.
            method: how, in the handler's words; as all that follow, default: the handler's.
            target: the class to explain, by label or index.
            n_steps: steps of an integral.
            baseline: what the input is compared with.
            accept: ``image/png`` for a picture, ``application/x-npy`` for an array.
            headers: more of them.
            timeout: seconds; default: the client's.
        """
        how = {**bodies.explanation_headers(method, target, n_steps, baseline), **(headers or {})}
        request = bodies.request(data, explain=True, accept=accept, headers=how)
        return bodies.value(self.request(name, request, version, timeout=timeout))

    def predict_many(
        self,
        name: str,
        inputs: Iterable[Any],
        version: str | None = None,
        *,
        jobs: int = 4,
        ordered: bool = True,
        timeout: float | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """Yield every input with its prediction, or with the TorchmarError that it got.

        Inputs are taken one by one, at most twice as many as ``jobs`` ahead of what was yielded.

        Args:
            name: which model.
            inputs: each as for `predict`.
            version: default: the default one.
            jobs: requests at a time; each has a connection of its own.
            ordered: in the order of the inputs, or each as soon as it is there.
            timeout: seconds for one request; default: the client's.
        """

        def ask(client: InferenceClient, data: Any) -> Any:
            return client.predict(name, data, version, timeout=timeout)

        def client() -> InferenceClient:
            return InferenceClient(self._server, self._timeout, self._retries)

        return each(inputs, ask, client, jobs=jobs, ordered=ordered)

    def predict_instances(
        self, name: str, instances: Sequence[Any], *, explain: bool = False, timeout: float | None = None
    ) -> list[Any]:
        """Return one prediction or explanation for each instance, by KServe's v1 protocol.

        It knows no versions. Stock handlers understand it with ``service_envelope=kserve``.
        """
        request = bodies.request({"instances": list(instances)})
        path = f"/v1/models/{_path(name)}:{'explain' if explain else 'predict'}"
        document = bodies.value(self._post(path, request, timeout))
        for key in ("explanations", "predictions"):
            if isinstance(document, Mapping) and isinstance(document.get(key), list):
                return list(document[key])
        raise TorchmarError(f"{name} does not answer in KServe's v1 protocol: it has no list of predictions")

    def infer(
        self,
        name: str,
        inputs: Sequence[Tensor],
        *,
        id: str | None = None,
        outputs: Sequence[str] = (),
        explain: bool = False,
        timeout: float | None = None,
    ) -> list[Tensor]:
        """Return the outputs of a model by the Open Inference Protocol (KServe v2).

        TorchServe knows it without versions. Stock handlers understand it with ``service_envelope=kservev2``.

        Args:
            name: which model.
            inputs: named tensors; the first size is that of the batch.
            id: comes back with the answer.
            outputs: the names of those that are wanted; default: all.
            explain: ask for an explanation.
            timeout: seconds; default: the client's.
        """
        document: dict[str, Any] = {"inputs": [tensor.document() for tensor in inputs]}
        if id is not None:
            document["id"] = id
        if outputs:
            document["outputs"] = [{"name": output} for output in outputs]
        path = f"/v2/models/{_path(name)}/{'explain' if explain else 'infer'}"
        content = bodies.value(self._post(path, bodies.request(document), timeout))
        try:
            return [Tensor.read(output) for output in content["outputs"]]
        except (KeyError, TypeError):
            raise TorchmarError(f"{name} does not answer in the Open Inference Protocol: it has no outputs") from None

    def ping(self) -> str:
        """Return the health of the server, ``Healthy``; missing workers raise ServerError (500).

        Not repeated: that nobody answers is an answer.
        """
        return self._connection.read(lambda document: str(document["status"]), "GET", "/ping", timeout=5, retries=0)

    def live(self) -> bool:
        """Tell whether the server is up, by the Open Inference Protocol."""
        return bool(self._open_inference("/health/live")["live"])

    def ready(self) -> bool:
        """Tell whether the server takes requests, by the Open Inference Protocol; TorchServe always says yes."""
        return bool(self._open_inference("/health/ready")["ready"])

    def server_metadata(self) -> dict[str, Any]:
        """Return the server's name, version and extensions, by the Open Inference Protocol."""
        return self._open_inference("")

    def api_description(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Return the OpenAPI document of the inference API, or of one model, as far as TorchServe knows it."""
        path = f"/predictions/{_path(name, version)}" if name else "/"
        return self._connection.read(dict, "OPTIONS", path)

    def _open_inference(self, path: str) -> dict[str, Any]:
        try:
            return self._connection.read(dict, "GET", f"/v2{path}", timeout=5, retries=0)
        except NotFoundError as error:
            raise NotFoundError(error.message, status=404, type=error.type, hint=SWITCHED_ON) from None

    def _post(self, path: str, request: Request, timeout: float | None) -> Response:
        headers = {**request.headers, "Content-Type": request.content_type, "Accept": request.accept}
        response = self._connection.request("POST", path, body=request.body, headers=headers, timeout=timeout)
        return Response(
            response.status_code, response.content, {name.lower(): value for name, value in response.headers.items()}
        )


def _path(name: str, version: str | None = None) -> str:
    return quote(name, safe="") + (f"/{quote(version, safe='')}" if version else "")
