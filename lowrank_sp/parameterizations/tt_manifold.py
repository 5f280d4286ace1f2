"""The embedded manifold of tensor trains of fixed ranks, as a form with its own retraction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from .. import trains, xp
from ..coverage import covers
from ..spaces import FLAT, STIEFEL, Space
from .tt import TensorTrain, TrainImage

__all__ = ["LEFT_ORTHOGONAL", "FixedRankTrain"]

Array = Any


def _unfolded(core: Array) -> Array:
    return core.reshape(*core.shape[:-3], -1, core.shape[-1])


@dataclass(frozen=True)
class LeftOrthogonal(Space):
    """Cores (..., r, n, r') whose left unfoldings have orthonormal columns."""

    def project(self, x, g):
        return STIEFEL.project(_unfolded(x), _unfolded(g)).reshape(x.shape)

    def retract(self, x, direction, lr):
        return STIEFEL.retract(_unfolded(x), _unfolded(direction), lr).reshape(x.shape)

    def random(self, rng, shape):
        flat = (*shape[:-3], shape[-3] * shape[-2], shape[-1])
        return STIEFEL.random(rng, flat).reshape(shape)


LEFT_ORTHOGONAL = LeftOrthogonal()


@covers("O16")
class FixedRankTrain(TrainImage):
    """A tensor train with left-orthogonal cores, on the manifold of tensors with these ranks.

    A tangent vector ``sum_k U_1 ... U_{k-1} D_k V_{k+1} ... V_d``, with the U the cores themselves, the V their
    right-orthogonal counterparts and ``U_k^H D_k = 0`` for k < d, is held in the same class as the cores D_k;
    with that reading ``inner`` is the Frobenius product of the tensors. ``pullback(G)`` is the coordinate vector
    of the tangent projection of G.

    Parameters
    ----------
    *cores : arrays (..., r_{k-1}, n_k, r_k)
        U_1, ..., U_{d-1} and the last core, which has no constraint; as fields ``core0``, ``core1``, ...

    Notes
    -----
    ``retract`` rounds the sum, a train of twice the ranks, back to the ranks. V is found by QR factorizations,
    so small singular values do no harm. Source: :cite:`lubich2015tt`; descent and conjugate gradients for
    completion :cite:`steinlechner2016tt`.
    """

    polynomial = False

    @classmethod
    def _spaces(cls, order):
        return (LEFT_ORTHOGONAL,) * (order - 1) + (FLAT,)

    @classmethod
    def from_train(cls, point: TensorTrain) -> Self:
        """The same tensor with left-orthogonal cores."""
        return cls(*trains.left_orthogonal(point.arrays()))

    def embedded(self, factors):
        return type(self).from_train(self.to_train().embedded(factors))

    def balanced(self):
        """The point itself: its cores are orthonormal."""
        return self

    def contract(self, index, g):
        return self.pullback(g).arrays()[index]

    def partial(self, index, g):
        return self.pullback(g).arrays()[index]

    def pullback(self, g):
        return self._tangent([self._mixed(k).partial(k, g) for k in range(len(self.names))])

    def _mixed(self, k: int) -> TensorTrain:
        """Left-orthogonal cores before, and right-orthogonal ones after, place k."""
        return TensorTrain(*self.arrays()[: k + 1], *self._right()[k + 1 :])

    def _right(self) -> list[Array]:
        """The right-orthogonal counterparts V_k; the first is not one of them."""
        return trains.right_orthogonal(self.arrays())

    def _tangent(self, parts: list[Array]) -> Self:
        return self.project(type(self)(*parts))

    def project(self, direction):
        *cores, _ = self.arrays()
        *moves, last = direction.arrays()
        parts = []
        for u, d in zip(cores, moves, strict=True):
            q, flat = _unfolded(u), _unfolded(d)
            parts.append((flat - q @ (xp.adjoint(q) @ flat)).reshape(d.shape))
        return type(self)(*parts, last)

    def whiten(self, grad, damping=0.0):
        """Every block of the differential is an isometry here, so only the damping acts."""
        return grad.scale(1.0 / (1.0 + damping))

    def expansion(self, direction, wrt):
        """The first-order term only: the curve that a retraction follows is this one to first order."""
        return [[TensorTrain(*self._ambient(direction))]]

    def _ambient(self, tangent: Self, weight: float = 0.0) -> list[Array]:
        """Cores of the tangent vector plus ``weight`` times the point, of twice the ranks."""
        cores, moves, right = self.arrays(), tangent.arrays(), self._right()
        out = [trains.block([[moves[0], cores[0]]])]
        for u, d, v in zip(cores[1:-1], moves[1:-1], right[1:-1], strict=True):
            out.append(trains.block([[v, None], [d, u]]))
        return [*out, trains.block([[right[-1]], [moves[-1] + weight * cores[-1]]])]

    def retract(self, direction, lr, wrt=None):
        return type(self)(*trains.truncated(self._ambient(direction.scale(-lr), 1.0), self.rank))

    def transport(self, new, vector):
        cores, right = self._ambient(vector), new._right()
        lefts, rights = [None], [None]
        for u, w in zip(new.arrays()[:-1], cores[:-1], strict=True):
            lefts.append(xp.adjoint(_unfolded(u)) @ _unfolded(_from_left(lefts[-1], w)))
        for v, w in zip(reversed(right[1:]), reversed(cores[1:]), strict=True):
            pulled = w if rights[-1] is None else w @ rights[-1][..., None, :, :]
            rights.append(pulled.reshape(*pulled.shape[:-2], -1) @ xp.adjoint(v.reshape(*v.shape[:-2], -1)))
        rights.reverse()
        parts = []
        for left, w, after in zip(lefts, cores, rights, strict=True):
            moved = _from_left(left, w)
            parts.append(moved if after is None else moved @ after[..., None, :, :])
        return new._tangent(parts)

    def to_train(self) -> TensorTrain:
        """The same cores without constraints."""
        return TensorTrain(*self.arrays())


def _from_left(matrix: Array | None, core: Array) -> Array:
    """The first bond of a core multiplied by a matrix, or the core itself."""
    if matrix is None:
        return core
    out = matrix @ core.reshape(*core.shape[:-2], -1)
    return out.reshape(*out.shape[:-1], *core.shape[-2:])
