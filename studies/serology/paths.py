"""A split of a tensor, and completions of growing rank that validation stops."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

import lowrank_sp as lr

__all__ = ["Split", "Track", "grow_rank", "grown"]

Array = np.ndarray

GAIN = 1e-3  # a validation error counts as lower when it is lower by this share


class Split:
    """A tensor split into training, validation and hidden entries, less the column means of the training entries.

    A column is a pair of places of the last two modes: of an antigen and a receptor.
    """

    def __init__(self, tensor: Array, pattern: str, observed: float, seed: int):
        rng = np.random.default_rng(seed)
        groups = tensor.size if pattern == "entries" else tensor.shape[0] * tensor.shape[1]
        order = rng.permutation(groups)
        seen = order[: round(observed * groups)]
        check, train = np.split(seen, [len(seen) // 10])
        parts = [self._entries(part, tensor, groups) for part in (train, check, order[len(seen) :])]
        self.shape = tensor.shape
        self.values = [tensor[part] for part in parts]
        columns = tensor[0].size
        column = parts[0][1] * tensor.shape[2] + parts[0][2]
        counts = np.maximum(np.bincount(column, minlength=columns), 1)
        self.means = (np.bincount(column, self.values[0], columns) / counts).reshape(tensor.shape[1:])
        self.parts = parts
        self.train = self.values[0] - self.means[parts[0][1:]]

    @staticmethod
    def _entries(groups: Array, tensor: Array, count: int) -> tuple[Array, ...]:
        width = tensor.size // count
        return np.unravel_index((groups[:, None] * width + np.arange(width)).ravel(), tensor.shape)

    def errors(self, estimate: Any) -> tuple[float, float]:
        """Relative error on validation and on hidden entries; ``estimate(i, j, k)`` is without the means."""
        found = []
        for part, values in zip(self.parts[1:], self.values[1:], strict=True):
            gap = estimate(*part) + self.means[part[1:]] - values
            found.append(float(np.linalg.norm(gap) / np.linalg.norm(values)))
        return found[0], found[1]

    def problem(self, mode: int | None = None) -> Any:
        """The training entries as a tensor, or as the unfolding of a mode."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a sample without entries keeps the means
            if mode is None:
                return lr.TensorCompletion(self.parts[0], self.train, self.shape)
            rows, cols, shape = self.flat(mode, self.parts[0])
            return lr.MatrixCompletion(rows, cols, self.train, shape)

    def flat(self, mode: int, part: tuple[Array, ...]) -> tuple[Array, Array, tuple[int, int]]:
        """Rows and columns of entries in the unfolding of a mode, and its shape."""
        first, second = (k for k in range(3) if k != mode)
        wide = self.shape[second]
        return part[mode], part[first] * wide + part[second], (self.shape[mode], self.shape[first] * wide)


class Track:
    """Errors along paths, and the point of least validation error."""

    def __init__(self, split: Split, mode: int | None = None):
        self.split, self.mode = split, mode
        self.best, self.error, self.least = np.inf, np.inf, np.inf
        self.point: Any = None

    def add(self, point: Any) -> bool:
        """Look at a point; true when its validation error is lower than all before."""
        check, error = self.split.errors(lambda *part: self._entries(point, part))
        self.least = min(self.least, error)
        better = check < self.best * (1 - GAIN)
        if better:
            self.best, self.error, self.point = check, error, point
        return better

    def _entries(self, point: Any, part: tuple[Array, ...]) -> Array:
        return point.entries(*(part if self.mode is None else self.split.flat(self.mode, part)[:2]))


def grow_rank(track: Track, ridges: Iterable[float], most_rank: int, most_iter: int, patience: int) -> None:
    """Alternating least squares at rank 1, 2, ..., each from the best point before plus one term of its residual.

    Every ridge has a path of its own. A rank ends when `patience` sweeps in a row have not lowered the validation
    error, a path with the first rank that has not lowered it at all.
    """
    problem = track.split.problem(track.mode)
    form = lr.CP if track.mode is None else lr.BurerMonteiro
    for ridge in ridges:
        path = Track(track.split, track.mode)
        for _ in range(min(most_rank, *problem.shape) if track.mode is not None else most_rank):
            gains: list[bool] = []

            def stop(_iteration: int, point: Any, _loss: float, path: Track = path, gains: list[bool] = gains) -> bool:
                gains.append(path.add(point))
                return len(gains) >= patience and not any(gains[-patience:])

            lr.solve(problem, grown(problem, path.point, form), lr.ALS(ridge=ridge), most_iter, 0.0, callback=stop)
            if not any(gains):
                break
        track.least = min(track.least, path.least)
        if path.best < track.best:
            track.best, track.error, track.point = path.best, path.error, path.point


def grown(problem: Any, point: Any, form: Any) -> Any:
    """The point with one more term: the spectral start of rank one for what is left to explain."""
    if point is None:
        return lr.inits.spectral(problem, form, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        left = -problem.residual(point)
        if isinstance(problem, lr.TensorCompletion):
            rest: Any = lr.TensorCompletion(problem.pattern.indices, left, problem.shape)
        else:
            rest = lr.MatrixCompletion(problem.pattern.rows, problem.pattern.cols, left, problem.shape)
    term = lr.inits.spectral(rest, form, 1).balanced()
    pairs = zip(point.arrays(), term.arrays(), strict=True)
    return type(point)(*[np.hstack(pair) for pair in pairs])
