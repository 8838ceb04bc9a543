"""Numbers in CSV without a header, in the shapes of NumPy's ``genfromtxt``."""

from __future__ import annotations

import numpy as np

from torchmar_handlers.request import BadRequest


def read(text: str) -> np.ndarray:
    """Return the numbers of a CSV text: with one dimension for one row or one column, and none for one number.

    Blank lines, and the text after ``#``, are ignored. Unlike in ``genfromtxt``, a cell without a number is an error,
    not NaN or -1.

    Raises:
        BadRequest: a cell is no number, or a row is shorter or longer than the first.
    """
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.partition("#")[0].strip()
        if not cells:
            continue
        rows.append([_number(cell, number, column) for column, cell in enumerate(cells.split(","), 1)])
        if len(rows[-1]) != len(rows[0]):
            raise BadRequest(f"line {number} of the CSV has {len(rows[-1])} numbers, and the first row {len(rows[0])}")
    if not rows:
        raise BadRequest("the CSV has no row")
    return np.squeeze(np.array(rows))


def _number(cell: str, line: int, column: int) -> float:
    try:
        return float(cell)
    except ValueError:
        excerpt = cell.strip()[:40]
        cause = f"{excerpt!r} is no number" if excerpt else "the number is missing"
        raise BadRequest(f"line {line} of the CSV, column {column}: {cause}; rows have numbers only") from None
