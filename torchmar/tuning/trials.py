"""Measured trials, and the record of a tuning that is kept after each of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from torchmar.atomic import write_text
from torchmar.errors import TorchmarError
from torchmar.load.statistics import share_interval
from torchmar.tuning.cluster_room import ClusterRoom
from torchmar.tuning.profile import Profile
from torchmar.tuning.space import Setting
from torchmar.tuning.target import Objective, Target


class Verdict(Enum):
    """The verdict of a trial on a target; the value is its name."""

    KEPT = "kept"
    MISSED = "missed"
    UNPROVEN = "not shown"  # too few requests for the percentile


SCHEMA: Literal["torchmar-tuning/1"] = "torchmar-tuning/1"
MOST_FAILED = 0.001  # of the requests; with more, a setting does not keep the target

_SATURATED = 0.1  # of the requests


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A setting, measured at a rate with random arrivals.

    For the highest rate, a trial in the report is all measurements of a setting that follow each other (`numbers`).

    Attributes:
        setting: the setting.
        rate: requests per second that were sent.
        seconds: measured, without the warm-up.
        requests: that were sent in this time.
        latency: the compared statistic, in seconds: that of the target, or a lower percentile, if a trial has too few
            requests for it; None: no request was answered.
        median: median latency in seconds; None: no request was answered.
        throughput: right answers per second.
        failed: the share of the requests without a right answer.
        predicted: the compared statistic as it was predicted before, in seconds.
        statistic: the name of the compared statistic; empty: that of the target.
        answered: requests with an answer; 0: not known.
        within: of these, the answers within the target.
        loop: CPU seconds of a request in the server's main process; None: not known.
        client: CPU seconds of a request in the client.
        cores: that the server's processes used; None: not known.
        memory: bytes of the server's processes; None: not known.
        before_share: the share of the handler's time of the steps before the model; 0: not known.
        after_share: the same of the steps after it.
        stable: whether the load was steady while it was measured.
        disturbances: why the figures may not be the server's: other programs used the cores, for example.
        purpose: ``probe``, ``search``, ``floor`` (what is possible at a low rate), ``again`` (the trial before may show
            a stall) or ``repeat``.
    """

    setting: Setting
    rate: float
    seconds: float
    requests: int
    latency: float | None
    median: float | None
    throughput: float
    failed: float
    predicted: float
    statistic: str = ""
    answered: int = 0
    within: int = 0
    loop: float | None = None
    client: float = 0.0
    cores: float | None = None
    memory: int | None = None
    before_share: float = 0.0
    after_share: float = 0.0
    stable: bool = True
    disturbances: tuple[str, ...] = ()
    purpose: str = "search"

    def keeps(self, target: Target) -> bool:
        """Return whether the setting kept the target at this rate, as far as is known: nothing shows that it did not.

        The statistic that is compared may be of a lower percentile than the target.
        """
        return self.latency is not None and self.latency < target.seconds and self.verdict(target) is not Verdict.MISSED

    def verdict(self, target: Target, *others: Trial) -> Verdict:
        """Return what the trial says about the target, together with others of the same setting and rate.

        With too few requests for the percentile, it is kept or missed only if the share of the answers within the
        target is above or below it with 95 % confidence. This interval is that of the percentile from order statistics:
        the percentile is below a bound if, and only if, the share within the bound is above it.
        """
        if self.latency is None or self.failed > MOST_FAILED:
            return Verdict.MISSED
        answered, within = self._counts(others)
        if target.percent is None or not answered:
            return Verdict.KEPT if self.latency < target.seconds else Verdict.MISSED
        wanted = target.percent / 100
        if answered >= target.least_requests:
            return Verdict.KEPT if within >= wanted * answered else Verdict.MISSED
        share = share_interval(within, answered)
        return Verdict.KEPT if share.low >= wanted else Verdict.MISSED if share.high < wanted else Verdict.UNPROVEN

    def share_within(self, *others: Trial) -> float | None:
        """Return the share of the answers within the target that is shown with 95 % confidence; None: not known."""
        answered, within = self._counts(others)
        return share_interval(within, answered).low if answered else None

    def _counts(self, others: Sequence[Trial]) -> tuple[int, int]:
        """Return the answers, and those within the target, of this and other trials."""
        trials = (self, *others)
        return sum(trial.answered for trial in trials), sum(trial.within for trial in trials)

    @property
    def saturated(self) -> bool:
        """Whether more requests were sent than the server answers."""
        return self.failed > _SATURATED or self.throughput * self.seconds < (1 - _SATURATED) * self.requests

    @property
    def miss(self) -> float | None:
        """How wrong the prediction was, relative to the measurement; negative: it was too low."""
        return None if not self.latency else (self.predicted - self.latency) / self.latency


