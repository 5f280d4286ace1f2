"""The tensor train: a chain of cores, one per mode."""

from __future__ import annotations

from math import prod
from typing import Any, Self

import numpy as np

from .. import trains, xp
from ..constants import identity
from ..coverage import covers
from ..factors import Gauged, Multilinear
from .core import Core, shift
from .tensor import ByOrder, TensorFactors

__all__ = ["TensorTrain", "TrainImage", "bond_ranks"]

Array = Any


def bond_ranks(shape: tuple[int, ...], rank: Any) -> tuple[int, ...]:
    """The d - 1 bond ranks: one number is cut to what each bond can hold, several must fit.

    Raises
    ------
    ValueError
        For anything else.
    """
    several = np.ndim(rank) > 0
    given = tuple(rank) if several else (rank,) * (len(shape) - 1)
    if len(given) != len(shape) - 1 or any(isinstance(r, bool) or int(r) != r or r < 1 for r in given):
        raise ValueError(f"rank must be a positive integer or {len(shape) - 1} of them, one per bond, got {rank!r}")
    sizes = [min(prod(shape[:k]), prod(shape[k:])) for k in range(1, len(shape))]
    ranks = [min(int(r), n) for r, n in zip(given, sizes, strict=True)]
    for k in (*range(len(ranks)), *reversed(range(len(ranks)))):
        left, right = (ranks[k - 1] if k else 1), (ranks[k + 1] if k + 1 < len(ranks) else 1)
        ranks[k] = min(ranks[k], left * shape[k], right * shape[k + 1])
    if several and tuple(ranks) != given:
        raise ValueError(f"rank {given} does not fit shape {shape}, whose bonds hold at most {tuple(ranks)} with it")
    if not several and rank > max(sizes):
        raise ValueError(f"rank must lie between 1 and {max(sizes)} for a train of shape {shape}, got {rank}")
    return tuple(ranks)


class TrainImage(TensorFactors, ByOrder):
    """The tensor ``G_1[:, i_1, :] G_2[:, i_2, :] ... G_d[:, i_d, :]``, whatever its differential."""

    zeros = ("core0",)

    @classmethod
    def _of_arrays(cls, arrays):
        return cls.of(len(arrays))

    @classmethod
    def _fields(cls, order):
        return {f"core{k}": 3 for k in range(order)}

    @classmethod
    def from_tensor(cls, tensor, rank):
        """TT-SVD."""
        form = cls if cls.names else cls.of(tensor.ndim)
        order = len(form.names)
        return form(*trains.decompose(tensor, order, bond_ranks(tuple(tensor.shape[-order:]), rank)))

    @classmethod
    def shapes(cls, shape, rank):
        cls.for_shape(shape)
        bonds = (1, *bond_ranks(tuple(int(n) for n in shape), rank), 1)
        return tuple((bonds[k], int(n), bonds[k + 1]) for k, n in enumerate(shape))

    @property
    def shape(self):
        return tuple(int(core.shape[-2]) for core in self.arrays())

    @property
    def rank(self):
        """One number per bond."""
        return tuple(int(core.shape[-1]) for core in self.arrays()[:-1])

    def dense(self):
        return trains.multiplied_out(self.arrays())

    def train(self):
        return list(self.arrays())

    def matrix(self, *index, modes=(-2, -1)):
        """A `Core` point: the cores before, between and after the two modes are contracted."""
        d = len(self.names)
        rows, cols = (k % d for k in modes)
        low, high = min(rows, cols), max(rows, cols)
        others = [k for k in range(d) if k not in (rows, cols)]
        if len(index) != len(others):
            raise ValueError(f"index must hold {len(others)} integers, one per mode beside {modes}, got {index}")
        arrays = list(self.arrays())
        for k, i in zip(others, index, strict=True):
            arrays[k] = arrays[k][..., i : i + 1, :] if i != -1 else arrays[k][..., -1:, :]
        first = trains.merged(arrays[: low + 1])  # (..., 1, n_low, r)
        between = trains.merged(arrays[low + 1 : high]) if high > low + 1 else None
        last = trains.merged(arrays[high:])  # (..., r, n_high, 1)
        left, right = first[..., 0, :, :], last[..., 0].mT
        core = identity(right.shape[-1], right) if between is None else between[..., 0, :]
        core = core + 0 * left[..., :1, :1]
        if rows < cols:
            return Core(left, core, right.conj())
        return Core(right, core.mT, left.conj())

    def mode_of(self, index):
        return index

    def as_rows(self, index, array):
        front = array.swapaxes(-3, -2)
        return front.reshape(*front.shape[:-2], -1)

    def from_rows(self, index, rows):
        core = self.arrays()[index]
        return rows.reshape(*rows.shape[:-1], core.shape[-3], core.shape[-1]).swapaxes(-3, -2)

    def design(self, index, indices):
        arrays = self.arrays()
        left = self._walk(arrays[:index], indices[:index])
        right = self._walk([c.swapaxes(-3, -1) for c in arrays[:index:-1]], indices[:index:-1])
        if left is None or right is None:
            return left if right is None else right
        return (left[..., :, None] * right[..., None, :]).reshape(*left.shape[:-1], -1)

    @staticmethod
    def _walk(cores: Any, indices: Any) -> Any:
        """Products of sampled slices from one end, (..., N, r); None for no core."""
        total = None
        for core, places in zip(cores, indices, strict=True):
            front = core.swapaxes(-3, -2)  # (..., n, r, r')
            picked = front[..., places, :, :]
            total = picked[..., 0, :] if total is None else (total[..., None, :] @ picked)[..., 0, :]
        return total


