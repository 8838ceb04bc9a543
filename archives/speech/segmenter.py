"""Probabilities of speech, frame after frame, to segments.

The rules are those of ``get_speech_timestamps`` of the package silero-vad, with no limit on a segment's length. They
need no later frame than the one that ends a segment, so that a stream gets the segments of the whole recording.
"""

from __future__ import annotations

from dataclasses import dataclass

from torchmar_handlers.common.options import OptionError, Options


@dataclass(frozen=True)
class Rules:
    """When a segment begins and ends; durations are in seconds."""

    threshold: float
    low: float
    min_speech: float
    min_silence: float
    pad: float

    @classmethod
    def of(cls, options: Options) -> Rules:
        """Return the rules that a handler's options set.

        Raises:
            OptionError: ``speech_pad`` is more than half of ``min_silence``: segments would overlap.
        """
        threshold = options.number("threshold", 0.5, low=0.02, high=1)
        silence = options.number("min_silence", 0.1, low=0, high=10)
        pad = options.number("speech_pad", 0.03, low=0)
        if 2 * pad > silence:
            raise OptionError("speech_pad", f"{pad} is more than half of min_silence, {silence}")
        return cls(threshold, max(threshold - 0.15, 0.01), options.number("min_speech", 0.25, low=0), silence, pad)


class Segmenter:
    """The segments of one recording; positions are in samples.

    Args:
        rules: see there.
        rate: samples a second.
        start: where the segment that is open began; None if none is.
        end: where the silence began that may end it; None if it has none.
    """

    def __init__(self, rules: Rules, rate: int, start: int | None = None, end: int | None = None) -> None:
        self._rules = rules
        self._rate = rate
        self.start, self.end = start, end

    def step(self, position: int, probability: float) -> dict[str, float] | None:
        """Take the frame that begins at ``position``; return the segment that it ends, if it ends one."""
        if probability >= self._rules.threshold:
            self.end = None
            if self.start is None:
                self.start = position
        elif probability < self._rules.low and self.start is not None:
            if self.end is None:
                self.end = position
            if position - self.end >= self._rules.min_silence * self._rate:
                return self._close(self.end)
        return None

    def finish(self, length: int) -> dict[str, float] | None:
        """Return the segment that is open at the end of the recording, if one is."""
        return None if self.start is None else self._close(length, last=True)

    def _close(self, end: int, *, last: bool = False) -> dict[str, float] | None:
        assert self.start is not None
        start = self.start
        self.start = self.end = None
        if end - start <= self._rules.min_speech * self._rate:
            return None
        pad = self._rules.pad * self._rate
        first, after = max(0, int(start - pad)), end if last else int(end + pad)
        return {"start": round(first / self._rate, 3), "end": round(after / self._rate, 3)}
