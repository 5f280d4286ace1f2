"""Starts from the gradient ``G`` of the loss in the pretrained weight, averaged over calibration batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lowrank_sp import xp
from lowrank_sp.coverage import covers

from .base import Start
from .spectrum import leading

__all__ = ["Compressed", "GradientFrame", "GradientSpectrum", "SplitFrame"]


@covers("I16")
@dataclass(frozen=True)
class SplitFrame(Start):
    """``A^T`` from the first r right singular vectors of G, B from the next r left ones: LoRA-GA.

    With orthonormal factors ``B B^T G + G A^T A``, the first step of the weight, is then the best approximation
    of G of rank 2r. Both are scaled by ``out^(1/4) / sqrt(gamma)``.

    Parameters
    ----------
    gamma : float

    Notes
    -----
    The printed exponent is wrong: it is a quarter, of the number of outputs.
    Source: :cite:`wang2024loraga`; equations (99)-(102) of :cite:`he2026unified`.
    """

    gamma: float = 16.0
    moves = True
    needs = "gradients"

    def __call__(self, site):
        r = site.rank
        if 2 * r > min(site.shape):
            raise ValueError(f"this start needs 2 * rank singular vectors of {site.shape}, so rank <= "
                             f"{min(site.shape) // 2}, got {r}")  # fmt: skip
        u, _, v = leading(site.statistic, 2 * r, site.rng)
        size = site.shape[0] ** 0.25 / self.gamma**0.5
        return site.form.from_product(size * u[:, r:], size * v[:, :r], r)


@covers("I17")
@dataclass(frozen=True)
class GradientSpectrum(Start):
    """Factors of the leading part of ``-G``, in units of its largest singular value: LoRA-One.

    ``B = -U_r S_r^(1/2) / sqrt(gamma)`` and ``A^T = V_r S_r^(1/2) / sqrt(gamma)`` with ``G = U S V^T / S_1``.

    Parameters
    ----------
    gamma : float

    Notes
    -----
    The source takes this as its first gradient step; here every recipe starts at the pretrained model, so the start
    is subtracted at the output. Source: :cite:`zhang2025loraone`; equations (104)-(106) of :cite:`he2026unified`.
    """

    gamma: float = 128.0
    moves = True
    needs = "gradients"

    def __call__(self, site):
        u, s, v = leading(site.statistic, site.rank, site.rng)
        root = (s / (self.gamma * s[0].clamp_min(torch.finfo(s.dtype).tiny))).sqrt()
        return site.form.from_product(-u * root, v * root, site.rank)


@covers("I18")
@dataclass(frozen=True)
class GradientFrame(Start):
    """Leading singular vectors of G on both sides of a zero core: LoRA-SB.

    Notes
    -----
    The source starts the core at the singular values, a first step of descent. With frozen outer factors the update
    is linear in the core, so that once the start is subtracted, as it must be to begin at the pretrained model,
    its value changes nothing; it is zero. Source: :cite:`ponkshe2024lorasb`, :cite:`he2026unified`.
    """

    needs = "gradients"

    def __call__(self, site):
        site.require("left", "core", "right")
        u, _, v = leading(site.statistic, site.rank, site.rng)
        return site.form(u, u.new_zeros(site.rank, site.rank), v)


@covers("I19")
@dataclass(frozen=True)
class Compressed(Start):
    """Random A, and the B with which ``B A`` is closest to a descent step: GoRA.

    ``A^T ~ U(-1/sqrt(n), 1/sqrt(n))`` (n, r) and ``B = -(gamma / s) sqrt(n / r) G A^T (A A^T)^{-1}``, so that
    ``s B A`` is about as large as ``gamma G``; with the scale ``alpha / sqrt(r)`` the factor is
    ``gamma sqrt(n) / alpha``.

    Parameters
    ----------
    gamma : float

    Notes
    -----
    The default is chosen here: the surveys give none. The source takes this as its first step; here it is subtracted
    at the output. Its allocation of ranks is not part of the start.
    Source: :cite:`he2025gora`; equations (107)-(109) of :cite:`he2026unified`.
    """

    gamma: float = 0.05
    moves = True
    needs = "gradients"

    def __call__(self, site):
        n, r = site.shape[1], site.rank
        right = site.uniform(n**-0.5, n, r)
        step = xp.divide_psd(site.statistic @ right, xp.gram(right))
        return site.form.from_product(-(self.gamma / site.scale) * (n / r) ** 0.5 * step, right, r)
