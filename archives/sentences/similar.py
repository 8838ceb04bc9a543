"""Find the paragraphs of files whose meaning is closest to a question, by the sentences archive on a running server.

$ torchmar serve sentences --detach
$ python archives/sentences/similar.py "How do I undo a deployment?" docs/how-to/*.md
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import torchmar

AT_ONCE = 64  # texts of a request


def vectors(client: torchmar.InferenceClient, texts: Sequence[str], model: str = "sentences") -> np.ndarray:
    """Return the unit vectors of texts, float32 ``(n, 384)``."""
    requests = [list(texts[start : start + AT_ONCE]) for start in range(0, len(texts), AT_ONCE)]
    return np.concatenate([client.predict(model, request, accept="application/x-npy") for request in requests])


def nearest(query: np.ndarray, texts: np.ndarray, count: int = 3) -> list[tuple[int, float]]:
    """Return the rows of ``texts`` that are most similar to ``query``, with their cosines, the most similar first."""
    cosines = texts @ query
    return [(int(row), float(cosines[row])) for row in cosines.argsort()[::-1][:count]]


def paragraphs(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs of a text file, with the number of their first line; code and tables are left out."""
    text = re.sub(r"^```.*?^```", lambda code: "\n" * code[0].count("\n"), file.read_text(), flags=re.M | re.S)
    for match in re.finditer(r"\S.*?(?=\n\s*\n|\Z)", text, re.S):
        words = " ".join(match[0].split())
        if len(words) >= 20 and not words.startswith(("|", "#", "<!--")):
            yield text.count("\n", 0, match.start()) + 1, words


def main() -> int:
    """Read the files, request the vectors, print the nearest paragraphs."""
    parser = argparse.ArgumentParser(description="Find the paragraphs of files that are closest to a question.")
    parser.add_argument("question")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--count", type=int, default=3, help="paragraphs to print (default: %(default)s)")
    options = parser.parse_args()
    try:
        found = [(file, line, text) for file in options.files for line, text in paragraphs(file)]
    except (OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not found:
        print("the files have no paragraphs", file=sys.stderr)
        return 1
    try:
        with torchmar.InferenceClient() as client:
            question, *texts = vectors(client, [options.question, *(text for _, _, text in found)])
    except torchmar.TorchmarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for row, cosine in nearest(question, np.array(texts), options.count):
        file, line, text = found[row]
        print(f"{cosine:.2f}  {file}:{line}  {text[:100]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
