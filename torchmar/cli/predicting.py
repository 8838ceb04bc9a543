"""Commands that request predictions and explanations from a running server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchmar.cli.connection_options import CaFile, PlainHttp
from torchmar.cli.options import (
    Address,
    Baseline,
    KeyFile,
    Method,
    Name,
    RunFolder,
    Steps,
    Target,
    Version,
    explanation,
)
from torchmar.errors import TorchmarError

if TYPE_CHECKING:
    from torchmar.grpc import GrpcInference
    from torchmar.inference import InferenceClient

PANEL = "Requests"
Inputs = Annotated[
    list[Path], typer.Argument(metavar="INPUT", help="Files to ask with; - is stdin.", show_default=False)
]
MANY = "Many inputs"
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, max=256, help="Requests at a time.", rich_help_panel=MANY)]
InOrder = Annotated[
    bool,
    typer.Option(
        "--in-order", help="Sort the .jsonl file by input when all is done.", show_default=False, rich_help_panel=MANY
    ),
]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds to wait for an answer.")]


def predict(
    name: Name,
    inputs: Inputs,
    version: Version = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write it here; answers to several: a .jsonl file.", show_default=False),
    ] = None,
    timeout: Timeout = 120.0,
    grpc: Annotated[
        bool, typer.Option("--grpc", help="Ask over gRPC, without headers and handlers' statuses.", show_default=False)
    ] = False,
    jobs: Jobs = 4,
    in_order: InOrder = False,
    run_folder: RunFolder = None,
    address: Address = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    allow_plain_http: PlainHttp = False,
) -> None:
    """Ask for predictions: one answer as it is, several as lines of JSON.

    A .jsonl file is written as answers come. The same command goes on where it
    was stopped, and asks again for what the server could not answer and for
    what was edited since.
    """
    from torchmar.cli.connection_options import server

    field = "grpc_inference" if grpc else "inference"
    where = server(field, address, run_folder, key_file, ca_file, allow_plain_http)

    def client() -> InferenceClient | GrpcInference:
        if not grpc:
            from torchmar.inference import InferenceClient

            return InferenceClient(where, timeout)
        try:
            from torchmar.grpc import GrpcInference
        except ModuleNotFoundError as error:
            raise TorchmarError(f"{error.name} is not installed", hint="pip install 'torchmar[grpc]'") from None
        return GrpcInference(where, timeout)

    _ask(client, name, inputs, version, None, output, jobs, in_order)


def explain(
    name: Name,
    inputs: Inputs,
    version: Version = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write it here: .png a picture, .json or .npy; answers to several: a .jsonl file.",
            show_default=False,
        ),
    ] = None,
    timeout: Timeout = 120.0,
    method: Method = None,
    target: Target = None,
    n_steps: Steps = None,
    baseline: Baseline = None,
    jobs: Jobs = 4,
    in_order: InOrder = False,
    run_folder: RunFolder = None,
    address: Address = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    allow_plain_http: PlainHttp = False,
) -> None:
    """Ask what in the input speaks for the prediction; several are answered as by predict."""
    from torchmar.cli.connection_options import server
    from torchmar.inference import InferenceClient

    where = server("inference", address, run_folder, key_file, ca_file, allow_plain_http)
    how = explanation(method, target, n_steps, baseline)
    _ask(lambda: InferenceClient(where, timeout), name, inputs, version, how, output, jobs, in_order)


def _ask(
    client: Callable[[], InferenceClient | GrpcInference],
    name: str,
    inputs: list[Path],
    version: str | None,
    explained: dict[str, str] | None,
    output: Path | None,
    jobs: int,
    in_order: bool,
) -> None:
    """Ask with every input.

    Args:
        client: makes one.
        name: which model.
        inputs: files.
        version: default: the default one.
        explained: how; None: a prediction is wanted.
        output: where answers go; default: to stdout.
        jobs: requests at a time.
        in_order: sort ``output`` at the end.
    """
    from torchmar.cli import many, responses
    from torchmar.cli.results_file import SUFFIXES

    lines = output is not None and output.suffix.lower() in SUFFIXES
    if in_order and not lines:
        raise typer.BadParameter(
            "goes with --output FILE.jsonl; on stdout answers are in order", param_hint="--in-order"
        )
    if len(inputs) == 1 and not lines:
        request = responses.request(inputs[0], explained is not None, output, explained)
        asked = client()
        responses.show(asked.request(name, request, version), output)
        asked.close()
        return
    if output and not lines:
        raise typer.BadParameter("answers to several inputs go to a .jsonl file", param_hint="--output")
    asking = many.Asking(client, name, version, explained)
    raise typer.Exit(0 if asking.run(inputs, jobs, output, in_order) else 1)
