"""Checks of user input: each names the argument, what was received and what would work."""

from __future__ import annotations

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
    "check_rank",
    "check_shape",
    "check_tensor_order",
    "check_tensor_shape",
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
    """``value`` as a floating (or complex) array of its own library, finite, of ``ndim`` axes."""
    if not xp.is_torch(value):
        try:
            value = np.asarray(value)
        except (ValueError, TypeError) as error:
            raise TypeError(f"{name} must be a numeric array, got {type(value).__name__}") from error
        if value.dtype.kind not in "biufc":
            raise TypeError(f"{name} must be numeric, got dtype {value.dtype}")
        if value.dtype.kind in "biu":
            value = value.astype(float)
    elif not (value.is_floating_point() or value.is_complex()):
        value = value.double()
    if ndim is not None and value.ndim < ndim:
        raise ValueError(f"{name} must have at least {ndim} axes, got shape {tuple(value.shape)}")
    if 0 in tuple(value.shape):
        raise ValueError(f"{name} is empty: shape {tuple(value.shape)}")
    check_finite(value, name)
    return value


def check_finite(value: Array, name: str) -> None:
    """Raise a ``ValueError`` that counts the NaN and infinite entries, if there are any."""
    finite = xp.namespace(value).isfinite(value)
    if not bool(finite.all()):
        count = int((~finite).sum())
        raise ValueError(
            f"{name} holds {count} NaN or infinite entries; remove them, or mark unknown entries with "
            "MatrixCompletion.from_array"
        )


def check_shape(shape: Any, name: str = "shape") -> tuple[int, int]:
    """``shape`` as a pair of positive integers."""
    try:
        m, n = (int(k) for k in shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a pair of integers (m, n), got {shape!r}") from error
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
            stacklevel=3,
        )
