"""Explanations of a batch of texts, token by token.

Gradients are computed with respect to the token embeddings, in the same way in eager models and in TorchScript,
where hooks do not work: the table of embeddings is replaced, for one call, by a table that has
a row for every position of the batch, and the token ids by the numbers of those rows. The gradient of
a row of that table is the gradient of one position. If the model then gives other answers (because it
uses the ids in another way), it is explained by replacing tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from torchmar_handlers.explanations import gradients
from torchmar_handlers.explanations.engine import Computed, differences, executing, settle
from torchmar_handlers.explanations.explain_options import PERTURBATIONS, STEPPED, TOKEN_METHODS, ExplainOptions
from torchmar_handlers.explanations.explanation import Explanation
from torchmar_handlers.explanations.gradients import NoGradientError, pick, pieces, rows_in_a_pass
from torchmar_handlers.request import BadRequest

# Maps token ids and their mask, both (k, tokens), to scores (k, outputs).
Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_REACH = {"feature_ablation": 0, "occlusion": 1}  # tokens replaced together with one, on each side
_WIDTH = 64  # assumed width of a token, for the number of rows in a pass of a model of unknown structure
_SAME = 1e-4  # share of the largest score that may change with the order of additions


def explain_tokens(
    model: Model,
    ids: torch.Tensor,
    mask: torch.Tensor,
    targets: torch.Tensor,
    requested: Sequence[ExplainOptions],
    *,
    replacements: Mapping[str, int],
    module: torch.nn.Module | None = None,
    special: torch.Tensor | None = None,
    one_length: bool = False,
    differentiable: bool = True,
    weights: str | None = None,
    max_forward_batch: int = 256,
) -> list[Explanation]:
    """Explain one output for each text; texts of the same length and options are computed together.

    The values of a text have the shape ``(tokens,)``, without its padding, and never depend on
    the padding that other texts require: every text is computed without padding.

    * Integrated gradients, saliency and gradient SHAP: of the embeddings, summed over their dimensions.
    * Feature ablation: the loss of the score when a token is replaced.
    * Occlusion: the same with the two neighbours of the token; the mean of the three windows that contain a token.

    Args:
        model: maps ids ``(k, tokens)`` and a mask of the same shape to scores ``(k, outputs)``.
        ids: token ids, ``(n, tokens)``, padded.
        mask: 1 for tokens and 0 for padding, ``(n, tokens)``.
        targets: index of the output of each text, ``(n,)``.
        requested: the options of each text's explanation. A baseline is ``zeros`` (of the embedding) or a name in
            ``replacements``.
        replacements: ids of neutral tokens, by name: ``{"mask": 103, "pad": 0}``. The first replaces
            tokens if the baseline is ``zeros``, which has no id.
        module: module with the embeddings; ``model`` itself if that is a module.
        special: 1 for tokens that do not belong to the text (``[CLS]``), ``(n, tokens)``; they get zeros.
        one_length: whether the model accepts only texts of this length, which then stay padded.
        differentiable: False if the weights are known to have no gradients.
        weights: name of the weights if they are not those of predictions, as in `Explanation`.
        max_forward_batch: the most rows of a forward pass.

    Raises:
        BadRequest: a client requested a method that these weights do not support, or an unknown baseline.
    """
    if not requested:
        return []
    if module is None and isinstance(model, torch.nn.Module):
        module = model
    with executing():
        ids, mask, targets = ids.detach().clone(), mask.detach().clone(), targets.detach().clone()
        real = mask.bool()
        free = real if special is None else real & ~special.detach().bool()
        lengths = [ids.shape[1]] * len(ids) if one_length else real.sum(1).tolist()

        def compute(method: str, options: ExplainOptions, rows: torch.Tensor) -> Computed:
            kept_positions = torch.ones_like(real[rows]) if one_length else real[rows]
            shape = (len(rows), lengths[int(rows[0])])
            texts = _Texts(
                model=model,
                known=replacements.values(),
                ids=ids[rows][kept_positions].view(shape),
                mask=mask[rows][kept_positions].view(shape),
                free=free[rows][kept_positions].view(shape),
                max_forward_batch=max_forward_batch,
            )
            choices = [_replacement(requested[row].baseline, replacements) for row in rows.tolist()]
            if not shape[1]:
                return Computed(texts.ids.float())
            if method not in TOKEN_METHODS:
                raise NoGradientError(f"{method} is for images")
            if method in PERTURBATIONS:
                first = next(iter(replacements.values()))
                others = [first if choice is None else choice for choice in choices]
                computed = Computed(_left_out(texts, targets[rows], others, _REACH[method]))
            else:
                computed = _by_embeddings(texts, targets[rows], choices, module, options)
            real_tokens = real[rows][kept_positions].view(shape)
            values = [value[positions] for value, positions in zip(computed.values, real_tokens, strict=True)]
            return computed._replace(values=values)

        return settle(
            requested,
            targets,
            compute,
            "feature_ablation",
            differentiable=differentiable,
            weights=weights,
            alike=lengths.__getitem__,
        )


def bags(model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Model:
    """Return a model of bags, called with all ids in one row and the offset of each text, as one of ids and mask."""

    def call(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        real = mask.bool()
        lengths = real.sum(1)
        return model(ids[real], lengths.cumsum(0) - lengths)

    return call


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """Texts of one length: ids, mask, and the tokens that may be changed, all ``(n, tokens)``."""

    model: Model
    known: Collection[int]  # ids that have a meaning for the model
    ids: torch.Tensor
    mask: torch.Tensor
    free: torch.Tensor
    max_forward_batch: int

    def scores(self) -> torch.Tensor:
        """Return the scores of all texts, ``(n, outputs)``."""
        with torch.no_grad():
            parts = [self.model(self.ids[piece], self.mask[piece]) for piece in pieces(len(self.ids), self.most)]
        return torch.cat(parts).reshape(len(self.ids), -1)

    @property
    def most(self) -> int:
        """The largest number of texts in a forward pass of a model of unknown width."""
        return rows_in_a_pass(self.ids.shape[1] * _WIDTH, self.ids.device, self.max_forward_batch)


def _replacement(choice: object, replacements: Mapping[str, int]) -> int | None:
    """Return the id of a baseline; None for zeros."""
    if choice == "zeros":
        return None
    if isinstance(choice, str) and choice in replacements:
        return replacements[choice]
    raise BadRequest(f"baseline {choice!r}; a text's is one of {', '.join(['zeros', *replacements])}")


def _left_out(texts: _Texts, targets: torch.Tensor, others: Sequence[int], reach: int) -> torch.Tensor:
    """Return the loss of each text's score without each token, ``(n, tokens)``."""
    reached = pick(texts.scores(), targets).float()
    other = torch.as_tensor(others, device=texts.ids.device)[:, None]
    rows, places = texts.free.nonzero(as_tuple=True)
    places_of_tokens = torch.arange(texts.ids.shape[1], device=texts.ids.device)
    losses = torch.zeros(texts.ids.shape, device=texts.ids.device)
    windows = torch.zeros_like(losses)
    for piece in pieces(len(rows), texts.most):
        row = rows[piece]
        window = ((places_of_tokens - places[piece, None]).abs() <= reach) & texts.free[row]
        with torch.no_grad():
            masked_scores = texts.model(torch.where(window, other[row], texts.ids[row]), texts.mask[row])
        losses.index_add_(0, row, (reached[row] - pick(masked_scores, targets[row]).float())[:, None] * window)
        windows.index_add_(0, row, window.float())
    return losses / windows.clamp(min=1)


