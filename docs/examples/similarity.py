"""Draw how similar the meanings of sentences are, by the sentences archive on a running server.

$ torchmar serve sentences --detach
$ python docs/examples/similarity.py similarity.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import torchmar
from torchmar_handlers.drawing import page

SENTENCES = (
    "The bread is still warm from the oven.",
    "She baked a loaf this morning.",
    "Add flour, yeast and a pinch of salt.",
    "The striker scored in the last minute.",
    "Our team won the match two to one.",
    "He trains for the marathon every day.",
    "Shares fell after the bank raised rates.",
    "Investors expect higher inflation.",
)
SIDE, FIRST = 62, 400  # pixels: of a cell, and from the left edge of the page to the first cell


def draw(sentences: Sequence[str], cosines: np.ndarray) -> bytes:
    """Return a PNG: a row and a column for each sentence, with the cosine of the two in each cell.

    Args:
        sentences: in the order of the rows.
        cosines: ``(n, n)``, from -1 to 1.
    """
    count = len(sentences)
    sheet = page.Page(
        FIRST + count * SIDE + page.MARGIN,
        count * SIDE + page.TEXT * 2,
        title="Similar meanings have similar vectors",
        note="cosines of the vectors of two sentences; columns are in the order of the rows",
    )
    for row, sentence in enumerate(sentences):
        middle = sheet.top + page.TEXT * 2 + row * SIDE + SIDE // 2
        line = page.shortened(f"{row + 1}  {sentence}", page.NOTE, FIRST - page.MARGIN - page.NOTE)
        page.write(sheet.pen, (page.MARGIN, middle + page.NOTE / 3), line, page.NOTE)
        heading = str(row + 1)
        left = FIRST + row * SIDE + (SIDE - page.width_of(heading, page.NOTE)) / 2
        page.write(sheet.pen, (left, sheet.top + page.TEXT), heading, page.NOTE, page.FAINT)
        for column, cosine in enumerate(cosines[row].tolist()):
            corner = FIRST + column * SIDE, middle - SIDE // 2
            ground = page.tinted(np.full((1, 1, 3), 255.0), np.array([[cosine]]))[0, 0]
            colour = (int(ground[0]), int(ground[1]), int(ground[2]))
            sheet.pen.rectangle((*corner, corner[0] + SIDE - 2, corner[1] + SIDE - 2), fill=colour)
            text = f"{cosine:.2f}"
            place = corner[0] + (SIDE - page.width_of(text, page.NOTE)) / 2, middle + page.NOTE / 3
            page.write(sheet.pen, place, text, page.NOTE, page.PAPER if abs(cosine) > 0.4 else page.INK)
    return sheet.png()


def main() -> None:
    """Request the vectors, draw, write."""
    parser = argparse.ArgumentParser(description="Draw how similar the meanings of sentences are.")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("sentences", nargs="*", default=SENTENCES, help="default: eight about baking, sport and money")
    options = parser.parse_args()
    try:
        with torchmar.InferenceClient() as client:
            vectors = client.predict("sentences", list(options.sentences), accept="application/x-npy")  # (n, 384)
    except torchmar.TorchmarError as error:
        sys.exit(f"error: {error}")
    options.picture.write_bytes(draw(options.sentences, vectors @ vectors.T))
    sys.stdout.write(f"wrote {options.picture}\n")


if __name__ == "__main__":
    main()
