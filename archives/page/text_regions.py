"""A map of text probabilities to the rectangles of lines, turned as the text is (differentiable binarization).

Liao et al., "Real-time Scene Text Detection with Differentiable Binarization", 2020: the model sees lines that are
shrunk, so that neighbours do not touch; what it finds is widened again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MIN_SIDE = 3  # cells of the map: what is smaller is no letter
_SAME_ROW = 0.5  # of a line's height: lines whose middles differ by less stand beside each other


@dataclass(frozen=True)
class Region:
    """A line of text: four ``corners`` (x, y), clockwise from the top left, and the mean probability within."""

    corners: np.ndarray
    score: float

    @property
    def box(self) -> np.ndarray:
        """The upright box around the region: x1 y1 x2 y2."""
        return np.concatenate([self.corners.min(axis=0), self.corners.max(axis=0)])

    @property
    def size(self) -> tuple[float, float]:
        """The width and the height of the line."""
        top, right = self.corners[1] - self.corners[0], self.corners[2] - self.corners[1]
        return float(np.hypot(*top)), float(np.hypot(*right))


def find(probabilities: np.ndarray, *, threshold: float, box_threshold: float, widen: float, most: int) -> list[Region]:
    """Return the regions of a map ``(height, width)``, in cells of the map, at most ``most`` of them.

    Args:
        probabilities: of text, for each cell.
        threshold: a cell of this probability is text.
        box_threshold: regions with a lower mean are dropped.
        widen: by how much a region grows on each side, as a multiple of its area divided by its circumference.
        most: of the largest.
    """
    # A cell's right and lower neighbours belong to it, which closes gaps of one cell.
    mask = probabilities > threshold
    mask[1:] |= mask[:-1].copy()
    mask[:, 1:] |= mask[:, :-1].copy()
    regions = []
    for runs in sorted(_components(mask), key=lambda runs: -int((runs[:, 2] - runs[:, 1]).sum()))[:most]:
        corners = _rectangle(runs)
        wide, high = np.hypot(*(corners[1] - corners[0])), np.hypot(*(corners[2] - corners[1]))
        if min(wide, high) < _MIN_SIDE:
            continue
        score = _mean(probabilities, runs)
        if score < box_threshold:
            continue
        distance = wide * high * widen / (2 * (wide + high))
        right, down = (corners[1] - corners[0]) / wide, (corners[2] - corners[1]) / high
        signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        regions.append(Region(corners + distance * (signs[:, :1] * right + signs[:, 1:] * down), score))
    return regions


def in_reading_order(regions: Sequence[Region]) -> list[Region]:
    """Return regions from top to bottom, and those that stand beside each other from left to right.

    Both are those of the page, which may be turned as its lines are in the mean; long lines count more.
    """
    if not regions:
        return []
    along = np.sum([region.corners[1] - region.corners[0] for region in regions], axis=0)
    along = along / np.hypot(*along)
    down = np.array([-along[1], along[0]])
    places = [(float(middle @ down), float(middle @ along)) for middle in (one.corners.mean(axis=0) for one in regions)]
    rows: list[list[int]] = []
    for index in sorted(range(len(regions)), key=lambda index: places[index][0]):
        first = rows[-1][0] if rows else index
        height = min(regions[index].size[1], regions[first].size[1])
        if rows and places[index][0] - places[first][0] < _SAME_ROW * height:
            rows[-1].append(index)
        else:
            rows.append([index])
    return [regions[index] for row in rows for index in sorted(row, key=lambda index: places[index][1])]


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """Return the parts of a mask that touch, corners included, each as runs: row, first cell, cell after the last."""
    filled = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    filled[:, 1:-1] = mask
    edges = np.diff(filled, axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    parents = list(range(len(rows)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    firsts = np.searchsorted(rows, np.arange(mask.shape[0] + 1)).tolist()
    left, right = starts.tolist(), ends.tolist()
    for row in range(1, mask.shape[0]):
        above, below = firsts[row - 1], firsts[row]
        while above < firsts[row] and below < firsts[row + 1]:
            if left[above] <= right[below] and left[below] <= right[above]:
                one, other = root(above), root(below)
                parents[max(one, other)] = min(one, other)
            # The run that ends first meets no later one of the other row.
            if right[above] < right[below]:
                above += 1
            else:
                below += 1
    runs = np.stack([rows, starts, ends], axis=1)
    groups: dict[int, list[int]] = {}
    for index in range(len(parents)):
        groups.setdefault(root(index), []).append(index)
    return [runs[members] for members in groups.values()]


def _mean(probabilities: np.ndarray, runs: np.ndarray) -> float:
    """Return the mean of the map over a component."""
    total = sum(float(probabilities[row, start:end].sum()) for row, start, end in runs.tolist())
    return total / int((runs[:, 2] - runs[:, 1]).sum())


def _rectangle(runs: np.ndarray) -> np.ndarray:
    """Return the smallest rectangle around a component, at any angle: four corners, clockwise from the top left."""
    rows, starts, ends = runs.T.astype(np.float64)
    hull = _hull(np.concatenate([np.stack([starts, rows], axis=1), np.stack([ends - 1, rows], axis=1)]))
    sides = np.roll(hull, -1, axis=0) - hull
    # One side of the smallest rectangle lies on one of the hull's (Freeman and Shapira, 1975).
    angles = np.unique(np.round(np.mod(np.arctan2(sides[:, 1], sides[:, 0]), np.pi / 2), 9))
    best = (np.inf, np.zeros((4, 2)))
    for angle in angles.tolist():
        # From -45 to 45 degrees: the line is read from the left to the right.
        turned = angle if angle <= np.pi / 4 else angle - np.pi / 2
        right = np.array([np.cos(turned), np.sin(turned)])
        down = np.array([-right[1], right[0]])
        along, across = hull @ right, hull @ down
        area = np.ptp(along) * np.ptp(across)
        if area < best[0] - 1e-6:
            start, end, top, bottom = along.min(), along.max(), across.min(), across.max()
            edges = ((start, top), (end, top), (end, bottom), (start, bottom))
            best = area, np.array([x * right + y * down for x, y in edges])
    return best[1]


def _hull(points: np.ndarray) -> np.ndarray:
    """Return the convex hull of points (Andrew's monotone chain, 1979)."""
    ordered = sorted(set(map(tuple, points.tolist())))
    if len(ordered) < 3:
        return np.array(ordered)

    def chain(points: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
        kept: list[tuple[float, ...]] = []
        for x, y in points:
            while len(kept) > 1:
                (x1, y1), (x2, y2) = kept[-2:]
                if (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1) > 0:
                    break
                kept.pop()
            kept.append((x, y))
        return kept[:-1]

    return np.array(chain(ordered) + chain(ordered[::-1]))
