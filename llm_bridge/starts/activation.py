"""Starts from the second moments ``C = X^T X`` of a layer's inputs on calibration batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowrank_sp.coverage import covers
from lowrank_sp.parameterizations import BurerMonteiro

from .base import Start, StartSite
from .spectrum import leading, minor_svd

__all__ = ["ContextMinor", "ContextPrincipal", "ExplainedVariance"]


@covers("I22")
@dataclass(frozen=True)
class ExplainedVariance(Start):
    """``A^T`` from the directions that explain most of the inputs, orthonormal, and ``B = 0``: EVA.

    They maximize ``tr(A C A^T)`` over ``A A^T = I``.

    Notes
    -----
    The constraint is misprinted as ``A^T A = I``; the eigenvalues that equation (123) puts in would break it.
    Second moments are not centred, as in the survey. Its allocation of ranks is not part of the start.
    Source: :cite:`paischer2024eva`; equations (116)-(123) of :cite:`he2026unified`.
    """

    needs = "inputs"

    def __call__(self, site):
        _, _, v = leading(site.statistic, site.rank, site.rng)
        return site.form.from_product(v.new_zeros(site.shape[0], site.rank), v, site.rank)


@covers("I21")
@dataclass(frozen=True)
class ContextPrincipal(Start):
    """The part of W that matters most for the inputs seen: CorDA, instruction-previewed.

    With ``W C = U S V^T`` it is ``U_r S_r V_r^T C^{-1} = U_r U_r^T W``: the second form needs no inverse, hence no
    damping, and reproduces W at full rank. C is taken relative to its mean eigenvalue, so that white inputs give
    the start of PiSSA.

    Notes
    -----
    S has the exponent +1/2 in both factors; with the printed -1/2 they do not reproduce W.
    Source: :cite:`yang2024corda`; equations (110)-(115) of :cite:`he2026unified`.
    """

    moves = True
    needs = "inputs"

    def __call__(self, site):
        u, s, _ = leading(_context(site), site.rank, site.rng)
        return _projected(site, u, s)


@covers("I21")
@dataclass(frozen=True)
class ContextMinor(Start):
    """The part of W that matters least for the inputs seen: CorDA, knowledge-preserved.

    As `ContextPrincipal`, with the last r left singular vectors of ``W C``; calibrate on data whose answers
    should not change.

    Notes
    -----
    The factors are balanced by the norms of ``W^T U_r``, not by singular values: with fewer inputs than the layer is
    wide these vanish, and one factor would be tiny and the other one huge.
    """

    moves = True
    needs = "inputs"

    def __call__(self, site):
        context = _context(site)
        if isinstance(context, BurerMonteiro):
            raise ValueError(
                f"the inputs of this layer are too wide ({site.shape[1]}) for exact second moments, and approximate "
                "ones say nothing about the least directions; exclude the layer, or take the recipe 'corda'"
            )
        u, _, _ = minor_svd(context, site.rank, site.rng)
        return _projected(site, u, (site.weight().mT @ u).norm(dim=0))


def _context(site: StartSite) -> Any:
    """``W C`` with C relative to its mean eigenvalue: a matrix, or a product of thin ones where C is one."""
    c, weight = site.statistic, site.weight()
    if isinstance(c, BurerMonteiro):
        size = (c.left * c.right).sum() / site.shape[1]
        return BurerMonteiro(weight @ c.left / size, c.right)
    return weight @ (c / (c.trace() / len(c)))


def _projected(site: StartSite, u: Tensor, s: Tensor) -> Any:
    """``s F = U U^T W``, with the square roots of these sizes of its components in the left factor."""
    root = s.clamp_min(torch.finfo(s.dtype).eps * s.max() + torch.finfo(s.dtype).tiny ** 0.5).sqrt()
    right = (site.weight().mT @ u) / root
    return site.form.from_product(u * root / site.scale**0.5, right / site.scale**0.5, site.rank)
