"""Commands that request predictions and explanations from a running server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchmar.cli.endpoint import ServerOptions, with_server_options
from torchmar.cli.options import (
    Address,
    Baseline,
    Method,
    Name,
    ResponseTimeout,
    Steps,
    Target,
    Version,
    explain_headers,
)
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.grpc import GrpcInference
    from torchmar.inference import InferenceClient

PANEL = "Requests"
Inputs = Annotated[list[Path], typer.Argument(metavar="INPUT", help="Files to send; - is stdin.", show_default=False)]
MANY = "Many inputs"
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, max=256, help="Requests at a time.", rich_help_panel=MANY)]
InOrder = Annotated[
    bool,
    typer.Option(
        "--in-order", help="Sort the .jsonl file by input at the end.", show_default=False, rich_help_panel=MANY
    ),
]


@with_server_options
def predict(
    name: Name,
    inputs: Inputs,
    version: Version = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write; for several inputs a .jsonl file.", show_default=False),
    ] = None,
    timeout: ResponseTimeout = 120.0,
    grpc: Annotated[
        bool,
        typer.Option("--grpc", help="Use gRPC, which has no headers and no statuses of handlers.", show_default=False),
    ] = False,
    jobs: Jobs = 4,
    in_order: InOrder = False,
    address: Address = None,
    *,
    server: ServerOptions,
) -> None:
    """Request predictions: one is printed as it is, several as lines of JSON.

    A .jsonl file gets each answer at once. After an interruption the same
    command continues; it also repeats requests that the server could not
    answer, and those whose input has been edited.
    """
    endpoint = server.endpoint("grpc_inference" if grpc else "inference", address)

    def client() -> InferenceClient | GrpcInference:
        if not grpc:
            from torchmar.inference import InferenceClient

            return InferenceClient(endpoint, timeout)
        try:
            from torchmar.grpc import GrpcInference
        except ModuleNotFoundError as error:
            raise TorchmarError(f"{error.name} is not installed", hint="pip install 'torchmar[grpc]'") from None
        return GrpcInference(endpoint, timeout)

    _request(client, name, inputs, version, None, output, jobs, in_order)


@with_server_options
def explain(
    name: Name,
    inputs: Inputs,
    version: Version = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The file to write: .png for a picture, .json or .npy; for several inputs a .jsonl file.",
            show_default=False,
        ),
    ] = None,
    timeout: ResponseTimeout = 120.0,
    method: Method = None,
    target: Target = None,
    n_steps: Steps = None,
    baseline: Baseline = None,
    jobs: Jobs = 4,
    in_order: InOrder = False,
    address: Address = None,
    *,
    server: ServerOptions,
) -> None:
    """Request explanations: which parts of an input support the prediction.

    Several inputs are handled as by predict.
    """
    from torchmar.inference import InferenceClient

    endpoint = server.endpoint("inference", address)
    headers = explain_headers(method, target, n_steps, baseline)
    _request(lambda: InferenceClient(endpoint, timeout), name, inputs, version, headers, output, jobs, in_order)


def _request(
    client: Callable[[], InferenceClient | GrpcInference],
    name: str,
    inputs: list[Path],
    version: str | None,
    explain_headers: dict[str, str] | None,
    output: Path | None,
    jobs: int,
    in_order: bool,
) -> None:
    """Send a request for every input.

    Args:
        client: function that creates a client.
        name: name of the model.
        inputs: input files.
        version: version of the model; None: the default version.
        explain_headers: headers of requests for explanations; None: predictions are requested.
        output: file for the answers; None: stdout.
        jobs: number of simultaneous requests.
        in_order: whether to sort ``output`` at the end.
    """
    from torchmar.cli import many, responses
    from torchmar.cli.results_file import SUFFIXES

    lines = output is not None and output.suffix.lower() in SUFFIXES
    if in_order and not lines:
        raise typer.BadParameter(
            "is for --output FILE.jsonl; answers on stdout are in order anyway", param_hint="--in-order"
        )
    if len(inputs) == 1 and not lines:
        request = responses.request(inputs[0], explain_headers is not None, output, explain_headers)
        with contextlib.closing(client()) as connected:
            responses.show(connected.request(name, request, version), output)
        return
    if output and not lines:
        raise typer.BadParameter("answers to several inputs need a .jsonl file", param_hint="--output")
    requests = many.Requests(client, name, version, explain_headers)
    raise typer.Exit(0 if requests.run(inputs, jobs, output, in_order) else 1)
