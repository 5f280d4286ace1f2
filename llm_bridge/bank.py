"""Factors made of pieces of vectors from one bank that all layers share: VB-LoRA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowrank_sp.coverage import covers
from lowrank_sp.factors import Configured, factorization

from .nonlinear import Differentiated

__all__ = ["VectorBank"]


@covers("P65")
@factorization
class VectorBank(Differentiated, Configured):
    """``X Y^T`` whose columns are cut into pieces, each a mixture of the vectors in a bank with the largest weights.

    Parameters
    ----------
    left_logits, right_logits : arrays (m / b, r, h) and (n / b, r, h)
        Of a softmax over the largest of the h vectors, for every piece of a column.
    bank : array (h, b)
        The vectors, which all layers share.

    Notes
    -----
    ``VectorBank.of(h, b, k)`` is the form with h vectors of length b and mixtures of k of them; `VectorBank` itself
    has 90 vectors, mixtures of 2, and the largest length up to 256 that divides both sides of the layer, so that
    layers with different lengths have banks of their own. The choice of vectors is not differentiable and moves as
    the logits do. Parameters: ``h b`` once, and ``r h (m + n) / b``. The formula is that of the published method,
    which the surveys only name. Source: :cite:`li2024vblora`.
    """

    left_logits: Any
    right_logits: Any
    bank: Any

    ndims = (3, 3, 2)
    thin = True
    zeros = ()

    @classmethod
    def of(cls, count: int, length: int, mixed: int = 2) -> type[VectorBank]:
        """The form with ``count`` vectors of a length, ``mixed`` of them in every piece."""
        for name, k in (("count", count), ("length", length), ("mixed", mixed)):
            if int(k) != k or k < 1:
                raise ValueError(f"{name} must be a positive integer, got {k}")
        if mixed > count:
            raise ValueError(f"a mixture of {mixed} needs as many vectors, got {count}")
        return cls.configured(f"VectorBank{count}x{length}top{mixed}", int(count), int(length), int(mixed))

    @classmethod
    def for_shape(cls, shape):
        if cls.settings:
            return cls
        length = next(b for b in range(min(256, *shape), 0, -1) if shape[0] % b == 0 == shape[1] % b)
        return cls.of(90, length)

    @classmethod
    def shapes(cls, shape, rank):
        count, length, _ = cls.for_shape(shape).settings
        if shape[0] % length or shape[1] % length:
            raise ValueError(f"vectors of length {length} do not divide the sides of a {shape[0]} x {shape[1]} matrix")
        return (shape[0] // length, rank, count), (shape[1] // length, rank, count), (count, length)

    @property
    def shape(self):
        length = self.bank.shape[-1]
        return self.left_logits.shape[-3] * length, self.right_logits.shape[-3] * length

    @property
    def rank(self):
        return min(self.left_logits.shape[-2], *self.shape)

    def product(self):
        return self._columns(self.left_logits), self._columns(self.right_logits)

    def _columns(self, logits: Tensor) -> Tensor:
        """Pieces (..., p, r, h) as columns (..., p b, r)."""
        top, index = logits.topk(type(self).settings[2], -1)
        weights = torch.zeros_like(logits).scatter(-1, index, top.softmax(-1))
        pieces = weights @ self.bank[..., None, :, :]
        return pieces.mT.flatten(-3, -2)

    def dense(self):
        left, right = self.product()
        return left @ right.mT

    def apply(self, x):
        left, right = self.product()
        return (x @ right) @ left.mT

    def entries(self, rows, cols):
        left, right = self.product()
        return (left[..., rows, :] * right[..., cols, :]).sum(-1)
