"""RaLoRA: as many blocks on the diagonal as the gradient of a layer has directions, at the cost of LoRA."""

from __future__ import annotations

from dataclasses import dataclass

from lowrank_sp.coverage import covers
from lowrank_sp.parameterizations import BlockDiagonal

from ..recipe import Recipe, register
from .basic import LORA

__all__ = ["RALORA", "Divided", "ralora_of"]


@covers("R18")
@dataclass(frozen=True)
class Divided:
    """A rank that is shared by blocks on the diagonal of rank ``base``, or of all of it where it is less.

    ``rank // base`` blocks reach the rank together and have the parameters of LoRA with the rank ``base``.

    Parameters
    ----------
    base : int
        The rank of a block.

    Raises
    ------
    ValueError
        If it is not a positive integer.
    """

    base: int = 8

    def __post_init__(self):
        if isinstance(self.base, bool) or not isinstance(self.base, int) or self.base < 1:
            raise ValueError(f"the rank of a block must be a positive integer, got {self.base!r}")

    def __call__(self, shape: tuple[int, int], rank: int) -> type[BlockDiagonal]:
        return BlockDiagonal.of(max(rank // self.base, 1))

    def size(self, shape: tuple[int, int], rank: int) -> int:
        """The rank of each block."""
        return rank // max(rank // self.base, 1)

    def scale(self, alpha: float, rank: int) -> float:
        """``alpha`` over the rank of a block, so that it does not depend on the number of blocks."""
        return alpha / self.size((rank, rank), rank)


def ralora_of(base: int) -> Recipe:
    """The recipe ``"ralora"`` with blocks of another rank, for ``ranks_by_effective_rank(..., rank=base)``."""
    made = Divided(base)
    return RALORA.but(f"ralora-{base}", form=made, size=made.size, scale=made.scale, note=RALORA.note)


RALORA = register(
    LORA.but(
        "ralora",
        cite="ye2026ralora",
        covers=("P44", "R18"),
        form=Divided(),
        size=Divided().size,
        scale=Divided().scale,
        note="Blocks of rank 8, as many as make up the rank; the ranks are those of ranks_by_effective_rank. "
        "ralora_of(rank) has other blocks. For RaLoRA-Pro give that function the ranks of ranks_by_importance, and the "
        "layers of each of them an adapter of their own.",
    )
)
