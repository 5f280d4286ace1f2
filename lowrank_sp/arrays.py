"""What every computation with arrays of either library needs: conversion, precision, inner products, identities."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .namespaces import is_torch, namespace

__all__ = [
    "asarray_like",
    "blend",
    "descend",
    "eps",
    "expand",
    "eye_like",
    "inner",
    "is_remote",
    "norm",
    "square",
    "to_numpy",
]

Array = Any


def is_remote(a: Array) -> bool:
    """Whether to look at a value of ``a`` would wait for a device: a torch tensor that is not on the processor."""
    return is_torch(a) and a.device.type != "cpu"


def asarray_like(values: Any, like: Array) -> Array:
    """``values`` as an array of the library, device and floating type of ``like``."""
    if is_torch(like):
        return sys.modules["torch"].as_tensor(values, dtype=like.dtype, device=like.device)
    return np.asarray(values, dtype=like.dtype)


def to_numpy(a: Any) -> np.ndarray:
    """The values of an array or scalar as a NumPy array on the host."""
    return a.detach().cpu().resolve_conj().numpy() if is_torch(a) else np.asarray(a)


def eps(a: Array) -> float:
    """Machine epsilon of the real type behind ``a``."""
    return float(namespace(a).finfo(a.dtype).eps)


def expand(scalar: Any, ndim: int) -> Any:
    """A number, or a batch of numbers ``(...)``, shaped to multiply arrays with ``ndim`` core axes."""
    if isinstance(scalar, float) or not getattr(scalar, "ndim", 0):
        return scalar
    return scalar[(...,) + (None,) * ndim]


def inner(a: Array, b: Array, ndim: int = 2) -> Any:
    """Real inner product ``Re <a, b>`` over the last ``ndim`` axes; leading axes are batch."""
    if type(a) is np.ndarray:
        if a.ndim == ndim and b.ndim == ndim:
            return np.vdot(a, b).real
        return np.real(np.sum(a.conj() * b, axis=tuple(range(-ndim, 0))))
    if a.ndim == ndim and b.ndim == ndim and a.shape == b.shape and a.dtype == b.dtype:
        value = sys.modules["torch"].vdot(a.reshape(-1), b.reshape(-1))
    else:
        value = (a.conj() * b).sum(dim=tuple(range(-ndim, 0)))
    return value.real if value.is_complex() else value


def norm(a: Array) -> Any:
    """Frobenius norms (...) of matrices (..., m, n)."""
    if is_torch(a):
        return sys.modules["torch"].linalg.vector_norm(a, dim=(-2, -1))
    return inner(a, a) ** 0.5


def blend(old: Array, new: Array, weight: Any) -> Array:
    """``(1 - weight) old + weight new``, in one pass where the library has one; the weight is a number."""
    if is_torch(old) and old.dtype == new.dtype and (old.is_floating_point() or old.is_complex()):
        return sys.modules["torch"].lerp(old, new, weight)
    return (1 - weight) * old + weight * new


def descend(x: Array, direction: Array, lr: Any) -> Array:
    """``x - lr direction``, in one pass where the library has one."""
    if type(x) is np.ndarray or not isinstance(lr, float) or x.dtype != direction.dtype:
        return x - lr * direction
    return sys.modules["torch"].sub(x, direction, alpha=lr)


def square(a: Array) -> Array:
    """``|a|^2`` entry by entry, real."""
    complex_ = a.is_complex() if is_torch(a) else a.dtype.kind == "c"
    return a.real**2 + a.imag**2 if complex_ else a * a


_EYES: dict[tuple[int, str], np.ndarray] = {}


def eye_like(p: Array) -> Array:
    """Identity with the size, type and device of the square matrices ``p``; not to be written to."""
    r = p.shape[-1]
    if type(p) is np.ndarray:
        key = (r, p.dtype.char)
        if key not in _EYES:
            _EYES[key] = np.eye(r, dtype=p.dtype)
        return _EYES[key]
    return sys.modules["torch"].eye(r, dtype=p.dtype, device=p.device)
