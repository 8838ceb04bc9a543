"""A new archive: ``archives/NAME/`` with a recipe that builds, a sample and a test, and a handler if it has its own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from torchmar.checks.formats import Format, identify
from torchmar.conversion import model_formats
from torchmar.errors import TorchmarError
from torchmar.manifest import NAME_PATTERN
from torchmar.recipe import FILE_NAME
from torchmar.scaffolding import inputs, png, table, text, weights_recipe
from torchmar.scaffolding.folder import write
from torchmar.scaffolding.inputs import ModelInput, Signature, describe
from torchmar.scaffolding.templates import render
from torchmar.scaffolding.weights_recipe import Laid

Kind = Literal["custom", "tensors", "image-classifier", "text", "table"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_SERVED = (Format.TORCHSCRIPT, Format.EXPORTED, Format.ONNX, Format.OPENVINO, Format.AOTINDUCTOR)
_NEEDS_CLASS = (Format.SAVED, Format.LEGACY, Format.SAFETENSORS)
_KNOWN = "torchmar new -h lists the formats; a handler of your own (--kind custom, without --from) can load any file"
_SIDE = 224  # pixels of a sample image for a model of unknown size
_ANY = 4  # elements of a sample in a dimension of any size


@dataclass(frozen=True)
class Created:
    """A new archive.

    Attributes:
        folder: ``archives/NAME``.
        files: files in the folder.
        kind: kind of the handler.
        inputs: inputs of the model, if they were read.
        notes: steps that remain for the user.
    """

    folder: Path
    files: tuple[str, ...]
    kind: Kind
    inputs: tuple[ModelInput, ...] = ()
    notes: tuple[str, ...] = field(default=())


def create(name: str, archives: Path, *, weights: Path | None = None, kind: Kind | None = None) -> Created:
    """Create the folder of an archive, complete or not at all.

    Args:
        name: name of the model; the folder is ``archives / name``.
        archives: the folder of recipes; it is created if it does not exist.
        weights: the model's file, or the folder of a SavedModel; it is copied, and loaded in a worker
            process to read its inputs.
        kind: kind of the handler; None: ``custom`` without weights; with weights ``image-classifier`` for a model whose
            only input has the shape of an image, else ``tensors``.

    Raises:
        TorchmarError: the name is invalid, the folder exists, or the weights cannot be served.
    """
    check_name(name)
    folder = archives / name
    if folder.exists():
        raise TorchmarError(f"{folder} exists already", hint="choose another name, or remove the folder")
    if weights is None:
        if kind not in (None, "custom"):
            note = " (with tokenizer.json beside it)" if kind == "text" else ""
            raise TorchmarError(
                f"the kind {kind} needs a model: name its file{note}",
                hint=f"torchmar new {name} --kind {kind} --from model.onnx",
            )
        files = custom(name)
        write(folder, files)
        return Created(folder, tuple(sorted(files)), "custom")
    converted = model_formats.is_keras(weights) or model_formats.is_tensorflow(weights)
    if weights.is_dir() and not converted:
        raise TorchmarError(f"{weights} is a folder, and no SavedModel", hint="name the file that the model is in")
    external = () if converted else _check(weights)
    signature = inputs.read(weights)
    input_tensors = signature.inputs
    image = _image(signature, channels_last=converted)
    chosen_kind: Kind = kind or ("image-classifier" if image else "tensors")
    test = _test_name(name)
    if chosen_kind == "text":
        laid = text.lay(name, weights, signature, test)
    elif chosen_kind == "table":
        laid = table.lay(name, weights, signature, test, converted=converted)
    elif chosen_kind == "image-classifier":
        laid = _image_classifier(name, weights, signature, image, converted=converted)
    else:
        laid = _tensors(name, weights, input_tensors, custom=chosen_kind == "custom")
    notes = [*laid.notes, *(_other_kind(weights, signature) if kind is None else ())]
    weights_files = {weights.name: weights, **{name: weights.parent / name for name in external}}
    if weights.is_dir():
        below = sorted(path for path in weights.rglob("*") if path.is_file())
        weights_files = {f"{weights.name}/{path.relative_to(weights).as_posix()}": path for path in below}
    copied = {**weights_files, **laid.copied}
    write(folder, laid.files, copied)
    names = tuple(sorted({*laid.files, *copied}))
    return Created(folder, names, chosen_kind, input_tensors, tuple(notes))


def _other_kind(weights: Path, signature: Signature) -> list[str]:
    """Return a note about a kind that suits the model better, if the files beside its weights suggest one."""
    if (weights.parent / text.TOKENIZER).is_file() and any(entry.dtype.startswith("int") for entry in signature.inputs):
        return [f"{text.TOKENIZER} lies beside the weights: --kind text makes an archive that takes texts"]
    only = signature.inputs[0] if len(signature.inputs) == 1 else None
    if only and only.dtype.startswith("float") and only.shape is not None and len(only.shape) == 1:
        return ["the input is a row of numbers: --kind table makes an archive whose columns have names and limits"]
    return []


def _check(weights: Path) -> tuple[str, ...]:
    """Check that handlers of torchmar load a file; return the further files that an ONNX or OpenVINO model needs.

    Raises:
        TorchmarError: the file cannot be read, or is of another format.
    """
    try:
        with weights.open("rb") as stream:
            identified = identify(stream, weights.name)
    except OSError as error:
        raise TorchmarError(f"{weights} cannot be read: {error.strerror}") from None
    if identified.format is Format.EMPTY:
        raise TorchmarError(f"{weights} is empty")
    if identified.damage:
        raise TorchmarError(f"{weights} is {identified.description}: {identified.damage}")
    if identified.format in _NEEDS_CLASS:
        raise TorchmarError(
            f"{weights} is {identified.description}: it has tensors and no code",
            hint="export the model (torch.onnx.export, torch.export.save or torch.jit.script), or write a recipe with "
            "model_file: by hand, as docs/handlers.md shows",
        )
    if identified.format not in _SERVED:
        raise TorchmarError(
            f"{weights} is {identified.description}, and cannot be served as it is", hint=identified.remedy or _KNOWN
        )
    return identified.external


def check_name(name: str) -> None:
    """Check the name of a model.

    Raises:
        TorchmarError: the name is invalid.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise TorchmarError(f"{name!r} is not a model name", hint="letters, digits, '.', '_' and '-', such as my-model")


