"""Rotations with the Cayley transform: block diagonal (OFT) and products of butterflies (BOFT)."""

from __future__ import annotations

import sys
from abc import abstractmethod
from typing import Any, ClassVar, Self

import numpy as np

from .. import xp
from ..constants import identity, triangle
from ..coverage import covers
from ..factors import ByFactor, Configured, factorization
from ..rearrange import is_array
from .bm import BurerMonteiro, whole_product
from .sided import Unconvertible

__all__ = ["BlockRotation", "Butterfly", "Multiplicative", "square_side"]

Array = Any

# Blocks up to this side are dense in practice: a product with them takes less time than moving the rows about.
LARGEST_BLOCK = 128
# So many columns are few: products with them cost less than moving the rows about does.
FEW = 32
# Blocks from this side on are inverted as definite matrices where the norm of the skew ones is at most the latter.
WIDE, NORM = 24, 8.0


class Multiplicative(ByFactor, Unconvertible):
    """A square matrix P that multiplies a weight, ``W P``, and starts at the identity.

    Not a polynomial in its arrays, so that ``expansion`` gives the term of first order, from which a line search
    starts.
    """

    polynomial = False
    zeros = ()
    closed: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def identity(cls, n: int, size: Any, rng: Any, batch: tuple[int, ...] = ()) -> Self:
        """A NumPy point with ``P = I`` at which the gradient of every array can be other than zero."""

    def blocky(self, rows: int) -> bool:
        """Whether products with diagonal `blocks` are the cheapest way to apply P to so many rows."""
        return False

    def blocks(self, rows: int) -> Array:
        """Diagonal blocks (..., n / c, c, c) of P, for so many rows."""
        raise TypeError(f"{type(self).__name__} has no blocks that are cheaper than its own way of applying")

    @classmethod
    def pull_blocks(cls, blocks: Array, cotangent: Array) -> tuple[Array, ...]:
        """Gradients of the arrays from that of the `blocks`, where the form is ``closed``: from these alone."""
        raise TypeError(f"{cls.__name__} has no gradient that follows from blocks alone")

    @property
    def near_identity(self) -> bool:
        """Whether P differs from the identity by few columns, those of `change`."""
        return False

    def change(self) -> tuple[Array, Array]:
        """Thin A and B (..., n, r) with ``P = I + A B^H``, one of which is exactly zero column by column if P is I."""
        raise TypeError(f"{type(self).__name__} differs from the identity by a matrix that is not thin")

    @abstractmethod
    def _moved(self, direction: Self) -> Array:
        """``DF(x)[direction]``, an array (..., n, n)."""

    @property
    def rank(self):
        return self.shape[0]

    def product(self):
        return whole_product(self)

    def expansion(self, direction, wrt):
        pairs = enumerate(direction.arrays())
        moved = self._moved(type(self)(*[d if i in wrt else 0 * d for i, d in pairs]))
        eye = identity(moved.shape[-1], moved)
        return [[BurerMonteiro(moved, eye + 0 * moved[..., :1, :1])]]


def square_side(shape: tuple[int, int]) -> int:
    """The side of a square shape, or a ``ValueError``."""
    if shape[0] != shape[1]:
        raise ValueError(f"a matrix that multiplies a weight is square, got the shape {tuple(shape)}")
    return int(shape[0])


def inverse(matrices: Array) -> Array:
    """Of matrices (..., b, b) that have one: torch does not look, for which an accelerator would have to wait."""
    linalg = xp.namespace(matrices).linalg
    return linalg.inv_ex(matrices).inverse if xp.is_torch(matrices) else linalg.inv(matrices)


def _skew(angles: Array, side: int) -> Array:
    """The skew (Hermitian) matrices (..., b, b) with these entries above the diagonal."""
    places = _places(side, angles)
    if xp.is_torch(angles):
        upper = angles.new_zeros((*angles.shape[:-1], side * side)).index_copy_(-1, places, angles)
    else:
        upper = np.zeros((*angles.shape[:-1], side * side), angles.dtype)
        upper[..., places] = angles
    upper = upper.reshape(*angles.shape[:-1], side, side)
    return upper - xp.adjoint(upper)


def _upper(matrices: Array) -> Array:
    """The entries above the diagonals."""
    side = matrices.shape[-1]
    flat, places = matrices.reshape(*matrices.shape[:-2], side * side), _places(side, matrices)
    return flat.index_select(-1, places) if xp.is_torch(flat) else flat[..., places]


def _places(side: int, like: Array) -> Array:
    """Where the entries above the diagonal of a matrix lie in its rows, one after the other."""
    rows, cols = triangle(side, like)
    return rows * side + cols


def _turns(q: Array) -> Array:
    """``(I + Q) (I - Q)^{-1}`` of skew matrices (..., b, b).

    For wide blocks of moderate angles by ``(I + Q) (I + Q^H Q)^{-1}``, where a processor is faster at it: the inverse
    of a definite matrix, whose condition number is below ``1 + |Q|^2``, so that this loses two digits at the most.
    """
    eye = identity(q.shape[-1], q)
    if not _moderate(q):
        return 2 * inverse(eye - q) - eye
    torch = sys.modules["torch"]
    half = torch.linalg.cholesky_ex(eye - q @ q, upper=True).L
    definite = torch.cholesky_inverse(half, upper=True)
    blocks = (q @ definite).add_(definite.mT).mul_(2)
    blocks.diagonal(0, -2, -1).sub_(1)
    return blocks


