"""The Tucker form of tensors: a small core times one factor per mode."""

from __future__ import annotations

from math import prod
from typing import Any, Self

import numpy as np

from .. import trains, xp
from ..constants import identity
from ..coverage import covers
from ..factors import Gauged, Multilinear
from ..tensors import SampledTensor, khatri_rao_rows, mode_product, take_rows, unfold
from .core import Core, shift
from .diagonalization import compressed, leading_bases
from .tensor import ByOrder, TensorFactors, check_order
from .tensor_fibers import split

__all__ = ["Tucker", "TuckerImage", "whitened_core"]

Array = Any


class TuckerImage(TensorFactors, ByOrder):
    """The tensor ``C x_1 U_1 x_2 U_2 ... x_d U_d``, whatever its differential."""

    zeros = ("core",)

    @classmethod
    def of(cls, order: int, modes: Any = None) -> type[Self]:
        """The form for tensors with ``order`` modes, of which ``modes`` have factors (all, by default)."""
        order = check_order(order)
        if modes is None or tuple(modes) == tuple(range(order)):
            return cls.configured(f"{cls._base().__name__}{order}", order)
        chosen = tuple(sorted({int(k) for k in modes}))
        if not chosen or chosen[0] < 0 or chosen[-1] >= order:
            raise ValueError(f"modes must be some of 0..{order - 1}, got {modes!r}")
        return cls.configured(f"{cls._base().__name__}{order}at{''.join(map(str, chosen))}", order, chosen)

    @classmethod
    def _of_arrays(cls, arrays):
        return cls.of(len(arrays) - 1)

    @classmethod
    def _fields(cls, order, modes=None):
        return {"core": order, **{f"factor{k}": 2 for k in (range(order) if modes is None else modes)}}

    @classmethod
    def _modes(cls) -> tuple[int, ...]:
        """The modes that have a factor."""
        return cls.settings[1] if len(cls.settings) > 1 else tuple(range(cls.ndims[0]))

    def _factors(self) -> list[Array]:
        """One factor per mode, the identity where there is none."""
        core, *given = self.arrays()
        found = dict(zip(self._modes(), given, strict=True))
        order, like = self.ndims[0], core
        eyes = ((k, int(core.shape[core.ndim - order + k])) for k in range(order))
        return [found[k] if k in found else identity(n, like) for k, n in eyes]

    @property
    def shape(self):
        core, *given = self.arrays()
        sizes = [int(n) for n in core.shape[core.ndim - self.ndims[0] :]]
        for k, u in zip(self._modes(), given, strict=True):
            sizes[k] = int(u.shape[-2])
        return tuple(sizes)

    @property
    def rank(self):
        """One number per mode."""
        core = self.arrays()[0]
        return tuple(int(n) for n in core.shape[core.ndim - self.ndims[0] :])

    @classmethod
    def shapes(cls, shape, rank):
        form = cls.for_shape(shape)
        ranks = _ranks(tuple(int(n) for n in shape), rank, form._modes())
        return ranks, *((int(shape[k]), ranks[k]) for k in form._modes())

    @classmethod
    def from_tensor(cls, tensor, rank):
        """The truncated higher-order SVD."""
        form = cls if cls.names else cls.of(tensor.ndim)
        order = form.ndims[0]
        ranks = form.shapes(tensor.shape[-order:], rank)[0]
        bases = leading_bases(tensor, order, ranks)
        given = [bases[k] for k in form._modes()]
        for k in range(order):
            if k not in form._modes():
                bases[k] = identity(ranks[k], tensor)
        return form(compressed(tensor, bases), *given)

    def dense(self):
        total, *given = self.arrays()
        for k, u in zip(self._modes(), given, strict=True):
            total = mode_product(total, u, k, self.ndims[0])
        return total

    def train(self):
        cores = trains.decompose(self.arrays()[0], self.ndims[0])
        return [u[..., None, :, :] @ core for u, core in zip(self._factors(), cores, strict=True)]

    def matrix(self, *index, modes=(-2, -1)):
        """A `Core` point: the core contracted with the rows that ``index`` names."""
        d = self.ndims[0]
        rows, cols = (k % d for k in modes)
        others = [k for k in range(d) if k not in (rows, cols)]
        if len(index) != len(others):
            raise ValueError(f"index must hold {len(others)} integers, one per mode beside {modes}, got {index}")
        factors, core = self._factors(), self.arrays()[0]
        for k, i in zip(others, index, strict=True):
            core = mode_product(core, factors[k][..., i, None, :], k, d)
        small = core.reshape(*core.shape[: core.ndim - d], factors[min(rows, cols)].shape[-1], -1)
        return Core(factors[rows], small if rows < cols else small.mT, factors[cols].conj())

    def mode_of(self, index):
        return None if index == 0 else self._modes()[index - 1]

    def design(self, index, indices):
        mode = self.mode_of(index)
        parts = [take_rows(u, i) for k, (u, i) in enumerate(zip(self._factors(), indices, strict=True)) if k != mode]
        product = khatri_rao_rows(parts)
        return product if mode is None else product @ unfold(self.arrays()[0], mode, self.ndims[0]).mT

    def grams(self, index, pattern):
        """Those of the core as the core of a Tucker tensor of ones, with products of two columns for columns."""
        if index or split(self, pattern.count) is None:
            return super().grams(index, pattern)
        core = self.arrays()[0]
        ranks, d = core.shape, core.ndim
        factors = [(u[:, :, None] * u.conj()[:, None, :]).reshape(u.shape[0], -1) for u in self._factors()]
        pairs = Tucker.of(d)(xp.asarray_like(np.zeros([r**2 for r in ranks]), core), *factors)
        ones = SampledTensor(pattern, xp.asarray_like(np.ones(pattern.count), core))
        sums = pairs.partial(0, ones).reshape([r for r in ranks for _ in range(2)])
        order = (*range(0, 2 * d, 2), *range(1, 2 * d, 2))
        moved = sums.permute(order) if xp.is_torch(sums) else sums.transpose(order)
        return moved.reshape(1, prod(ranks), prod(ranks))

    def as_rows(self, index, array):
        return array if index else array.reshape(*array.shape[: array.ndim - self.ndims[0]], 1, -1)

    def from_rows(self, index, rows):
        return rows if index else rows.reshape(*rows.shape[:-2], *self.rank)


