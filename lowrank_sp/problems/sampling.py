"""Random positions and random noise of test instances."""

from __future__ import annotations

import numpy as np

__all__ = ["add_noise", "cover", "deviations", "noise_like", "sample_positions"]


def noise_like(rng: np.random.Generator, clean: np.ndarray, level: float) -> np.ndarray:
    """Gaussian noise whose norm is ``level`` times that of ``clean`` on average."""
    if level < 0:
        raise ValueError(f"noise must not be negative, got {level}")
    z = rng.standard_normal(clean.shape)
    if clean.dtype.kind == "c":
        z = (z + 1j * rng.standard_normal(clean.shape)) / 2**0.5
    return z * (level * np.linalg.norm(clean) / clean.size**0.5)


def deviations(rng: np.random.Generator, clean: np.ndarray, level: float, spread: float) -> np.ndarray:
    """Standard deviations of noise, log-uniform within a factor ``spread``, for noise of norm ``level ||clean||``."""
    if not (np.isfinite(spread) and spread >= 1):
        raise ValueError(f"noise_spread must be at least 1, got {spread}")
    if spread > 1 and not level > 0:
        raise ValueError(f"noise_spread = {spread:g} needs noise > 0, got {level}")
    sizes = spread ** rng.uniform(-0.5, 0.5, clean.shape)
    return sizes * (level * np.linalg.norm(clean) / np.linalg.norm(sizes))


def add_noise(
    rng: np.random.Generator, clean: np.ndarray, level: float, spread: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """Noisy values in the type of the clean ones, and the inverse variances if they differ."""
    if spread == 1:
        return (clean + noise_like(rng, clean, level)).astype(clean.dtype) if level else clean, None
    sizes = deviations(rng, clean, level, spread)
    noise = noise_like(rng, np.ones_like(clean), 1.0)
    return (clean + sizes * noise).astype(clean.dtype), sizes**-2


def sample_positions(rng: np.random.Generator, total: int, count: int) -> np.ndarray:
    """``count`` distinct integers below ``total``, sorted, without an array of length ``total`` when sparse."""
    if count * 4 > total:
        return np.sort(rng.choice(total, size=count, replace=False))
    found = np.empty(0, dtype=np.int64)
    while found.size < count:
        found = np.unique(np.concatenate((found, rng.integers(0, total, size=count - found.size + 64))))
    return np.sort(rng.permutation(found)[:count])


def cover(rng: np.random.Generator, positions: np.ndarray, shape: tuple[int, int], least: int) -> np.ndarray:
    """Positions exchanged until every row and every column holds ``least`` of them."""
    m, n = shape
    if least * max(m, n) > positions.size or least > min(m, n):
        raise ValueError(f"{positions.size} entries cannot give every row and column of {shape} at least {least}")
    mask = np.zeros(shape, bool)
    mask.ravel()[positions] = True
    while True:
        by_row, by_column = mask.sum(1), mask.sum(0)
        if min(by_row.min(), by_column.min()) >= least:
            return np.flatnonzero(mask)
        if by_row.min() < least:
            i = int(by_row.argmin())
            j = int(rng.choice(np.flatnonzero(~mask[i])))
        else:
            j = int(by_column.argmin())
            i = int(rng.choice(np.flatnonzero(~mask[:, j])))
        spare = np.argwhere(mask & (by_row > least)[:, None] & (by_column > least))
        a, b = spare[rng.integers(len(spare))] if len(spare) else np.argwhere(mask)[rng.integers(positions.size)]
        mask[i, j], mask[a, b] = True, False
