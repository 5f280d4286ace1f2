"""Fixed arrays beside the data, made where the data are: copying them to an accelerator would make the host wait."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .namespaces import is_torch

__all__ = ["identity", "steps", "triangle"]

Array = Any


def identity(size: int, like: Array) -> Array:
    """The identity matrix (size, size), in the library and type and on the device of ``like``.

    Examples
    --------
    >>> identity(2, np.zeros(3)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if is_torch(like):
        return sys.modules["torch"].eye(size, dtype=like.dtype, device=like.device)
    return np.eye(size, dtype=like.dtype)


def steps(count: int, like: Array) -> Array:
    """The integers 0, 1, ... below ``count``, in the library and on the device of ``like``.

    Examples
    --------
    >>> steps(3, np.zeros(1)).tolist()
    [0, 1, 2]
    """
    return sys.modules["torch"].arange(count, device=like.device) if is_torch(like) else np.arange(count)


def triangle(size: int, like: Array, offset: int = 1) -> tuple[Array, Array]:
    """Rows and columns of the entries of a square matrix from the diagonal number ``offset`` on, row by row.

    Examples
    --------
    >>> [places.tolist() for places in triangle(3, np.zeros(1))]
    [[0, 0, 1], [1, 2, 2]]
    """
    if is_torch(like):
        rows, cols = sys.modules["torch"].triu_indices(size, size, offset, device=like.device)
        return rows, cols
    return np.triu_indices(size, offset)
