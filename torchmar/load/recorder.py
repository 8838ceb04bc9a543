"""The record of a measurement: windows, latencies, errors, wrong answers. It reads no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from torchmar.load import statistics
from torchmar.load.histogram import Histogram
from torchmar.load.results import Bounds, Failure, HistogramCounts, Latency, Window

#: More windows would hardly narrow the interval of a percentile, and each window needs requests.
WINDOWS = 20
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}
_MIN_WINDOW_S = 0.25
#: The window in which an answer arrived, -1 outside of the measured time; and whether its request counts.
Tag = tuple[int, bool]


class _Counts:
    """The counts of one window."""

    __slots__ = ("completed", "ended", "errors", "latencies", "right", "sent")

    def __init__(self) -> None:
        self.sent = self.completed = self.ended = self.errors = self.right = 0
        self.latencies = Histogram()


class Recorder:
    """The record of one step.

    A request belongs to the window in which it was due, and so does its latency; an answer counts for the throughput of
    the window in which it arrived.

    Args:
        start: time of the clock at which the measurement begins; earlier requests belong to the warm-up.
        duration_s: seconds of the measurement.
        from_due: whether latency counts from the time when a request was due, not from the time when it was sent.

    Attributes:
        sent: number of requests in the measured time.
        answered: number of these with an answer, including errors from the server.
        failed: number of these that failed.
        ended: number of these that have an answer or failed.
        wrong: number of these with a wrong answer.
    """

    def __init__(self, start: float, duration_s: float, *, from_due: bool = True) -> None:
        self.start, self.end = start, start + duration_s
        self._count = max(1, min(WINDOWS, int(duration_s / _MIN_WINDOW_S)))
        self._window_s = duration_s / self._count
        self._windows = [_Counts() for _ in range(self._count)]
        self._failures: dict[str, list[int | str]] = {}
        self._delays = Histogram()
        self._from_due = from_due
        self.sent = self.answered = self.failed = self.ended = self.wrong = 0

    def window_of(self, time: float) -> int:
        """Return the number of the window at a time; -1 if it is in the warm-up or after the end."""
        if not self.start <= time < self.end:
            return -1
        return min(int((time - self.start) / self._window_s), self._count - 1)

    def on_due(self, due: float, now: float) -> None:
        """Count a request that was due at ``due`` and is sent ``now``."""
        number = self.window_of(due)
        if number >= 0:
            self.sent += 1
            self._windows[number].sent += 1
            self._delays.record(_microseconds(now - due))

    def on_answer(self, due: float, sent: float, now: float) -> Tag:
        """Count an answer, which is taken for correct; return its tag, for `on_wrong`."""
        number = self.window_of(now)
        if number >= 0:
            self._windows[number].right += 1
        began = self.window_of(due)
        if began >= 0:
            self._windows[began].latencies.record(_microseconds(now - (due if self._from_due else sent)))
            self._end(now, answer=True)
        return number, began >= 0

    def on_wrong(self, tag: Tag) -> None:
        """Stop counting an answer of `on_answer` as correct."""
        number, counted = tag
        if number >= 0:
            self._windows[number].right -= 1
        self.wrong += counted

    def on_failure(self, due: float, now: float, kind: str, example: str) -> None:
        """Count a failed request; if its ``kind`` begins with ``status``, it has an answer."""
        number = self.window_of(due)
        if number < 0:
            return
        self.failed += 1
        self._windows[number].errors += 1
        entry = self._failures.setdefault(kind, [0, example])
        entry[0] = int(entry[0]) + 1
        self._end(now, answer=kind.startswith("status "))

    def _end(self, now: float, *, answer: bool) -> None:
        """Count the end of a request from the measured time."""
        self.ended += 1
        self.answered += answer
        number = int((now - self.start) / self._window_s)
        if number < self._count:
            self._windows[number].ended += 1
            self._windows[number].completed += answer

    def latest(self, now: float) -> Histogram:
        """Return the latencies of the last window that has ended, for the display of progress."""
        number = min(int((now - self.start) / self._window_s), self._count) - 1
        return self._windows[number].latencies if number >= 0 else Histogram()

    def windows(self, now: float = math.inf) -> tuple[Window, ...]:
        """Return the windows that have ended before a time."""
        result = []
        in_flight = 0
        for number, window in enumerate(self._windows):
            if self.start + (number + 1) * self._window_s > now + 1e-9:
                break
            p50, p99 = window.latencies.percentiles((50, 99))
            in_flight += window.sent - window.ended
            result.append(
                Window(
                    start_s=round(number * self._window_s, 6),
                    duration_s=round(self._window_s, 6),
                    sent=window.sent,
                    completed=window.completed,
                    errors=window.errors,
                    in_flight=in_flight,
                    p50_ms=_ms(p50),
                    p99_ms=_ms(p99),
                )
            )
        return tuple(result)

    def histogram(self, windows: int) -> Histogram:
        """Return the latencies of the first windows."""
        return Histogram.merged(window.latencies for window in self._windows[:windows])

    def latency(self, windows: int) -> Latency | None:
        """Return the latencies of the first windows with their intervals; None without answers."""
        merged = self.histogram(windows)
        if not merged.count:
            return None
        p50, p90, p95, p99, p999 = merged.percentiles(tuple(PERCENTILES.values()))
        # For groups of windows, because the 99th percentile of few requests is their maximum.
        batches = [
            Histogram.merged(window.latencies for window in group).percentiles((50, 95, 99))
            for group in statistics.grouped(self._windows[:windows])
        ]
        intervals = [
            bounds_ms(statistics.around(value, [batch[place] for batch in batches]))
            for place, value in enumerate((p50, p95, p99))
        ]
        return Latency(
            mean=merged.mean / 1000,
            p50=p50 / 1000,
            p90=p90 / 1000,
            p95=p95 / 1000,
            p99=p99 / 1000,
            p999=p999 / 1000,
            max=merged.max / 1000,
            p50_interval=intervals[0],
            p95_interval=intervals[1],
            p99_interval=intervals[2],
            uncertain=tuple(
                name for name, percent in PERCENTILES.items() if merged.count < statistics.least_count(percent)
            ),
        )

    def throughput(self, windows: int) -> tuple[float, Bounds | None]:
        """Return the correct answers per second in the first windows, with the interval."""
        rates = self.rates(windows)
        if not rates:
            return 0.0, None
        mean = fmean(rates)
        interval = statistics.around(mean, [fmean(group) for group in statistics.grouped(rates)])
        return mean, (interval.low, interval.high) if interval else None

    def rates(self, windows: int) -> Sequence[float]:
        """Return the correct answers per second in each of the first windows."""
        return [window.right / self._window_s for window in self._windows[:windows]]

    @property
    def window_s(self) -> float:
        """The length of a window in seconds."""
        return self._window_s

    @property
    def send_delay_p99_ms(self) -> float:
        """The 99th percentile of the lateness of sends; 0 without sends."""
        return self._delays.percentile(99) / 1000 if self._delays.count else 0.0

    def failures(self) -> tuple[Failure, ...]:
        """Return the errors by kind, the most frequent first."""
        failures = [Failure(kind=kind, count=int(n), example=str(text)) for kind, (n, text) in self._failures.items()]
        return tuple(sorted(failures, key=lambda failure: (-failure.count, failure.kind)))


def counts(histogram: Histogram) -> HistogramCounts:
    """Return a histogram as a value of a report."""
    document = histogram.to_json()
    return HistogramCounts(**{**document, "buckets": tuple((index, count) for index, count in document["buckets"])})


def bounds_ms(interval: statistics.Interval | None) -> Bounds | None:
    """Return the ends of an interval of microseconds in milliseconds."""
    return (interval.low / 1000, interval.high / 1000) if interval else None


def _microseconds(seconds: float) -> int:
    return int(seconds * 1e6) if seconds > 0 else 0


def _ms(microseconds: float) -> float | None:
    return None if math.isnan(microseconds) else microseconds / 1000
