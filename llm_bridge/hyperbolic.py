"""A low-rank map between points of hyperbolic space: HypLoRA."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from lowrank_sp.coverage import covers
from lowrank_sp.factors import factorization

from .functions import narrowed, outer, own_types
from .nonlinear import Bent

__all__ = ["HypLoRA"]

Array = Any

FARTHEST = 12.0  # in units of the radius of curvature, beyond which points no longer recede exponentially


@covers("P57")
@factorization
class HypLoRA(Bent):
    """``log_0(B A exp_0(x))`` on the hyperboloid ``-t^2 + |s|^2 = -K``, where ``B A`` acts on the coordinates s.

    The exponential map at the origin is ``s = sqrt(K) sinh(|x| / sqrt(K)) x / |x|``; the time-like coordinate of a
    point follows from the others, ``t = sqrt(K + |s|^2)``, so that it needs no map of its own, and the logarithm is
    ``sqrt(K) arsinh(|s| / sqrt(K)) s / |s|``. Between flat coordinates on both sides the map is linear along rays
    only: ``sinh`` stretches large inputs before the map and ``arsinh`` shrinks them behind it.

    Parameters
    ----------
    left : array (m, r)
        B; it vanishes at the start.
    right : array (n, r)
        A.
    curvature : array (1,)
        c, with ``K = log(1 + e^c)``.
    spread : array (1,)
        Inputs are divided by ``spread sqrt(n)``, so that typical ones lie at a distance of one.

    Notes
    -----
    For ``K`` to infinity it is LoRA of the divided input. Inputs farther than 12 radii of curvature are stretched as
    those at 12, where the published code lets all of them have that norm. The published method makes the time-like
    coordinate with the same K as here, its code with 1 / K, which leaves the hyperboloid.
    Source: :cite:`yang2025hyplora`.
    """

    left: Array
    right: Array
    curvature: Array
    spread: Array

    ndims = (2, 2, 1, 1)

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (shape[1], rank), (1,), (1,)

    def apply(self, x):
        # Both maps are factors of whole rows, and the length of an output follows from the Gram matrix of B: nothing
        # but r channels is worked on. They overflow in half precision, so that autocast has no say here either.
        precise = torch.promote_types(x.dtype, torch.float32)
        with own_types(x):
            left, right, curvature, spread = (a.to(precise) for a in self.arrays())
            radius, unit = F.softplus(curvature).sqrt(), 1 / (spread * x.shape[-1] ** 0.5)
            rows = x.reshape(-1, x.shape[-1])
            lengths = (
                torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=precise).square() * (unit / radius) ** 2
            )
            z = narrowed(rows, right.to(x.dtype)).to(precise) * (unit * _stretch(lengths.clamp_max(FARTHEST**2)))
            lengths = torch.linalg.vecdot(z @ (left.mT @ left), z)[..., None] / radius.square()
            out = outer(z * _shrink(lengths.clamp_min(0.0)), left).to(x.dtype)
        return out.view(*x.shape[:-1], len(self.left))


def _stretch(squares: Array) -> Array:
    """``sinh(q) / q`` from ``q^2``; its series near zero, where the root has no derivative."""
    near = squares < 1e-4
    q = torch.where(near, 1.0, squares).sqrt()
    return torch.where(near, 1 + squares / 6 + squares**2 / 120, q.sinh() / q)


def _shrink(squares: Array) -> Array:
    """``arsinh(q) / q`` from ``q^2``, in the same way."""
    near = squares < 1e-4
    q = torch.where(near, 1.0, squares).sqrt()
    return torch.where(near, 1 - squares / 6 + 3 * squares**2 / 40, q.asinh() / q)
