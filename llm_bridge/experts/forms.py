"""Experts among which a router chooses for every input: pairs of factors, a shared factor, Kronecker products."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrank_sp.coverage import covers
from lowrank_sp.factors import factorization
from lowrank_sp.parameterizations.kronecker import largest_divisor

from .gates import Soft
from .routed import Gated, Routed

__all__ = [
    "GenericExperts",
    "KroneckerExperts",
    "LowRankExperts",
    "SharedInputExperts",
    "ThresholdExperts",
    "mixed_pairs",
]

Array = Any


def mixed_pairs(x: Tensor, left: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """``sum_e w_e B_e A_e x`` as two products with the stacked factors (E, m, r) and (E, n, r).

    E r channels cost less than sorting inputs by expert.
    """
    channels = (x @ right.transpose(0, 1).flatten(1)).unflatten(-1, (len(right), -1))
    return (channels * weights[..., None]).flatten(-2) @ left.mT.flatten(0, 1)


@covers("E00")
@factorization
class LowRankExperts(Gated):
    """``sum_e w_e(x) B_e A_e x``: a mixture of LoRAs, 8 of which the 2 most probable act.

    Parameters
    ----------
    left : array (E, m, r)
        B_e; they vanish at the start.
    right : array (E, n, r)
        A_e.
    router : array (n, E)
        R.

    Notes
    -----
    Parameters: ``E r (m + n) + E n``. The kept probabilities are not scaled to one; `TopShare` does that.
    Source: equation (124) of :cite:`he2026unified`.
    """

    left: Array
    right: Array
    router: Array

    ndims = (3, 3, 2)

    @classmethod
    def shapes(cls, shape, rank):
        (m, n), e = shape, cls.count
        return (e, m, rank), (e, n, rank), (n, e)

    def mixed(self, x, weights):
        return mixed_pairs(x, self.left, self.right, weights)


@covers("E07")
@factorization
class SharedInputExperts(Gated):
    """``(sum_e w_e(x) B_e) A x``: HydraLoRA, whose experts share A; all of them act.

    Parameters
    ----------
    left : array (E, m, r)
        B_e; they vanish at the start.
    right : array (n, r)
        A.
    router : array (n, E)
        R.

    Notes
    -----
    Parameters: ``r n + E r m + E n``. Source: :cite:`tian2024hydralora`; equation (133) of :cite:`he2026unified`.
    """

    left: Array
    right: Array
    router: Array

    ndims = (3, 2, 2)
    count = 3
    gate = Soft()

    @classmethod
    def shapes(cls, shape, rank):
        (m, n), e = shape, cls.count
        return (e, m, rank), (n, rank), (n, e)

    def mixed(self, x, weights):
        channels = weights[..., :, None] * (x @ self.right)[..., None, :]
        return channels.flatten(-2) @ self.left.mT.flatten(0, 1)


@covers("P58", "E16")
@factorization
class KroneckerExperts(Gated):
    """``sum_e w_e(x) (X_e (x) Y_e) x``: a mixture of Kronecker products; all of them act.

    Parameters
    ----------
    left : array (E, a, b)
        X_e; they vanish at the start. a and b are the divisors of m and n closest to their roots from below.
    right : array (E, m / a, n / b)
        Y_e.
    router : array (n, E)
        R.

    Notes
    -----
    As large as E Kronecker products whatever the size, of rank up to that of the layer. Parameters:
    ``E (a b + m n / (a b)) + E n``. Source: :cite:`sadeghi2025moka`.
    """

    left: Array
    right: Array
    router: Array

    ndims = (3, 3, 2)
    count = 4
    gate = Soft()

    @property
    def shape(self):
        return self.left.shape[-2] * self.right.shape[-2], self.left.shape[-1] * self.right.shape[-1]

    @property
    def rank(self):
        return min(self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        (m, n), (a, b), e = shape, (largest_divisor(k, k) for k in shape), cls.count
        return (e, a, b), (e, m // a, n // b), (n, e)

    def mixed(self, x, weights):
        blocks = x.unflatten(-1, (self.left.shape[-1], -1))  # (..., b, n / b)
        inner = torch.einsum("...bd,ecd->...ebc", blocks, self.right)
        out = torch.einsum("...ebc,eab->...ac", inner * weights[..., None, None], self.left)
        return out.flatten(-2)


@covers("E12")
@factorization
class GenericExperts(Gated):
    """``B_0 A_0 x + sum_e w_e(x) B_e A_e x``: a path for all inputs beside the experts, as in MLoRE.

    Parameters
    ----------
    left : array (1 + E, m, r)
        B_e; they vanish at the start.
    right : array (1 + E, n, r)
        A_e.
    router : array (n, E)
        R.

    Notes
    -----
    In the source the common path is a convolution, experts have several ranks and receptive fields, and every task
    has a router and an expert of its own on features of a decoder; here the common path is a pair of factors like the
    experts, and one router serves all. Parameters: ``(1 + E) r (m + n) + E n``. Source: :cite:`yang2024mlore`.
    """

    left: Array
    right: Array
    router: Array

    ndims = (3, 3, 2)
    count = 4

    @classmethod
    def shapes(cls, shape, rank):
        (m, n), e = shape, cls.count
        return (1 + e, m, rank), (1 + e, n, rank), (n, e)

    def mixed(self, x, weights):
        always = torch.ones_like(weights[..., :1])
        return mixed_pairs(x, self.left, self.right, torch.cat([always, weights], -1))


@covers("E04")
@factorization
class ThresholdExperts(Routed):
    """Experts act by how much their probability is above a threshold that depends on the input: AdaMoLE.

    ``w_e = max(p_e - t, 0) / sum_j max(p_j - t, 0)`` with ``t = sigmoid(c . x + b) / E``, so that the most probable
    expert always acts.

    Parameters
    ----------
    left : array (E, m, r)
        B_e; they vanish at the start.
    right : array (E, n, r)
        A_e.
    router : array (n, E)
    threshold : array (n,)
        c.
    offset : array (1,)
        b.

    Notes
    -----
    The survey weighs experts with ``p_e`` where ``p_e > t``, from which the threshold has no gradient; this is the
    formula of the published code, from which it has one. Parameters: ``E r (m + n) + (E + 1) n + 1``.
    Source: :cite:`liu2024adamole`; equations (130)-(131) of :cite:`he2026unified`.
    """

    left: Array
    right: Array
    router: Array
    threshold: Array
    offset: Array

    ndims = (3, 3, 2, 1, 1)
    count: ClassVar[int] = 8

    @classmethod
    def shapes(cls, shape, rank):
        (m, n), e = shape, cls.count
        return (e, m, rank), (e, n, rank), (n, e), (n,), (1,)

    def scores(self, x):
        return x @ self.router

    def weights(self, x):
        probabilities = self.probabilities(x)
        level = (x @ self.threshold + self.offset).to(probabilities.dtype).sigmoid() / type(self).count
        above = (probabilities - level[..., None]).relu()
        return (above / above.sum(-1, keepdim=True).clamp_min(torch.finfo(above.dtype).tiny)).to(x.dtype)

    def mixed(self, x, weights):
        return mixed_pairs(x, self.left, self.right, weights)