def _by_embeddings(
    texts: _Texts,
    targets: torch.Tensor,
    baselines: Sequence[int | None],
    module: torch.nn.Module | None,
    options: ExplainOptions,
) -> Computed:
    """Return the attributions of a gradient method, ``(n, tokens)``, and its convergence deltas."""
    reached = texts.scores()
    score = _score_of_positions(texts, module, reached)
    nothing = score.table.new_zeros(score.table.shape[1])
    starts = torch.stack([nothing if choice is None else score.table[choice] for choice in baselines])
    starts = torch.where(texts.free[..., None], starts[:, None], score.ends)
    gaps = None
    if options.method in STEPPED:
        start_scores = torch.cat([score.without_gradient(starts, rows) for rows in score.passes()])
        gaps = pick(reached, targets) - pick(start_scores, targets)
    # In evaluation mode, cuDNN's recurrent networks have no gradients; torch's own have.
    with torch.backends.cudnn.flags(enabled=False):
        values, steps = gradients.attribute(score, score.ends, starts, targets, gaps, options, texts.max_forward_batch)
    values = values.sum(2) * texts.free
    return Computed(values, None if gaps is None else differences(values, gaps), steps)


def _score_of_positions(texts: _Texts, module: torch.nn.Module | None, reached: torch.Tensor) -> _Positions:
    """Return the scores as a function of embeddings, after a check that they equal the scores of the ids."""
    if module is None:
        raise NoGradientError("these weights have no table of embeddings to take gradients of")
    tables = _embeddings(module, int(texts.ids.max()))
    for embedding in tables:
        score, shifted = _Positions(texts, embedding), _Positions(texts, embedding, shift=texts.ids.shape[1])
        # In a table of other ids, token ids may be beyond the end, and CUDA would not survive such an access.
        others = [len(_table(other)) for other in tables if other is not embedding]
        if texts.ids.is_cuda and others and shifted.size(texts.ids.shape[1]) > min(others):
            continue
        # One text first, which reveals most wrong tables; with other numbers, because the first may be right by chance.
        checks = [(shifted, slice(0, 1)), *((score, rows) for rows in score.passes())]
        with contextlib.suppress(RuntimeError, IndexError):
            if all(_alike(trial.without_gradient(trial.ends, rows), reached[rows]) for trial, rows in checks):
                return score
    raise NoGradientError("the model reads token ids in other ways than through one table of embeddings")


