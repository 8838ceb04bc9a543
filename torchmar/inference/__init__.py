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

__all__ = ["ENABLE_OPEN_INFERENCE", "InferenceClient", "Tensor", "each"]

ENABLE_OPEN_INFERENCE = "the Open Inference Protocol needs ts_open_inference_protocol=true in config.properties"


class InferenceClient:
    """A client of the inference API, over REST; a context manager. Not for use by several threads at once.

    Args:
        server: endpoint, or only the address of its inference API; default: the server that runs in ``.torchmar``,
            or TorchServe's default addresses.
        timeout: seconds to wait for a response.
        retries: the number of repetitions of a call; a prediction is repeated only if it was not sent.

    Raises:
        ConnectError: by every method: no server answers.
        ServerError: by every method: the status of the response is 300 or more; its subclasses are UnauthorizedError
            and NotFoundError. The message is that of the server or the handler.

    Examples:
        >>> import torchmar
        >>> with torchmar.InferenceClient() as client:
        ...     client.predict("lengths", "hello")
        {'characters': 5}
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
        """Send a request unchanged.

        Args:
            name: name of the model.
            request: the request; with ``explain``, it is for an explanation.
            version: version of the model; default: the default version.
            timeout: seconds; default: the client's.

        Returns:
            The response.
        """
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
        """Return the prediction of a model.

        Args:
            name: name of the model.
            data: input: a path of a file, bytes, a text, a numpy array, or a JSON value.
            version: version of the model; default: the default version.
            accept: content type of the response, for handlers that offer several.
            headers: further headers.
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
        """Return an explanation: the weight of each part of the input for a class.

        Args:
            name: name of the model.
            data: input, as for `predict`.
            version: version of the model; default: the default version.
            method: method, such as ``integrated_gradients`` or ``occlusion``; default for this and the next three: the
                handler's.
            target: class to explain, by label or index; default: the predicted class.
            n_steps: number of steps of an integral, or of samples of gradient SHAP.
            baseline: input to compare with: ``zeros``, ``mean``, ``blur``, a number, or a token.
            accept: ``image/png`` for a picture, ``application/x-npy`` for an array; default: JSON.
            headers: further headers.
            timeout: seconds; default: the client's.

        Returns:
            The explanation, in the forms of `predict`.
        """
        options = bodies.explanation_headers(method, target, n_steps, baseline)
        request = bodies.request(data, explain=True, accept=accept, headers={**options, **(headers or {})})
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
        """Yield every input with its prediction, or with its TorchmarError.

        Inputs are read one by one, at most twice ``jobs`` ahead of the predictions.

        Args:
            name: name of the model.
            inputs: inputs, as for `predict`.
            version: version of the model; default: the default version.
            jobs: number of concurrent requests, each with its own connection.
            ordered: whether to yield in the order of the inputs; otherwise in the order of the responses.
            timeout: seconds for one request; default: the client's.

        Examples:
            >>> import torchmar
            >>> with torchmar.InferenceClient() as client:
            ...     list(client.predict_many("lengths", ["one", "three"]))
            [('one', {'characters': 3}), ('three', {'characters': 5})]
        """

        def predict(client: InferenceClient, data: Any) -> Any:
            return client.predict(name, data, version, timeout=timeout)

        def client() -> InferenceClient:
            return InferenceClient(self._server, self._timeout, self._retries)

        return each(inputs, predict, client, jobs=jobs, ordered=ordered)

    def predict_instances(
        self,
        name: str,
        instances: Sequence[Any],
        *,
        explain: bool = False,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Return one prediction or explanation for each instance, over KServe's v1 protocol.

        TorchServe's own handlers support it with ``service_envelope=kserve``.

        Args:
            name: name of the model; the protocol has no versions.
            instances: instances that JSON can represent.
            explain: whether to request explanations.
            headers: further headers.
            timeout: seconds; default: the client's.

        Raises:
            TorchmarError: the handler does not use this protocol.
        """
        request = bodies.request({"instances": list(instances)}, headers=headers)
        path = f"/v1/models/{_path(name)}:{'explain' if explain else 'predict'}"
        document = bodies.value(self._post(path, request, timeout))
        for key in ("explanations", "predictions"):
            if isinstance(document, Mapping) and isinstance(document.get(key), list):
                return list(document[key])
        raise TorchmarError(f"the response of {name} is not of KServe's v1 protocol: it has no list of predictions")

    def infer(
        self,
        name: str,
        inputs: Sequence[Tensor],
        *,
        id: str | None = None,
        outputs: Sequence[str] = (),
        explain: bool = False,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> list[Tensor]:
        """Return the outputs of a model over the Open Inference Protocol (KServe v2).

        TorchServe's own handlers support it with ``service_envelope=kservev2``.

        Args:
            name: name of the model.
            inputs: named tensors; the first dimension is the batch dimension.
            id: identifier that is repeated in the response.
            outputs: names of the outputs to return; default: all.
            explain: whether to request an explanation.
            headers: further headers.
            timeout: seconds; default: the client's.

        Raises:
            TorchmarError: the handler does not use this protocol.
        """
        document: dict[str, Any] = {"inputs": [tensor.document() for tensor in inputs]}
        if id is not None:
            document["id"] = id
        if outputs:
            document["outputs"] = [{"name": output} for output in outputs]
        path = f"/v2/models/{_path(name)}/{'explain' if explain else 'infer'}"
        content = bodies.value(self._post(path, bodies.request(document, headers=headers), timeout))
        try:
            return [Tensor.read(output) for output in content["outputs"]]
        except (KeyError, TypeError):
            raise TorchmarError(
                f"the response of {name} is not of the Open Inference Protocol: it has no outputs"
            ) from None

    def ping(self) -> str:
        """Return the health of the server: ``Healthy``, or ``Partial Healthy``. The call is not repeated.

        Raises:
            ServerError: with status 500: a model has no ready worker.
        """
        return self._connection.read(lambda document: str(document["status"]), "GET", "/ping", timeout=5, retries=0)

    def live(self) -> bool:
        """Return whether the server is running, over the Open Inference Protocol."""
        return bool(self._open_inference("/health/live")["live"])

    def ready(self) -> bool:
        """Return whether the models are ready, over the Open Inference Protocol; always true for TorchServe."""
        return bool(self._open_inference("/health/ready")["ready"])

    def server_metadata(self) -> dict[str, Any]:
        """Return the server's name, version and extensions, over the Open Inference Protocol."""
        return self._open_inference("")

    def api_description(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Return the OpenAPI document of the inference API, or of one model.

        Args:
            name: name of the model; None: the document of the whole API.
            version: version of the model; None: the default version.

        Returns:
            The document, as parsed JSON.
        """
        path = f"/predictions/{_path(name, version)}" if name else "/"
        return self._connection.read(dict, "OPTIONS", path)

    def _open_inference(self, path: str) -> dict[str, Any]:
        try:
            return self._connection.read(dict, "GET", f"/v2{path}", timeout=5, retries=0)
        except NotFoundError as error:
            raise NotFoundError(error.message, status=404, type=error.type, hint=ENABLE_OPEN_INFERENCE) from None

    def _post(self, path: str, request: Request, timeout: float | None) -> Response:
        headers = {**request.headers, "Content-Type": request.content_type, "Accept": request.accept}
        response = self._connection.request("POST", path, body=request.body, headers=headers, timeout=timeout)
        return Response(
            response.status_code, response.content, {name.lower(): value for name, value in response.headers.items()}
        )


def _path(name: str, version: str | None = None) -> str:
    return quote(name, safe="") + (f"/{quote(version, safe='')}" if version else "")