def custom(name: str) -> dict[str, bytes]:
    """Return the files of an archive with a handler of its own and no weights, by their paths in its folder."""
    return {
        FILE_NAME: render("custom_archive.yaml", name=name),
        "samples/values.json": b'{"values": [1, 2, 3]}\n',
        "handler.py": render("custom_handler.py", name=name),
        _test_name(name): render("custom_test.py", name=name),
    }


def _tensors(name: str, weights: Path, inputs: tuple[ModelInput, ...], *, custom: bool) -> Laid:
    sample, notes = _sample(inputs)
    handler, options = "torchmar_handlers.tensors", ""
    files = {"samples/zeros.json": sample, _test_name(name): render("weights_test.py", name=name)}
    if custom:
        handler = "handler.py"
        shape = inputs[0].shape if len(inputs) == 1 else None
        fixed = None if shape is None or None in shape else shape
        dtype = (inputs[0].dtype if len(inputs) == 1 else "") or "float32"
        files["handler.py"] = render(
            "weights_handler.py", name=name, weights=weights.name, shape=repr(fixed), dtype=dtype
        )
    elif any(tensor.shape is None or tensor.guessed or not tensor.dtype for tensor in inputs):
        options = "  # handler:\n  #   inputs: # what the weights do not say; null is a dimension of any size\n"
        options += "".join(
            f"  #     - {{name: {tensor.name or 'input'}, dtype: float32, shape: [4]}}\n" for tensor in inputs
        )
    files[FILE_NAME] = weights_recipe.write(
        name=name,
        weights=weights,
        handler=handler,
        sample="samples/zeros.json",
        description=_description(inputs),
        options=options,
    )
    return Laid(files, notes=notes)


