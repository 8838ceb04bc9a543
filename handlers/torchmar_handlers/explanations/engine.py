"""Explanations of a batch of images or of rows of a table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import torch

from torchmar_handlers.explanations import attention_rollout, baseline, folding, grad_cam, gradients, perturbation
from torchmar_handlers.explanations.explain_options import (
    GRADIENT_METHODS,
    METHODS,
    PERTURBATIONS,
    STEPPED,
    ExplainOptions,
)
from torchmar_handlers.explanations.explanation import Explanation
from torchmar_handlers.explanations.gradients import NoGradientError, pick, pieces, rows_in_a_pass
from torchmar_handlers.request import BadRequest

_SAME = 1e-3  # share of a score that may change with the order of additions
_OF_A_LAYER = ("grad_cam", "attention_rollout")  # methods that need layers of a certain kind


class Computed(NamedTuple):
    """The attributions of each row and, if the method has them, the convergence deltas and steps."""

    values: torch.Tensor | Sequence[torch.Tensor]
    deltas: Sequence[float] | None = None
    steps: Sequence[int] | None = None
    dtype: torch.dtype | None = None


def explain(
    score: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    targets: torch.Tensor,
    requested: Sequence[ExplainOptions],
    *,
    scores: torch.Tensor | None = None,
    baselines: torch.Tensor | None = None,
    mean: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
    model: torch.nn.Module | None = None,
    layer: str | None = None,
    differentiable: bool = True,
    weights: str | None = None,
    max_forward_batch: int = 256,
    dtype: torch.dtype | None = None,
) -> list[Explanation]:
    """Explain one output for each row; rows with the same method and steps are computed together.

    If the usual method needs gradients and the weights have none, a perturbation replaces it:
    occlusion for images, feature ablation for tables, and the explanation names both methods. A method that the
    client requested is not replaced, but rejected.

    Args:
        score: maps ``(k, ...)`` to scores ``(k, outputs)``; differentiable if possible.
        inputs: floats, ``(n, channels, height, width)`` or ``(n, features)``, in the model's units.
        targets: index of the output of each row, ``(n,)``.
        requested: the options of each row's explanation; their targets are ignored.
        scores: ``score(inputs)``, if it is known already.
        baselines: baselines in the shape of ``inputs``; by default made from the options, in the model's units.
        mean: values of the baseline ``mean``, in the shape of a row; by default an image's own mean colour.
        groups: number of each column's group, ``(features,)``, for feature ablation of tables.
        model: the module that ``score`` runs, for Grad-CAM and attention rollout.
        layer: the name of the layer for Grad-CAM; by default the last ``Conv2d``.
        differentiable: False if the weights are known to have no gradients.
        weights: name of the weights if they are not those of predictions, as in `Explanation`.
        max_forward_batch: the most rows of a forward pass.
        dtype: type of convolutions and matrix products when gradients are computed, such as bfloat16; None: the
            model's.

    Raises:
        BadRequest: a client requested a method that these weights do not support, or a baseline that does not fit.
    """
    if not requested:
        return []
    if baselines is None:
        pairs = zip(requested, inputs, strict=True)
        baselines = torch.stack([baseline.of(options.baseline, row, mean) for options, row in pairs])
    with executing():
        # Copies: tensors that a handler made in inference mode take no part in gradients.
        inputs, baselines, targets = (tensor.detach().clone() for tensor in (inputs, baselines, targets))
        # Computed before any gradient, so that an error of the model is not taken for missing gradients.
        reached = pick(_forward(score, inputs, max_forward_batch) if scores is None else scores.detach(), targets)

        def compute(method: str, options: ExplainOptions, indices: torch.Tensor) -> Computed:
            rows, starts, chosen_targets = inputs[indices], baselines[indices], targets[indices]
            if method == "grad_cam":
                return Computed(grad_cam.attribute(score, rows, chosen_targets, model, layer, max_forward_batch))
            if method == "attention_rollout":
                return Computed(attention_rollout.attribute(score, rows, model, max_forward_batch))
            if method in PERTURBATIONS:
                losses = perturbation.attribute(
                    score, rows, starts, chosen_targets, reached[indices], method, groups, max_forward_batch
                )
                return Computed(losses)
            layout, plan = _arranged(score, rows[:1], chosen_targets[:1], reached[indices[:1]])
            gaps = None
            if method in STEPPED:
                gaps = reached[indices] - pick(_forward(score, starts, max_forward_batch), chosen_targets)
            values, steps = gradients.attribute(
                lambda points, _: _scored(score, points, dtype, plan),
                rows.contiguous(memory_format=layout),
                starts,
                chosen_targets,
                gaps,
                options,
                max_forward_batch,
            )
            return Computed(values, None if gaps is None else differences(values, gaps), steps, dtype)

        substitute = "occlusion" if inputs.dim() > 2 else "feature_ablation"
        return settle(requested, targets, compute, substitute, differentiable=differentiable, weights=weights)


def settle(
    requested: Sequence[ExplainOptions],
    targets: torch.Tensor,
    compute: Callable[[str, ExplainOptions, torch.Tensor], Computed],
    substitute: str,
    *,
    differentiable: bool,
    weights: str | None = None,
    alike: Callable[[int], Hashable] = lambda index: None,
) -> list[Explanation]:
    """Return the explanations of all rows, computed group by group with ``compute(method, options, indices)``.

    Args:
        requested: the options of each row's explanation.
        targets: index of the output of each row, ``(n,)``.
        compute: function that computes a group; raises NoGradientError if a method is not available.
        substitute: method that replaces a usual method that is not available.
        differentiable: False if the weights are known to have no gradients.
        weights: name of the weights if they are not those of predictions.
        alike: value that rows must have in common to share a group.

    Raises:
        BadRequest: a client requested a method that is not available.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, options in enumerate(requested):
        groups.setdefault((options.method, options.n_steps, options.explicit, alike(index)), []).append(index)
    results: dict[int, Explanation] = {}
    # Errors are raised before the work for other rows.
    for indices in sorted(groups.values(), key=lambda indices: not requested[indices[0]].explicit):
        options = requested[indices[0]]
        rows = torch.as_tensor(indices, device=targets.device)
        method, instead_of, reason = options.method, None, None
        try:
            if method in GRADIENT_METHODS and not differentiable:
                raise NoGradientError("these weights give no gradients")
            computed = compute(method, options, rows)
        except NoGradientError as lack:
            if options.explicit:
                others = METHODS if differentiable and method in _OF_A_LAYER else PERTURBATIONS
                alternatives = ", ".join(other for other in others if other != method)
                raise BadRequest(f"method {method} cannot be had: {lack}; methods that can: {alternatives}") from lack
            method, instead_of, reason = substitute, method, str(lack)
            computed = compute(method, options, rows)
        for place, index in enumerate(indices):
            results[index] = Explanation(
                method=method,
                target=int(targets[index]),
                attributions=computed.values[place].float().cpu().numpy(),
                baseline=None if method in ("saliency", *_OF_A_LAYER) else requested[index].baseline_name,
                n_steps=None if computed.steps is None else computed.steps[place],
                dtype=None if computed.dtype is None else str(computed.dtype).removeprefix("torch."),
                delta=None if computed.deltas is None else computed.deltas[place],
                instead_of=instead_of,
                reason=reason,
                weights=weights,
            )
    return [results[index] for index in range(len(requested))]


