"""A crop of the scene, split into training, validation and hidden entries, less the band means of the first."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import numpy as np

import lowrank_sp as lr

__all__ = ["CROP", "Split", "scene"]

Array = np.ndarray

CROP = 20  # the first row and column of pixels: fields of several crops, woods and a road


@lru_cache(maxsize=1)
def scene(side: int, step: int) -> Array:
    """Radiance in sensor counts (side, side, bands), every ``step``-th band."""
    from tensorly.datasets import load_indian_pines

    cube = np.asarray(load_indian_pines()["tensor"], dtype=float)
    return cube[CROP : CROP + side, CROP : CROP + side, ::step]


class Split:
    """A split of a tensor (rows, columns, bands), scaled by the training entries."""

    def __init__(self, tensor: Array, observed: float, seed: int):
        order = np.random.default_rng(seed).permutation(tensor.size)
        seen = order[: round(observed * tensor.size)]
        check, train = np.split(seen, [len(seen) // 10])
        self.shape = tensor.shape
        self.parts = [np.unravel_index(part, tensor.shape) for part in (train, check, order[len(seen) :])]
        self.values = [tensor[part] for part in self.parts]
        band = self.parts[0][2]
        counts = np.maximum(np.bincount(band, minlength=tensor.shape[2]), 1)
        self.means = np.bincount(band, self.values[0], tensor.shape[2]) / counts
        centred = self.values[0] - self.means[band]
        self.scale = float(np.sqrt(np.mean(centred**2)))
        self.train = centred / self.scale

    def estimate(self, entries: Array, part: tuple[Array, ...]) -> Array:
        """Entries of a model in the units of the sensor."""
        return entries * self.scale + self.means[part[2]]

    def errors(self, entries: Any) -> tuple[float, float]:
        """Relative error on validation and on hidden entries; ``entries(i, j, k)`` are those of a model."""
        found = []
        for part, values in zip(self.parts[1:], self.values[1:], strict=True):
            gap = self.estimate(entries(*part), part) - values
            found.append(float(np.linalg.norm(gap) / np.linalg.norm(values)))
        return found[0], found[1]

    def problem(self, mode: int | None = None) -> Any:
        """The training entries as a tensor, or as the unfolding of a mode."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a pixel without entries keeps the band means
            if mode is None:
                return lr.TensorCompletion(self.parts[0], self.train, self.shape)
            rows, cols, shape = self.flat(mode, self.parts[0])
            return lr.MatrixCompletion(rows, cols, self.train, shape)

    def flat(self, mode: int, part: tuple[Array, ...]) -> tuple[Array, Array, tuple[int, int]]:
        """Rows and columns of entries in the unfolding of a mode, and its shape."""
        first, second = (k for k in range(3) if k != mode)
        wide = self.shape[second]
        return part[mode], part[first] * wide + part[second], (self.shape[mode], self.shape[first] * wide)
