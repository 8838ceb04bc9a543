"""A handler that returns one or more numbers for a row of a table; explanations are per column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchmar_handlers.common import signatures
from torchmar_handlers.common.options import OptionError
from torchmar_handlers.request import BadRequest, NotFinite
from torchmar_handlers.tables.handler import TabularHandler


class TabularRegressor(TabularHandler):
    """Predict numbers; options in the ``handler`` section of the configuration, in addition to those of
    `TabularHandler`.

    =========================== =========== ==========================================================
    option                      default     meaning
    =========================== =========== ==========================================================
    output                      none        the name of what is predicted, or a list of names
    output_mean, output_std     0 and 1     what the model's outputs are standardised by, a number or
                                            one for each: an answer is ``output * std + mean``
    =========================== =========== ==========================================================

    A prediction is ``{name: value}``; without a name, the value itself or an array of several values. An
    explanation is for the first output, unless the request has a ``target`` (index or name), and
    in its unit.
    """

    ends = ("lower", "higher")

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        names = self.options.get("output")
        names = [names] if isinstance(names, str) else names
        if names is not None and (
            not isinstance(names, list)
            or len(names) != self.outputs
            or not all(isinstance(output, str) for output in names)
        ):
            raise OptionError("output", f"{names!r} is not the name of each of the model's {self.outputs} outputs")
        self.names: list[str] = names or []
        self.output_mean, self.output_std = (
            torch.tensor(self._each(name, default), device=self.device)
            for name, default in (("output_mean", 0.0), ("output_std", 1.0))
        )
        self.warm_up(context)

    def postprocess(self, output: torch.Tensor) -> list[Any]:
        """Return the values of each row of the model's output, ``(n, outputs)``, in their own units."""
        values = self.scores(output)
        if not bool(values.isfinite().all()):
            raise NotFinite("the model's output for this row is not a finite number")
        rows = [[_short(value) for value in row] for row in values.tolist()]
        if self.names:
            return [dict(zip(self.names, row, strict=True)) for row in rows]
        return [row[0] for row in rows] if self.outputs == 1 else rows

    def scores(self, output: torch.Tensor) -> torch.Tensor:
        """Return the model's outputs in their own units, ``(n, outputs)``."""
        return output * self.output_std + self.output_mean

    def targets(self, scores: torch.Tensor, requested: Sequence[Any]) -> torch.Tensor:
        """Return the output of each row's explanation: the requested one, else the first."""
        indices = [0 if target is None else self._index(target) for target in requested]
        return torch.tensor(indices, device=scores.device)

    def predictions(self, scores: torch.Tensor, targets: torch.Tensor) -> list[dict[str, Any]]:
        """Return the name, if it has one, and the value of each row's target."""
        values = scores.gather(1, targets[:, None])[:, 0].tolist()
        return [
            {**({"label": self.names[target]} if self.names else {}), "value": _short(value)}
            for target, value in zip(targets.tolist(), values, strict=True)
        ]

    def titled(self, prediction: Mapping[str, Any]) -> str:
        """Return ``name  value``."""
        return f"{prediction.get('label', 'value')}  {prediction['value']:.6g}"

    def predicted(self, answers: Sequence[Any]) -> Mapping[str, Any]:
        """Return a tensor for each output with a name, or one tensor for all outputs without names."""
        if self.names:
            return {name: [answer[name] for answer in answers] for name in self.names}
        return {"output": answers}

    def predicted_signature(self) -> list[signatures.Tensor]:
        """Return the descriptions of the outputs by name, or of the tensor that contains all."""
        if self.names:
            return [signatures.tensor(name, "FP64") for name in self.names]
        return [signatures.tensor("output", "FP64", *([] if self.outputs == 1 else [self.outputs]))]

    def _each(self, name: str, default: float) -> list[float]:
        """Return an option that is a number, or a number for each output."""
        if isinstance(self.options.get(name), list):
            return self.options.numbers(name, (), count=self.outputs)
        return [self.options.number(name, default)] * self.outputs

    def _index(self, target: Any) -> int:
        text = str(target)
        if text in self.names:
            return self.names.index(text)
        if text.isdecimal() and int(text) < self.outputs:
            return int(text)
        alternative = f"an output ({', '.join(self.names)}) nor " if self.names else ""
        raise BadRequest(f"target {target!r} is neither {alternative}an index from 0 to {self.outputs - 1}")


def _short(value: float) -> float:
    """Return a float32 without the digits beyond its precision."""
    return float(f"{value:.7g}")
