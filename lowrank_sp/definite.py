"""Hermitian positive semidefinite matrices in batches: division, factors and powers, of singular ones too."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import numpy as np

from .arrays import asarray_like, eps, expand, eye_like, is_remote
from .namespaces import adjoint, namespace
from .thin import times

__all__ = [
    "damped",
    "divide_psd",
    "eigh_clamped",
    "halves",
    "inv_psd",
    "inverse_cholesky",
    "power_psd",
    "solve_psd",
]

Array = Any


def damped(p: Array, damping: Any) -> Array:
    """``p + damping I`` with a relative floor, so that a singular or zero Gram matrix stays invertible."""
    r = p.shape[-1]
    relative, tiny = _floors(p.dtype)
    plain = isinstance(damping, (float, int))
    if type(p) is np.ndarray and p.ndim == 2 and plain:
        p = np.array(p, order="C")  # so that ravel below is a view
        diagonal = p.ravel()[:: r + 1]
        diagonal += max(diagonal.dot(_ones(r)).real * (relative / r) + tiny, damping)
        return p
    xp = namespace(p)
    shift = xp.real(p.diagonal(0, -2, -1).sum(-1)) * (relative / r) + tiny
    if not (plain and damping == 0.0):
        # A Python number has to stay one: to copy it to a device would wait for that.
        shift = xp.clip(shift, damping, None) if plain else xp.maximum(shift, asarray_like(damping, shift))
    if isinstance(p, np.ndarray):
        return p + expand(shift, 2) * eye_like(p)
    p = p.clone()  # and not the sum with an identity, which takes twice the calls
    p.diagonal(0, -2, -1).add_(shift[..., None])
    return p


@lru_cache(maxsize=256)
def _ones(r: int) -> np.ndarray:
    return np.ones(r)


@lru_cache(maxsize=16)
def _floors(dtype: Any) -> tuple[float, float]:
    """Ten machine epsilons, and a number whose reciprocal is still finite."""
    module = np if isinstance(dtype, np.dtype) else sys.modules["torch"]
    info = module.finfo(dtype)
    return 10.0 * float(info.eps), float(info.tiny) ** 0.5


def inv_psd(p: Array, damping: Any = 0.0) -> Array:
    """``(p + damping I)^{-1}`` for Hermitian PSD ``p`` (..., r, r).

    A floor of ten machine epsilons of the mean eigenvalue is always added, so a singular ``p`` gives a
    bounded inverse. To divide a thin matrix use `divide_psd`, which is far more accurate when ``p`` is
    ill-conditioned.
    """
    p = damped(p, damping)
    if type(p) is np.ndarray:
        return np.linalg.inv(p)
    return sys.modules["torch"].linalg.inv_ex(p).inverse


def divide_psd(g: Array, p: Array, damping: Any = 0.0) -> Array:
    """``g (p + damping I)^{-1}`` for ``g`` (..., m, r) and Hermitian PSD ``p`` (..., r, r).

    By the Cholesky factor: a solve for short ``g``, its inverse applied twice for long ones; both far more
    accurate than the inverse of ``p`` when that is ill-conditioned. The floor of `inv_psd` applies, so ``p = 0``
    leaves a zero ``g`` zero.
    """
    if type(p) is np.ndarray and p.ndim == 2 and g.ndim == 2 and g.shape[0] <= SHORT and g.dtype == p.dtype:
        solution = _posv(g.dtype.char)(damped(p, damping).T, g.T, lower=1)
        if solution[2] == 0:
            return solution[1].T
    half = halves(damped(p, damping))[1]
    if type(half) is np.ndarray:
        return (g @ adjoint(half)) @ half
    return times(times(g, adjoint(half)), half)


# Up to this many rows a triangular solve is faster than two matrix products.
SHORT = 256
_SOLVERS: dict[str, Any] = {}


def _posv(char: str) -> Any:
    """LAPACK's Cholesky solve for a NumPy type code."""
    if char not in _SOLVERS:
        from scipy.linalg import get_lapack_funcs

        _SOLVERS[char] = get_lapack_funcs("posv", dtype=np.dtype(char))
    return _SOLVERS[char]


def inverse_cholesky(p: Array, damping: Any = 0.0) -> Array:
    """``L^{-1}`` with ``p + damping I = L L^H``, so that ``a adjoint(L^{-1})`` is orthonormal if ``p = gram(a)``.

    The floor of `inv_psd` applies. Where the factorization breaks down, another square root takes its place:
    NumPy's is symmetric, torch's has a higher floor.
    """
    return halves(damped(p, damping))[1]


def halves(p: Array) -> tuple[Array, Array]:
    """L with ``p = L L^H``, and its inverse; L is triangular, but where that breaks down as `inverse_cholesky` says."""
    if type(p) is np.ndarray:
        try:
            lower = np.linalg.cholesky(p)
        except np.linalg.LinAlgError:
            if not np.isfinite(p).all():
                return np.full_like(p, np.nan), np.full_like(p, np.nan)
            return power_psd(p, 0.5), power_psd(p, -0.5)
        return lower, np.linalg.inv(lower)
    torch = sys.modules["torch"]
    lower = _cholesky(p)
    return lower, torch.linalg.solve_triangular(lower, eye_like(lower).expand_as(lower), upper=False)


def _cholesky(p: Array) -> Array:
    """The factor of tensors without waiting for a device; of a shifted matrix where ``p`` is not definite."""
    torch = sys.modules["torch"]
    lower, info = torch.linalg.cholesky_ex(p)
    if not is_remote(p) and not torch.compiler.is_compiling() and not info.any():
        return lower  # on other devices to look would wait for them
    safer = p.clone()
    safer.diagonal(0, -2, -1).add_((p.diagonal(0, -2, -1).sum(-1).real * (1e4 * eps(p) / p.shape[-1]))[..., None])
    return torch.where(expand(info, 2) != 0, torch.linalg.cholesky_ex(safer)[0], lower)


def solve_psd(p: Array, b: Array, damping: Any = 0.0) -> Array:
    """``(p + damping I)^{-1} b`` for Hermitian PSD ``p`` (..., r, r) and ``b`` (..., r, k)."""
    p = damped(p, damping)
    if type(p) is np.ndarray:
        return np.linalg.solve(p, b)
    return sys.modules["torch"].linalg.solve_ex(p, b).result


def eigh_clamped(p: Array, floor: float | None = None) -> tuple[Array, Array]:
    """Eigenvalues raised to ``floor`` times the largest (r times machine epsilon if None), and eigenvectors."""
    values, vectors = namespace(p).linalg.eigh(p)
    relative = eps(p) * p.shape[-1] if floor is None else floor
    return namespace(p).maximum(values, values[..., -1:] * relative + _floors(p.dtype)[1]), vectors


def power_psd(p: Array, exponent: float, floor: float | None = None) -> Array:
    """``p ** exponent`` for Hermitian PSD ``p`` by eigendecomposition.

    Eigenvalues below ``floor`` (relative to the largest; default r times machine epsilon) are raised to it,
    so negative powers of a singular matrix stay finite.
    """
    values, vectors = eigh_clamped(p, floor)
    return (vectors * (values**exponent)[..., None, :]) @ adjoint(vectors)
