"""A trained product between fixed outer factors, and a matrix as a train of small ones: nested NoRA, LoRETTA."""

from __future__ import annotations

from typing import Any

from .. import xp
from ..constants import identity
from ..coverage import covers
from ..factors import Configured, Gauged, Multilinear, factorization
from ..rearrange import is_array
from ..spaces import FIXED, FLAT
from .bm import BurerMonteiro, whole_product
from .frozen import FrozenCore
from .kronecker import largest_divisor
from .outer import Outer
from .sided import Arraywise, Sided, Unconvertible

__all__ = ["MatrixTrain", "Nested"]

Array = Any


@covers("P35")
@factorization
class Nested(Sided, Multilinear, Unconvertible, Configured, Gauged, Outer):
    """W = U (A B^H) V^H with fixed U and V: the inner adapter of nested NoRA.

    Parameters
    ----------
    left : array (..., m, r)
        U, fixed.
    inner_left, inner_right : arrays (..., r, k) and (..., r, k)
        A and B.
    right : array (..., n, r)
        V, fixed.

    Notes
    -----
    The size of this form is r, the rank of the outer factors; the inner rank k is ``max(1, r // 2)``, or the number
    in ``Nested.of(k)``, at most r. Reconstructed from the published method, which the surveys only name: there the
    outer factors come from the weight. Source: :cite:`lin2024nora`.

    Examples
    --------
    >>> Nested.of(1).parameter_count((6, 5), 3)
    6
    """

    left: Array
    inner_left: Array
    inner_right: Array
    right: Array

    spaces = (FIXED, FLAT, FLAT, FIXED)
    sides = (0, 0, 1, 1)
    zeros = ("inner_left",)

    @classmethod
    def of(cls, inner: int) -> type[Nested]:
        """The form with this inner rank."""
        if int(inner) != inner or inner < 1:
            raise ValueError(f"inner must be a positive integer, got {inner}")
        return cls.configured(f"Nested{int(inner)}", int(inner))

    @property
    def rank(self):
        return min(self.inner_left.shape[-1], self.left.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        inner = min(cls.settings[0], rank) if cls.settings else max(1, rank // 2)
        return (shape[0], rank), (rank, inner), (rank, inner), (shape[1], rank)

    @classmethod
    def constants(cls, shape, rank, rng, batch):
        return FrozenCore.constants(shape, rank, rng, batch)

    def product(self):
        return self.left @ self.inner_left, self.right @ self.inner_right

    def _chained(self, index, cotangent):
        return xp.adjoint(self.left if index == 1 else self.right) @ cotangent

    def _white(self, index, g, damping):
        outer, inner = (self.left, self.inner_left), (self.right, self.inner_right)
        own, other = (outer, inner) if index == 1 else (inner, outer)
        values, vectors = xp.namespace(g).linalg.eigh(xp.gram(own[0]))
        weights, turns = xp.namespace(g).linalg.eigh(xp.gram(other[0] @ other[1]))
        products = abs(values)[..., :, None] * abs(weights)[..., None, :] + xp.expand(damping, 2)
        tiny = float(xp.namespace(abs(g)).finfo(abs(g).dtype).tiny) ** 0.5
        return vectors @ ((xp.adjoint(vectors) @ g @ turns) / (products + tiny)) @ xp.adjoint(turns)

    def gauge(self, q):
        inverse = xp.adjoint(xp.namespace(q).linalg.inv(q))
        return type(self)(self.left, self.inner_left @ q, self.inner_right @ inverse, self.right)

    def random_gauge(self, rng):
        return BurerMonteiro(self.inner_left, self.inner_right).random_gauge(rng)


@covers("P77", "P80")
@factorization
class MatrixTrain(Arraywise, Multilinear, Unconvertible):
    """W_(a b c) (d e f) = sum_pq A_p,ad B_pq,be C_q,cf: a tensor train of three small matrices, per layer.

    Parameters
    ----------
    first : array (..., p, a, d)
        A_p.
    middle : array (..., p, q, b, e)
        B_pq.
    last : array (..., q, c, f)
        C_q.

    Notes
    -----
    Also called a matrix product operator; with two matrices it would be a sum of Kronecker products. The rows are
    cut into ``m = a b c`` with a the largest divisor of m up to its cubic root and b that of m / a up to its root;
    so are the columns. Both bonds have the size r of the form, or as much of it as the matrices around them can
    hold; the parameters are ``r (a d + c f) + r^2 b e`` then. A row costs three products of the size of
    the small matrices for every bond. LoRETTA is named in the surveys; of its two variants this is the one that
    trains the cores of the update. Source: :cite:`yang2024loretta`, :cite:`oseledets2011tt`.

    Examples
    --------
    >>> MatrixTrain.parameter_count((8, 8), 2)
    32
    """

    first: Array
    middle: Array
    last: Array

    ndims = (3, 4, 3)
    zeros = ("last",)

    @property
    def shape(self):
        sizes = zip(*(a.shape[-2:] for a in self.arrays()), strict=True)
        m, n = (a * b * c for a, b, c in sizes)
        return m, n

    @property
    def rank(self):
        return min(self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        (a, b, c), (d, e, f) = (_thirds(k) for k in shape)
        p = min(rank, a * d, b * e * c * f)
        q = min(rank, c * f, p * b * e)
        p = min(p, q * b * e)
        return (p, a, d), (p, q, b, e), (q, c, f)

    def product(self):
        return whole_product(self)

    def dense(self):
        einsum = xp.namespace(self.first).einsum
        out = einsum("...pad,...pqbe,...qcf->...abcdef", *self.arrays())
        return out.reshape(*out.shape[:-6], *self.shape)

    def apply(self, x):
        d, e, f = (a.shape[-1] for a in self.arrays())
        einsum, batch = xp.namespace(x, self.first).einsum, self.first.ndim - 3
        rows = x.reshape(*x.shape[:batch], -1, d, e, f)
        half = einsum("...kdef,...qcf->...kqdec", rows, self.last)
        half = einsum("...kqdec,...pqbe->...kpdbc", half, self.middle)
        out = einsum("...kpdbc,...pad->...kabc", half, self.first)
        return out.reshape(*x.shape[:-1], self.shape[0])

    def _split(self, index: Any, axis: int) -> tuple[Any, Any, Any]:
        """Rows or columns of the three matrices for rows or columns of W."""
        b, c = self.middle.shape[axis - 2], self.last.shape[axis - 2]
        return index // (b * c), index // c % b, index % c

    def entries(self, rows, cols):
        pairs = zip(self._split(rows, 0), self._split(cols, 1), strict=True)
        parts = [a[..., i, j] for a, (i, j) in zip(self.arrays(), pairs, strict=True)]
        return xp.namespace(self.first).einsum("...pk,...pqk,...qk->...k", *parts)

    def partial(self, index, g):
        whole = g if is_array(g) else g @ identity(self.shape[1], self.first)
        sizes = [a.shape[-2:] for a in self.arrays()]
        blocks = whole.reshape(*whole.shape[:-2], *(k[0] for k in sizes), *(k[1] for k in sizes))
        names = ["...pad", "...pqbe", "...qcf"]
        others = [(names[i], a.conj()) for i, a in enumerate(self.arrays()) if i != index]
        pattern = ",".join(["...abcdef", *(name for name, _ in others)]) + f"->{names[index]}"
        return xp.namespace(self.first).einsum(pattern, blocks, *(a for _, a in others))

    def pullback(self, g):
        return type(self)(*[self.partial(i, g) for i in range(3)])

    def _grams(self) -> tuple[Array, Array]:
        """Inner products of the first matrices, and of the last, over their bonds."""
        flat = [a.reshape(*a.shape[:-2], -1) for a in (self.first, self.last)]
        first, last = (a.conj() @ a.mT for a in flat)
        return first, last

    def _white(self, index, g, damping):
        (first, last), einsum = self._grams(), xp.namespace(g).einsum
        if index == 1:
            flat = g.reshape(*g.shape[:-2], -1)
            return _two_sided(first, last, flat, damping).reshape(g.shape)
        middle = self.middle
        pattern = "...pqbe,...qs,...tsbe->...pt" if index == 0 else "...pqbe,...pt,...tsbe->...qs"
        normal = einsum(pattern, middle.conj(), last if index == 0 else first, middle)
        flat = g.reshape(*g.shape[:-2], -1)
        return xp.solve_psd(normal, flat, damping).reshape(g.shape)


def _two_sided(p: Array, q: Array, g: Array, damping: Any) -> Array:
    """Solve ``sum_ab p_xa q_yb z_ab + damping z_xy = g_xy`` for every number that the last axis counts."""
    backend = xp.namespace(g)
    (dp, up), (dq, uq) = backend.linalg.eigh(p), backend.linalg.eigh(q)
    turned = backend.einsum("...ax,...by,...abk->...xyk", up.conj(), uq.conj(), g)
    weights = abs(dp)[..., :, None, None] * abs(dq)[..., None, :, None] + xp.expand(damping, 3)
    tiny = float(backend.finfo(weights.dtype).tiny) ** 0.5
    return backend.einsum("...xa,...yb,...abk->...xyk", up, uq, turned / (weights + tiny))


def _thirds(k: int) -> tuple[int, int, int]:
    """Three divisors near the cubic root whose product is k."""
    first = next(a for a in range(round(k ** (1 / 3)), 0, -1) if k % a == 0)
    second = largest_divisor(k // first, k)
    return first, second, k // first // second