def _moderate(q: Array) -> bool:
    """Whether these are wide blocks on a processor, in single precision and without a graph, of norm below `NORM`."""
    if q.shape[-1] < WIDE or not xp.is_torch(q) or xp.is_remote(q) or q.requires_grad or q.itemsize > 4:
        return False
    return not sys.modules["torch"].compiler.is_compiling() and q.shape[-1] * float(q.amax()) <= NORM


@covers("P95")
@factorization
class Butterfly(Multiplicative, Configured):
    """P = B_0 B_1 ... B_{f-1}, sparse rotations in the pattern of a fast Fourier transform: BOFT.

    Parameters
    ----------
    angles : array (..., f, n / b, b (b - 1) / 2)
        What stands above the diagonals of the skew matrices Q of all blocks.

    Notes
    -----
    Every block is a Cayley transform ``(I + Q)(I - Q)^{-1}``. The blocks of B_0 are neighbours; those of B_i
    pair half blocks at the distance ``2^i``. The size of this form is the side b of a block, even for more than
    one factor; `Butterfly` itself has two factors and ``Butterfly.of(f)`` has f; `BlockRotation` is the one
    with one, the form of OFT. Only with one are ``entries`` read without forming P. ``apply`` takes n b
    products per row and factor, on the rows themselves; or, for many rows, n c of them with the dense blocks of P,
    whose side ``c = b 2^(f-1)`` is that of all factors together, while c is at most 128. The parameters are
    ``f n (b - 1) / 2``. ``whiten`` treats the factors as independent, and is exact for one of them, real. Rotations
    whose blocks have an eigenvalue -1 are not reached.

    The surveys give no parameterization; this is the one of :cite:`qiu2023oft` and :cite:`liu2024boft`, with the
    signs and the order of PEFT, at whose parameters ``apply`` rotates activations as PEFT does.

    Examples
    --------
    >>> Butterfly(np.zeros((2, 2, 1))).dense().tolist()[0]
    [1.0, 0.0, 0.0, 0.0]
    """

    angles: Array

    ndims = (3,)

    @classmethod
    def of(cls, factors: int) -> type[Butterfly]:
        """The form with so many factors."""
        if int(factors) != factors or factors < 1:
            raise ValueError(f"factors must be a positive integer, got {factors}")
        return cls.configured(f"Butterfly{int(factors)}", int(factors))

    @classmethod
    def _completed(cls, form):
        form.closed = form.settings == (1,)
        return form

    @classmethod
    def identity(cls, n, size, rng, batch=()):
        return cls(np.zeros((*batch, *cls.shapes((n, n), size)[0])))

    @property
    def _side(self) -> int:
        return (1 + round((1 + 8 * self.angles.shape[-1]) ** 0.5)) // 2

    @property
    def shape(self):
        n = self.angles.shape[-2] * self._side
        return n, n

    @classmethod
    def shapes(cls, shape, rank):
        n, (factors,) = square_side(shape), cls.settings or (2,)
        if rank < 2 or n % rank or (factors > 1 and (rank % 2 or n % (rank << (factors - 1)))):
            needs = "b" if factors == 1 else f"b must be even and b 2^{factors - 1}"
            raise ValueError(f"blocks have a side b > 1, and {needs} must divide the side {n}; got b = {rank}")
        return ((factors, n // rank, rank * (rank - 1) // 2),)

    # the blocks -----------------------------------------------------------------------------------
    def _cayley(self) -> tuple[Array, Array]:
        """All blocks (..., f, n / b, b, b), and ``(I - Q)^{-1}``."""
        q = _skew(self.angles, self._side)
        eye = identity(self._side, q)
        inverted = inverse(eye - q)
        return 2 * inverted - eye, inverted

    def _grouped(self, x: Array, factor: int) -> Array:
        """Rows (..., n) as (..., n / b, b): the coordinates that the blocks of a factor act on."""
        b = self._side
        if factor:
            halves = x.reshape(*x.shape[:-1], x.shape[-1] // (b << factor), 2, 1 << factor, b // 2)
            x = halves.swapaxes(-3, -2)
            return x.reshape(*x.shape[:-4], x.shape[-4] << factor, b)
        return x.reshape(*x.shape[:-1], x.shape[-1] // b, b)

    def _ungrouped(self, x: Array, factor: int) -> Array:
        b, n = self._side, self.shape[0]
        if factor:
            x = x.reshape(*x.shape[:-2], n // (b << factor), 1 << factor, 2, b // 2).swapaxes(-3, -2)
            return x.reshape(*x.shape[:-4], n)
        return x.reshape(*x.shape[:-2], n)

    def _times(self, x: Array, blocks: Array, factor: int) -> Array:
        """Rows (..., k, n) times the block diagonal of ``blocks`` (..., n / b, b, b), where a factor has it."""
        rows = self._grouped(x, factor).swapaxes(-3, -2)
        return self._ungrouped((rows @ blocks).swapaxes(-3, -2), factor)

    def _blockwise(self, x: Array, blocks: Array) -> Array:
        """Rows (..., k, n) times the block diagonal of the transposes of blocks (..., n / c, c, c) of any side.

        With the activations as columns, which need not be moved for that: a narrow block times long columns.
        """
        columns = x.mT.reshape(*x.shape[:-2], *blocks.shape[-3:-1], x.shape[-2])
        out = blocks @ columns
        return out.reshape(*out.shape[:-3], x.shape[-1], x.shape[-2]).mT

    @property
    def _count(self) -> int:
        return self.angles.shape[-3]

    # the form -------------------------------------------------------------------------------------
    def dense(self):
        n = self.shape[0]
        eye = identity(n, self.angles)
        return self.apply(eye + 0 * self.angles[..., 0, :1, :1]).mT

    def blocky(self, rows):
        return self._count == 1 or (self._span < rows and self._span <= LARGEST_BLOCK)

    def blocks(self, rows):
        return _turns(_skew(self.angles[..., 0, :, :], self._side)) if self._count == 1 else self._composed()

    @classmethod
    def pull_blocks(cls, blocks, cotangent):
        # From P = 2 (I - Q)^{-1} - I follows (I - Q)^{-1} = (P + I) / 2.
        twice = xp.adjoint(blocks + identity(blocks.shape[-1], blocks))
        pulled = twice @ cotangent @ twice
        return (_upper(pulled - xp.adjoint(pulled))[..., None, :, :] / 2,)

    def apply(self, x):
        rows = x.shape[-2]
        return self._blockwise(x, self.blocks(rows)) if self.blocky(rows) else self._stepwise(x)

    def _stepwise(self, x: Array) -> Array:
        """Factor after factor."""
        blocks = self._cayley()[0]
        for i in reversed(range(self._count)):
            x = self._times(x, blocks[..., i, :, :, :].mT, i)
        return x

    @property
    def _span(self) -> int:
        """The side of the diagonal blocks that all factors together have."""
        return self._side << (self._count - 1)

    def _composed(self) -> Array:
        """These blocks of P: (..., n / span, span, span), from as many rows as one of them has."""
        n, span = self.shape[0], self._span
        eyes = xp.namespace(self.angles).concatenate([identity(span, self.angles)] * (n // span), -1)
        rows = self._stepwise(eyes + 0 * self.angles[..., 0, :1, :1])
        return rows.reshape(*rows.shape[:-1], -1, span).swapaxes(-3, -2).mT

    def entries(self, rows, cols):
        if self._count > 1:
            return self.dense()[..., rows, cols]
        b = self._side
        return self._cayley()[0][..., 0, rows // b, rows % b, cols % b] * (rows // b == cols // b)

    def _moved(self, direction):
        (blocks, inverted), n = self._cayley(), self.shape[0]
        changes = 2 * inverted @ _skew(direction.angles, self._side) @ inverted
        x = identity(n, blocks) + 0 * self.angles[..., 0, :1, :1]
        moved = 0 * x
        for i in reversed(range(self._count)):
            block, change = (a[..., i, :, :, :].mT for a in (blocks, changes))
            moved = self._times(moved, block, i) + self._times(x, change, i)
            x = self._times(x, block, i)
        return moved.mT

    def partial(self, index, g):
        whole = g if is_array(g) else g @ identity(self.shape[0], self.angles)
        (blocks, inverted), grads = self._cayley(), []
        for i in range(self._count - 1):  # what stands to the left of the last factor, undone
            whole = self._times(whole.mT, blocks[..., i, :, :, :].conj(), i).mT
        for i in reversed(range(self._count)):
            both = self._grouped(self._grouped(whole, i).swapaxes(-3, -2).swapaxes(-2, -1), i)
            grads.append(xp.namespace(both).einsum("...ibia->...iab", both))
            if i:
                whole = self._times(whole, xp.adjoint(blocks[..., i, :, :, :]), i)
                whole = self._times(whole.mT, blocks[..., i - 1, :, :, :].mT, i - 1).mT
        stacked = xp.namespace(whole).stack(grads[::-1], -4)
        pulled = 2 * xp.adjoint(inverted) @ stacked @ xp.adjoint(inverted)
        return _upper(pulled - xp.adjoint(pulled))

    def pullback(self, g):
        return type(self)(self.partial(0, g))

    def whiten(self, grad, damping=0.0):
        inverted = self._cayley()[1]
        values, vectors = xp.namespace(inverted).linalg.eigh(xp.gram(inverted))
        weights = 8 * values[..., :, None] * values[..., None, :] + xp.expand(damping, 4)
        turned = xp.adjoint(vectors) @ _skew(grad.angles, self._side) @ vectors / weights
        return type(self)(_upper(vectors @ turned @ xp.adjoint(vectors)))


BlockRotation = covers("P94")(Butterfly.configured("BlockRotation", 1))
