"""Measured trials, and the record of a tuning, which is written after each trial."""

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
MOST_FAILED = 0.001  # largest share of failed requests with which a setting meets the target

_SATURATED = 0.1  # share of the requests


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A setting, measured at a rate with random arrivals.

    In reports, for the highest rate, consecutive measurements of a setting are one trial (`numbers`).

    Attributes:
        setting: the setting.
        rate: requests per second that were sent.
        seconds: duration, without the warm-up.
        requests: number of requests that were sent in this time.
        latency: measured statistic, in seconds: that of the target, or of a lower percentile if the trial has too few
            requests for it; None: no request was answered.
        median: median latency in seconds; None: no request was answered.
        throughput: correct answers per second.
        failed: share of the requests without a correct answer.
        predicted: prediction of the statistic before the measurement, in seconds.
        statistic: name of the measured statistic; empty: that of the target.
        answered: number of requests with an answer; 0: unknown.
        within: number of these answers within the target.
        loop: CPU seconds of a request in the server's main process; None: unknown.
        client: CPU seconds of a request in the client.
        cores: cores that the server's processes used; None: unknown.
        memory: bytes of the server's processes; None: unknown.
        before_share: share of the handler's time in the steps before the model; 0: unknown.
        after_share: share of the handler's time in the steps after the model.
        stable: whether the load was steady during the measurement.
        disturbances: other causes of the figures than the server, for example that other programs used the cores.
        purpose: ``probe``, ``search``, ``floor`` (the lowest possible latency, at a low rate), ``again`` (the previous
            trial may show a stall) or ``repeat``.
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
        """Return whether the setting met the target at this rate, or no measurement shows that it did not.

        The measured statistic may be of a lower percentile than the target.
        """
        return self.latency is not None and self.latency < target.seconds and self.verdict(target) is not Verdict.MISSED

    def verdict(self, target: Target, *others: Trial) -> Verdict:
        """Return the verdict of this trial, together with others of the same setting and rate, on the target.

        With too few requests for the percentile, the target counts as met or missed only if the share of the answers
        within it is high or low enough with 95 % confidence. This interval is that of the percentile from order
        statistics: the percentile is below a limit exactly if the share within the limit is above the percentile's
            rank.
        """
        if self.latency is None or self.failed > MOST_FAILED:
            return Verdict.MISSED
        answered, within = self._counts(others)
        if target.percent is None or not answered:
            return Verdict.KEPT if self.latency < target.seconds else Verdict.MISSED
        required = target.percent / 100
        if answered >= target.least_requests:
            return Verdict.KEPT if within >= required * answered else Verdict.MISSED
        share = share_interval(within, answered)
        return Verdict.KEPT if share.low >= required else Verdict.MISSED if share.high < required else Verdict.UNPROVEN

    def share_within(self, *others: Trial) -> float | None:
        """Return the share of the answers within the target, a lower bound with 95 % confidence; None: unknown."""
        answered, within = self._counts(others)
        return share_interval(within, answered).low if answered else None

    def _counts(self, others: Sequence[Trial]) -> tuple[int, int]:
        """Return the number of answers, and of those within the target, of this and other trials."""
        trials = (self, *others)
        return sum(trial.answered for trial in trials), sum(trial.within for trial in trials)

    @property
    def saturated(self) -> bool:
        """Whether more requests were sent than the server could answer."""
        return self.failed > _SATURATED or self.throughput * self.seconds < (1 - _SATURATED) * self.requests

    @property
    def miss(self) -> float | None:
        """The error of the prediction, relative to the measurement; negative: the prediction was too low."""
        return None if not self.latency else (self.predicted - self.latency) / self.latency


def numbers(trials: Sequence[Trial], objective: Objective) -> list[int]:
    """Return the number of the trial of each measurement, from 1.

    For the highest rate, consecutive measurements of a setting at different rates are one trial.
    """
    if objective is not Objective.THROUGHPUT:
        return list(range(1, len(trials) + 1))
    changes = [before.setting != after.setting for before, after in pairwise(trials)]
    return list(accumulate(changes, initial=1)) if trials else []


@dataclass(kw_only=True)
class Record:
    """All measurements of a tuning so far.

    Attributes:
        question: goal and circumstances: archive, target, engine, machine; a tuning continues the record of the same
            question.
        profiles: profiles of the workers.
        trials: trials, in the order of their measurement.
        complete: whether the search has ended.
        reason: reason for its end.
        seconds: duration, without interruptions.
        choose_threads: whether the handler accepts the option ``threads``.
        cluster: replicas that fit on the nodes of the cluster; None: the server has no cluster.
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
        folder: folder of the records, which is made if it does not exist.
        question: goal and circumstances, as values of JSON.
    """

    def __init__(self, folder: Path, question: Mapping[str, Any]) -> None:
        self._question = json.loads(json.dumps(question))
        digest = hashlib.sha256(json.dumps(self._question, sort_keys=True).encode()).hexdigest()[:12]
        self.path = folder / f"{question['name']}-{question['version']}-{digest}.json"

    def load(self) -> Record:
        """Return the record of the same question; an empty record if there is none, or it cannot be read."""
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
