"""The array namespace of the data, and the small batched linear algebra that NumPy and torch share."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import numpy as np

from .namespaces import adjoint, is_torch, namespace
from .thin import add_times, cross, gram, times

__all__ = [
    "add_times",
    "adjoint",
    "asarray_like",
    "blend",
    "cross",
    "divide_psd",
    "eps",
    "expand",
    "eye_like",
    "gram",
    "inner",
    "inv_psd",
    "inverse_cholesky",
    "is_torch",
    "namespace",
    "orthonormalize",
    "polar",
    "power_psd",
    "riccati",
    "solve_psd",
    "sqrt_newton_schulz",
    "square",
    "sylvester_psd",
    "times",
    "to_numpy",
]

Array = Any


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


def blend(old: Array, new: Array, weight: float) -> Array:
    """``(1 - weight) old + weight new``, in one pass where the library has one."""
    if is_torch(old) and old.dtype == new.dtype and (old.is_floating_point() or old.is_complex()):
        return sys.modules["torch"].lerp(old, new, weight)
    return (1 - weight) * old + weight * new


def square(a: Array) -> Array:
    """``|a|^2`` entry by entry, real."""
    complex_ = a.is_complex() if is_torch(a) else a.dtype.kind == "c"
    return a.real**2 + a.imag**2 if complex_ else a * a


def _damped(p: Array, damping: Any) -> Array:
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
    return p + expand(shift, 2) * eye_like(p)


@lru_cache(maxsize=256)
def _ones(r: int) -> np.ndarray:
    return np.ones(r)


@lru_cache(maxsize=16)
def _floors(dtype: Any) -> tuple[float, float]:
    """Ten machine epsilons, and a number whose reciprocal is still finite."""
    module = np if isinstance(dtype, np.dtype) else sys.modules["torch"]
    info = module.finfo(dtype)
    return 10.0 * float(info.eps), float(info.tiny) ** 0.5


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


def inv_psd(p: Array, damping: Any = 0.0) -> Array:
    """``(p + damping I)^{-1}`` for Hermitian PSD ``p`` (..., r, r).

    A floor of ten machine epsilons of the mean eigenvalue is always added, so a singular ``p`` gives a
    bounded inverse. To divide a thin matrix use `divide_psd`, which is far more accurate when ``p`` is
    ill-conditioned.
    """
    p = _damped(p, damping)
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
        solution = _posv(g.dtype.char)(_damped(p, damping).T, g.T, lower=1)
        if solution[2] == 0:
            return solution[1].T
    half = _inverse_cholesky(_damped(p, damping))
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
    return _inverse_cholesky(_damped(p, damping))


def _inverse_cholesky(p: Array) -> Array:
    """``L^{-1}`` with ``p = L L^H``; a symmetric root by eigenvalues where the factorization breaks down."""
    if type(p) is np.ndarray:
        try:
            return np.linalg.inv(np.linalg.cholesky(p))
        except np.linalg.LinAlgError:
            return power_psd(p, -0.5) if np.isfinite(p).all() else np.full_like(p, np.nan)
    return _triangular_inverse(_cholesky_torch(p))


def _cholesky_torch(p: Array) -> Array:
    """The Cholesky factor without a host synchronization; of a shifted matrix where ``p`` is not definite."""
    torch = sys.modules["torch"]
    lower, info = torch.linalg.cholesky_ex(p)
    if p.device.type == "cpu" and not torch.compiler.is_compiling() and not info.any():
        return lower  # on other devices to look would wait for them
    safer = p.diagonal(0, -2, -1).sum(-1).real * (1e4 * eps(p) / p.shape[-1])
    backup, _ = torch.linalg.cholesky_ex(p + expand(safer, 2) * eye_like(p))
    return torch.where(expand(info, 2) != 0, backup, lower)


def _triangular_inverse(lower: Array) -> Array:
    return sys.modules["torch"].linalg.solve_triangular(lower, eye_like(lower).expand_as(lower), upper=False)


def solve_psd(p: Array, b: Array, damping: Any = 0.0) -> Array:
    """``(p + damping I)^{-1} b`` for Hermitian PSD ``p`` (..., r, r) and ``b`` (..., r, k)."""
    p = _damped(p, damping)
    if type(p) is np.ndarray:
        return np.linalg.solve(p, b)
    return sys.modules["torch"].linalg.solve_ex(p, b).result


def _eigh_clamped(p: Array, floor: float | None) -> tuple[Array, Array]:
    """Eigenvalues raised to ``floor`` times the largest, and eigenvectors."""
    values, vectors = namespace(p).linalg.eigh(p)
    relative = eps(p) * p.shape[-1] if floor is None else floor
    top = values[..., -1:]
    tiny = float(namespace(values).finfo(values.dtype).tiny) ** 0.5
    return namespace(values).maximum(values, top * relative + tiny), vectors


def power_psd(p: Array, exponent: float, floor: float | None = None) -> Array:
    """``p ** exponent`` for Hermitian PSD ``p`` by eigendecomposition.

    Eigenvalues below ``floor`` (relative to the largest; default r times machine epsilon) are raised to it,
    so negative powers of a singular matrix stay finite.
    """
    values, vectors = _eigh_clamped(p, floor)
    return (vectors * (values**exponent)[..., None, :]) @ adjoint(vectors)


def sqrt_newton_schulz(p: Array, iterations: int = 20) -> tuple[Array, Array]:
    """``p^{1/2}`` and ``p^{-1/2}`` by the coupled Newton-Schulz iteration (matrix products only).

    Sixteen to twenty iterations serve condition numbers up to 1e4; damp first beyond that, or use
    `power_psd`. Source: :cite:`higham2008functions`, section 6.
    """
    scale = expand(inner(p, p) ** 0.5, 2)
    eye = eye_like(p)
    y, z = p / scale, eye + 0 * p
    for _ in range(iterations):
        t = 1.5 * eye - 0.5 * (z @ y)
        y, z = y @ t, t @ z
    return y * scale**0.5, z / scale**0.5


def riccati(px: Array, py: Array, floor: float | None = None) -> tuple[Array, Array]:
    """The positive definite ``S`` with ``S px S = py``, and its inverse.

    ``S`` is the geometric mean of ``px^{-1}`` and ``py``. With ``px = L L^H`` it is
    ``L^{-H} (L^H py L)^{1/2} L^{-1}``: one Cholesky factor and one eigendecomposition. Gram matrices are
    floored relative to their trace; where ``px`` or ``py`` is exactly zero no such matrix exists, and the
    identity is returned in its place (so the first step from a zero factor is a plain gradient step).
    """
    xp = namespace(px, py)
    if xp is np:
        lower = np.linalg.cholesky(_damped(px, 0.0))
        inverse = np.linalg.inv(lower)
    else:
        lower = _cholesky_torch(_damped(px, 0.0))
        inverse = _triangular_inverse(lower)
    values, vectors = _eigh_clamped(adjoint(lower) @ py @ lower, floor)
    half = (values**0.5)[..., None, :]
    s = adjoint(inverse) @ ((vectors * half) @ adjoint(vectors)) @ inverse
    s_inv = lower @ ((vectors / half) @ adjoint(vectors)) @ adjoint(lower)
    zero = (inner(px, px) == 0) | (inner(py, py) == 0)
    if xp is np and not zero.any():  # torch always selects: to look would wait for the device
        return s, s_inv
    mask, eye = expand(zero, 2), eye_like(px) + 0 * px
    return xp.where(mask, eye, s), xp.where(mask, eye, s_inv)


def sylvester_psd(p: Array, q: Array, c: Array) -> Array:
    """Solve ``p x + x q = c`` for Hermitian PSD ``p`` and ``q`` by two eigendecompositions."""
    xp = namespace(p, q, c)
    dp, up = xp.linalg.eigh(p)
    dq, uq = xp.linalg.eigh(q)
    rotated = adjoint(up) @ c @ uq
    sums = dp[..., :, None] + dq[..., None, :]
    tiny = eps(p) * sums[..., -1:, -1:] + float(xp.finfo(sums.dtype).tiny) ** 0.5
    return up @ (rotated / xp.maximum(sums, tiny)) @ adjoint(uq)


def polar(x: Array) -> Array:
    """The closest matrix with orthonormal columns, ``x (x^H x)^{-1/2}``, from the thin SVD."""
    u, _, vh = namespace(x).linalg.svd(x, full_matrices=False)
    return u @ vh


def orthonormalize(x: Array) -> Array:
    """The Q factor of the thin QR factorization, with columns signed as those of ``x``."""
    xp = namespace(x)
    q, r = xp.linalg.qr(x)
    d = r.diagonal(0, -2, -1)
    size = abs(d)
    phase = xp.where(size > 0, d / xp.where(size > 0, size, size + 1), xp.ones_like(d))
    return q * phase[..., None, :]
