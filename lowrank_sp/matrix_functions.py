"""Roots, geometric means, polar factors and Sylvester equations of small matrices in batches.

On a processor by eigenvalues or singular values. On an accelerator those are slow for small matrices, and the host
waits to hear whether they converged; there a fixed number of matrix products takes their place.
"""

from __future__ import annotations

import math
import sys
from functools import lru_cache
from typing import Any

import numpy as np

from .arrays import eps, expand, eye_like, inner, is_remote, norm
from .definite import damped, eigh_clamped, halves, power_psd
from .namespaces import adjoint, namespace

__all__ = [
    "inverse_root_psd",
    "orthonormalize",
    "polar",
    "resolvent_root_psd",
    "riccati",
    "sqrt_newton_schulz",
    "sylvester_psd",
    "unitary",
]

Array = Any


# by matrix products --------------------------------------------------------------------------------------------
# The least singular value for which a step of `unitary` is made to measure. A smaller one would let a step send the
# largest singular values close to zero, and their vectors would drown in rounding.
LEAST = 0.1


@lru_cache(maxsize=64)
def _scales(smallest: float) -> tuple[float, ...]:
    """Scales ``a`` of the steps ``3/2 a x - 1/2 (a x)^3`` that take [smallest, 1] to 1 up to rounding."""
    scales = []
    while smallest < 1 - 1e-4:
        low = max(smallest, LEAST)
        a = (3 / (1 + low + low * low)) ** 0.5  # sends both ends of [low, 1] to one value, the least of all
        scales.append(a)
        smallest *= a * (1.5 - 0.5 * (a * smallest) ** 2)
    return (*scales, 1.0, 1.0)


def unitary(a: Array, smallest: float) -> Array:
    """The unitary polar factor of square matrices (..., r, r).

    From singular values on a processor. Elsewhere by the Newton-Schulz iteration with the best scale for every step:
    two products a step, and a fixed number of steps, so that nothing waits for the device.

    Parameters
    ----------
    a : array (..., r, r)
    smallest : float
        Elsewhere singular values down to this share of ``||a||_F`` become one. Those below come out between zero and
        one, and all of a zero matrix as zero.

    Notes
    -----
    Source: :cite:`chen2014newtonschulz`.
    """
    return _newton_schulz(a, smallest) if is_remote(a) else polar(a)


def _newton_schulz(a: Array, smallest: float) -> Array:
    torch = sys.modules["torch"]
    x = a.reshape(-1, *a.shape[-2:])
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + float(torch.finfo(a.dtype).tiny) ** 0.5)
    for scale in _scales(smallest):
        x = torch.baddbmm(x, x, x.mH @ x, beta=1.5 * scale, alpha=-0.5 * scale**3)
    return x.reshape(a.shape)


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


# roots ---------------------------------------------------------------------------------------------------------
def _triangle(p: Array) -> tuple[Array, Array, Array]:
    """L, its inverse, and the unitary polar factor U of ``L^H``, with ``p + floor I = L L^H``: ``p^{1/2} = L U``."""
    lower, inverse = halves(damped(p, 0.0))
    # With that floor the condition number of p is below r^2 / (10 eps).
    return lower, inverse, unitary(adjoint(lower), (10 * eps(p)) ** 0.5 / p.shape[-1])


def inverse_root_psd(p: Array) -> Array:
    """``p^{-1/2}`` for Hermitian PSD ``p`` (..., r, r).

    Eigenvalues below a floor are raised to it, or nearly so: r machine epsilons of the largest on a processor, ten of
    the mean elsewhere.
    """
    if not is_remote(p):
        return power_psd(p, -0.5)
    _, inverse, turn = _triangle(p)
    return adjoint(inverse) @ turn


def resolvent_root_psd(p: Array, shift: float) -> Array:
    """``(p^{1/2} + shift I)^{-1}`` for Hermitian PSD ``p`` (..., r, r) and a number ``shift`` that is not negative.

    The floor of `inverse_root_psd` applies: where ``p`` is singular, a small shift alone would leave rounding errors
    multiplied by its inverse.
    """
    if is_remote(p):
        lower, _, turn = _triangle(p)
        root = lower @ turn
        root.diagonal(0, -2, -1).add_(shift)
        return sys.modules["torch"].linalg.inv_ex(root).inverse
    values, vectors = eigh_clamped(p)
    return (vectors / (values**0.5 + shift)[..., None, :]) @ adjoint(vectors)


