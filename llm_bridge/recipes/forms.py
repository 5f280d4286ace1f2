"""LoRA with other products: gates, grouped rows, and a factor that layers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lowrank_sp.coverage import covers
from lowrank_sp.parameterizations import BlockGrid, DiagonalCore
from lowrank_sp.rules import Adam, Orthogonality, Shrinkage, chain

from ..recipe import Recipe, by_type, register
from ..starts import Gaussian, ZeroLeft
from .basic import LORA

__all__ = ["Heads", "per_head"]

ADALORA = register(
    LORA.but(
        "adalora",
        cite="zhang2023adalora",
        covers=("P20", "O40"),
        form=DiagonalCore,
        init=Gaussian(0.02),
        rule=chain(Adam(), Orthogonality(0.1)),
        note="Form and penalty, decoupled from Adam; ranks fall with the policy adalora(model, optimizer, budget).",
    )
)
SORA = register(
    LORA.but(
        "sora",
        cite="ding2023sora",
        covers=("P23", "O38", "R13"),
        form=DiagonalCore,
        init=ZeroLeft(),
        move=Shrinkage(0.1),
        note="Reconstructed from the published method: gates start at one and are soft-thresholded after each step. "
        "The weight of the penalty is chosen here; gates at zero stay where they are until the adapter is exported.",
    )
)
TIED_RIGHT = register(
    LORA.but(
        "tied-right",
        cite="survey2026sp",
        covers=("P04",),
        shares=(("right", by_type),),
        note="One trained A for all layers of a type, a B for each: a Tucker-2 stack with its cores absorbed.",
    )
)


@covers("P06")
@dataclass(frozen=True)
class Heads:
    """The form of a layer whose rows are grouped by attention heads: a low-rank product for each of them.

    ``W_i + s B_i A_i`` for head i, in parameters ``r (out + heads in)``.

    Parameters
    ----------
    size : int
        Rows of one head. A layer with fewer rows is one head.

    Raises
    ------
    ValueError
        If the size is not positive, or does not divide the rows of a layer.
    """

    size: int = 64

    def __post_init__(self):
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"the size of a head must be a positive integer, got {self.size!r}")

    def __call__(self, shape: tuple[int, int], rank: int) -> type[BlockGrid]:
        count, rest = divmod(shape[0], self.size)
        if count and rest:
            raise ValueError(
                f"heads of {self.size} rows do not divide the {shape[0]} rows of a layer; take per_head(model) "
                "and the projections of queries, keys and values as targets"
            )
        return BlockGrid.of(max(count, 1), 1)


def per_head(model: Any) -> Recipe:
    """The recipe ``"per-head"`` with the head size that the configuration of a transformer states.

    Parameters
    ----------
    model
        With a ``config`` that has ``head_dim``, or ``hidden_size`` and ``num_attention_heads``.

    Raises
    ------
    ValueError
        If it has none of them.
    """
    config = getattr(model, "config", None)
    size = getattr(config, "head_dim", None)
    if size is None:
        width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
        if width is None or not heads:
            raise ValueError(
                "the model has no configuration with head_dim, or hidden_size and num_attention_heads; "
                'give the size of a head: lb.recipe("per-head").but("mine", form=Heads(64))'
            )
        size = width // heads
    return PER_HEAD.but(f"per-head-{size}", covers=PER_HEAD.covers, form=Heads(int(size)), note=PER_HEAD.note)


PER_HEAD = register(
    LORA.but(
        "per-head",
        cite="shunfoundation",
        covers=("P06",),
        form=Heads(),
        note="Heads of 64 rows; per_head(model) takes the size from the model. Meant for the projections of queries, "
        "keys and values. The survey's factor in the number of parameters is (heads + 1) / 2, not the number of heads.",
    )
)