def _image_classifier(
    name: str, weights: Path, signature: Signature, image: tuple[int, int, int] | None, *, converted: bool = False
) -> Laid:
    if not _may_take_an_image(signature.inputs):
        raise TorchmarError(
            f"{weights} does not take one image ({describe(signature.inputs)}, without the dimension of the batch)",
            hint=f"torchmar new {name} --kind tensors --from {weights}",
        )
    channels, height, width = image or (3, _SIDE, _SIDE)
    mode = "L" if channels == 1 else "RGB"
    options = f"  handler:\n    mode: {mode}\n    resize: [{height}, {width}]\n    topk: 3\n"
    if converted:
        zeros, ones = ", ".join(["0.0"] * channels), ", ".join(["1.0"] * channels)
        options += (
            f"    mean: [{zeros}] # pixels are from 0 to 1; if the model takes 0 to 255, std is 0.00392156862745\n"
        )
        options += f"    std: [{ones}]\n"
    elif channels == 3:
        options += (
            "    # mean: [0.485, 0.456, 0.406] # of ImageNet; the model's own, if it was trained with such\n"
            "    # std: [0.229, 0.224, 0.225]\n"
        )
    output = signature.outputs[0] if signature.outputs else None
    more, notes = weights_recipe.labels(weights, output.shape[0] if output is not None and output.shape else 0)
    description = (
        f"An image, {width}x{height} {'grey' if channels == 1 else 'RGB'}, to the probabilities of its classes."
    )
    notes.append(f"{FILE_NAME}: give it mean and std if the model was trained with such")
    if image is None or signature.inputs[0].guessed:
        notes.append(f"{FILE_NAME}: resize is {height}x{width} pixels, which the weights do not say; correct it")
    if output is not None and output.probabilities and not converted:
        notes.append(
            f"the output {output.name!r} is probabilities already, and the handler computes them of scores: export the "
            "model without its softmax"
        )
    recipe = weights_recipe.write(
        name=name,
        weights=weights,
        handler="torchmar_handlers.image_classifier",
        sample="samples/grey.png",
        description=description,
        more=more,
        options=options,
    )
    files = {
        FILE_NAME: recipe,
        "samples/grey.png": png.grey(width, height),
        _test_name(name): render("weights_test.py", name=name),
    }
    return Laid(files, notes=notes)


def _may_take_an_image(inputs: tuple[ModelInput, ...]) -> bool:
    """Return whether a model has one input, of three dimensions if the weights contain its shape."""
    if len(inputs) != 1:
        return not inputs
    shape = inputs[0].shape
    return inputs[0].guessed or shape is None or len(shape) == 3


def _image(signature: Signature, *, channels_last: bool = False) -> tuple[int, int, int] | None:
    """Return channels, height and width for a model that computes scores of one image; None: another model."""
    inputs = signature.inputs
    if signature.outputs and [len(output.shape) for output in signature.outputs] != [1]:
        return None  # one output, with a number for each class
    if len(inputs) != 1 or inputs[0].dtype not in ("float32", "float16"):
        return None
    shape = inputs[0].shape
    if shape is not None and channels_last:
        shape = (*shape[-1:], *shape[:-1])
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
        return None
    return int(shape[0]), shape[1] or _SIDE, shape[2] or _SIDE


def _sample(inputs: tuple[ModelInput, ...]) -> tuple[bytes, list[str]]:
    """Return an instance of zeros as JSON, and a note if its shape is a guess."""
    shaped = [tensor for tensor in inputs if tensor.shape is not None]
    shapes = {
        tensor.name: _zeros([_ANY if size is None else size for size in tensor.shape or (_ANY,)], tensor)
        for tensor in inputs
    }
    notes = []
    if len(shaped) < len(inputs) or any(tensor.guessed or None in (tensor.shape or ()) for tensor in shaped):
        notes.append(
            "samples/zeros.json: its shape is a guess, since the weights do not say it; put a real input there"
        )
    document = next(iter(shapes.values())) if len(shapes) == 1 else shapes
    return json.dumps(document).encode() + b"\n", notes


def _zeros(shape: list[int], tensor: ModelInput) -> object:
    zero: object = False if tensor.dtype == "bool" else 0 if "int" in tensor.dtype else 0.0
    for size in reversed(shape):
        zero = [zero] * size
    return zero


def _size(size: int | None) -> str:
    return "any" if size is None else str(size)


def _description(inputs: tuple[ModelInput, ...]) -> str:
    described = [
        " ".join(filter(None, (tensor.name or "input", "x".join(map(_size, tensor.shape or ()))))) for tensor in inputs
    ]
    return f"Tensors in, tensors out ({', '.join(described)})."


def _test_name(name: str) -> str:
    return f"test_{re.sub(r'[^a-zA-Z0-9_]', '_', name)}.py"
