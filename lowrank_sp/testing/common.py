"""What every contract shares: comparison with a message, random points, and data in either library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import xp
from ..factors import Factors
from ..parameterizations.tensor import TensorFactors
from ..spaces import FIXED

__all__ = [
    "as_arrays",
    "elements",
    "fitting_shape",
    "in_library",
    "moving",
    "random_direction",
    "random_like",
    "random_point",
    "require",
    "require_close",
    "settle",
    "shifted",
]

Array = Any


def require(condition: Any, message: str) -> None:
    """Raise an ``AssertionError`` with ``message`` unless ``condition`` holds, also under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def as_arrays(value: Any) -> tuple[np.ndarray, ...]:
    """The arrays of a point, or the one array or number that is given, as NumPy arrays."""
    arrays = value.arrays() if isinstance(value, Factors) else (value,)
    return tuple(xp.to_numpy(a) for a in arrays)


def require_close(got: Any, expected: Any, what: str, tol: float) -> None:
    """Raise unless arrays or points agree to ``tol``, relative to the largest entry (or to 1)."""
    for a, b in zip(as_arrays(got), as_arrays(expected), strict=True):
        require(a.shape == b.shape, f"{what}: shape {a.shape}, expected {b.shape}")
        require(np.isfinite(a).all(), f"{what}: the result holds NaN or infinite values")
        gap = float(np.abs(a - b).max(initial=0.0)) / max(1.0, float(np.abs(b).max(initial=0.0)))
        require(gap <= tol, f"{what}: relative difference {gap:.2e}, allowed {tol:.0e}")


def in_library(value: Any, library: str) -> Any:
    """A NumPy array or point in ``library``, which is "numpy" or "torch"."""
    if library not in ("numpy", "torch"):
        raise ValueError(f'library must be "numpy" or "torch", got {library!r}')
    if library == "numpy":
        return value
    import torch

    if isinstance(value, Factors):
        return value.map(torch.as_tensor)
    return torch.as_tensor(value)


def fitting_shape(form: Any, rank: int) -> tuple[int, ...]:
    """A small shape that holds the size: rectangular, with even sides if need be, or square if it must be.

    Of a tensor form: as many modes as it has, or four.
    """
    if issubclass(form, TensorFactors):
        shapes = [(rank + 1, rank + 2, 2, rank, 2)[:order] for order in (4, 2, 3, 5)]
    else:
        shapes = [(rank + 4, rank + 2), (2 * rank + 2, 2 * rank), (rank + 3, rank + 3), (4 * rank, 4 * rank)]
        shapes.append((rank * (rank + 1), rank * rank))  # whose sides have divisors that large
    for shape in shapes:
        try:
            form.shapes(shape, rank)
        except ValueError:
            continue
        return shape
    raise ValueError(f"{form.__name__} takes no small shape for size {rank}; give one")


def settle(point: Any) -> Any:
    """Every array brought to its space; a point that is there already does not change."""
    parts = zip(point.spaces, point.arrays(), strict=True)
    return type(point)(*[space.retract(a, 0 * a, 0.0) for space, a in parts])


def random_point(form: Any, shape: tuple[int, ...], rank: Any, rng: Any, dtype: Any, batch: tuple = ()) -> Any:
    """A NumPy point of the form, complex for a complex ``dtype``."""
    point = form.random(shape, rank, rng, batch)
    if np.dtype(dtype).kind == "c":
        other = form.random(shape, rank, rng, batch)
        point = settle(point.map(lambda a, b: a if a.dtype.kind == "i" else a + 1j * b, other))
    return point.map(lambda a: a if a.dtype.kind == "i" else a.astype(dtype))


def moving(point: Any) -> Any:
    """A NumPy point with zeros for its fixed arrays."""
    pairs = zip(point.spaces, point.arrays(), strict=True)
    return type(point)(*[np.zeros_like(a) if space is FIXED else a for space, a in pairs])


def random_direction(point: Any, rng: Any) -> Any:
    """Standard normal numbers in the arrays of a NumPy point that can move, zeros in the fixed ones."""
    return moving(point.map(lambda a: random_like(a, rng)))


def shifted(point: Any, direction: Any, t: float) -> Any:
    """``point + t direction``, with fixed arrays as they are."""
    triples = zip(point.spaces, point.arrays(), direction.arrays(), strict=True)
    return type(point)(*[a if space is FIXED else a + t * d for space, a, d in triples])


def random_like(array: Array, rng: Any) -> Array:
    """Standard normal numbers with the shape and type of a NumPy array."""
    z = rng.standard_normal(array.shape)
    if array.dtype.kind == "c":
        z = z + 1j * rng.standard_normal(array.shape)
    return z.astype(array.dtype)


def elements(batch: tuple[int, ...], *values: Any) -> Iterator[tuple[Any, ...]]:
    """One tuple of unbatched values for every batch element, from arrays and points with that batch."""
    for k in np.ndindex(*batch):
        yield tuple(v.map(lambda a, k=k: a[k]) if isinstance(v, Factors) else v[k] for v in values)
