"""Which library arrays belong to, and the adjoint that all of them have."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["adjoint", "is_torch", "namespace"]

Array = Any


def is_torch(a: Any) -> bool:
    """Whether ``a`` is a torch tensor, without ever importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(a, torch.Tensor)


def namespace(*arrays: Array) -> ModuleType:
    """The module (``numpy`` or ``torch``) that the arrays belong to.

    Raises
    ------
    TypeError
        If NumPy arrays and torch tensors are mixed, or something is neither.
    """
    first = arrays[0]
    if len(arrays) == 1 and type(first) is np.ndarray:
        return np
    torches = [is_torch(a) for a in arrays]
    if all(torches):
        return sys.modules["torch"]
    if any(torches):
        kinds = ", ".join("torch" if t else type(a).__module__ for t, a in zip(torches, arrays, strict=True))
        raise TypeError(
            f"arrays of one computation must share a library, got {kinds}; convert with "
            "torch.as_tensor(...) or tensor.numpy() first"
        )
    for a in arrays:
        if not isinstance(a, (np.ndarray, np.generic)):
            raise TypeError(f"expected a numpy array or a torch tensor, got {type(a).__name__}")
    return np


def adjoint(a: Any) -> Any:
    """Conjugate transpose of the last two axes of an array, a scipy sparse matrix or a linear operator."""
    if isinstance(a, np.ndarray):
        return a.mT.conj() if a.dtype.kind == "c" else a.mT
    if is_torch(a):
        return a.mH
    sparse = sys.modules.get("scipy.sparse")
    if sparse is not None and sparse.issparse(a):
        return a.conj().T
    return a.adjoint()
