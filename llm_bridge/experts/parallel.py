"""Parallel LoRAs without a router, which can be merged: scaled and summed, or one at random until they are averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lowrank_sp.coverage import covers
from lowrank_sp.factors import Configured, factorization
from lowrank_sp.parameterizations.outer import Outer

from ..combines import Additive, Combine
from ..nonlinear import Differentiated
from .routed import check_count

__all__ = ["AveragedPairs", "RandomPair", "ScaledPairs", "consistency"]

Array = Any


class _Pairs(Differentiated, Outer, Configured):
    """E pairs of factors (E, m, r) and (E, n, r) that make one thin product."""

    left: Array
    right: Array
    count: ClassVar[int] = 4
    thin = True

    @classmethod
    def of(cls, count: int) -> Any:
        """The form with so many pairs."""
        return cls.configured(f"{cls._base().__name__}{check_count(count)}", int(count))

    @classmethod
    def _completed(cls, form):
        (form.count,) = form.settings
        return form

    def dense(self):
        left, right = self.product()
        return left @ right.mT

    def entries(self, rows, cols):
        left, right = self.product()
        return (left[rows] * right[cols]).sum(-1)

    def apply(self, x):
        left, right = self.product()
        return (x @ right) @ left.mT


@covers("E09")
@factorization
class ScaledPairs(_Pairs):
    """``sum_e s_e B_e A_e``: MultiLoRA, parallel LoRAs with scales that train and vanish at the start.

    Parameters
    ----------
    left : array (E, m, r)
        B_e.
    right : array (E, n, r)
        A_e.
    scales : array (E,)
        s_e.

    Notes
    -----
    All factors start at random, so that no direction comes first. Parameters: ``E r (m + n) + E``.
    Source: :cite:`wang2023multilora`, which the survey describes without a formula.
    """

    left: Array
    right: Array
    scales: Array

    ndims = (3, 3, 1)
    zeros = ("scales",)

    @property
    def rank(self):
        return min(self.left.shape[0] * self.left.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        (m, n), e = shape, cls.count
        return (e, m, rank), (e, n, rank), (e,)

    def product(self):
        left = self.left * self.scales[:, None, None]
        return left.transpose(0, 1).flatten(1), self.right.transpose(0, 1).flatten(1)


@covers("E19")
@factorization
class AveragedPairs(_Pairs):
    """``mean_e(B_e) mean_e(A_e)``: what AdaMix leaves of its experts after training.

    Parameters
    ----------
    left : array (E, m, r)
        B_e; they vanish at the start.
    right : array (E, n, r)
        A_e.

    Notes
    -----
    Parameters in training: ``E r (m + n)``, after it ``r (m + n)``. Source: :cite:`wang2022adamix`.
    """

    left: Array
    right: Array

    ndims = (3, 3)
    zeros = ("left",)

    @property
    def rank(self):
        return self.left.shape[-1]

    @classmethod
    def shapes(cls, shape, rank):
        (m, n), e = shape, cls.count
        return (e, m, rank), (e, n, rank)

    def product(self):
        return self.left.mean(0), self.right.mean(0)


@covers("E19")
@dataclass(frozen=True)
class RandomPair(Combine):
    """``W + s B_i A_j`` in training, with i and j drawn anew for every layer and pass; else ``W + s F``.

    The host draws, so that nothing waits for a device. Layers that hand out their matrix always have the average.
    """

    def forward(self, kind, layer, x, adapter):
        if not adapter.training:
            return Additive().forward(kind, layer, x, adapter)
        seen, rows = adapter.noise.input(x, True), kind.rows(layer, x)
        first, second = torch.randint(len(adapter.left), (2,)).tolist()
        out, scale = kind.fresh(layer, rows), adapter.scale * adapter.noise.gate(True)
        rows = rows if seen is x else kind.rows(layer, seen)
        for sign, point in adapter.terms():
            out = kind.add(layer, rows, out, (point.left[first], point.right[second]), sign * scale)
        return kind.restore(layer, x, out)

    def meet(self, weight, update, extras):
        return weight + update


def consistency(first: Tensor, second: Tensor) -> Tensor:
    """``(KL(p || q) + KL(q || p)) / 2`` of two passes over the same batch, from their logits (..., classes).

    Added to the loss it keeps experts that were drawn at random close to each other.
    Source: :cite:`wang2022adamix`.
    """
    p, q = first.log_softmax(-1).flatten(0, -2), second.log_softmax(-1).flatten(0, -2)
    there = F.kl_div(q, p, reduction="batchmean", log_target=True)
    return (there + F.kl_div(p, q, reduction="batchmean", log_target=True)) / 2
