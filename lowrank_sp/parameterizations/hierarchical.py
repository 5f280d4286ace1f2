"""The hierarchical Tucker form: small transfer tensors on a balanced binary tree of the modes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from math import prod
from typing import Any

import numpy as np

from .. import xp
from ..constants import identity
from ..coverage import covers
from ..factors import Gauged, Multilinear
from ..tensors import SampledTensor, khatri_rao_rows, mode_product, take_rows, unfold
from .core import Core
from .tensor import ByOrder, TensorFactors
from .tucker import whitened_core

__all__ = ["HierarchicalTucker"]

Array = Any


@cache
def _tree(order: int) -> tuple[tuple[int, int], ...]:
    """The two children of every inner node, the root first and parents before children.

    Inner nodes are numbered 0..order-2, the leaf of mode k is number ``order - 1 + k``.
    """
    children: list[tuple[int, int]] = []

    def grow(low: int, high: int) -> int:
        if high - low == 1:
            return order - 1 + low
        own = len(children)
        children.append((0, 0))
        middle = (low + high + 1) // 2
        children[own] = grow(low, middle), grow(middle, high)
        return own

    grow(0, order)
    return tuple(children)


@cache
def _parents(order: int) -> dict[int, int]:
    """The inner node above every node but the root."""
    return {child: i for i, pair in enumerate(_tree(order)) for child in pair}


def _product(transfer: Array, left: Array, right: Array) -> Array:
    """``U_t``, (..., p q, c), from ``B_t`` (..., c, a, b) and the frames (..., p, a) and (..., q, b) below."""
    half = left @ unfold(transfer, 1, 3)  # (..., p, c b)
    half = half.reshape(*half.shape[:-1], *transfer.shape[-3::2])  # (..., p, c, b)
    full = right[..., None, :, :] @ half.mT  # (..., p, q, c)
    return full.reshape(*full.shape[:-3], -1, full.shape[-1])


def _gram(transfer: Array, left: Array, right: Array) -> Array:
    """``U_t^H U_t`` from those of the frames below."""
    weighted = mode_product(mode_product(transfer, left, 1, 3), right, 2, 3)
    return unfold(transfer, 0, 3).conj() @ unfold(weighted, 0, 3).mT


def _decomposed(rest: Array, node: int, axis: int, sizes: list[int], lead: int) -> tuple[Array, dict[int, Array]]:
    """What is left of a tensor once all below and at ``node`` is split off, and the arrays that are.

    The modes of the node begin with number ``axis``, behind ``lead`` batch axes; ``sizes`` are the ranks of all nodes.
    """
    order, found = (len(sizes) + 1) // 2, {}
    children = _tree(order)[node] if node < order - 1 else ()
    for k, child in enumerate(children):
        rest, below = _decomposed(rest, child, axis + k, sizes, lead)
        found |= below
    batch, modes = rest.shape[:lead], list(rest.shape[lead:])
    pair = modes[axis : axis + 2]
    if children:
        modes[axis : axis + 2] = [prod(pair)]
        rest = rest.reshape(*batch, *modes)
    flat = unfold(rest, axis, len(modes))
    basis = xp.namespace(flat).linalg.svd(flat, full_matrices=False)[0][..., : sizes[node]] if node else flat
    found[node] = basis.mT.reshape(*batch, -1, *pair) if children else basis
    return mode_product(rest, xp.adjoint(basis), axis, len(modes)) if node else rest, found


@covers("P79")
class HierarchicalTucker(Multilinear, TensorFactors, ByOrder, Gauged):
    """``U_t = (U_l kron U_r) B_t^T`` from the leaves of a tree of modes to its root, where ``vec W = U_root``.

    Parameters
    ----------
    root : array (..., 1, r_l, r_r)
    *nodes : arrays (..., r_t, r_l, r_r)
        B_t of the other inner nodes, parents before children and left before right; as fields ``node1``, ...
    *factors : arrays (..., n_k, r_k)
        U_k of the leaves, one per mode; as fields ``factor0``, ``factor1``, ...

    Notes
    -----
    The tree halves the modes in their order, the larger half on the left. A size is one number, cut to what each
    node can hold, or one per mode followed by one per inner node below the root. With equal sizes n and r it has
    ``d n r + (d - 2) r^3 + r^2`` parameters: unlike those of `Tucker`, they grow linearly with the number of
    modes. The gauge group is GL(r_t) at every node; ``gauge`` acts on the first factor. ``from_tensor`` truncates
    from the leaves to the root, every node on what is left of the tensor: the squares of the singular values that
    are dropped add up to the square of the error, which is at most ``sqrt(2 d - 3)`` times the least one.
    Source: :cite:`hackbusch2009ht`, :cite:`grasedyck2010ht`; an outlook of section VII-A of :cite:`survey2026sp`.

    Examples
    --------
    >>> form = HierarchicalTucker.of(3)
    >>> form.names
    ('root', 'node1', 'factor0', 'factor1', 'factor2')
    >>> form.parameter_count((6, 5, 4), 2)
    42
    """

    zeros = ("root",)

    @classmethod
    def _of_arrays(cls, arrays):
        return cls.of((len(arrays) + 1) // 2)

    @classmethod
    def _fields(cls, order):
        nodes = {f"node{i}": 3 for i in range(1, order - 1)}
        return {"root": 3, **nodes, **{f"factor{k}": 2 for k in range(order)}}

    @property
    def shape(self):
        return tuple(int(u.shape[-2]) for u in self._leaves())

    @property
    def rank(self):
        """One number per mode, then one per inner node below the root."""
        nodes = self.arrays()[1 : len(self.ndims) // 2]
        return (*(int(u.shape[-1]) for u in self._leaves()), *(int(b.shape[-3]) for b in nodes))

    @classmethod
    def shapes(cls, shape, rank):
        order = cls.for_shape(shape).settings[0]
        sizes = _ranks(tuple(int(n) for n in shape), rank)
        inner = tuple((sizes[i], *(sizes[k] for k in pair)) for i, pair in enumerate(_tree(order)))
        return *inner, *((int(n), sizes[order - 1 + k]) for k, n in enumerate(shape))

    @classmethod
    def from_tensor(cls, tensor, rank):
        """The truncated hierarchical SVD, from the leaves to the root."""
        form = cls if cls.names else cls.of(tensor.ndim)
        order = form.settings[0]
        lead = tensor.ndim - order
        found = _decomposed(tensor, 0, 0, _ranks(tuple(int(n) for n in tensor.shape[lead:]), rank), lead)[1]
        return form(*[found[i] for i in range(2 * order - 1)])

    # passes over the tree -------------------------------------------------------------------------
    def _leaves(self) -> tuple[Array, ...]:
        return self.arrays()[len(self.ndims) // 2 :]

    def _upwards(self, leaves: Any, combine: Callable[[Array, Array, Array], Array]) -> list[Array]:
        """One value per node, from those of the leaves to the root."""
        order = len(leaves)
        values = [None] * (order - 1) + list(leaves)
        for i in reversed(range(order - 1)):
            left, right = _tree(order)[i]
            values[i] = combine(self.arrays()[i], values[left], values[right])
        return values

    def _lineage(self, nodes: Collection[int]) -> set[int]:
        """Nodes with all that are above them."""
        found, above = set(nodes), _parents(self.settings[0])
        for node in nodes:
            while node in above:
                node = above[node]
                found.add(node)
        return found

    def dense(self):
        whole = self._upwards(self._leaves(), _product)[0]
        return whole.reshape(*whole.shape[:-2], *self.shape)

    def train(self):
        cores: dict[int, Array] = {}
        order = self.settings[0]

        def visit(node: int, between: Array) -> None:
            """The cores of ``sum_c between[p, c, q] U_node[:, c]`` with bonds p and q at the ends."""
            array = self.arrays()[node]
            if node >= order - 1:
                cores[node] = mode_product(between, array, 1, 3)
                return
            inner = between.mT @ array.reshape(*array.shape[:-2], -1)[..., None, :, :]  # (..., p, q, a b)
            p, q, (a, b) = *inner.shape[-3:-1], array.shape[-2:]
            inner = inner.reshape(*inner.shape[:-1], a, b)
            inner = xp.namespace(inner).moveaxis(inner, -3, -1)  # (..., p, a, b, q)
            left, right = xp.namespace(inner).linalg.qr(inner.reshape(*inner.shape[:-4], p * a, b * q))
            for child, part, sides in zip(_tree(order)[node], (left, right), ((p, a, -1), (-1, b, q)), strict=True):
                visit(child, part.reshape(*part.shape[:-2], *sides))

        visit(0, 0 * self.arrays()[0][..., :1, :1] + 1)
        return [cores[order - 1 + k] for k in range(order)]

    def embedded(self, factors):
        inner = self.arrays()[: len(self.ndims) // 2]
        return type(self)(*inner, *[u @ v for u, v in zip(factors, self._leaves(), strict=True)])

    def matrix(self, *index, modes=(-2, -1)):
        """A `Core` point: the tree contracted with the rows that ``index`` names."""
        leaves, inner = list(self._leaves()), self.arrays()[: len(self.ndims) // 2]
        d = len(leaves)
        rows, cols = (k % d for k in modes)
        others = [k for k in range(d) if k not in (rows, cols)]
        if len(index) != len(others):
            raise ValueError(f"index must hold {len(others)} integers, one per mode beside {modes}, got {index}")
        left, right = leaves[rows], leaves[cols]
        for k, i in zip(others, index, strict=True):
            leaves[k] = leaves[k][..., i, None, :]
        for k in (rows, cols):
            leaves[k] = identity(leaves[k].shape[-1], leaves[k])
        small = type(self)(*inner, *leaves).dense()
        small = small.reshape(*small.shape[: small.ndim - d], leaves[min(rows, cols)].shape[-1], -1)
        return Core(left, small if rows < cols else small.mT, right.conj())

    def balanced(self):
        """Orthonormal frames everywhere below the root, which takes the rest."""
        arrays, order = list(self.arrays()), self.settings[0]
        for node in reversed(range(1, len(arrays))):
            array, up = arrays[node], _parents(order)[node]
            flat = unfold(array, 0, 3).mT if node < order - 1 else array
            q, r = xp.namespace(flat).linalg.qr(flat)
            arrays[node] = q.mT.reshape(*array.shape[:-3], -1, *array.shape[-2:]) if node < order - 1 else q
            arrays[up] = mode_product(arrays[up], r, 1 + _tree(order)[up].index(node), 3)
        return type(self)(*arrays)

    # gradients --------------------------------------------------------------------------------------
    def mode_of(self, index):
        inner = self.settings[0] - 1
        return None if index < inner else index - inner

    def as_rows(self, index, array):
        return array if self.mode_of(index) is not None else array.reshape(*array.shape[:-3], 1, -1)

    def from_rows(self, index, rows):
        array = self.arrays()[index]
        return rows if self.mode_of(index) is not None else rows.reshape(*rows.shape[:-2], *array.shape[-3:])

    def design(self, index, indices):
        order, rows = self.settings[0], [take_rows(u, i) for u, i in zip(self._leaves(), indices, strict=True)]

        def combine(transfer: Array, left: Array, right: Array) -> Array:
            return khatri_rao_rows((left, right)) @ unfold(transfer, 0, 3).mT

        values = self._upwards(rows, combine)
        seen = {0: 0 * values[0] + 1}  # what multiplies the frame of a node
        for i in sorted(self._lineage({index}) & set(range(order - 1))):
            left, right = _tree(order)[i]
            if i == index:
                return khatri_rao_rows((seen[i], values[left], values[right]))
            for k, child, other in ((1, left, right), (2, right, left)):
                seen[child] = khatri_rao_rows((seen[i], values[other])) @ unfold(self.arrays()[i], k, 3).mT
        return seen[index]

    def contract(self, index, g):
        return self._gradients(g, {index})[index]

    def pullback(self, g):
        if isinstance(g, SampledTensor):
            return super().pullback(g)
        found = self._gradients(g, range(len(self.names)))
        return type(self)(*[found[i] for i in range(len(self.names))])

    def _gradients(self, g: Array, targets: Collection[int]) -> dict[int, Array]:
        """Gradients in some of the arrays, from the root down to them."""
        order, needed = self.settings[0], self._lineage(targets)
        frames = self._upwards(self._leaves(), _product)
        seen = {0: g.reshape(*g.shape[: g.ndim - order], -1, 1)}  # the gradient in the frame of a node
        for i in sorted(needed & set(range(order - 1))):
            left, right = _tree(order)[i]
            first = seen[i].reshape(*seen[i].shape[:-2], frames[left].shape[-2], -1)  # (..., p, q c)
            half = xp.adjoint(frames[left]) @ first
            c = seen.pop(i).shape[-1]
            if right in needed:
                turned = half.mT.reshape(*half.shape[:-2], frames[right].shape[-2], -1)  # (..., q, c a)
                seen[right] = turned @ xp.adjoint(unfold(self.arrays()[i], 2, 3))
            if left in needed:
                split = first.reshape(*first.shape[:-1], -1, c)  # (..., p, q, c)
                inner = (xp.adjoint(frames[right])[..., None, :, :] @ split).mT  # (..., p, c, b)
                seen[left] = inner.reshape(*inner.shape[:-2], -1) @ xp.adjoint(unfold(self.arrays()[i], 1, 3))
            if i in targets:
                split = half.reshape(*half.shape[:-1], -1, c)  # (..., a, q, c)
                inner = xp.adjoint(frames[right])[..., None, :, :] @ split
                seen[i] = xp.namespace(inner).moveaxis(inner, -1, -3)
        return seen

    def whiten(self, grad, damping=0.0):
        order, arrays = self.settings[0], self.arrays()
        grams = self._upwards([xp.gram(u) for u in self._leaves()], _gram)
        seen, out = {0: 0 * grams[0] + 1}, []
        for i, (left, right) in enumerate(_tree(order)):
            around = {0: seen[i], 1: grams[left], 2: grams[right]}
            out.append(whitened_core(grad.arrays()[i], around, 3, damping))
            for k, child in ((1, left), (2, right)):
                weighted = arrays[i]
                for j, gram in around.items():
                    weighted = weighted if j == k else mode_product(weighted, gram, j, 3)
                seen[child] = unfold(arrays[i], k, 3).conj() @ unfold(weighted, k, 3).mT
        for k, g in enumerate(grad.arrays()[order - 1 :]):
            out.append(xp.divide_psd(g, seen[order - 1 + k].mT, damping))
        return type(self)(*out)

    # the gauge --------------------------------------------------------------------------------------
    def gauge(self, q):
        arrays, order = list(self.arrays()), self.settings[0]
        above = _parents(order)[order - 1]
        arrays[above] = mode_product(arrays[above], xp.namespace(q).linalg.inv(q), 1, 3)
        arrays[order - 1] = arrays[order - 1] @ q
        return type(self)(*arrays)

    def random_gauge(self, rng):
        first = self._leaves()[0]
        r = first.shape[-1]
        return xp.asarray_like(np.eye(r) + 0.3 * rng.standard_normal((*self.batch_shape, r, r)), first)


def _ranks(shape: tuple[int, ...], rank: Any) -> list[int]:
    """One rank per node, the root's 1: one number is cut to what the nodes hold, several must fit.

    Several are given one per mode and then one per inner node below the root.
    """
    order = len(shape)
    count, several = 2 * order - 2, np.ndim(rank) > 0
    given = tuple(rank) if several else (rank,) * count
    if len(given) != count or any(isinstance(r, bool) or int(r) != r or r < 1 for r in given):
        raise ValueError(
            f"rank must be a positive integer or {count} of them, one per mode and one per inner node, got {rank!r}"
        )
    if not several and rank > max(shape):
        raise ValueError(f"rank must lie between 1 and the largest mode of {shape}, got {rank}")
    asked = [1, *map(int, given[order:]), *map(int, given[:order])]
    ranks = _cut(asked, shape)
    if several and ranks != asked:
        fitting = (*ranks[order - 1 :], *ranks[1 : order - 1])
        raise ValueError(f"rank {given} does not fit shape {shape}, whose nodes hold at most {fitting} with it")
    return ranks


def _cut(asked: list[int], shape: tuple[int, ...]) -> list[int]:
    """The largest ranks up to those asked for that no node can do without."""
    order = len(shape)
    ranks = [min(r, n) for r, n in zip(asked, [*asked[: order - 1], *shape], strict=True)]
    for _ in ranks:  # what is cut at one end of the tree reaches the other in fewer passes than nodes
        for i in reversed(range(order - 1)):
            left, right = _tree(order)[i]
            ranks[i] = min(ranks[i], ranks[left] * ranks[right])
        for i, (left, right) in enumerate(_tree(order)):
            ranks[left] = min(ranks[left], ranks[i] * ranks[right])
            ranks[right] = min(ranks[right], ranks[i] * ranks[left])
    return ranks
