"""Starts that look at nothing but the size of the layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lowrank_sp.coverage import covers
from lowrank_sp.factors import MatrixFactors
from lowrank_sp.spaces import FLAT

from .base import Start

__all__ = ["Default", "Gaussian", "NonZero", "OrthonormalIdentity", "Reversed", "ZeroLeft"]


@covers("I01")
@dataclass(frozen=True)
class Default(Start):
    """One array zero, the others random: ``U(-1/sqrt(k), 1/sqrt(k))`` for flat arrays with k rows.

    For LoRA that is the Kaiming-uniform A (with the gain of its code, ``a = sqrt(5)``) and ``B = 0``. Arrays
    in other spaces, and fixed ones, are drawn as the form draws them.

    Parameters
    ----------
    gain : float
        Multiplies the bound of the uniform distribution.
    """

    gain: float = 1.0

    def __call__(self, site):
        drawn = site.form.random(site.shape, site.rank, site.rng)
        arrays = []
        for name, array, space in zip(drawn.names, drawn.arrays(), drawn.spaces, strict=True):
            if name == self.zero(site.form):
                array = 0 * array
            elif space is FLAT:
                bound = self.gain / array.shape[0] ** 0.5
                array = site.rng.uniform(-bound, bound, array.shape)
            arrays.append(array)
        device = site.weight().device
        return type(drawn)(*[torch.as_tensor(a, device=device) for a in arrays])

    @staticmethod
    def zero(form: type[MatrixFactors]) -> str:
        """The array that starts at zero: the left factor of a product of two, else the one the form names."""
        return "left" if form.names == ("left", "right") else form.zeros[0]


@dataclass(frozen=True)
class ZeroLeft(Start):
    """The start of LoRA in a form with a core: ``left = 0``, the core one, ``right`` Kaiming-uniform.

    All arrays but ``left`` are off zero, so the first step moves ``left`` alone, as that of LoRA does.
    """

    def __call__(self, site):
        m, n = site.shape
        right = site.uniform(n**-0.5, n, site.rank)
        return site.form.from_product(torch.zeros_like(right[:1]).repeat(m, 1), right, site.rank)


@covers("I02")
@dataclass(frozen=True)
class Reversed(Start):
    """``A = 0`` and ``B ~ N(0, 1 / r)``: the other choice of the factor that starts at zero.

    Source: :cite:`hayou2024impact`, which finds that the usual one allows larger learning rates.
    """

    def __call__(self, site):
        site.require("left", "right")
        m, n = site.shape
        left = site.normal(m, site.rank) / site.rank**0.5
        return site.form(left, left.new_zeros(n, site.rank))


@covers("I03")
@dataclass(frozen=True)
class NonZero(Start):
    """Both factors ``U(-gamma / sqrt(n), gamma / sqrt(n))`` with n inputs: NZLoRA.

    Parameters
    ----------
    right, left : float
        The two gammas; 16 in the experiments of the survey.

    Notes
    -----
    The source leaves the pretrained weight as it is, so that its model does not start at the pretrained one. Here
    the start is subtracted at the output. Source: :cite:`li2025nzlora`; equation (89) of :cite:`he2026unified`.
    """

    right: float = 16.0
    left: float = 16.0
    moves = True

    def __call__(self, site):
        m, n = site.shape
        left, right = site.uniform(self.left / n**0.5, m, site.rank), site.uniform(self.right / n**0.5, n, site.rank)
        return site.form.from_product(left, right, site.rank)


@dataclass(frozen=True)
class Gaussian(Start):
    """The array zero that the form names, the others ``N(0, std^2)``: AdaLoRA. Source: :cite:`zhang2023adalora`."""

    std: float = 0.02

    def __call__(self, site):
        shapes = zip(site.form.names, site.form.shapes(site.shape, site.rank), strict=True)
        return site.form(
            *[(0.0 if name in site.form.zeros else self.std) * site.normal(*shape) for name, shape in shapes]
        )


@dataclass(frozen=True)
class OrthonormalIdentity(Start):
    """Random orthonormal outer factors and the identity between them: SteLLA.

    Both outer factors have gradients from the first step on. The source does not compensate the identity, so that
    its model does not start at the pretrained one; here it is subtracted. Source: :cite:`li2025stella`.
    """

    moves = True

    def __call__(self, site):
        left, right = (torch.linalg.qr(site.normal(k, site.rank)).Q for k in site.shape)
        return site.form.from_product(left, right, site.rank)
