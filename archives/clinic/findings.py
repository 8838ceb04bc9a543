"""The findings of a sample in words, made of measures that the model does not get as numbers.

scikit-learn's breast cancer data have no texts. The measures of size and outline are withheld from the numbers, and
four of them are written as a cytologist would describe them: a grade from 0 to 3, by the quartiles of the samples that
are learned, in one of two wordings. The diagnosis is not read for it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

#: Measures that are written in words, and the wordings of each of their grades.
GRADES: dict[str, tuple[tuple[str, str], ...]] = {
    "mean radius": (
        ("Small nuclei", "Nuclei of normal size"),
        ("Slightly enlarged nuclei", "Nuclei a little above normal size"),
        ("Enlarged nuclei", "Nuclei clearly above normal size"),
        ("Markedly enlarged nuclei", "Nuclei far above normal size"),
    ),
    "radius error": (
        ("uniform in size", "all of about the same size"),
        ("with slight anisokaryosis", "slightly variable in size"),
        ("with moderate anisokaryosis", "variable in size"),
        ("with marked anisokaryosis", "highly variable in size"),
    ),
    "mean concavity": (
        ("Outlines are smooth", "Outlines are round and even"),
        ("Outlines are slightly irregular", "Outlines are slightly uneven"),
        ("Outlines are irregular", "Outlines are indented"),
        ("Outlines are markedly irregular", "Outlines are deeply indented"),
    ),
    "concavity error": (
        ("alike in all nuclei", "without differences between nuclei"),
        ("nearly alike in all nuclei", "with small differences between nuclei"),
        ("different from nucleus to nucleus", "with differences between nuclei"),
        ("very different from nucleus to nucleus", "with large differences between nuclei"),
    ),
}


def limits(names: Sequence[str], values: np.ndarray) -> np.ndarray:
    """Return the quartiles of the measures of `GRADES` over samples, ``(measures, 3)``."""
    columns = values[:, [names.index(name) for name in GRADES]]
    quartiles: np.ndarray = np.quantile(columns, (0.25, 0.5, 0.75), axis=0).T
    return quartiles


def written(names: Sequence[str], values: np.ndarray, quartiles: np.ndarray) -> list[str]:
    """Return the findings of samples as texts of two sentences each.

    Args:
        names: of all measures.
        values: of the samples, ``(n, measures)``.
        quartiles: what `limits` returns.
    """
    texts = []
    for number, row in enumerate(values):
        choice = random.Random(number)  # the same wordings on every machine
        size, variation, outline, difference = (
            choice.choice(wordings[int((row[names.index(name)] > limit).sum())])
            for (name, wordings), limit in zip(GRADES.items(), quartiles, strict=True)
        )
        texts.append(f"{size}, {variation}. {outline}, {difference}.")
    return texts
