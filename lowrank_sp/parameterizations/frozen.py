"""Forms with fixed outer factors, of which only what stands between or beside them is trained."""

from __future__ import annotations

from typing import Any

from .. import xp
from ..coverage import covers
from ..factors import Multilinear, factorization
from ..spaces import FIXED, FLAT, STIEFEL
from .bm import resized, thin_svd
from .core import orthonormal_core, whiten_core
from .outer import Outer
from .sided import FixedSide, Sided

__all__ = ["FrozenCore", "FrozenRight", "FrozenValues"]

Array = Any


def _orthonormal(names: tuple[str, ...], shape: Any, rank: int, rng: Any, batch: tuple[int, ...]) -> dict[str, Any]:
    """Random outer factors with orthonormal columns."""
    sides = {"left": shape[0], "right": shape[1]}
    if rank > min(shape):
        raise ValueError(
            f"orthonormal factors of a {shape[0]} x {shape[1]} matrix have rank at most {min(shape)}, got {rank}"
        )
    return {name: STIEFEL.random(rng, (*batch, sides[name], rank)) for name in names}


@covers("P03")
@factorization
class FrozenRight(Sided, Multilinear, Outer):
    """W = X A^H with a fixed A: LoRA-FA.

    Parameters
    ----------
    left : array (..., m, r)
        X.
    right : array (..., n, r)
        A, fixed; the projection of the input of a layer.

    Notes
    -----
    Linear in X, so that the factored step and the step of the matrix agree exactly. `from_product` takes an
    orthonormal A. Source: :cite:`zhang2023lorafa`; section II-A of :cite:`he2026unified`.

    Examples
    --------
    >>> FrozenRight.parameter_count((6, 5), 2)
    12
    """

    left: Array
    right: Array

    spaces = (FLAT, FIXED)
    sides = (0, 1)
    zeros = ("left",)

    @property
    def rank(self):
        return min(self.left.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (shape[1], rank)

    @classmethod
    def constants(cls, shape, rank, rng, batch):
        return _orthonormal(("right",), shape, rank, rng, batch)

    @classmethod
    def from_product(cls, left, right, rank=None):
        left, core, right = orthonormal_core(left, right, rank)
        return cls(left @ core, right)

    def product(self):
        return self.left, self.right

    def _chained(self, index, cotangent):
        return cotangent

    def _white(self, index, g, damping):
        return xp.divide_psd(g, xp.gram(self.right), damping)


@covers("P05", "P33", "P34")
@factorization
class FrozenCore(Sided, Multilinear, Outer):
    """W = U C V^H with fixed U, V: LoRA-XS, LoRA-SB, the late phase of LaMDA, the core tuning of NLoRA.

    Parameters
    ----------
    left : array (..., m, r)
        U, fixed.
    core : array (..., r, r)
        C.
    right : array (..., n, r)
        V, fixed.

    Notes
    -----
    The methods differ in where U and V come from: the leading singular vectors of the pretrained weight
    (LoRA-XS) or of a gradient (LoRA-SB), or a Nystrom sketch (NLoRA); LaMDA reaches this form when its second
    projection, trained at first, has been frozen. LaMDA's and NLoRA's formulas are taken from the published
    methods, which the surveys only name. `from_product` takes orthonormal U and V.
    Source: :cite:`ponkshe2024lorasb`, :cite:`balazy2024loraxs`, :cite:`azizi2024lamda`, :cite:`guo2025nlora`.

    Examples
    --------
    >>> FrozenCore.parameter_count((6, 5), 2)
    4
    """

    left: Array
    core: Array
    right: Array

    spaces = (FIXED, FLAT, FIXED)
    sides = (0, 0, 1)
    zeros = ("core",)

    @property
    def rank(self):
        return min(*self.core.shape[-2:], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (rank, rank), (shape[1], rank)

    @classmethod
    def constants(cls, shape, rank, rng, batch):
        return _orthonormal(("left", "right"), shape, rank, rng, batch)

    @classmethod
    def from_product(cls, left, right, rank=None):
        return cls(*orthonormal_core(left, right, rank))

    def product(self):
        return self.left @ self.core, self.right

    def _chained(self, index, cotangent):
        return xp.adjoint(self.left) @ cotangent

    def _white(self, index, g, damping):
        return whiten_core(xp.gram(self.left), xp.gram(self.right), g, damping)


@covers("P31", "P32")
@factorization
class FrozenValues(Sided, FixedSide, Multilinear, Outer):
    """W = U diag(s) V^H with fixed U, V: SVFit and SVFT on the singular vectors, LoLDU on triangular factors.

    Parameters
    ----------
    left : array (..., m, r)
        U, fixed: singular vectors, or for LoLDU the first columns of ``P L`` of the pivoted factorization.
    values : array (..., r)
        s.
    right : array (..., n, r)
        V, fixed: singular vectors, or the adjoint of the first rows of the unit upper triangular factor.

    Notes
    -----
    Formulas are those of the published methods, which the surveys only name; SVFT's wider bands are a
    `FrozenCore` whose core is masked. `from_product` takes singular vectors.
    Source: :cite:`sun2024svfit`, :cite:`lingam2024svft`, :cite:`shi2024loldu`.

    Examples
    --------
    >>> FrozenValues.parameter_count((6, 5), 2)
    2
    """

    left: Array
    values: Array
    right: Array

    ndims = (2, 1, 2)
    spaces = (FIXED, FLAT, FIXED)
    sides = (0, 0, 1)
    zeros = ("values",)

    @property
    def rank(self):
        return min(self.values.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (rank,), (shape[1], rank)

    @classmethod
    def constants(cls, shape, rank, rng, batch):
        return _orthonormal(("left", "right"), shape, rank, rng, batch)

    @classmethod
    def from_product(cls, left, right, rank=None):
        u, s, v = thin_svd(*resized(left, right, rank))
        return cls(u, xp.asarray_like(s, u), v)

    @property
    def fixed_side(self):
        return 0

    def fixed(self):
        return self.left

    def moving(self):
        return self.right * self.values.conj()[..., None, :]

    def pull_moving(self, cotangent):
        return None, (self.right * cotangent.conj()).sum(-2), None

    def product(self):
        return self.left * self.values[..., None, :], self.right

    def _chained(self, index, cotangent):
        return (self.left.conj() * cotangent).sum(-2)

    def _white(self, index, g, damping):
        gram = xp.gram(self.left) * xp.gram(self.right).mT
        return xp.solve_psd(gram, g[..., None], damping)[..., 0]
