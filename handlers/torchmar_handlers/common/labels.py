"""Labels of classes: the class that a request names, and the most probable classes of an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from torchmar_handlers.request import BadRequest


def class_of(target: Any, classes: int, mapping: Mapping[str, Any] | None) -> int:
    """Return the class index for a request's ``target``, an index or a label.

    Args:
        target: target in the request.
        classes: number of classes.
        mapping: the labels, by class index as text; None: there are none.

    Raises:
        BadRequest: there is no such class.
    """
    labels = {label: int(index) for index, label in (mapping or {}).items()}
    index = labels.get(str(target), int(target) if str(target).isdecimal() else -1)
    if not 0 <= index < classes:
        raise BadRequest(f"target {target!r} is neither a label nor a class index from 0 to {classes - 1}")
    return index


def most_probable(probabilities: torch.Tensor, count: int, label: Callable[[int], str]) -> list[dict[str, float]]:
    """Return the most probable labels of each row with their probabilities, the most probable first.

    Args:
        probabilities: ``(n, classes)``.
        count: largest number of labels for a row.
        label: function that returns the label of a class.
    """
    values, classes = probabilities.topk(min(count, probabilities.shape[1]))
    answers: list[dict[str, float]] = []
    for row, numbers in zip(classes.tolist(), values.tolist(), strict=True):
        answer: dict[str, float] = {}
        for index, value in zip(row, numbers, strict=True):
            # Some labels have two classes (ImageNet has two cranes): the more probable one is returned.
            answer.setdefault(label(index), round(value, 6))
        answers.append(answer)
    return answers
