"""What it costs to add an entrywise product of thin products, and the way of adding that costs less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..functions import KEPT
from .base import Additive, Combine, Formed

__all__ = ["Cheaper", "Cost", "channels_cost", "formed_cost"]

# Multiplications and additions in a product of matrices that take as long as one pass over one number: measured in
# single precision on one core, where products of matrices reach 100 per nanosecond and passes one number.
FLOPS_PER_NUMBER = 100


@dataclass(frozen=True)
class Cost:
    """Of one forward and one backward pass of an adapted layer, beyond those of the frozen layer.

    Parameters
    ----------
    flops : int
        Multiplications and additions in products of matrices.
    numbers : int
        Numbers that elementwise operations and in-place sums pass over.
    """

    flops: int
    numbers: int

    @property
    def work(self) -> int:
        """Both in flops."""
        return self.flops + FLOPS_PER_NUMBER * self.numbers


def channels_cost(tokens: int, shape: tuple[int, int], channels: int) -> Cost:
    """Of `add_channels` with one block, as for a Hadamard product, whose channels are ``r1 r2``.

    Three products of the tokens with the factor of either side, and one more with that of the inputs where the
    channels are not kept; three passes over inputs and outputs, which thin products read and add to; six over the
    factors, to make them and for their gradients.

    Examples
    --------
    >>> channels_cost(100, (10, 20), 2)
    Cost(flops=36000, numbers=9360)
    """
    m, n = shape
    again = channels > KEPT * n
    flops = 6 * tokens * channels * (m + n) + 2 * tokens * channels * n * again
    return Cost(flops, 3 * tokens * (m + n) + 6 * channels * (m + n))


def formed_cost(tokens: int, shape: tuple[int, int], inner: int, half: bool = False) -> Cost:
    """Of `Formed` with the product of two matrices of ranks that add up to ``inner``.

    The gradient of the whole matrix is a product of the size of the layer; in ``half`` precision there is one more
    in the forward pass. The matrices are formed twice, and their gradients cost as much again. Thirteen passes over
    the matrix.
    """
    m, n = shape
    return Cost(2 * tokens * m * n * (1 + half) + 8 * m * n * inner, 13 * m * n)


@dataclass(frozen=True)
class Cheaper(Combine):
    """``W + s F`` for ``F = A o B`` as `Additive` or as `Formed`, whichever costs less for the tokens at hand.

    `channels_cost` grows with the product of the two ranks and `formed_cost` hardly with the ranks, so that the
    ranks from which forming is cheaper are near ``sqrt(m n / (3 (m + n)))`` with many tokens. Convolutions always
    form the matrix, which costs them least, and embeddings, which only look at some of its rows, never do.
    """

    additive = True

    def forward(self, kind, layer, x, adapter):
        rows = kind.rows(layer, x)
        way = Formed() if _forms(rows, kind.shape(layer), adapter) else Additive()
        return way.forward(kind, layer, x, adapter)

    def meet(self, weight, update, extras):
        return weight + update


def _forms(rows: Tensor, shape: tuple[int, int], adapter: Any) -> bool:
    """Whether forming is cheaper for these rows of activations."""
    if not rows.is_floating_point():
        return False
    if rows.ndim > 2:
        return True
    first, second = adapter.left.shape[-1], adapter.left2.shape[-1]
    by_channels = channels_cost(len(rows), shape, first * second)
    return formed_cost(len(rows), shape, first + second, rows.element_size() == 2).work < by_channels.work