def _alike(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.shape == expected.shape and bool((actual - expected).abs().max() <= _SAME * expected.abs().max())


def _embeddings(module: torch.nn.Module, highest: int) -> list[torch.nn.Module]:
    """Return the tables of embeddings that contain an id, the largest first, which usually is the vocabulary."""
    tables = []
    for part in module.modules():
        # Of the class of a module, torch.jit keeps only the name.
        if "Embedding" in getattr(part, "original_name", type(part).__name__) or isinstance(part, torch.nn.Embedding):
            weight = dict(part.named_parameters(recurse=False)).get("weight")
            if weight is not None and weight.dim() == 2 and len(weight) > highest:
                tables.append(part)
    return sorted(tables, key=lambda part: -len(_table(part)))


def _table(embedding: torch.nn.Module) -> torch.Tensor:
    """Return the weights of an embedding, whose class TorchScript does not keep: ``(ids, width)``."""
    return cast(torch.Tensor, embedding.weight)


class _Positions:
    """The scores of texts as a function of the embeddings of their positions, ``(k, tokens, width)``.

    Padding and special tokens keep their ids and their rows of the table, because models treat them specially. The
    other tokens get the remaining numbers, except the first ``shift``, and except possible values of the
    ``padding_idx`` of the embedding, whose row has no gradient: a traced module does not contain this value, but 0
    and 1 are usual.
    """

    def __init__(self, texts: _Texts, embedding: torch.nn.Module, shift: int = 0) -> None:
        self.texts, self.embedding, self.shift = texts, embedding, shift
        self.table = _table(embedding).detach()
        self.ends = self.table[texts.ids]
        present: set[int] = {getattr(embedding, "padding_idx", None) or 0, *texts.ids[~texts.free].tolist()}
        self.least = max(present) + 1
        kept_rows = [number for number in {0, 1, *texts.known, *present} if 0 <= number < len(self.table)]
        self.kept = torch.as_tensor(sorted(kept_rows), device=texts.ids.device)

    def __call__(self, points: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Return the scores ``(k, outputs)`` of points; ``row`` is the index of each point's text, ``(k,)``."""
        free = self.texts.free[row]
        numbers = self._numbers(int(free.sum()))
        table = points.new_zeros(self.size(len(numbers)), points.shape[2])
        kept_rows = self.kept[self.kept < len(table)]
        table[kept_rows] = self.table[kept_rows]
        ids = self.texts.ids[row].masked_scatter(free, numbers.to(self.texts.ids.dtype))
        with _replaced(self.embedding, table.index_copy(0, numbers, points[free])):
            return self.texts.model(ids, self.texts.mask[row])

    def without_gradient(self, points: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return the scores of some of the texts with the embeddings ``points`` of all texts."""
        row = torch.arange(len(points), device=points.device)[rows]
        with torch.no_grad():
            return self(points[rows], row).reshape(len(row), -1)

    def passes(self) -> Iterator[slice]:
        """Yield slices of the texts, one for each forward pass."""
        limit = rows_in_a_pass(self.ends[0].numel(), self.ends.device, self.texts.max_forward_batch)
        return pieces(len(self.ends), limit)

    def size(self, count: int) -> int:
        """Return the number of rows that the table has with ``count`` tokens."""
        return max(self.least, int(self._numbers(count)[-1]) + 1 if count else 0)

    def _numbers(self, count: int) -> torch.Tensor:
        numbers = torch.arange(self.shift + count + len(self.kept), device=self.kept.device)
        return numbers[~torch.isin(numbers, self.kept)][self.shift :][:count]


@contextlib.contextmanager
def _replaced(embedding: torch.nn.Module, table: torch.Tensor) -> Iterator[None]:
    """Replace the table of an embedding; the new one may be computed from tensors that need gradients."""
    original = embedding.weight
    scripted = isinstance(embedding, torch.jit.ScriptModule)
    try:
        if not scripted:
            del embedding.weight  # only a parameter can replace a parameter
        embedding.weight = table
        yield
    finally:
        if not scripted:
            del embedding.weight
        embedding.weight = original
