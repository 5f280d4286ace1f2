"""Forms that narrow blocks of the input to a few channels, mix these, and widen them to blocks of the output."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from ..factors import MatrixFactors

__all__ = ["Channels"]

Array = Any


class Channels(MatrixFactors):
    """A form that acts on rows ``x`` (..., k, n) in three steps, none of which is as large as the matrix.

    1. The entries of x, row by row, are cut into rows of J blocks of length q; every block meets ``narrow()``,
       an array (..., J, R, q), and becomes R channels.
    2. ``mix`` rearranges or combines the channels (..., J, R, rows) to (..., J', R', rows').
    3. ``widen()``, an array (..., J', p, R'), makes J' blocks of length p of every row, which one after another are
       the rows of the output.

    ``apply`` follows from that. So does an adapter that writes into the output of its layer in place and keeps
    nothing for backward that is larger than the channels.
    """

    @abstractmethod
    def narrow(self) -> Array:
        """The factor (..., J, R, q) for the blocks of the input."""

    @abstractmethod
    def widen(self) -> Array:
        """The factor (..., J', p, R') for the blocks of the output."""

    @abstractmethod
    def mix(self, thin: Array) -> Array:
        """Channels (..., J, R, rows) of the input as channels (..., J', R', rows') of the output."""

    def apply(self, x):
        narrow, widen = self.narrow(), self.widen()
        blocks = x.reshape(*x.shape[:-2], -1, narrow.shape[-3], narrow.shape[-1]).swapaxes(-3, -2)
        # Factors stand on the left, where products with few rows are fastest.
        out = self.mix(narrow @ blocks.mT).mT @ widen.mT
        return out.swapaxes(-3, -2).reshape(*out.shape[:-3], x.shape[-2], self.shape[0])