@covers("P75", "P76")
class TensorTrain(Multilinear, TrainImage, Gauged):
    """``W[i_1, ..., i_d] = G_1[:, i_1, :] G_2[:, i_2, :] ... G_d[:, i_d, :]``, the tensor train.

    Parameters
    ----------
    *cores : arrays (..., r_{k-1}, n_k, r_k)
        One per mode, with ``r_0 = r_d = 1``; as fields ``core0``, ``core1``, ...

    Notes
    -----
    A size is one number, cut to what each bond can hold, or one per bond. The number of parameters depends on
    the order of the modes. The gauge group is GL(r_k) at every bond; ``gauge`` acts on the first.
    Source: :cite:`oseledets2011tt`; section IV-C of :cite:`survey2026sp`.

    Examples
    --------
    >>> TensorTrain(np.ones((1, 2, 1)), np.array([[[1.0], [2.0]]])).dense().tolist()
    [[1.0, 2.0], [1.0, 2.0]]
    """

    def embedded(self, factors):
        return type(self)(*[u[..., None, :, :] @ core for u, core in zip(factors, self.arrays(), strict=True)])

    def balanced(self):
        """Left-orthogonal cores, each scaled to the same share of the norm."""
        *cores, last = trains.left_orthogonal(self.arrays())
        size = xp.inner(last, last, 3) ** (0.5 / len(self.names))
        size = xp.expand(size + (size == 0), 3)
        return type(self)(*[size * core for core in cores], last / size ** len(cores))

    def contract(self, index, g):
        """The cores before and after are contracted with ``g``, from the ends."""
        arrays, d, sizes = [core.conj() for core in self.arrays()], len(self.names), self.shape
        batch = g.shape[: g.ndim - d]
        left, rest = 1, g.reshape(*batch, 1, -1)
        for core, n in zip(arrays[:index], sizes, strict=False):
            rest = rest.reshape(*rest.shape[:-2], left * n, -1)
            rest = core.reshape(*core.shape[:-3], left * n, -1).mT @ rest
            left = rest.shape[-2]
        right = 1
        for core, n in zip(arrays[:index:-1], sizes[:index:-1], strict=True):
            rest = rest.reshape(*rest.shape[:-2], -1, n * right)
            rest = rest @ core.reshape(*core.shape[:-2], -1).mT
            right = rest.shape[-1]
            rest = rest.reshape(*rest.shape[:-2], left, -1)
        return rest.reshape(*rest.shape[:-2], left, sizes[index], right)

    def whiten(self, grad, damping=0.0):
        left, right = _left_grams(self.arrays()), _right_grams(self.arrays())
        out = []
        for p, q, g in zip(left, right, grad.arrays(), strict=True):
            out.append(_whitened(p, q, g.swapaxes(-3, -2), damping).swapaxes(-3, -2))
        return type(self)(*out)

    def gauge(self, q):
        first, second, *rest = self.arrays()
        r, n, s = second.shape[-3:]
        inverse = xp.namespace(q).linalg.inv(q)
        moved = (inverse @ second.reshape(*second.shape[:-3], r, n * s)).reshape(second.shape)
        return type(self)(first @ q[..., None, :, :], moved, *rest)

    def random_gauge(self, rng):
        first = self.arrays()[0]
        r = first.shape[-1]
        return xp.asarray_like(np.eye(r) + 0.3 * rng.standard_normal((*self.batch_shape, r, r)), first)

    def to_tensorly(self) -> Any:
        """A tensorly ``TTTensor``."""
        from tensorly.tt_tensor import TTTensor

        return TTTensor(list(self.arrays()))

    @classmethod
    def from_tensorly(cls, tensor: Any) -> Self:
        """From a tensorly ``TTTensor`` or a list of cores."""
        return cls(*tensor)


def _left_grams(cores: Any) -> list[Array]:
    """Gram matrices (..., r_{k-1}, r_{k-1}) of everything before core k."""
    grams = [cores[0][..., :1, :1, 0] * 0 + 1]
    for core in cores[:-1]:
        weighted = (grams[-1] @ core.reshape(*core.shape[:-2], -1)).reshape(core.shape)
        flat = core.reshape(*core.shape[:-3], -1, core.shape[-1])
        grams.append(xp.adjoint(flat) @ weighted.reshape(flat.shape))
    return grams


def _right_grams(cores: Any) -> list[Array]:
    """The same of everything after core k, transposed: ``conj(R) R^T``."""
    turned = _left_grams([core.swapaxes(-3, -1) for core in reversed(cores)])
    return [gram.conj() for gram in reversed(turned)]


def _whitened(p: Array, q: Array, g: Array, damping: Any) -> Array:
    """Solve ``p x_i q + damping x_i = g_i`` for the slices (..., n, r, r') and Hermitian PSD p and q."""
    backend = xp.namespace(g)
    dp, up = backend.linalg.eigh(p)
    dq, uq = backend.linalg.eigh(q)
    products = dp[..., :, None] * dq[..., None, :]
    floor = 10.0 * xp.eps(g) * products[..., -1:, -1:] + float(backend.finfo(g.dtype).tiny) ** 0.5
    scale = backend.maximum(shift(products, damping), floor)
    up, uq, scale = up[..., None, :, :], uq[..., None, :, :], scale[..., None, :, :]
    return up @ ((xp.adjoint(up) @ g @ uq) / scale) @ xp.adjoint(uq)
