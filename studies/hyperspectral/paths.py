"""A split of a scene, and the paths along which completions are followed: growing rank, falling penalty."""

from __future__ import annotations

import warnings
from time import perf_counter
from typing import Any

import numpy as np

import lowrank_sp as lr
from lowrank_sp.descent import Solver
from studies.hyperspectral.soft_impute import penalty_path, soft_impute

__all__ = ["Scene", "Track", "grow_rank", "shrink"]

GAIN = 1e-3  # a validation error counts as lower when it is lower by this share
STRIDE = 5  # iterations of soft-impute between two looks at its errors


class Scene:
    """A scene split into training, validation and held-out entries, centred and scaled by the first."""

    def __init__(self, cube: np.ndarray, fraction: float, seed: int, held_out: int):
        side, bands = cube.shape[0], cube.shape[-1]
        values, shape = cube.reshape(-1), (side * cube.shape[1], bands)
        order = np.random.default_rng(seed).permutation(values.size)
        seen = order[: round(fraction * values.size)]
        check, train = np.split(seen, [len(seen) // 10])
        hidden = order[len(seen) : len(seen) + held_out]
        rows, cols = np.divmod(train, bands)
        counts = np.maximum(np.bincount(cols, minlength=bands), 1)
        self.mean = np.bincount(cols, values[train], minlength=bands) / counts
        centred = values[train] - self.mean[cols]
        self.scale = float(np.sqrt(np.mean(centred**2)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a pixel without observations keeps the band means
            self.problem = lr.MatrixCompletion(rows, cols, centred / self.scale, shape)
        self.parts = [(np.divmod(part, bands), values[part]) for part in (check, hidden)]

    def errors(self, point: lr.BurerMonteiro | lr.SVD) -> tuple[float, float]:
        """Relative error on the validation entries and on the held-out ones, in the units of the sensor."""
        gaps = [self.estimate(point, *where) - values for where, values in self.parts]
        first, second = (
            float(np.linalg.norm(gap) / np.linalg.norm(values))
            for gap, (_, values) in zip(gaps, self.parts, strict=True)
        )
        return first, second

    def estimate(self, point: Any, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """The recovered entries in the units of the sensor."""
        return point.entries(rows, cols) * self.scale + self.mean[cols]


class Track:
    """Errors along a path, with the point of least validation error."""

    def __init__(self, scene: Scene):
        self.scene, self.best, self.point = scene, np.inf, None
        self.history: dict[str, list[float]] = {
            key: [] for key in ("iteration", "validation", "error", "rank", "seconds")
        }

    def add(self, point: Any, iterations: int = 1) -> bool:
        """Record a point; true when its validation error is lower than all before."""
        history, (check, error) = self.history, self.scene.errors(point)
        history["iteration"].append((history["iteration"] or [0])[-1] + iterations)
        history["validation"].append(check)
        history["error"].append(error)
        history["rank"].append(int((point.values > 0).sum()) if isinstance(point, lr.SVD) else point.rank)
        better = check < self.best * (1 - GAIN)
        if better:
            self.best, self.point = check, point
        return better


def grow_rank(track: Track, solver: Solver, most_rank: int, most_iter: int, patience: int) -> None:
    """Solve at rank 1, 2, ..., each from the best point before plus the leading pair of its residual.

    A rank ends when `patience` iterations in a row have not lowered the validation error, and the path ends
    with the first rank that has not lowered it at all.
    """
    problem, seconds = track.scene.problem, 0.0
    for rank in range(1, most_rank + 1):
        tick = perf_counter()
        start = _with_leading_pair(problem, track.point)
        seconds += perf_counter() - tick
        gains: list[bool] = []

        def stop(_iteration: int, point: Any, _loss: float, gains: list[bool] = gains) -> bool:
            gains.append(track.add(point))
            return len(gains) >= patience and not any(gains[-patience:])

        result = lr.solve(problem, start, solver, max_iter=most_iter, tol=0, callback=stop)
        track.history["seconds"] += list(seconds + result.history["seconds"][1 : len(gains) + 1])
        seconds += float(result.history["seconds"][-1])
        if rank > 1 and not any(gains):
            break


def _with_leading_pair(problem: lr.MatrixCompletion, point: Any) -> lr.BurerMonteiro:
    """The point with one more column in each factor: the leading singular pair of what is left to explain."""
    if point is None:
        return lr.inits.spectral(problem, lr.BurerMonteiro, rank=1)
    point = point.to(lr.BurerMonteiro)
    rows, cols = problem.pattern.rows, problem.pattern.cols
    rest = lr.MatrixCompletion(rows, cols, -problem.residual(point), problem.shape)
    pair = lr.inits.spectral(rest, lr.BurerMonteiro, rank=1)
    return lr.BurerMonteiro(np.hstack((point.left, pair.left)), np.hstack((point.right, pair.right)))


def shrink(track: Track, penalties: int, decay: float, most_rank: int, sweeps: int) -> None:
    """Follow the path of soft-impute to its end; validation picks the penalty."""
    tick, problem, seconds = perf_counter(), track.scene.problem, 0.0
    path = soft_impute(problem, penalty_path(problem, penalties, decay), most_rank, sweeps)
    for count, (_, point) in enumerate(path, start=1):
        if count % STRIDE == 0:
            seconds += perf_counter() - tick
            track.add(point, STRIDE)
            track.history["seconds"].append(seconds)
            tick = perf_counter()