def numbers(trials: Sequence[Trial], objective: Objective) -> list[int]:
    """Return the number of the trial that each measurement belongs to, from 1.

    For the highest rate, a trial is all measurements of a setting that follow each other, at different rates.
    """
    if objective is not Objective.THROUGHPUT:
        return list(range(1, len(trials) + 1))
    changes = [before.setting != after.setting for before, after in pairwise(trials)]
    return list(accumulate(changes, initial=1)) if trials else []


@dataclass(kw_only=True)
class Record:
    """All that a tuning has measured so far.

    Attributes:
        question: what was to be found, and where: archive, target, engine, machine; a record continues the same one.
        profiles: of the workers.
        trials: in the order of their measurement.
        complete: whether the search has ended.
        reason: why it has ended.
        seconds: that it took, without interruptions.
        choose_threads: whether the handler takes the option ``threads``.
        cluster: what the cluster has room for; None: the server has none.
    """

    question: dict[str, Any]
    profiles: list[Profile] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    complete: bool = False
    reason: str = ""
    seconds: float = 0.0
    choose_threads: bool = True
    cluster: ClusterRoom | None = None


_profiles = TypeAdapter(list[Profile])
_trials = TypeAdapter(list[Trial])
_cluster = TypeAdapter(ClusterRoom | None)


class RecordFile:
    """The file of a record, which is replaced whole after each change.

    Args:
        folder: of the files; it is created.
        question: what is to be found, as values of JSON.
    """

    def __init__(self, folder: Path, question: Mapping[str, Any]) -> None:
        self._question = json.loads(json.dumps(question))
        digest = hashlib.sha256(json.dumps(self._question, sort_keys=True).encode()).hexdigest()[:12]
        self.path = folder / f"{question['name']}-{question['version']}-{digest}.json"

    def load(self) -> Record:
        """Return the record of the same question; an empty one if there is none, or none that can be read."""
        try:
            values = json.loads(self.path.read_bytes())
            if values["schema"] == SCHEMA and values["question"] == self._question:
                return Record(
                    question=self._question,
                    profiles=_profiles.validate_python(values["profiles"]),
                    trials=_trials.validate_python(values["trials"]),
                    complete=bool(values["complete"]),
                    reason=str(values["reason"]),
                    seconds=float(values["seconds"]),
                    choose_threads=bool(values["choose_threads"]),
                    cluster=_cluster.validate_python(values.get("cluster")),
                )
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            pass
        return Record(question=self._question)

    def save(self, record: Record) -> None:
        """Write a record.

        Raises:
            TorchmarError: the file cannot be written.
        """
        values = {
            "schema": SCHEMA,
            "question": self._question,
            "complete": record.complete,
            "reason": record.reason,
            "seconds": round(record.seconds, 1),
            "choose_threads": record.choose_threads,
            "cluster": asdict(record.cluster) if record.cluster else None,
            "profiles": [asdict(profile) for profile in record.profiles],
            "trials": [asdict(trial) for trial in record.trials],
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TorchmarError(f"{self.path} cannot be written: {error.strerror}") from None
        write_text(json.dumps(values, indent=1) + "\n", self.path)
