"""Requirements of agreement: the syntax for users, and the defaults of each kind of model; pure.

A requirement is a limit for a measure of agreement, over inputs that the variant was not calibrated with:

============= ======== ==============================================================================================
measure       bound    meaning
============= ======== ==============================================================================================
labels, top1  at least the share of inputs with the same most probable class; of pixels or tokens the mean share
cos           at least the smallest cosine of both outputs of an input; of the scores of classes less their mean,
                       on which no softmax depends
relative      at most  the largest difference of two numbers, relative to the largest number of the original's output
explanations  at least the smallest rank correlation of both explanations of an input
check         at most  by how much the user's own metric is worse than the original's, relative to it
============= ======== ==============================================================================================

Few inputs prove little. If a share q of all inputs agreed, then n of n chosen ones would with probability q^n; so that
n of n show the share with 95 % confidence only if q^n <= 0.05, which is 299 inputs for 99 % (the exact form of the rule
of three; Hanley and Lippman-Hand, If Nothing Goes Wrong, Is Everything All Right?, JAMA 249, 1983). The same holds for
the smallest or largest value of a measure: that of 59 inputs is a bound for 95 % of all (Wilks, Determination of Sample
Sizes for Setting Tolerance Limits, Annals of Mathematical Statistics 12, 1941).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torchmar.errors import TorchmarError

CONFIDENCE = 0.95
COVERED = 0.95
"""A smallest or largest value over enough inputs holds for this share of all inputs."""
EXAMPLE = "labels>=0.99; also cos>=0.999, relative<=0.05, explanations>=0.9 and check<=0.01"


class Measure(str, Enum):
    """A measure of agreement; the value is its name in requirements."""

    LABELS = "labels"
    COSINE = "cos"
    RELATIVE = "relative"
    EXPLANATIONS = "explanations"
    CHECK = "check"


_SYNONYMS = {"top1": Measure.LABELS, "cosine": Measure.COSINE}
_AT_MOST = frozenset({Measure.RELATIVE, Measure.CHECK})
_NAMES = "|".join([*(measure.value for measure in Measure), *_SYNONYMS])
_REQUIREMENT = re.compile(rf"\s*({_NAMES})\s*(>=|<=)\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(%?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Requirement:
    """A limit for a measure; written as ``labels>=0.99``."""

    measure: Measure
    bound: float

    def __str__(self) -> str:
        return f"{self.measure.value}{'<=' if self.measure in _AT_MOST else '>='}{self.bound:g}"


@dataclass(frozen=True)
class Classes:
    """The place of the classes in an output.

    Attributes:
        axis: axis of the classes in the output of one input.
        threshold: threshold of an output with one number in place of classes: a number above it means yes.
        per_input: whether an input has one class; otherwise each pixel or token has one.
    """

    axis: int = 0
    threshold: float = 0.0
    per_input: bool = True


@dataclass(frozen=True)
class Kind:
    """A kind of model: the meaning of the numbers in its outputs.

    Attributes:
        name: name with its article, such as ``a classifier``.
        defaults: requirements if the user gives none.
        classes: place of the classes; None: there are no classes.
        main: names of the output with the classes, the best first; if no output has such a name, it is the first
            output.
    """

    name: str
    defaults: tuple[Requirement, ...]
    classes: Classes | None = None
    main: tuple[str, ...] = ("logits", "out", "scores")


_OF_CLASSES = (Requirement(Measure.LABELS, 0.99), Requirement(Measure.COSINE, 0.98))
CLASSIFIER = Kind("a classifier", _OF_CLASSES, Classes())
PIXELS = Kind("a classifier of pixels", _OF_CLASSES, Classes(axis=0, per_input=False))
TOKENS = Kind("a classifier of tokens", _OF_CLASSES, Classes(axis=-1, per_input=False))
EMBEDDING = Kind("an embedding", (Requirement(Measure.COSINE, 0.999),))
REGRESSION = Kind("a regression", (Requirement(Measure.RELATIVE, 0.02),))
TENSORS = Kind("a model of tensors", (Requirement(Measure.COSINE, 0.999), Requirement(Measure.RELATIVE, 0.05)))
_KINDS = {
    "image_classifier": CLASSIFIER,
    "text_classifier": CLASSIFIER,
    "tabular_classifier": CLASSIFIER,
    "image_segmenter": PIXELS,
    "token_classifier": TOKENS,
    "text_embedder": EMBEDDING,
    "tabular_regressor": REGRESSION,
}
KINDS = (CLASSIFIER, PIXELS, TOKENS, EMBEDDING, REGRESSION, TENSORS)


def kind_of(handler: str, options: Mapping[str, Any] | None = None) -> Kind:
    """Return the kind of a model by its handler.

    Args:
        handler: handler's name in the recipe or the manifest, such as ``torchmar_handlers.image_classifier``.
        options: the section ``handler`` of the configuration.
    """
    kind = _KINDS.get(handler.partition(":")[0].rpartition(".")[2], TENSORS)
    if kind is CLASSIFIER and (options or {}).get("activation") == "none":  # the handler returns probabilities then
        return Kind(kind.name, kind.defaults, Classes(threshold=0.5), kind.main)
    return kind


def parse(text: str) -> Requirement:
    """Return the requirement of a text such as ``labels>=0.99`` or ``top1>=99%``.

    Raises:
        TorchmarError: the text is no requirement, or one that is never or always met.
    """
    match = _REQUIREMENT.fullmatch(text)
    if not match:
        bare = re.fullmatch(_NAMES, text.strip(), re.IGNORECASE)
        hint = "quotes keep > and < from the shell: --keep 'labels>=0.99'" if bare else EXAMPLE
        raise TorchmarError(f"{text!r} is no requirement of agreement", hint=hint)
    name = match[1].lower()
    measure = _SYNONYMS.get(name) or Measure(name)
    operator = "<=" if measure in _AT_MOST else ">="
    if match[2] != operator:
        bound = "an upper" if measure in _AT_MOST else "a lower"
        raise TorchmarError(f"{text!r}: {name} has {bound} bound", hint=f"{name}{operator}{match[3]}{match[4]}")
    value = float(match[3]) / (100 if match[4] else 1)
    if operator == ">=" and not 0 < value <= 1:
        raise TorchmarError(f"{text!r}: the bound of {name} is above 0 and at most 1", hint=EXAMPLE)
    return Requirement(measure, value)


def required(texts: Sequence[str], kind: Kind, *, check: bool = False) -> tuple[Requirement, ...]:
    """Return the requirements of the user, or the defaults of the kind of model.

    Args:
        texts: texts of the user, each with one requirement or several, separated by commas; they replace the
            defaults.
        kind: kind of the model.
        check: whether the user has a check; its result may be 1 % worse unless a requirement says otherwise.

    Raises:
        TorchmarError: a text is no requirement, appears twice, or does not fit this kind of model.
    """
    parsed: dict[Measure, Requirement] = {}
    for text in (part for listed in texts for part in listed.split(",")):
        requirement = parse(text)
        if requirement.measure in parsed:
            raise TorchmarError(
                f"{requirement.measure.value} is required twice: {parsed[requirement.measure]} and {text}"
            )
        parsed[requirement.measure] = requirement
    if Measure.LABELS in parsed and kind.classes is None and kind is not TENSORS:
        raise TorchmarError(
            f"{parsed[Measure.LABELS]}: {kind.name} has no labels",
            hint=" and ".join(map(str, kind.defaults)) + " is its default",
        )
    if Measure.CHECK in parsed and not check:
        raise TorchmarError(f"{parsed[Measure.CHECK]}: there is no check", hint='give it with --check "python eval.py"')
    if not parsed:
        parsed = {requirement.measure: requirement for requirement in kind.defaults}
    if check:
        parsed.setdefault(Measure.CHECK, Requirement(Measure.CHECK, 0.01))
    return tuple(parsed.values())


def needed(requirement: Requirement, kind: Kind) -> int:
    """Return the least number of inputs that can show a requirement with 95 % confidence, if it holds for all."""
    if requirement.measure in (Measure.EXPLANATIONS, Measure.CHECK):
        return 1  # explanations are too slow for many inputs, and a check has inputs of its own
    share = COVERED
    if requirement.measure is Measure.LABELS and (kind.classes is None or kind.classes.per_input):
        # No number of inputs can show a share of 1.
        share = requirement.bound if requirement.bound < 1 else 0.99
    return max(1, math.ceil(math.log(1 - CONFIDENCE) / math.log(share) - 1e-9))