@covers("P73", "P74", "O14")
class Tucker(Multilinear, TuckerImage, Gauged):
    """``W = C x_1 U_1 x_2 U_2 ... x_d U_d``, the form of Tucker.

    Parameters
    ----------
    core : array (..., r_1, ..., r_d)
        C.
    *factors : arrays (..., n_k, r_k)
        U_k, one per mode that has a factor; as fields ``factor0``, ``factor1``, ...

    Notes
    -----
    ``Tucker.of(order, modes)`` is the form with factors in some modes only: the identity stands in the others
    (Tucker-2 of layers x m x n is ``Tucker.of(3, (1, 2))``). A size is one number for all modes, cut to what
    each mode can hold, or one per mode. ``whiten`` is ScaledGD for this form: the Gram matrices of the factors
    seen through the core, and for the core those of the factors themselves. The gauge group is GL(r_k) in every
    mode; ``gauge`` acts on the first factor.
    Source: :cite:`tucker1966`; scaled steps :cite:`tong2022tensor`; equations (9) and (10) of
    :cite:`survey2026sp`, the second with the identity of the layers' size.

    Examples
    --------
    >>> Tucker(np.ones((1, 1, 1)), np.ones((2, 1)), np.ones((3, 1)), np.array([[1.0], [2.0]])).dense()[0].tolist()
    [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    """

    def embedded(self, factors):
        core, *given = self.arrays()
        for k in range(self.ndims[0]):
            if k not in self._modes():
                core = mode_product(core, factors[k], k, self.ndims[0])
        return type(self)(core, *[factors[k] @ u for k, u in zip(self._modes(), given, strict=True)])

    def balanced(self):
        """Orthonormal factors, the core takes their triangular parts."""
        core, *given = self.arrays()
        out = []
        for k, u in zip(self._modes(), given, strict=True):
            q, r = xp.namespace(u).linalg.qr(u)
            core = mode_product(core, r, k, self.ndims[0])
            out.append(q)
        return type(self)(core, *out)

    def contract(self, index, g):
        mode, d = self.mode_of(index), self.ndims[0]
        for k, u in zip(self._modes(), self.arrays()[1:], strict=True):
            if k != mode:
                g = mode_product(g, xp.adjoint(u), k, d)
        if mode is None:
            return g
        return unfold(g, mode, d) @ xp.adjoint(unfold(self.arrays()[0], mode, d))

    def whiten(self, grad, damping=0.0):
        core, *given = self.arrays()
        d, modes = self.ndims[0], self._modes()
        grams = dict(zip(modes, (xp.gram(u) for u in given), strict=True))
        seen = []
        for k, g in zip(modes, grad.arrays()[1:], strict=True):
            weighted = core
            for j in modes:
                if j != k:
                    weighted = mode_product(weighted, grams[j], j, d)
            flat = unfold(core, k, d)
            seen.append(xp.divide_psd(g, unfold(weighted, k, d) @ xp.adjoint(flat), damping))
        return type(self)(whitened_core(grad.arrays()[0], grams, d, damping), *seen)

    def gauge(self, q):
        core, first, *rest = self.arrays()
        core = mode_product(core, xp.namespace(q).linalg.inv(q), self._modes()[0], self.ndims[0])
        return type(self)(core, first @ q, *rest)

    def random_gauge(self, rng):
        first = self.arrays()[1]
        r = first.shape[-1]
        return xp.asarray_like(np.eye(r) + 0.3 * rng.standard_normal((*self.batch_shape, r, r)), first)

    def to_tensorly(self) -> Any:
        """A tensorly ``TuckerTensor``."""
        from tensorly.tucker_tensor import TuckerTensor

        return TuckerTensor((self.arrays()[0], self._factors()))

    @classmethod
    def from_tensorly(cls, tensor: Any) -> Self:
        """From a tensorly ``TuckerTensor`` or a pair of core and factors."""
        core, factors = tensor
        return cls(core, *factors)