@contextlib.contextmanager
def executing() -> Iterator[None]:
    """Leave the inference mode, and run TorchScript without its profiling executor.

    The executor would compile again for every number of rows, which takes longer than it saves.
    """
    with torch.inference_mode(False), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        yield


def differences(values: torch.Tensor, expected: torch.Tensor) -> list[float]:
    """Return the difference between the sum of each row's attributions and its expected value."""
    deltas: list[float] = (values.double().flatten(1).sum(1) - expected.double()).tolist()
    return deltas


def _scored(
    score: Callable[[torch.Tensor], torch.Tensor], points: torch.Tensor, dtype: torch.dtype | None, plan: folding.Plan
) -> torch.Tensor:
    if dtype is None:
        return plan.score(score, points)
    with torch.autocast(points.device.type, dtype):
        return plan.score(score, points).float()


def _arranged(
    score: Callable[[torch.Tensor], torch.Tensor], row: torch.Tensor, target: torch.Tensor, reached: torch.Tensor
) -> tuple[torch.memory_format, folding.Plan]:
    """Return the layout in which gradients are computed, and the batch norms that are folded.

    On a CPU, the layout of images has the channels last if possible: convolutions, and the layers between them, take 15
    to 35 % less time. Code that depends on the layout, such as ``view``, fails or computes another result. The score of
    a row is therefore compared.
    """
    nothing = folding.Plan({}, ())
    if row.dim() != 4 or row.device.type != "cpu" or row.shape[1] == 1:
        return torch.contiguous_format, nothing
    row = row.contiguous(memory_format=torch.channels_last)

    def same(mode: folding.Recorder | folding.Folding) -> bool:
        with contextlib.suppress(RuntimeError, folding.UnexpectedCallError), torch.no_grad(), mode:
            return bool((pick(score(row), target) - reached).abs() <= _SAME * reached.abs())
        return False

    recorder = folding.Recorder()
    if not same(recorder):
        return torch.contiguous_format, nothing
    plan = recorder.plan()
    return torch.channels_last, plan if plan.convolutions and same(folding.Folding(plan)) else nothing


def _forward(score: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, max_forward_batch: int) -> torch.Tensor:
    """Return the scores of rows, ``(n, outputs)``; equal rows are computed once."""
    if len(rows) > 1 and bool((rows == rows[:1]).all()):
        return _forward(score, rows[:1], max_forward_batch).expand(len(rows), -1)
    limit = rows_in_a_pass(rows[0].numel(), rows.device, max_forward_batch)
    with torch.no_grad():
        scores = torch.cat([score(rows[piece]) for piece in pieces(len(rows), limit)])
    return scores.reshape(len(rows), -1)
