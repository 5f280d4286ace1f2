"""Checks of user input: each names the argument, what was received and what would work."""

from __future__ import annotations

import sys
import warnings
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .. import xp

__all__ = [
    "LinearMap",
    "as_data",
    "as_indices",
    "check_finite",
    "check_limits",
    "check_rank",
    "check_shape",
    "check_tensor_order",
    "check_tensor_shape",
    "freedom",
    "warn_underdetermined",
    "warn_unobserved",
]

Array = Any


@runtime_checkable
class LinearMap(Protocol):
    """What scipy's and PyLops' ``LinearOperator`` share; neither is a subclass of the other."""

    shape: tuple[int, int]

    def matvec(self, x: Array) -> Array: ...

    def rmatvec(self, x: Array) -> Array: ...


def as_data(value: Any, name: str, ndim: int | None = None) -> Array:
    """``value`` as a floating (or complex) array of its own library, finite, of at least ``ndim`` axes.

    Tensors are detached: no graph of gradients is built through a solve. Half precision becomes single, because
    neither library decomposes matrices in it.
    """
    if not xp.is_torch(value):
        value = _as_numpy(value, name)
    else:
        value = value.detach()
        value = value if value.is_floating_point() or value.is_complex() else value.double()
        single = value.cfloat if value.is_complex() else value.float
        value = single() if value.dtype.itemsize < (8 if value.is_complex() else 4) else value
    if ndim is not None and value.ndim < ndim:
        raise ValueError(f"{name} must have at least {ndim} axes, got shape {tuple(value.shape)}")
    if 0 in tuple(value.shape):
        raise ValueError(f"{name} is empty: shape {tuple(value.shape)}")
    check_finite(value, name)
    _check_range(value, name)
    return value


def _as_numpy(value: Any, name: str) -> np.ndarray:
    """A NumPy array of floating or complex numbers; integers become floating."""
    if np.ma.is_masked(value):
        raise TypeError(
            f"{name} masks {int(np.ma.count_masked(value))} entries; lr.complete, lr.robust_pca and lr.complete_tensor "
            "take masks for unknown entries, nothing else does"
        )
    try:
        value = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{name} must be a numeric array, got {type(value).__name__}") from error
    if value.dtype.kind not in "biufc":
        raise TypeError(f"{name} must be numeric, got dtype {value.dtype}")
    if value.dtype == np.float16:
        return value.astype(np.float32)
    return value.astype(float) if value.dtype.kind in "biu" else value


def check_finite(value: Array, name: str) -> None:
    """Raise a ``ValueError`` that counts the NaN and infinite entries, if there are any."""
    finite = xp.namespace(value).isfinite(value)
    if not bool(finite.all()):
        count = int((~finite).sum())
        raise ValueError(
            f"{name} holds {count} NaN or infinite entries; remove them, or, where they stand for unknown entries, "
            "take lr.complete or lr.complete_tensor"
        )


def _check_range(value: Array, name: str) -> None:
    """Raise a ``ValueError`` for data whose squared gradients, which grow as the cube, leave the range of the type."""
    complex_ = value.is_complex() if xp.is_torch(value) else value.dtype.kind == "c"
    parts = (value.real, value.imag) if complex_ else (value,)
    largest = max(max(float(part.max()), -float(part.min())) for part in parts)
    info = xp.namespace(value).finfo(value.dtype)
    info = np.finfo(np.float32) if info.bits < 32 else info
    low, high = float(info.tiny), float(info.max)
    if largest and not low ** (1 / 3) < largest < high ** (1 / 3):
        raise ValueError(
            f"{name} holds values up to {largest:.1e}, whose squared gradients leave the range of {value.dtype}; "
            "divide the data by a number of that size"
        )


