"""The canonical polyadic form of tensors: a sum of r outer products."""

from __future__ import annotations

from math import prod
from typing import Any, Self

import numpy as np

from .. import xp
from ..constants import identity
from ..coverage import covers
from ..factors import Gauged, Multilinear
from ..tensors import take_rows
from .core import DiagonalCore
from .diagonalization import diagonalized
from .tensor import ByOrder, TensorFactors

__all__ = ["CP"]

Array = Any


def _columns(factors: Any) -> Array:
    """Column by column the Kronecker products of matrices (..., n_j, r): (..., product of the n_j, r)."""
    total = factors[0]
    for factor in factors[1:]:
        total = total[..., :, None, :] * factor[..., None, :, :]
        total = total.reshape(*total.shape[:-3], -1, total.shape[-1])
    return total


@covers("P70")
class CP(Multilinear, TensorFactors, ByOrder, Gauged):
    """``W = sum_k a_k o b_k o c_k ...``, the canonical polyadic form (CANDECOMP, PARAFAC).

    Parameters
    ----------
    *factors : arrays (..., n_j, r)
        One per mode, of which there are at least two; as fields ``factor0``, ``factor1``, ...

    Notes
    -----
    The gauge group rescales the components. ``r (n_1 + ... + n_d)`` numbers. With the layers of a network as a
    mode, ``matrix`` gives the update of one of them. Source: :cite:`kolda2009tensor`; equation (8) of
    :cite:`survey2026sp`.

    Examples
    --------
    >>> CP(np.array([[1.0], [2.0]]), np.ones((3, 1)), np.array([[1.0], [0.0]])).dense()[:, 0].tolist()
    [[1.0, 0.0], [2.0, 0.0]]
    """

    zeros = ("factor0",)

    @classmethod
    def _of_arrays(cls, arrays):
        return cls.of(len(arrays))

    @classmethod
    def _fields(cls, order):
        return {f"factor{k}": 2 for k in range(order)}

    @property
    def shape(self):
        return tuple(int(a.shape[-2]) for a in self.arrays())

    @property
    def rank(self):
        return self.arrays()[0].shape[-1]

    @classmethod
    def shapes(cls, shape, rank):
        if isinstance(rank, bool) or not (np.ndim(rank) == 0 and int(rank) == rank and rank >= 1):
            raise ValueError(f"rank of a CP tensor must be a positive integer, got {rank!r}")
        cls.for_shape(shape)
        return tuple((int(n), int(rank)) for n in shape)

    @classmethod
    def from_tensor(cls, tensor, rank):
        """By simultaneous diagonalization where the rank is at most two of the sizes, see `diagonalized`."""
        form = cls if cls.names else cls.of(tensor.ndim)
        order = len(form.names)
        form.shapes(tensor.shape[-order:], rank)
        return form(*diagonalized(tensor, order, int(rank)))

    def dense(self):
        arrays = self.arrays()
        half = (len(arrays) + 1) // 2
        matrix = _columns(arrays[:half]) @ _columns(arrays[half:]).mT
        return matrix.reshape(*matrix.shape[:-2], *self.shape)

    def train(self):
        first, *middle, last = self.arrays()
        eye = identity(self.rank, first)
        cores = [eye[:, None, :] * a[..., None, :, :] for a in middle]
        return [first[..., None, :, :], *cores, last.mT[..., None]]

    def embedded(self, factors):
        return type(self)(*[u @ a for u, a in zip(factors, self.arrays(), strict=True)])

    def matrix(self, *index, modes=(-2, -1)):
        """A `DiagonalCore` point: the values are the products of the rows that ``index`` names."""
        d = len(self.names)
        rows, cols = (k % d for k in modes)
        others = [a for k, a in enumerate(self.arrays()) if k not in (rows, cols)]
        if len(index) != len(others):
            raise ValueError(f"index must hold {len(others)} integers, one per mode beside {modes}, got {index}")
        left, right = self.arrays()[rows], self.arrays()[cols]
        values = xp.namespace(left).ones_like(left[..., 0, :])
        for a, i in zip(others, index, strict=True):
            values = values * a[..., i, :]
        return DiagonalCore(left, values, right.conj())

    def balanced(self):
        """Every component with equal norms in all modes."""
        arrays = self.arrays()
        norms = [((abs(a) ** 2).sum(-2)[..., None, :]) ** 0.5 for a in arrays]
        mean = prod(norms[1:], start=norms[0]) ** (1 / len(arrays))
        return type(self)(*[a * (mean / (n + (n == 0))) for a, n in zip(arrays, norms, strict=True)])

    def mode_of(self, index):
        return index

    def design(self, index, indices):
        factors = [take_rows(a, i) for k, (a, i) in enumerate(zip(self.arrays(), indices, strict=True)) if k != index]
        return prod(factors[1:], start=factors[0])

    def as_rows(self, index, array):
        return array

    def from_rows(self, index, rows):
        return rows

    def contract(self, index, g):
        """``G_(k) conj(the Khatri-Rao product of the others)``, from the right and then from the left."""
        arrays, d = [a.conj() for a in self.arrays()], len(self.names)
        sizes = self.shape
        batch = g.shape[: g.ndim - d]
        if index == d - 1:  # one product: no column has an array of the size of the tensor of its own
            return g.reshape(*batch, -1, sizes[index]).mT @ _columns(arrays[:index])
        half = g.reshape(*batch, -1, prod(sizes[index + 1 :])) @ _columns(arrays[index + 1 :])
        if index == 0:
            return half
        half = half.reshape(*half.shape[:-2], -1, sizes[index], half.shape[-1])
        return (half * _columns(arrays[:index])[..., :, None, :]).sum(-3)

    def whiten(self, grad, damping=0.0):
        grams = [xp.gram(a).conj() for a in self.arrays()]
        out = []
        for k, g in enumerate(grad.arrays()):
            others = grams[:k] + grams[k + 1 :]
            out.append(xp.divide_psd(g, prod(others[1:], start=others[0]), damping))
        return type(self)(*out)

    def gauge(self, q):
        d = q.diagonal(0, -2, -1)[..., None, :]
        first, second, *rest = self.arrays()
        return type(self)(first * d, second / d, *rest)

    def random_gauge(self, rng):
        scales = rng.choice((-1.0, 1.0), (*self.batch_shape, self.rank)) * rng.uniform(
            0.5, 2.0, (*self.batch_shape, self.rank)
        )
        return xp.asarray_like(np.eye(self.rank) * scales[..., None], self.arrays()[0])

    def to_tensorly(self) -> Any:
        """A tensorly ``CPTensor`` with unit weights."""
        from tensorly.cp_tensor import CPTensor

        return CPTensor((None, list(self.arrays())))

    @classmethod
    def from_tensorly(cls, tensor: Any) -> Self:
        """From a tensorly ``CPTensor`` or a pair of weights and factors."""
        weights, factors = tensor
        first = factors[0] if weights is None else factors[0] * weights
        return cls(first, *factors[1:])
