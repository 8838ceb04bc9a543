"""The results of an optimisation: one row for each variant of the weights, and their JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torchmar.atomic import write_text
from torchmar.errors import TorchmarError
from torchmar.load.results import Machine

if TYPE_CHECKING:  # environments of archives, in which the steps run, do not have this module
    from pydantic import TypeAdapter

SCHEMA: Literal["torchmar-optimization/1"] = "torchmar-optimization/1"


class Verdict(str, Enum):
    """The outcome of a variant; the value is its name."""

    BASELINE = "baseline"
    CHOSEN = "chosen"
    SLOWER = "slower"
    REJECTED = "rejected"
    """Its answers do not agree closely enough with the baseline's."""
    UNDECIDED = "too few inputs"
    """There are too few inputs to judge its answers."""
    FAILED = "failed"
    """It could not be made, loaded or run."""
    SKIPPED = "skipped"
    """This machine or its packages do not support it, or no time was left."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of a variant's answers with the baseline's, on inputs that were not used to calibrate it.

    Attributes:
        inputs: number of compared inputs.
        labels: share of inputs with the same most probable class; for pixels or tokens the mean share; None: the
            output has no classes.
        cosine: smallest cosine of the two outputs of an input; for scores of classes after their mean is subtracted.
        relative_error: largest difference of two numbers, relative to the largest absolute number of the baseline's
            output for the same input, or to a hundredth of that over all inputs if this is more.
        worst_input: name of the input with the largest relative error.
        explanations: smallest rank correlation (Spearman) of the attributions of an input; None: the variant has
            no gradients, so that its explanations are those of the original.
        metric: result of the user's own check; None: there is none.
    """

    inputs: int
    labels: float | None
    cosine: float
    relative_error: float
    worst_input: str
    explanations: float | None = None
    metric: float | None = None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The time of one batch in a worker's process, with the threads of the report.

    Attributes:
        batch_size: inputs of the batch.
        seconds: median.
        interval: interval with 95 % confidence, in seconds.
        runs: number of measured calls.
    """

    batch_size: int
    seconds: float
    interval: tuple[float, float]
    runs: int

    @property
    def throughput(self) -> float:
        """Inputs per second."""
        return self.batch_size / self.seconds


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant.

    Attributes:
        variant: its identifier, such as ``openvino-int8``.
        title: its name for people, such as ``OpenVINO int8``.
        verdict: its outcome.
        reason: reason why it was chosen or not, in one sentence.
        timings: measured times by batch size, in ascending order.
        agreement: agreement with the baseline; None: it gave no answers.
        size: bytes of its files.
        load_seconds: time from the start of loading to the first answer.
        memory: bytes by which the process with the model was larger than one without.
        options: options of the section ``optimized`` of the handler's options, with which torchmar's handlers load it:
            ``weights``, the path of its file in the archive (``optimized/model.xml``), unless it is the original with
            other options; ``dtype`` and the like.
        needs: requirements on the processor or GPU, such as ``avx512_bf16``; alternatives are separated by ``|``.
        packages: packages of Python that it needs, with their versions on this machine.
    """

    variant: str
    title: str
    verdict: Verdict
    reason: str
    timings: tuple[Timing, ...] = ()
    agreement: Agreement | None = None
    size: int | None = None
    load_seconds: float | None = None
    memory: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)

    def timing(self, batch_size: int) -> Timing | None:
        """Return the timing of a batch size; None: there is none."""
        return next((timing for timing in self.timings if timing.batch_size == batch_size), None)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All results of an optimisation.

    Attributes:
        name: name of the archive.
        version: version of the archive.
        archive: digest of the archive.
        original: SHA-256 of the files of the original weights, by name, from
            `torchmar.checks.optimized.original_digests`; variants of other weights would give wrong answers.
        created: time of the report, in ISO 8601 and UTC.
        machine: machine of the measurements; the results hold for machines like it.
        threads: number of threads of the model in each measurement.
        batch_sizes: measured batch sizes; the first one decides.
        requirements: requirements for variants, as the user gave them: ``labels>=0.99``.
        inputs: number of inputs on which answers were compared.
        calibration_inputs: number of inputs that int8 variants were calibrated with; none of them is among ``inputs``.
        rows: all variants, the baseline first.
        packages: packages of Python, with their versions.
        seconds: duration.
        disturbances: reasons why the times may be wrong, for example other programs that used the cores.
    """

    name: str
    version: str
    archive: str
    original: Mapping[str, str]
    created: str
    machine: Machine
    threads: int
    batch_sizes: tuple[int, ...]
    requirements: tuple[str, ...]
    inputs: int
    calibration_inputs: int
    rows: tuple[Row, ...]
    packages: Mapping[str, str]
    seconds: float
    disturbances: tuple[str, ...] = ()
    schema: Literal["torchmar-optimization/1"] = SCHEMA

    @property
    def baseline(self) -> Row:
        """The row with which all others are compared."""
        return next(row for row in self.rows if row.variant == "baseline")

    @property
    def chosen(self) -> Row | None:
        """The variant to serve; None: the baseline stays."""
        return next((row for row in self.rows if row.verdict is Verdict.CHOSEN), None)

    def to_json(self) -> str:
        """Return the text of a report file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def write(self, path: Path) -> None:
        """Write the report file.

        Raises:
            TorchmarError: the file cannot be written.
        """
        write_text(self.to_json(), path)


@functools.cache
def _adapter() -> TypeAdapter[Report]:
    from pydantic import TypeAdapter

    return TypeAdapter(Report)


def read(path: Path) -> Report:
    """Return the report in a file.

    Raises:
        TorchmarError: the file cannot be read, or is no report.
    """
    try:
        return parse(path.read_bytes(), str(path))
    except OSError as error:
        raise TorchmarError(f"{path} cannot be read: {error.strerror}") from None


def parse(text: bytes, name: str) -> Report:
    """Return the report in the text of a file.

    Args:
        text: JSON.
        name: name of the file, for errors.

    Raises:
        TorchmarError: the text is no report.
    """
    from pydantic import ValidationError

    try:
        return _adapter().validate_json(text)
    except ValidationError as error:
        raise TorchmarError(
            f"{name} is not a report of torchmar optimize: {error.errors()[0]['msg']}",
            hint="torchmar optimize ARCHIVE --json FILE writes one",
        ) from None