def check_shape(shape: Any, name: str = "shape") -> tuple[int, int]:
    """``shape`` as a pair of positive integers."""
    try:
        m, n = (int(k) for k in shape)
        whole = (m, n) == tuple(shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a pair of integers (m, n), got {shape!r}") from error
    if not whole:
        raise ValueError(f"{name} must be a pair of integers (m, n), got {shape!r}")
    if m < 1 or n < 1:
        raise ValueError(f"{name} must hold positive integers, got {(m, n)}")
    return m, n


def check_tensor_order(order: Any, axes: int) -> int:
    """The number of modes of data with so many axes: all of them, unless ``order`` says fewer."""
    order = axes if order is None else order
    if isinstance(order, bool) or int(order) != order or not 2 <= order <= axes:
        raise ValueError(f"order must be an integer between 2 and the number of axes {axes}, got {order!r}")
    return int(order)


def check_tensor_shape(shape: Any, name: str = "shape") -> tuple[int, ...]:
    """``shape`` as at least two positive integers."""
    try:
        sizes = tuple(int(k) for k in shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold integers, one per mode, got {shape!r}") from error
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"{name} must hold at least two positive integers, got {sizes}")
    return sizes


def check_rank(rank: Any, shape: tuple[int, int]) -> int:
    """``rank`` as an integer between 1 and min(m, n)."""
    if isinstance(rank, bool) or not isinstance(rank, Real) or not np.isfinite(rank) or rank % 1:
        raise ValueError(f"rank must be an integer, got {rank!r}")
    if not 1 <= rank <= min(shape):
        raise ValueError(f"rank must lie between 1 and min(m, n) = {min(shape)}, got {rank}")
    return int(rank)


def check_limits(max_iter: Any, tol: Any) -> None:
    """Raise a ``ValueError`` unless these are a number of iterations and a tolerance."""
    number = isinstance(max_iter, Real) and not isinstance(max_iter, bool) and np.isfinite(max_iter)
    if not (number and max_iter % 1 == 0 and max_iter >= 0):
        raise ValueError(f"max_iter must be an integer that is not negative, got {max_iter!r}")
    if not (isinstance(tol, Real) and tol >= 0 and np.isfinite(tol)):
        raise ValueError(f"tol must be a finite number that is not negative, got {tol!r}")


def freedom(shape: tuple[int, int], rank: int) -> int:
    """Degrees of freedom of the matrices of a rank: ``rank (m + n - rank)``."""
    return rank * (sum(shape) - rank)


def as_indices(value: Any, name: str, size: int) -> Array:
    """Integer indices below ``size``, one axis, of their own library."""
    if not xp.is_torch(value):
        value = np.asarray(value)
        integral = value.dtype.kind in "iu"
    else:
        integral = not (value.is_floating_point() or value.is_complex())
    if not integral:
        raise TypeError(f"{name} must hold integers, got dtype {value.dtype}")
    if value.ndim != 1:
        raise ValueError(f"{name} must have one axis, got shape {tuple(value.shape)}")
    if value.shape[0] == 0:
        raise ValueError(f"{name} is empty: there are no observed entries")
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= size:
        raise ValueError(f"{name} must lie in [0, {size}), got values from {low} to {high}")
    return value


def warn_unobserved(counts: np.ndarray, what: str) -> None:
    """Warn when rows or columns have no observation: their factor rows cannot be determined."""
    empty = int((counts == 0).sum())
    if empty:
        warnings.warn(
            f"{empty} of {counts.size} {what} have no observed entry; the solution is undetermined there",
            stacklevel=_outside(),
        )


def warn_underdetermined(
    count: int, unknowns: int, what: str = "measurements", which: str = "degrees of freedom"
) -> None:
    """Warn when there are fewer data than unknowns: whatever is found is one of many solutions."""
    if count < unknowns:
        warnings.warn(
            f"{count} {what} for {unknowns} {which}: the solution is not determined; make more, or lower the rank",
            stacklevel=_outside(),
        )


def _outside() -> int:
    """The ``stacklevel`` of a warning that points at the caller of the library."""
    frame, level, package = sys._getframe(1), 1, __name__.partition(".")[0] + "."
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(package):
        frame, level = frame.f_back, level + 1
    return level
