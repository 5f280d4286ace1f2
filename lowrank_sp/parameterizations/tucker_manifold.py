"""The embedded manifold of tensors of fixed multilinear ranks, as a form with its own retraction."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Self

import numpy as np

from .. import xp
from ..spaces import FLAT, STIEFEL
from ..tensors import SampledTensor, mode_product, unfold
from .tensor_fibers import fiber_partials
from .tucker import Tucker, TuckerImage

__all__ = ["FixedRankTucker"]

Array = Any


class FixedRankTucker(TuckerImage):
    """A Tucker tensor with orthonormal factors, on the manifold of tensors with these multilinear ranks.

    A tangent vector ``D x_1 U_1 ... x_d U_d + sum_k Q_k x_k V_k x_(j != k) U_j``, with ``U_k^H V_k = 0`` and Q_k the
    core with its unfolding in mode k made orthonormal from the left, is held in the same class as the core D and the
    factors V_k; with that reading ``inner`` is the Frobenius product of the tensors. ``pullback(G)`` is the
    coordinate vector of the tangent projection of G.

    Parameters
    ----------
    core : array (..., r_1, ..., r_d)
        C.
    *factors : arrays (..., n_k, r_k)
        U_k, one per mode that has a factor, as for `Tucker`.

    Notes
    -----
    ``retract`` truncates the sum, of twice the ranks, mode by mode. Q_k is found by a QR factorization, so small
    singular values do no harm: where the entries of `Tucker` points move in the metric of ScaledGD, tensors here move
    in their own, in which sampled entries are close to an isometry whatever the condition number.
    Source: :cite:`kressner2014tucker`, who retract by the higher-order SVD and take pseudo-inverses of C.

    Examples
    --------
    >>> import numpy as np
    >>> point = FixedRankTucker.random((3, 4, 5), 2, np.random.default_rng(0))
    >>> bool(np.isclose(point.frobenius(), np.linalg.norm(point.arrays()[0])))
    True
    """

    polynomial = False

    @classmethod
    def _spaces(cls, order, modes=None):
        return (FLAT, *(STIEFEL,) * (order if modes is None else len(modes)))

    @classmethod
    def from_tucker(cls, point: Tucker) -> Self:
        """The same tensor with orthonormal factors."""
        form = cls.of(*point.settings)
        return form(*point.balanced().arrays())

    def to_tucker(self) -> Tucker:
        """The same arrays without constraints."""
        return Tucker.of(*self.settings)(*self.arrays())

    def embedded(self, factors):
        return type(self).from_tucker(self.to_tucker().embedded(factors))

    def balanced(self):
        """The point itself: its factors are orthonormal."""
        return self

    def contract(self, index, g):
        return self.pullback(g).arrays()[index]

    def partial(self, index, g):
        return self.pullback(g).arrays()[index]

    def pullback(self, g):
        pairs = list(enumerate(self._seen()))
        parts = fiber_partials([(x, k) for k, x in pairs], g) if isinstance(g, SampledTensor) else None
        return self.project(type(self)(*([x.partial(k, g) for k, x in pairs] if parts is None else parts)))

    @cached_property
    def _frames(self) -> list[Array]:
        """The Q_k of the modes that have a factor."""
        core, d = self.arrays()[0], self.ndims[0]
        return [_folded(_orthonormal_rows(unfold(core, k, d)), core, k, d) for k in self._modes()]

    def _seen(self) -> list[Tucker]:
        """Points whose differential in array number k is the k-th part of the tangent space."""
        first = self.to_tucker()
        return [first, *(first.with_array(0, frame) for frame in self._frames)]

    def project(self, direction):
        parts = zip(self.arrays()[1:], direction.arrays()[1:], strict=True)
        return type(self)(direction.arrays()[0], *(xp.add_times(v, u, xp.cross(u, v), -1.0) for u, v in parts))

    def whiten(self, grad, damping=0.0):
        """Every block of the differential is an isometry here, so only the damping acts."""
        return grad.scale(1.0 / (1.0 + damping))

    def expansion(self, direction, wrt):
        """The first-order term only: the curve that a retraction follows is this one to first order."""
        moves = direction.arrays()
        return [[point.with_array(k, moves[k]) for k, point in enumerate(self._seen())]]

    def _ambient(self, tangent: Self, weight: float = 0.0) -> tuple[Array, list[Array]]:
        """The tangent vector plus ``weight`` times the point: a core of twice the ranks, and factors ``[U_k, V_k]``."""
        core, moves, d = self.arrays()[0], tangent.arrays(), self.ndims[0]
        first = moves[0] + weight * core
        sizes = first.shape[first.ndim - d :]
        wide = [2 * r if k in self._modes() else r for k, r in enumerate(sizes)]
        out = _zeros((*first.shape[: first.ndim - d], *wide), first)
        corner = [slice(0, r) for r in sizes]
        out[(..., *corner)] = first
        for k, frame in zip(self._modes(), self._frames, strict=True):
            out[(..., *corner[:k], slice(sizes[k], None), *corner[k + 1 :])] = frame
        cat = xp.namespace(core).concatenate
        return out, [cat(pair, -1) for pair in zip(self.arrays()[1:], moves[1:], strict=True)]

    def retract(self, direction, lr, wrt=None):
        core, factors = self._ambient(direction.scale(-lr), 1.0)
        d, ranks, out = self.ndims[0], self.rank, []
        for k, factor in zip(self._modes(), factors, strict=True):
            q, r = xp.namespace(factor).linalg.qr(factor)
            core = mode_product(core, r, k, d)
            out.append(q)
        for i, k in enumerate(self._modes()):
            basis = _leading(unfold(core, k, d), ranks[k])
            core, out[i] = mode_product(core, xp.adjoint(basis), k, d), out[i] @ basis
        return type(self)(core, *out)

    def transport(self, new, vector):
        core, factors = self._ambient(vector)
        d, modes = self.ndims[0], self._modes()
        seen = [xp.cross(u, f) for u, f in zip(new.arrays()[1:], factors, strict=True)]
        parts = [_but(core, seen, modes, None, d)]
        for k, factor, frame in zip(modes, factors, new._frames, strict=True):
            rest = unfold(_but(core, seen, modes, k, d), k, d) @ xp.adjoint(unfold(frame, k, d))
            parts.append(factor @ rest)
        return new.project(type(new)(*parts))


def _zeros(shape: tuple[int, ...], like: Array) -> Array:
    return like.new_zeros(shape) if xp.is_torch(like) else np.zeros(shape, like.dtype)


def _but(core: Array, matrices: list[Array], modes: tuple[int, ...], without: int | None, order: int) -> Array:
    """The core times matrices in some modes, except for one."""
    for k, matrix in zip(modes, matrices, strict=True):
        core = core if k == without else mode_product(core, matrix, k, order)
    return core


def _orthonormal_rows(flat: Array) -> Array:
    return xp.adjoint(xp.namespace(flat).linalg.qr(xp.adjoint(flat))[0])


def _folded(flat: Array, like: Array, mode: int, order: int) -> Array:
    """The inverse of `unfold`, to the shape of ``like``."""
    lead = like.ndim - order
    sizes = [n for k, n in enumerate(like.shape[lead:]) if k != mode]
    tensor = flat.reshape(*flat.shape[:-1], *sizes)
    return xp.namespace(tensor).moveaxis(tensor, lead, lead + mode)


def _leading(flat: Array, rank: int) -> Array:
    """Leading left singular vectors of a wide matrix, small ones right: from its triangular factor."""
    backend = xp.namespace(flat)
    if flat.shape[-1] > flat.shape[-2]:
        flat = xp.adjoint(backend.linalg.qr(xp.adjoint(flat))[1])
    return backend.linalg.svd(flat, full_matrices=False)[0][..., :rank]
