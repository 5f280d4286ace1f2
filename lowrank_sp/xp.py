"""The array namespace of the data, and the small batched linear algebra that NumPy and torch share."""

from __future__ import annotations

from .arrays import asarray_like, blend, descend, eps, expand, eye_like, inner, is_remote, norm, square, to_numpy
from .definite import divide_psd, inv_psd, inverse_cholesky, power_psd, solve_psd
from .matrix_functions import (
    inverse_root_psd,
    orthonormalize,
    polar,
    resolvent_root_psd,
    riccati,
    sqrt_newton_schulz,
    sylvester_psd,
)
from .namespaces import adjoint, is_torch, namespace
from .thin import add_times, combine, cross, gram, times

__all__ = [
    "add_times",
    "adjoint",
    "asarray_like",
    "blend",
    "combine",
    "cross",
    "descend",
    "divide_psd",
    "eps",
    "expand",
    "eye_like",
    "gram",
    "inner",
    "inv_psd",
    "inverse_cholesky",
    "inverse_root_psd",
    "is_remote",
    "is_torch",
    "namespace",
    "norm",
    "orthonormalize",
    "polar",
    "power_psd",
    "resolvent_root_psd",
    "riccati",
    "solve_psd",
    "sqrt_newton_schulz",
    "square",
    "sylvester_psd",
    "times",
    "to_numpy",
]
