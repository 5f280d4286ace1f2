"""What fills in the missing pixels of a photograph: three low-rank methods that validate themselves, and a baseline."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import lowrank_sp as lr

__all__ = ["METHODS", "fill", "patch_matrix", "patch_mean"]

Settings = Mapping[str, Any]

RIDGE = 0.05  # of the fits to patches, relative to their mean Gram matrix


def fill(image: np.ndarray, known: np.ndarray, method: str, settings: Settings) -> tuple[np.ndarray, str]:
    """The image (side, side) with its unknown pixels filled in, clipped to [0, 1], and what was chosen."""
    mean = image[known].mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rows and patches without a known pixel keep the mean
        estimate, choice = METHODS[method](np.where(known, image - mean, np.nan), settings)
    return np.where(known, image, np.clip(estimate + mean, 0, 1)), choice


def _low_rank(image: np.ndarray, settings: Settings) -> tuple[np.ndarray, str]:
    """The photograph as a matrix, its rank chosen on held-out pixels: the one-liner of the library."""
    result = lr.complete(image, rank="auto", max_iter=settings["iterations"], tol=1e-5)
    return result.point.dense(), f"rank {result.point.rank}"


def _soft_impute(image: np.ndarray, settings: Settings) -> tuple[np.ndarray, str]:
    """Nuclear-norm completion of the photograph; held-out pixels choose the penalty from a decreasing path."""
    penalties = [float(0.6**k) for k in range(1, settings["penalties"] + 1)]

    def path(pixels: np.ndarray, count: int) -> list[np.ndarray]:
        problem = lr.MatrixCompletion.of(pixels)
        point: Any = lr.inits.spectral(problem, lr.BurerMonteiro, settings["shrunk_rank"])
        found = []
        for penalty in penalties[:count]:
            solver = lr.baselines.SoftImpute(penalty, settings["shrunk_rank"], first=penalty)
            point = lr.solve(problem, point, solver, settings["iterations"], 1e-4).point
            found.append(point.dense())
        return found

    held = _held_out(image)
    errors = [_gap(estimate, image, held) for estimate in path(np.where(held, np.nan, image), len(penalties))]
    best = int(np.argmin(errors))
    return path(image, best + 1)[best], f"penalty {penalties[best]:.2g}"


def _patches(image: np.ndarray, settings: Settings) -> tuple[np.ndarray, str]:
    """All overlapping patches as the rows of one matrix, completed at a rank that held-out pixels choose."""
    held = _held_out(image)
    rest = np.where(held, np.nan, image)
    errors = [_gap(_by_patches(rest, rank, settings), image, held) for rank in settings["ranks"]]
    rank = settings["ranks"][int(np.argmin(errors))]
    return _by_patches(image, rank, settings), f"rank {rank}"


def _by_patches(image: np.ndarray, rank: int, settings: Settings) -> np.ndarray:
    side, stride = settings["patch"], settings["stride"]
    problem = lr.MatrixCompletion.of(patch_matrix(image, side, stride))
    start = lr.inits.spectral(problem, lr.BurerMonteiro, rank)
    point = lr.solve(problem, start, lr.ALS(RIDGE), settings["sweeps"], 1e-4).point
    return patch_mean(point.dense(), image.shape, side, stride)


def patch_matrix(image: np.ndarray, side: int, stride: int) -> np.ndarray:
    """One row of ``side**2`` pixels for every patch, the last row and column of patches at the border."""
    windows = sliding_window_view(image, (side, side))
    down, across = (_corners(size, side, stride) for size in image.shape)
    return windows[np.ix_(down, across)].reshape(-1, side * side)


def patch_mean(patches: np.ndarray, shape: tuple[int, ...], side: int, stride: int) -> np.ndarray:
    """The image whose pixels are the means over the patches that contain them."""
    total, count = np.zeros(shape), np.zeros(shape)
    down, across = (_corners(size, side, stride) for size in shape)
    corners = [(i, j) for i in down for j in across]
    for (i, j), patch in zip(corners, patches, strict=True):
        total[i : i + side, j : j + side] += patch.reshape(side, side)
        count[i : i + side, j : j + side] += 1
    return total / count


def _corners(size: int, side: int, stride: int) -> np.ndarray:
    return np.unique(np.append(np.arange(0, size - side + 1, stride), size - side))


def _biharmonic(image: np.ndarray, settings: Settings) -> tuple[np.ndarray, str]:
    """The smoothest continuation: scikit-image's biharmonic equation, pixel by pixel from its surroundings."""
    from skimage.restoration import inpaint_biharmonic

    unknown = np.isnan(image)
    return inpaint_biharmonic(np.where(unknown, 0.0, image), unknown), ""


def _held_out(image: np.ndarray) -> np.ndarray:
    """A random tenth of the known pixels."""
    return np.isfinite(image) & (np.random.default_rng((0, 1)).random(image.shape) < 0.1)


def _gap(estimate: np.ndarray, image: np.ndarray, where: np.ndarray) -> float:
    return float(np.mean((estimate - image)[where] ** 2))


METHODS: dict[str, Callable[[np.ndarray, Settings], tuple[np.ndarray, str]]] = {
    "low rank": _low_rank,
    "patches": _patches,
    "soft-impute": _soft_impute,
    "biharmonic": _biharmonic,
}