def whitened_core(g: Array, grams: dict[int, Array], order: int, damping: Any) -> Array:
    """Solve ``x x_1 P_1 ... x_d P_d + damping x = g`` for the Hermitian PSD matrices P of some modes."""
    backend, bases = xp.namespace(g), {}
    scales: Any = 1.0
    for k, gram in grams.items():
        values, bases[k] = backend.linalg.eigh(gram)
        scales = scales * values.reshape(*values.shape[:-1], *(-1 if j == k else 1 for j in range(order)))
    for k, vectors in bases.items():
        g = mode_product(g, xp.adjoint(vectors), k, order)
    axes = tuple(range(scales.ndim - order, scales.ndim))
    top = (scales.amax(axes, keepdim=True) if xp.is_torch(scales) else scales.max(axes, keepdims=True)) * 10.0
    floor = top * xp.eps(g) + float(backend.finfo(g.dtype).tiny) ** 0.5
    g = g / backend.maximum(shift(scales, damping, order), floor)
    for k, vectors in bases.items():
        g = mode_product(g, vectors, k, order)
    return g


def _ranks(shape: tuple[int, ...], rank: Any, modes: tuple[int, ...]) -> tuple[int, ...]:
    """One rank per mode: one number is cut to what the modes hold, several must fit."""
    several = np.ndim(rank) > 0
    given = tuple(rank) if several else tuple(rank if k in modes else n for k, n in enumerate(shape))
    if len(given) != len(shape) or any(isinstance(r, bool) or int(r) != r or r < 1 for r in given):
        raise ValueError(f"rank must be a positive integer or {len(shape)} of them, one per mode, got {rank!r}")
    ranks = [min(int(r), n) for r, n in zip(given, shape, strict=True)]
    for _ in shape:
        for k in modes:
            ranks[k] = min(ranks[k], prod(ranks[:k] + ranks[k + 1 :]))
    if several and tuple(ranks) != given:
        raise ValueError(
            f"rank {given} does not fit shape {shape}: at most {tuple(ranks)}, no rank above the product of the others"
        )
    if not several and rank > max(shape):
        raise ValueError(f"rank must lie between 1 and the largest mode of {shape}, got {rank}")
    return tuple(ranks)
