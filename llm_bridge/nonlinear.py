"""Updates that bend: nonlinear functions of the activations between the factors, without a matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from lowrank_sp.coverage import covers
from lowrank_sp.factors import ByFactor, MatrixFactors, factorization
from lowrank_sp.parameterizations.outer import Outer

from .functions import GRID, ORDER, spline_basis

__all__ = ["Aurora", "Bent", "BentByLayer", "Differentiated", "LoDA", "LoDAPlus"]

Array = Any

SLOPE = 0.8  # of the leaky rectifiers, as in the code of the unified study


class Differentiated(ByFactor, MatrixFactors):
    """A form for automatic differentiation only: it has arrays and `apply`, but no adjoints of its own."""

    universal = False
    converts = False
    polynomial = False
    reason: ClassVar[str] = "it is made for automatic differentiation"

    @classmethod
    def _refuse(cls, what: str) -> TypeError:
        return TypeError(f"{cls.__name__} has no {what}: {cls.reason}")

    @classmethod
    def from_product(cls, left, right, rank=None):
        raise cls._refuse("conversion from a matrix")

    def partial(self, index, g):
        raise self._refuse("adjoint of its own")

    def pullback(self, g):
        raise self._refuse("adjoint of its own")

    def whiten(self, grad, damping=0.0):
        raise self._refuse("metric of its own")

    def expansion(self, direction, wrt):
        raise self._refuse("expansion")


class Bent(Differentiated, Outer):
    """A nonlinear function of the activations, which has no matrix either."""

    left: Array
    right: Array

    zeros: ClassVar[tuple[str, ...]] = ("left",)
    reason: ClassVar[str] = "it is a nonlinear function of the activations, so no matrix is equal to it"

    @property
    def rank(self):
        return self.right.shape[-1]

    def dense(self):
        raise self._refuse("matrix and cannot be merged or exported")

    def entries(self, rows, cols):
        raise self._refuse("entries")

    def product(self):
        raise self._refuse("product")


class BentByLayer(ABC):
    """What chooses such a form for every layer; recipes take it in place of a form."""

    @abstractmethod
    def __call__(self, shape: tuple[int, int], rank: int) -> type[Bent]:
        """The form for a layer (out, in)."""


@covers("P100")
@factorization
class LoDA(Bent):
    """``f2(f1(x A) B)`` with a small network f1 in the r channels and a leaky rectifier f2.

    f1 is rectifier, r x r, rectifier, r x r, rectifier; all rectifiers are leaky with slope 0.8, the value of
    the published code, since the papers give none.

    Parameters
    ----------
    left : array (m, r)
        B; it vanishes at the start.
    right : array (n, r)
        A.
    mix, mix2 : array (r, r)

    Notes
    -----
    Source: :cite:`liu2023loda`; equation (85) of :cite:`he2026unified`.
    """

    left: Array
    right: Array
    mix: Array
    mix2: Array

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (shape[1], rank), (rank, rank), (rank, rank)

    def apply(self, x):
        h = _leaky(x @ self.right)
        h = _leaky(_leaky(h @ self.mix) @ self.mix2)
        return _leaky(h @ self.left.mT)


@covers("P101")
@factorization
class LoDAPlus(Bent):
    """``x A B + f2(f1(x A) B)``: `LoDA` beside a linear path with the same factors.

    The source prints f1 of ``x A B``, whose shapes do not fit: f1 acts on the r channels.
    Source: :cite:`liu2023loda`; equation (85) of :cite:`he2026unified`, corrected.
    """

    left: Array
    right: Array
    mix: Array
    mix2: Array

    @classmethod
    def shapes(cls, shape, rank):
        return LoDA.shapes(shape, rank)

    def apply(self, x):
        h = x @ self.right
        bent = _leaky(_leaky(_leaky(h) @ self.mix) @ self.mix2)
        return h @ self.left.mT + _leaky(bent @ self.left.mT)


@covers("P102")
@factorization
class Aurora(Bent):
    """``f(x A) B`` with ``f(h) = tanh(tanh(h) C) + spline(h)``, a spline for each of the r channels.

    Parameters
    ----------
    left : array (m, r)
        B; it vanishes at the start.
    right : array (n, r)
        A.
    core : array (r, r)
        C, which equations (86)-(87) of the source leave out although its text describes it.
    splines : array (r, 8)
        Weights of cubic B-splines on five intervals of [-1, 1], which is the count of the source's table.

    Notes
    -----
    Source: :cite:`dong2025aurora`; equations (86)-(87) and (136)-(137) of :cite:`he2026unified`.
    """

    left: Array
    right: Array
    core: Array
    splines: Array

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (shape[1], rank), (rank, rank), (rank, GRID + ORDER)

    def apply(self, x):
        h = x @ self.right
        smooth = torch.tanh(torch.tanh(h) @ self.core)
        return (smooth + (spline_basis(h) * self.splines).sum(-1)) @ self.left.mT


def _leaky(x: Array) -> Array:
    return F.leaky_relu(x, SLOPE)