def riccati(px: Array, py: Array) -> tuple[Array, Array]:
    """The positive definite ``S`` with ``S px S = py``, and its inverse, for matrices (..., r, r) of one shape.

    ``S`` is the geometric mean of ``px^{-1}`` and ``py``. With ``px = L_x L_x^H``, ``py = L_y L_y^H`` and U the
    unitary polar factor of ``L_y^H L_x`` it is ``L_x^{-H} U^H L_y^H``. That factor sees the root of the condition
    number of ``L_x^H py L_x``, which the square root in ``L_x^{-H} (L_x^H py L_x)^{1/2} L_x^{-1}`` would see.

    Both matrices have the floor of `inv_psd`; where ``px`` or ``py`` is exactly zero no such matrix exists, and the
    identity is returned in its place (so the first step from a zero factor is a plain gradient step).
    """
    xp = namespace(px, py)
    (lx, ly), inverses = halves(damped(xp.stack((px, py)), 0.0))
    turn = unitary(adjoint(ly) @ lx, eps(px) / px.shape[-1])
    s, s_inv = adjoint(inverses) @ xp.stack((adjoint(turn), turn)) @ adjoint(xp.stack((ly, lx)))
    zero = (inner(px, px) == 0) | (inner(py, py) == 0)
    if xp is np and not zero.any():  # torch always selects: to look would wait for the device
        return s, s_inv
    mask, eye = expand(zero, 2), eye_like(px)
    return xp.where(mask, eye, s), xp.where(mask, eye, s_inv)


# equations -----------------------------------------------------------------------------------------------------
def sylvester_psd(p: Array, q: Array, c: Array) -> Array:
    """Solve ``p x + x q = c`` for Hermitian PSD ``p`` (..., r, r) and ``q`` (..., k, k).

    By two eigendecompositions on a processor; elsewhere p and q have to be of one shape. Sums of eigenvalues below a
    machine epsilon of the largest are raised to it, or nearly so.
    """
    if is_remote(c):
        return _sylvester_doubling(p, q, c)
    xp = namespace(p, q, c)
    dp, up = xp.linalg.eigh(p)
    dq, uq = xp.linalg.eigh(q)
    rotated = adjoint(up) @ c @ uq
    sums = dp[..., :, None] + dq[..., None, :]
    tiny = eps(p) * sums[..., -1:, -1:] + float(xp.finfo(sums.dtype).tiny) ** 0.5
    return up @ (rotated / xp.maximum(sums, tiny)) @ adjoint(uq)


def _sylvester_doubling(p: Array, q: Array, c: Array) -> Array:
    """`sylvester_psd` by products: ``x = a x b + f`` with contractions a and b, summed by doubling.

    The equation is that of ``p + s`` and ``q - s``: s makes their least eigenvalues equal, so that what counts is the
    condition number of the sums. Then ``a = (p - t)(p + t)^{-1}``, and b likewise, with t in the middle of what
    eigenvalues there are. Source: :cite:`smith1968`.
    """
    torch = sys.modules["torch"]
    both = torch.stack((p, q)).flatten(1, -3) if p.ndim > 2 else torch.stack((p, q))[:, None]  # (2, k, r, r)
    least = norm(halves(damped(both, 0.0))[1]) ** -2  # (2, k), at most a factor of r below the eigenvalue
    top = norm(both).sum(0)
    floor = eps(p) * top + float(torch.finfo(top.dtype).tiny) ** 0.5
    middle = ((least.sum(0) / 2 + floor) * (top + floor)) ** 0.5
    shift = (least[1] - least[0]) / 2
    both = both.clone()
    both.diagonal(0, -2, -1).add_((middle + floor + torch.stack((shift, -shift)))[..., None])
    over = torch.linalg.inv_ex(both).inverse * expand(2 * middle, 2)
    both = eye_like(over) - over  # a and b
    x = over[0] @ (c.reshape(both[0].shape) / expand(2 * middle, 2)) @ over[1]
    for _ in range(math.ceil(math.log2(-math.log(eps(p)) / 4 / eps(p) ** 0.5))):
        x = torch.baddbmm(x, both[0] @ x, both[1])
        both = both @ both
    return x.reshape(c.shape)


# orthonormal columns -------------------------------------------------------------------------------------------
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
