"""A new archive for a model of the rows of a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmar.errors import TorchmarError
from torchmar.recipe import FILE_NAME
from torchmar.scaffolding import weights_recipe
from torchmar.scaffolding.inputs import ModelOutput, Signature, describe
from torchmar.scaffolding.templates import render
from torchmar.scaffolding.weights_recipe import Laid

COLUMNS = "columns.json"
_SAMPLE = "samples/row.json"


def lay(name: str, weights: Path, signature: Signature, test: str, *, converted: bool) -> Laid:
    """Return the files of the archive.

    The columns are those of ``columns.json`` beside the weights, or else numbers with the names ``column_1``,
    ``column_2`` and so on.

    Args:
        name: name of the model.
        weights: file of the model.
        signature: inputs and outputs of the model.
        test: the path of the test module.
        converted: whether the model is of Keras or TensorFlow; the conversion omits its last softmax.

    Raises:
        TorchmarError: the model does not take one row of numbers, or their number is not known.
    """
    width = _width(name, weights, signature)
    file = weights.parent / COLUMNS
    notes: list[str] = []
    if file.is_file():
        columns = _read(file)
        if width and (numbers := sum(map(_numbers, columns))) != width:
            raise TorchmarError(
                f"{file} describes {numbers} numbers of a row, and {weights.name} takes {width}",
                hint="a column is one number, and one for each category unless its encoding is index",
            )
        copied = {COLUMNS: file}
        more, option = f"files: {{{COLUMNS}: {COLUMNS}}}\n", f"    columns: {COLUMNS}\n"
    elif width is None:
        raise TorchmarError(
            f"{weights} does not say how many numbers a row has",
            hint=f"put a {COLUMNS} beside it, a list such as "
            '[{"name": "age", "min": 18}, {"name": "bmi"}], in the order of the model',
        )
    else:
        columns = [{"name": f"column_{number}"} for number in range(1, width + 1)]
        copied, more = {}, ""
        option = (
            "    # In the order of the model. Each may have unit, min, max and default; mean and std, for a model of\n"
            "    # (value - mean) / std; and a type: integer, boolean, or category with categories.\n"
            "    columns:\n"
        )
        option += "".join(f"      - {{name: {column['name']}}}\n" for column in columns)
        notes.append(f"{FILE_NAME}: give the columns their names, in the order of the model, and their limits")
    output = _output(signature)
    classes = 0 if output is None else output.shape[0] if output.shape else 1
    options = "  handler:\n" + option
    if output is not None and len(signature.outputs) > 1:
        options += f"    scores: {output.name} # the output to answer with\n"
    if classes > 1:
        handler, description = "tabular_classifier", "A row of a table to the probabilities of its classes."
        labelled, more_notes = weights_recipe.labels(weights, classes)
        more += labelled
        notes += more_notes
        if output is not None and output.probabilities and not converted:
            options += "    activation: none # the model's output is probabilities already\n"
    else:
        handler, description = "tabular_regressor", "A row of a table to a number."
        notes.append(
            f"{FILE_NAME}: the handler is tabular_regressor, since the model has one output; if that is the score of "
            "one of two classes, use tabular_classifier"
        )
    recipe = weights_recipe.write(
        name=name,
        weights=weights,
        handler=f"torchmar_handlers.{handler}",
        sample=_SAMPLE,
        description=description,
        more=more,
        options=options,
    )
    row = {str(column["name"]): _value(column) for column in columns}
    files = {
        FILE_NAME: recipe,
        _SAMPLE: json.dumps(row, indent=1, ensure_ascii=False).encode() + b"\n",
        test: render("table_test.py", name=name),
    }
    return Laid(files, copied, notes)


def _width(name: str, weights: Path, signature: Signature) -> int | None:
    """Return the number of values in a row that the model takes; None: not known.

    Raises:
        TorchmarError: the model takes another input.
    """
    shapes = [tensor.shape for tensor in signature.inputs]
    if len(shapes) == 1 and (shapes[0] is None or len(shapes[0]) == 1):
        return shapes[0][0] if shapes[0] is not None else None
    raise TorchmarError(
        f"{weights} does not take one row of numbers ({describe(signature.inputs)}, without the dimension of the "
        "batch)",
        hint=f"torchmar new {name} --kind tensors --from {weights}",
    )


def _numbers(column: Mapping[str, Any]) -> int:
    """Return the number of the model's inputs that a column becomes."""
    categories = column.get("categories") if column.get("type") == "category" else None
    return len(categories) if isinstance(categories, list) and column.get("encoding", "one_hot") == "one_hot" else 1


def _output(signature: Signature) -> ModelOutput | None:
    """Return the output for the answers: among several, that with probabilities or with the most numbers."""
    outputs = [output for output in signature.outputs if len(output.shape) <= 1]
    return max(outputs, key=lambda output: (output.probabilities, output.shape[0] if output.shape else 0), default=None)


def _read(file: Path) -> list[Mapping[str, Any]]:
    try:
        columns = json.loads(file.read_bytes())
    except ValueError as error:
        raise TorchmarError(f"{file} is not JSON: {error}") from None
    if not isinstance(columns, list) or not columns:
        raise TorchmarError(f"{file} has no list of columns", hint='such as [{"name": "age", "min": 18}]')
    for number, column in enumerate(columns):
        if not isinstance(column, Mapping) or not isinstance(column.get("name"), str):
            raise TorchmarError(f"{file}: item {number} is not an object with a name")
    return columns


def _value(column: Mapping[str, Any]) -> Any:
    """Return a value that a column accepts: its default, its first category, its mean, or else a limit or 0."""
    if column.get("default") is not None:
        return column["default"]
    kind = column.get("type", "number")
    if kind == "category":
        categories = column.get("categories")
        return categories[0] if isinstance(categories, list) and categories else ""
    if kind == "boolean":
        return False
    low, high = column.get("min"), column.get("max")
    value = column.get("mean", low if low is not None else high if high is not None and high < 0 else 0)
    return round(value) if kind == "integer" else value
