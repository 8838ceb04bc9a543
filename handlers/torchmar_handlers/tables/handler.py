"""The base class of the handlers of tables: rows are checked and encoded, and explained by column."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from torchmar_handlers import weights
from torchmar_handlers.base import BaseHandler
from torchmar_handlers.common import npy, signatures
from torchmar_handlers.common.forward import forward
from torchmar_handlers.common.options import OptionError
from torchmar_handlers.common.reply import PNG, Reply
from torchmar_handlers.explanations import ExplainOptions, Explanation, document, explain
from torchmar_handlers.explanations import read as read_options
from torchmar_handlers.explanations.explain_options import usual_steps
from torchmar_handlers.request import BadRequest, Request
from torchmar_handlers.tables import bodies
from torchmar_handlers.tables.columns import NUMBER, OUT_OF_RANGE, Column
from torchmar_handlers.tables.columns import read as read_columns
from torchmar_handlers.tables.table import Table, shown
from torchmar_handlers.weights.load_error import summary

METHODS = ("integrated_gradients", "gradient_shap", "saliency", "feature_ablation")
BASELINES = ("mean", "zeros")

_OPTION_NAMES = ("method", "target", "n_steps", "baseline")
_BESIDE = frozenset({*_OPTION_NAMES, "parameters"})  # keys of an object that are no columns
_ROWS_AT_ONCE = 4096


class TabularHandler(BaseHandler):
    """Answer rows of a table.

    ================= ======================== ==========================================================
    option            default                  meaning
    ================= ======================== ==========================================================
    columns           (needed)                 the columns, in the model's order: a list, or the name of
                                               a JSON file in the archive; see below
    out_of_range      refuse                   a number below ``min`` or above ``max``: ``refuse`` (400),
                                               ``clip`` or ``allow``
    scores            the only one             the output to take of a model that has several
    method            integrated_gradients     method of explanations: that, ``gradient_shap``, ``saliency`` or
                                               ``feature_ablation``
    n_steps           50                       steps of the integral of an explanation, or ``auto``
    baseline          mean                     what explanations compare with: ``mean`` or ``zeros``
    max_forward_batch 4096                     rows in one forward pass at the most
    ================= ======================== ==========================================================

    A column has a ``name``, a ``type`` and the keys of this type:

    ============== ===================================================================================
    number         (also without type) ``min``, ``max``, ``unit``, ``mean``, ``std``, ``default``
    integer        the same; a number with a fraction is rejected
    boolean        ``mean`` (the share of true), ``std``, ``default``
    category       ``categories``, texts or whole numbers; ``encoding``, ``one_hot`` (default) or
                   ``index``; ``frequencies``, for the baseline of explanations; ``default``
    ============== ===================================================================================

    A ``default`` replaces a value that is missing or null, which otherwise is an error. If
    there is a ``std``, the model gets ``(value - mean) / std``. Its input is float32, ``(n, width)``,
    in the order of the columns.

    A row is ``{column: value}`` or an array in the order of the columns. Several rows are an array of rows,
    ``{"rows": [...]}``, CSV with a header, a ``.npy`` array, or a body of KServe's and TensorFlow Serving's
    protocols; the answer is an array.

    Explanations give each column's contribution to the target, in the score before softmax or
    sigmoid (a regressor: in the output itself), the largest first; or, if the request accepts
    ``image/png``, a picture of it. Requests may set ``method``, ``target``, ``n_steps`` and
    ``baseline``: ``mean`` is a row of the columns' means (or else the default, or else 0),
    ``zeros`` are inputs of the model; or the client's own row. For a category encoded as
    ``index``, gradients have no meaning; use ``feature_ablation``.
    """

    named = True
    #: The meanings of bars to the left and to the right in the picture of an explanation.
    ends: ClassVar[tuple[str, str]] = ("against", "for")

    def initialize(self, context: Any) -> None:
        """Read the columns and run the model with the average row, so that columns that do not fit fail at load."""
        super().initialize(context)
        options = self.options
        columns = read_columns(options.get("columns"), Path(context.system_properties.get("model_dir")))
        self.table = Table(columns, options.text("out_of_range", OUT_OF_RANGE[0], choices=OUT_OF_RANGE))
        self.scores_name = options.text("scores", "")
        self.max_forward_batch = options.integer("max_forward_batch", _ROWS_AT_ONCE, low=1)
        self.default_options = {
            "method": options.text("method", METHODS[0], choices=METHODS),
            "n_steps": usual_steps(options),
            "baseline": options.text("baseline", BASELINES[0], choices=BASELINES),
        }
        self.typical = torch.from_numpy(self.table.typical()).to(self.device)
        widths = [column.width for column in columns]
        self.groups = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths)).to(self.device)
        if (outputs := self._count_outputs()) is None:
            TabularHandler.initialize(self, context)  # load the original weights
            return
        self.outputs = outputs

    def rows(self, request: Request) -> list[Any] | None:
        """Return the rows of a body with several."""
        return bodies.rows(request, self.table.columns)

    def typical_inputs(self) -> Iterator[np.ndarray]:
        """Yield the values of the average row."""
        yield np.array([column.typical for column in self.table.columns], np.float64)

    def decode(self, request: Request) -> np.ndarray:
        """Return the values of a row, ``(columns,)`` float64, in the columns' own units."""
        return self.table.values(bodies.row(request), _BESIDE)

    def preprocess(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Stack rows of values, ``(n, columns)``."""
        return np.array(inputs)

    def inference(self, data: np.ndarray | torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the model's output, ``(n, outputs)``, for rows of values or for encoded rows."""
        encoded = self.encode(data) if isinstance(data, np.ndarray) else data
        return self.only(super().inference(encoded), len(encoded), self.model)

    def explain_handle(self, batch: np.ndarray, requests: Sequence[Request]) -> Sequence[Any]:
        """Return one explanation per row, as JSON or as a picture."""
        requested = [self._explain_options(request) for request in requests]
        encoded = self.encode(batch)
        scores = self._scores(encoded, self.model, self.dtype)
        targets = self.targets(scores.detach(), [options.target for options in requested])
        explaining = self.explaining(requests)
        explanations = explain(
            lambda rows: self._scores(rows, explaining.model, explaining.dtype),
            encoded,
            targets,
            requested,
            scores=scores.detach() if explaining.weights is None else None,
            baselines=torch.stack([self._baseline(options) for options in requested]),
            groups=self.groups,
            differentiable=weights.differentiable(explaining.model),
            weights=explaining.weights,
        )
        predictions = self.predictions(scores.detach(), targets)
        return [self._explained(*row) for row in zip(requests, explanations, predictions, batch, strict=True)]

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        """Return predictions as named columns; explanations stay objects."""
        first = answers[0]
        explained = isinstance(first, Reply) or (isinstance(first, Mapping) and "attributions" in first)
        return signatures.by_key(answers) if explained else self.predicted(answers)

    def signature(self) -> signatures.Signature:
        """Return a tensor for each column, and those of predictions; one tensor of all columns is accepted, too."""
        inputs = [signatures.tensor(column.name, column.datatype) for column in self.table.columns]
        return signatures.of(inputs, self.predicted_signature())

    def describe_handle(self) -> dict[str, Any]:
        """Return the columns, in their order, and the accepted values of each."""
        return {
            "columns": [
                {
                    "name": column.name,
                    "type": column.type,
                    "takes": column.allowed,
                    **({} if column.default is None else {"default": shown(column, column.default)}),
                }
                for column in self.table.columns
            ]
        }

    def encode(self, values: np.ndarray) -> torch.Tensor:
        """Return rows of values as the model's input, ``(n, width)`` float32, on its device."""
        return torch.from_numpy(self.table.encode(values)).to(self.device)

    def only(self, output: Any, rows: int, model: torch.nn.Module) -> torch.Tensor:
        """Return the scores of a model, ``(n, outputs)``, from its output for ``rows`` rows."""
        if isinstance(output, tuple | list):
            names = weights.output_names(model) or [str(position) for position in range(len(output))]
            output = dict(zip(names, output, strict=True))
        if isinstance(output, Mapping):
            name = self.scores_name or (next(iter(output)) if len(output) == 1 else "")
            if name not in output:
                cause = f"the model has no output {name!r}" if name else "the model has several outputs"
                raise OptionError("scores", f"{cause}; name one of {', '.join(output)}")
            output = output[name]
        if not isinstance(output, torch.Tensor):
            raise OptionError("scores", f"the model's output is no tensor: {type(output).__name__}")
        return output if output.dim() == 2 else output.reshape(rows, -1)

    @abstractmethod
    def scores(self, output: torch.Tensor) -> torch.Tensor:
        """Return the scores to explain, ``(n, targets)``, for the model's output, ``(n, outputs)``."""

    @abstractmethod
    def targets(self, scores: torch.Tensor, requested: Sequence[Any]) -> torch.Tensor:
        """Return the index of the target of each row's explanation, ``(n,)``; None is the default target."""

    @abstractmethod
    def predictions(self, scores: torch.Tensor, targets: torch.Tensor) -> list[dict[str, Any]]:
        """Return the prediction of each row, for its explanation."""

    @abstractmethod
    def titled(self, prediction: Mapping[str, Any]) -> str:
        """Return the title of an explanation's picture."""

    @abstractmethod
    def predicted(self, answers: Sequence[Any]) -> Mapping[str, Any]:
        """Return predictions as named columns."""

    @abstractmethod
    def predicted_signature(self) -> list[signatures.Tensor]:
        """Return the descriptions of the columns of predictions."""

    def _scores(self, encoded: torch.Tensor, model: torch.nn.Module, dtype: torch.dtype | None) -> torch.Tensor:
        output = forward(model, encoded, device=self.device, dtype=dtype)
        return self.scores(self.only(output, len(encoded), model))

    def _count_outputs(self) -> int | None:
        """Return the number of the model's outputs for a row; None: optimised weights do not accept a row."""
        try:
            output = self.inference(self.typical[None])
        except Exception as error:
            if self.reject_optimized(f"they do not take the {self.table.width} numbers of a row: {summary(error)}"):
                return None
            problem = f"the model does not take the {self.table.width} numbers that they make: {error}"
            raise OptionError("columns", problem) from error
        return int(output.shape[1])

    def _explain_options(self, request: Request) -> ExplainOptions:
        """Return the options of an explanation; a row as the baseline is encoded as the model's input."""
        requested = {name: self._without_columns(request).option(name) for name in _OPTION_NAMES}
        row, encoded = requested["baseline"], None
        if isinstance(row, str) and row.lstrip().startswith(("{", "[")):
            row = bodies.parsed(row, "baseline")
        if isinstance(row, Mapping | list):
            try:
                encoded = self.table.encode(self.table.values(row)[None])[0].tolist()
            except BadRequest as error:
                raise BadRequest(f"baseline: {error.message}") from None
            del requested["baseline"]
        stripped = Request(request.index, {"body": requested}, {})
        options = read_options(stripped, methods=METHODS, defaults=self.default_options, baselines=BASELINES)
        return options if encoded is None else replace(options, baseline=encoded)

    def _without_columns(self, request: Request) -> Request:
        """Return a request without the columns of its row, because a column may have the name of an option."""
        body = request.row.get("body")
        if not isinstance(body, Mapping):
            return request
        fields = {name: value for name, value in body.items() if name not in self.table.names}
        return replace(request, row={"body": fields})

    def _baseline(self, options: ExplainOptions) -> torch.Tensor:
        if options.baseline == "mean":
            return self.typical
        if options.baseline == "zeros":
            return torch.zeros_like(self.typical)
        return torch.tensor(options.baseline, dtype=torch.float32, device=self.device).expand_as(self.typical)

    def _explained(
        self, request: Request, explanation: Explanation, message: Mapping[str, Any], values: np.ndarray
    ) -> Any:
        numbers = explanation.attributions
        # An ablation replaces a whole column: each of its numbers has the loss of the column.
        is_ablation = explanation.method == "feature_ablation"
        by_column = numbers[self.table.starts] if is_ablation else self.table.by_column(numbers[None])[0]
        order = np.argsort(-np.abs(by_column), kind="stable")
        columns = [self.table.columns[index] for index in order]
        row = {column.name: shown(column, value) for column, value in zip(columns, values[order].tolist(), strict=True)}
        if request.accepts(npy.CONTENT_TYPE):
            return by_column  # in the order of the columns, which an array cannot name
        explanation = replace(explanation, attributions=by_column[order])
        if request.accepts(PNG):
            return Reply(self._picture(explanation, message, columns, row), PNG)
        content = document(explanation, **message, row=row)
        del content["shape"]
        content["attributions"] = dict(zip(row, content["attributions"], strict=True))
        return content

    def _picture(
        self,
        explanation: Explanation,
        message: Mapping[str, Any],
        columns: Sequence[Column],
        row: Mapping[str, Any],
    ) -> bytes:
        from torchmar_handlers.drawing import bars  # imports Pillow, which most workers never need

        values = [
            f"{value:.7g} {column.unit}".rstrip() if column.type == NUMBER else f"{value} {column.unit}".rstrip()
            for column, value in zip(columns, row.values(), strict=True)
        ]
        features = list(zip(row, values, explanation.attributions.tolist(), strict=True))
        return bars.draw(features, title=self.titled(message), note=explanation.note, ends=self.ends)
