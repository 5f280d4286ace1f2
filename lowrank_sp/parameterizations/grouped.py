"""A low-rank matrix whose columns are equal within groups, and one that is elastic around group means."""

from __future__ import annotations

from math import gcd
from typing import Any

from .. import xp
from ..constants import steps
from ..coverage import covers
from ..factors import Configured, Multilinear, factorization
from .bm import resized
from .outer import Outer
from .sided import Sided, SidedSum, divide

__all__ = ["Elastic", "GroupedInputs"]

Array = Any


@covers("P113")
@factorization
class GroupedInputs(Sided, Multilinear, Configured):
    """W = X (Y (x) 1_g)^H: every row of Y (..., n / g, r) belongs to g neighbouring columns of W, as in QA-LoRA.

    Parameters
    ----------
    left : array (..., m, r)
        X.
    right : array (..., n / g, r)
        Y.

    Notes
    -----
    Rows x are summed over the groups before they meet Y, and W is constant in the groups: where a weight is
    quantized in the same groups with a zero point for each, W goes into the zero points and the codes stay.
    ``GroupedInputs.of(g)`` is the form with groups of g; `GroupedInputs` itself takes pairs. Parameters:
    ``m r + n r / g``. Source: :cite:`xu2024qalora`.

    Examples
    --------
    >>> import numpy as np
    >>> GroupedInputs.of(2)(np.ones((1, 1)), np.array([[1.0], [3.0]])).dense().tolist()
    [[1.0, 1.0, 3.0, 3.0]]
    """

    left: Array
    right: Array

    sides = (0, 1)
    universal = False

    @classmethod
    def of(cls, group: int) -> type[GroupedInputs]:
        """The form with groups of ``group`` columns."""
        if isinstance(group, bool) or int(group) != group or group < 1:
            raise ValueError(f"group must be a positive integer, got {group!r}")
        return cls.configured(f"GroupedInputs{int(group)}", int(group))

    @classmethod
    def _group(cls) -> int:
        return cls.settings[0] if cls.settings else 2

    @property
    def shape(self):
        return self.left.shape[-2], self.right.shape[-2] * self._group()

    @property
    def rank(self):
        return min(self.left.shape[-1], self.left.shape[-2], self.right.shape[-2])

    @classmethod
    def shapes(cls, shape, rank):
        groups, rest = divmod(shape[1], cls._group())
        if rest or not 1 <= rank <= min(shape[0], groups):
            raise ValueError(
                f"groups of {cls._group()} columns must divide the {shape[1]} columns into at least {rank} groups, "
                f"and the rank be at most {shape[0]}; take another group size or rank"
            )
        return (shape[0], rank), (groups, rank)

    @classmethod
    def from_product(cls, left, right, rank=None):
        """The nearest matrix of the form: means over the groups, then the leading components."""
        grouped = right.reshape(*right.shape[:-2], -1, cls._group(), right.shape[-1])
        return cls(*resized(left, grouped.mean(-2), rank))

    def product(self):
        group, y = self._group(), self.right
        wide = xp.namespace(y).broadcast_to(y[..., None, :], (*y.shape[:-1], group, y.shape[-1]))
        return self.left, wide.reshape(*y.shape[:-2], -1, y.shape[-1])

    def apply(self, x):
        pooled = x.reshape(*x.shape[:-1], -1, self._group()).sum(-1)
        return (pooled @ self.right.conj()) @ self.left.mT

    def _chained(self, index, cotangent):
        if index == 0:
            return cotangent
        return cotangent.reshape(*cotangent.shape[:-2], -1, self._group(), cotangent.shape[-1]).sum(-2)

    def _white(self, index, g, damping):
        return xp.divide_psd(g, self._group() * xp.gram(self.right if index == 0 else self.left), damping)


def _groups(size: int, rank: int, like: Array) -> Array:
    """(size, rank): neighbours in k = gcd(size, rank) groups belong to as many neighbouring channels, entries one."""
    k = gcd(size, rank)
    rows, cols = steps(size, like) // (size // k), steps(rank, like) // (rank // k)
    return xp.asarray_like(rows[:, None] == cols, like)


@covers("P114")
@factorization
class Elastic(SidedSum, Outer):
    """W = (X + b P) (Y + a Q)^H with fixed P and Q: the elastic connection of IR-QLoRA around both factors.

    ``x Q`` are means of neighbouring entries of x, one for every channel, and ``P`` repeats every channel over
    neighbouring outputs: what the factors cannot hold passes by them without parameters but a and b.

    Parameters
    ----------
    left : array (..., m, r)
        X.
    right : array (..., n, r)
        Y.
    outputs : array (..., 1)
        b; it vanishes at the start, as X does.
    inputs : array (..., 1)
        a.

    Notes
    -----
    Where r does not divide a side, there are gcd(r, side) groups, and several channels see one mean. The published
    method writes the groups as strided, its code as neighbours, as here; a permutation of entries apart they are the
    same. Its quantizer, which maximizes the entropy of the codes, is a matter of the base weight.
    Parameters: those of LoRA and two. Source: :cite:`qin2024irqlora`.

    Examples
    --------
    >>> import numpy as np
    >>> zero, one = np.zeros((2, 1)), np.ones(1)
    >>> Elastic(zero, zero, one, one).dense().tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """

    left: Array
    right: Array
    outputs: Array
    inputs: Array

    ndims = (2, 2, 1, 1)
    sides = (0, 1, 0, 1)
    zeros = ("left", "outputs")

    @property
    def rank(self):
        return min(self.left.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (shape[1], rank), (1,), (1,)

    @classmethod
    def from_product(cls, left, right, rank=None):
        """The factors themselves; nothing passes by them."""
        left, right = resized(left, right, rank)
        none = 0 * left[..., 0, :1]
        return cls(left, right, none, none)

    def _fixed(self) -> tuple[Array, Array]:
        """P and Q."""
        (m, r), n = self.left.shape[-2:], self.right.shape[-2]
        means = gcd(n, r) / n
        return _groups(m, r, self.left), means * _groups(n, r, self.right)

    def product(self):
        p, q = self._fixed()
        return self.left + self.outputs[..., None] * p, self.right + self.inputs[..., None] * q

    def _orders(self, direction):
        pairs = zip(self.product(), direction.product(), strict=True)
        return tuple(list(pair) for pair in pairs)

    def _chained(self, index, cotangent):
        if index < 2:
            return cotangent
        return (self._fixed()[index - 2] * cotangent).sum((-2, -1))[..., None]

    def _white(self, index, g, damping):
        other = xp.gram(self.product()[1 - index % 2])
        if index < 2:
            return xp.divide_psd(g, other, damping)
        fixed = self._fixed()[index - 2]
        return divide(g, ((fixed @ other) * fixed).sum((-2, -1)).real[..., None], damping)
