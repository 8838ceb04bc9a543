"""The command that writes weights in another format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchmar.archive.built_archive import show_size
from torchmar.cli.options import AsJson
from torchmar.cli.terminal import err, out, wrapped

if TYPE_CHECKING:
    from torchmar.weight_export import Export


class FormatName(str, Enum):
    """The formats that `export_weights` writes."""

    torchscript_trace = "torchscript-trace"
    torchscript_script = "torchscript-script"
    onnx = "onnx"
    export = "export"
    aoti = "aoti"
    openvino = "openvino"


def export_weights(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="TorchScript, torch.export, ONNX, Keras or TensorFlow; a state dict or safetensors with --model-file; "
            "an archive, or a recipe.",
            show_default=False,
        ),
    ],
    to: Annotated[
        FormatName,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="torchscript-trace (the operations of one call), torchscript-script (the code), onnx, export "
            "(torch.export), aoti (AOTInductor: machine code) or openvino.",
            show_default=False,
        ),
    ],
    model_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The Python file with the model's class.", show_default=False),
    ] = None,
    example: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Inputs: .npy, .npz (several by name), .json, .jsonl, .pt, .safetensors. May be repeated; all are "
            "compared. Default: the samples of the archive, or the shapes that the weights declare.",
            show_default=False,
        ),
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="The dimensions of any size, in their order, _ for a fixed one: batch,seq for all inputs, "
            "x:batch,_,height,width for one. May be repeated. none: all are fixed. Default: batch.",
            show_default=False,
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="The opset of ONNX; default: the newest that torch writes and ONNX Runtime reads.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Default: MODEL.SUFFIX, here.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write weights in another format, and compare the answers.

    The result is loaded in a fresh process, as a worker does, and compared with
    its source over batch sizes, other sizes and other values. Weights that answer
    differently are not written; the error names the operation, its line in the
    model, and the formats that work.
    """
    from torchmar import weight_export

    with err.status("starting") as status:
        exported = weight_export.export_weights(
            model,
            to.value,
            model_file=model_file,
            examples=example or (),
            dynamic=dynamic or (),
            opset=opset,
            output=output,
            on_step=status.update,
        )
    if as_json:
        typer.echo(json.dumps(_document(exported), indent=2, ensure_ascii=False))
    else:
        _show(exported)


def _show(exported: Export) -> None:
    size = sum(file.stat().st_size for file in exported.files)
    names = ", ".join(str(file) for file in exported.files)
    out.print(f"{names}  {show_size(size)}", markup=False)
    if exported.inputs:
        tensors = ", ".join(tensor.show() for tensor in exported.inputs)
        out.print(wrapped(tensors, "takes        ", " " * 13), markup=False)
    answers = f"as {exported.source}: largest difference {exported.difference:.1e} on {exported.compared} inputs"
    if exported.sizes:
        answers += f", {_sizes(exported.sizes)}"
    out.print(wrapped(answers, "answers      ", " " * 13), markup=False)
    for name, (low, high, factor) in exported.bounds.items():
        if high is not None or factor > 1:
            bound = f"{name} {low} to {'any size' if high is None else high}" + (f", times {factor}" * (factor > 1))
            out.print(f"bound        {bound}", markup=False)
    for note in exported.notes:
        out.print(wrapped(note, "note         ", " " * 13), markup=False)
    if exported.guessed and exported.inputs:
        err.print("no example was given: shapes are those of the weights, and values are random", markup=False)


def _sizes(sizes: Mapping[str, object]) -> str:
    return "; ".join(f"{name} {str(values).strip('[]')}" for name, values in sizes.items())


def _document(exported: Export) -> dict[str, object]:
    from dataclasses import asdict

    return {**asdict(exported), "files": [str(file) for file in exported.files]}
