"""The options of an explanation, read from a request."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchmar_handlers.common.options import OptionError, Options
from torchmar_handlers.request import BadRequest, Request

GRADIENT_METHODS = ("integrated_gradients", "saliency", "gradient_shap", "grad_cam")
PERTURBATIONS = ("occlusion", "feature_ablation")
METHODS = (*GRADIENT_METHODS, *PERTURBATIONS)
IMAGE_METHODS = (*METHODS, "attention_rollout")
TOKEN_METHODS = tuple(method for method in METHODS if method != "grad_cam")
STEPPED = ("integrated_gradients", "gradient_shap")  # methods that use n_steps

BASELINES = ("zeros", "mean", "blur")
USUAL_STEPS, MOST_STEPS = 50, 1000


@dataclass(frozen=True)
class ExplainOptions:
    """The options of one explanation.

    Attributes:
        method: name of the method, one of ``IMAGE_METHODS``.
        target: the output to explain, as the client sent it: class index or label; None: the predicted output.
        n_steps: points of the Gauss-Legendre quadrature (integrated gradients) or samples (gradient SHAP); None
            (``auto``): as many points as the gradients need, or ``USUAL_STEPS`` samples.
        baseline: a word (``zeros``, ``mean``, ``blur``, or another one of the handler), a number, or a nested
            list of the input's shape.
        explicit: whether the client named the method, which is then never replaced.
    """

    method: str = "integrated_gradients"
    target: Any = None
    n_steps: int | None = USUAL_STEPS
    baseline: Any = "zeros"
    explicit: bool = False

    @property
    def baseline_name(self) -> str | int | float:
        """The baseline in an answer: its word or number; ``given`` for the client's own values."""
        return self.baseline if isinstance(self.baseline, str | int | float) else "given"


def read(
    request: Request,
    *,
    methods: Sequence[str] = METHODS,
    defaults: Mapping[str, Any] | None = None,
    baselines: Sequence[str] = BASELINES,
) -> ExplainOptions:
    """Read the options ``method``, ``target``, ``n_steps`` and ``baseline`` of a request.

    Each may be text or JSON: ``"20"`` and 20, ``"[0, 0]"`` and ``[0, 0]`` are the same.

    Args:
        request: the request.
        methods: methods that the handler offers.
        defaults: ``method``, ``n_steps`` and ``baseline`` of requests that do not set them; by default
            ``integrated_gradients``, 50 and ``zeros``.
        baselines: words that the handler offers.

    Raises:
        BadRequest: a value is not allowed; the message lists the allowed values.
    """
    usual = {
        "method": ExplainOptions.method,
        "n_steps": ExplainOptions.n_steps,
        "baseline": ExplainOptions.baseline,
    } | dict(defaults or {})
    options = {name: _sent(request, name) for name in ("method", "target", "n_steps", "baseline")}
    explicit = options["method"] is not None
    steps = usual["n_steps"] if options["n_steps"] is None else options["n_steps"]
    return ExplainOptions(
        method=_method(options["method"], methods) if explicit else str(usual["method"]),
        target=options["target"],
        n_steps=None if steps is None else _steps(steps),
        baseline=_baseline(usual["baseline"] if options["baseline"] is None else options["baseline"], baselines),
        explicit=explicit,
    )


def usual_steps(options: Options) -> int | None:
    """Read the option ``n_steps`` of a handler; None means ``auto``.

    Raises:
        OptionError: the option is neither ``auto`` nor a whole number from 1 to 1000.
    """
    value = options.get("n_steps")
    if value == "auto":
        return None
    if isinstance(value, str):
        raise OptionError("n_steps", f"{value!r} is neither auto nor a whole number")
    return options.integer("n_steps", USUAL_STEPS, low=1, high=MOST_STEPS)


def _sent(request: Request, name: str) -> Any:
    value = request.option(name)
    if isinstance(value, str):
        value = value.strip()
    return None if value == "" else value


def _method(value: Any, methods: Sequence[str]) -> str:
    name = str(value).lower().replace("-", "_").replace(" ", "_")
    if name not in methods:
        raise BadRequest(f"method {value!r} is none of {', '.join(methods)}")
    return name


def _steps(value: Any) -> int | None:
    if value == "auto":
        return None
    number = _number(value)
    if number is None or number != int(number) or not 1 <= number <= MOST_STEPS:
        raise BadRequest(f"n_steps {value!r} is not a whole number from 1 to {MOST_STEPS}, or auto")
    return int(number)


def _baseline(value: Any, words: Sequence[str]) -> Any:
    if isinstance(value, str) and value.lower() in words:
        return value.lower()
    if (number := _number(value)) is not None:
        return number
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRequest("the list in baseline is not JSON") from None
    if not isinstance(value, list):
        raise BadRequest(f"baseline {value!r} is none of {', '.join(words)}, a number or a list of the input's shape")
    try:
        array = np.asarray(value, np.float64)
    except (ValueError, TypeError, OverflowError, RecursionError):
        array = np.empty(0)
    if not array.size or not np.isfinite(array).all():
        raise BadRequest("the list in baseline is not made of numbers, as many in each row")
    return array.tolist()


def _number(value: Any) -> int | float | None:
    """Return a finite number that was sent as a number or as text, a whole number as int; None for other values."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) else number
