"""Low-rank factors tiled from chunks whose ranks are rotated from tile to tile: ProLoRA."""

from __future__ import annotations

from typing import Any

from .. import xp
from ..coverage import covers
from ..factors import Configured, factorization
from .outer import Outer
from .sided import SidedSum, Unconvertible

__all__ = ["ProLoRA"]

Array = Any


@covers("P66")
@factorization
class ProLoRA(SidedSum, Unconvertible, Configured, Outer):
    """W = X Y^H + T(B) T(A)^H, where T stacks P copies of a chunk, each with its columns rotated further.

    Parameters
    ----------
    left, right : arrays (..., m, u) and (..., n, u)
        X and Y, not shared.
    left_chunk, right_chunk : arrays (..., m / P, P r) and (..., n / P, P r)
        B and A: with the numbers of m r and n r they have P r columns.

    Notes
    -----
    Copy p of B is rotated by p columns and copy q of A by q r columns, so that each tall factor has its full
    rank, and all P^2 blocks of the product differ when r >= P. The size of this form is r; ``ProLoRA.of(P, u)``
    is the form with other numbers than two copies and u = 1, and the parameters are ``(m + n)(u + r)`` for a
    rank of ``u + P r``. Equation (34) of :cite:`he2026unified` rolls whole factors by rows instead, at the same
    count; this is the published method, whose strides are free.
    Source: :cite:`wang2024prolora`.

    Examples
    --------
    >>> ProLoRA.parameter_count((6, 8), 2)
    42
    """

    left: Array
    right: Array
    left_chunk: Array
    right_chunk: Array

    sides = (0, 1, 0, 1)
    zeros = ("right", "right_chunk")

    @classmethod
    def of(cls, copies: int, unshared: int = 1) -> type[ProLoRA]:
        """The form with so many copies and unshared ranks."""
        for name, k, least in (("copies", copies, 1), ("unshared", unshared, 1)):
            if int(k) != k or k < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {k}")
        return cls.configured(f"ProLoRA{int(copies)}and{int(unshared)}", int(copies), int(unshared))

    @property
    def _copies(self) -> int:
        return (type(self).settings or (2, 1))[0]

    @property
    def rank(self):
        return min(self.left.shape[-1] + self.left_chunk.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        copies, unshared = cls.settings or (2, 1)
        if shape[0] % copies or shape[1] % copies:
            raise ValueError(f"{copies} copies must divide the shape, got {tuple(shape)}")
        chunks = [(k // copies, copies * rank) for k in shape]
        return (shape[0], unshared), (shape[1], unshared), *chunks

    def _rolled(self, blocks: list[Array], side: int, back: bool = False) -> list[Array]:
        """Every block with its columns rotated by its multiple of the stride, or back."""
        stride, roll = blocks[0].shape[-1] // self._copies if side else 1, xp.namespace(blocks[0]).roll
        return [roll(b, (-p if back else p) * stride, -1) for p, b in enumerate(blocks)]

    def product(self):
        cat = xp.namespace(self.left).concatenate
        tiled = [cat(self._rolled([chunk] * self._copies, k), -2) for k, chunk in enumerate(self.arrays()[2:])]
        return tuple(cat((own, tall), -1) for own, tall in zip(self.arrays()[:2], tiled, strict=True))

    def _orders(self, direction):
        pairs = zip(self.product(), direction.product(), strict=True)
        return tuple(list(pair) for pair in pairs)

    def _chained(self, index, cotangent):
        own = self.left.shape[-1]
        if index < 2:
            return cotangent[..., :own]
        height = self.arrays()[index].shape[-2]
        blocks = [cotangent[..., p * height : (p + 1) * height, own:] for p in range(self._copies)]
        return sum(self._rolled(blocks, index - 2, back=True))

    def _white(self, index, g, damping):
        own = self.left.shape[-1]
        gram = xp.gram(self.product()[1 - index % 2])
        if index < 2:
            return xp.divide_psd(g, gram[..., :own, :own], damping)
        # A row of the chunk stands in every copy, with its columns rotated: so are those of the Gram matrix.
        grams = self._rolled([gram[..., own:, own:]] * self._copies, index - 2, back=True)
        grams = self._rolled([a.mT for a in grams], index - 2, back=True)
        return xp.divide_psd(g, sum(grams).mT, damping)
