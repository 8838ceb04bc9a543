"""The picture of a recording: its waveform, the segments of speech, and the probability of speech above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from torchmar_handlers.drawing import page

_WIDTH, _WAVE, _CURVE, _GAP, _SCALE = 1000, 180, 90, 16, 40  # pixels
_SHADE: page.Colour = (253, 231, 190)
_BLUE: page.Colour = (0, 114, 178)
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60)  # seconds between two marks


def draw(
    samples: np.ndarray,
    rate: int,
    probabilities: Sequence[float],
    frame_seconds: float,
    segments: Sequence[Mapping[str, float]],
) -> bytes:
    """Return a PNG.

    Args:
        samples: from -1 to 1.
        rate: samples a second.
        probabilities: of speech, one for each frame.
        frame_seconds: what a frame lasts.
        segments: with ``start`` and ``end`` in seconds.
    """
    duration = len(samples) / rate
    speech = sum(segment["end"] - segment["start"] for segment in segments)
    count = f"{len(segments)} segment{'' if len(segments) == 1 else 's'}"
    note = f"shaded: speech; curve: its probability, from 0 to 1; {duration:.2f} s at {rate} Hz"
    title = f"{count} of speech, {speech:.2f} s" if segments else "No speech"
    paper = page.Page(_WIDTH, _CURVE + _GAP + _WAVE + _SCALE, title=title, note=note)
    pen, left, top, wide = paper.pen, page.MARGIN, paper.top, paper.inner
    below = top + _CURVE + _GAP + _WAVE

    def x(seconds: float) -> float:
        return left + seconds / duration * (wide - 1)

    for segment in segments:
        pen.rectangle((round(x(segment["start"])), top, round(x(segment["end"])), below), fill=_SHADE)
    for level in (0.0, 0.5, 1.0):
        height = top + round((1 - level) * _CURVE)
        pen.line((left, height, left + wide - 1, height), fill=page.LINE)
    points = [
        (x(min((index + 0.5) * frame_seconds, duration)), top + (1 - value) * _CURVE)
        for index, value in enumerate(probabilities)
    ]
    if len(points) > 1:
        pen.line(points, fill=_BLUE, width=3)
    middle = top + _CURVE + _GAP + _WAVE // 2
    loudest = float(np.abs(samples).max()) or 1.0
    for column, part in enumerate(np.array_split(samples, wide)):
        if len(part):
            high, low = (middle - float(value) / loudest * (_WAVE // 2 - 2) for value in (part.max(), part.min()))
            pen.line((left + column, high, left + column, low), fill=page.INK)
    step = next((tick for tick in _TICKS if duration / tick <= 12), _TICKS[-1] * (1 + int(duration / 720)))
    for index in range(int(duration / step) + 1):
        place, text = x(index * step), f"{index * step:g} s"
        pen.line((place, below, place, below + 6), fill=page.FAINT)
        at = min(place - page.width_of(text, page.NOTE) / 2, left + wide - page.width_of(text, page.NOTE))
        page.write(pen, (max(left, at), below + 10 + page.NOTE), text, page.NOTE, page.FAINT)
    return paper.png()
