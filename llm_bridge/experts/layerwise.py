"""Mixtures with other numbers of experts in other layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lowrank_sp.coverage import covers

from ..nonlinear import BentByLayer
from ..sites import Targets, find_sites
from .forms import LowRankExperts
from .gates import Top

__all__ = ["ByDepth", "experts_by_depth"]


@covers("E05")
@dataclass(frozen=True)
class ByDepth(BentByLayer):
    """`LowRankExperts` whose number is the rank of the layer; all of them have the same rank.

    Parameters
    ----------
    each : int
        The rank of an expert, at most the smaller side of its layer.
    active : int
        How many of them act, where a layer has as many.
    """

    each: int = 8
    active: int = 2

    def __post_init__(self):
        if min(self.each, self.active) < 1:
            raise ValueError(f"each and active must be positive, got {self.each} and {self.active}")

    def __call__(self, shape, rank):
        return LowRankExperts.of(rank, Top(min(self.active, rank)))

    def size(self, shape: tuple[int, int], rank: int) -> int:
        """The rank of an expert, for ``Recipe.size``."""
        return min(self.each, *shape)


@covers("E05")
def experts_by_depth(
    model: nn.Module, counts: Sequence[int], targets: Targets = "all-linear", exclude: Targets = ()
) -> dict[str, int]:
    """A ``rank_pattern`` for the recipe ``"mola"``: numbers of experts along the depth of a model.

    The blocks of the model are cut into as many groups of equal size as there are counts. For 32 blocks
    ``(2, 4, 6, 8)`` is the inverted triangle of the source, which has more experts in higher layers, ``(8, 6, 4, 2)``
    the triangle, ``(2, 8, 8, 2)`` the diamond and ``(8, 2, 2, 8)`` the hourglass. Source: :cite:`gao2024mola`.

    Parameters
    ----------
    model : Module
    counts : sequence of int
        From the first blocks to the last.
    targets, exclude
        Which layers, as for `adapt`. Layers outside of numbered blocks are left out.

    Raises
    ------
    ValueError
        If a count is not positive, or the model has fewer blocks than there are counts.

    Examples
    --------
    >>> import llm_bridge as lb
    >>> model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])
    >>> pattern = lb.experts_by_depth(model, (2, 4))
    >>> pattern
    {'0': 2, '1': 2, '2': 4, '3': 4}
    >>> model = lb.adapt(model, "mola", rank_pattern=pattern)
    """
    if not counts or not all(isinstance(c, int) and not isinstance(c, bool) and c > 0 for c in counts):
        raise ValueError(f"counts must be positive integers, got {counts!r}")
    blocks: dict[str, Any] = {site.name: _block(site.name) for site in find_sites(model, targets, exclude)}
    blocks = {path: block for path, block in blocks.items() if block is not None}
    depth = sorted(set(blocks.values()))
    if len(depth) < len(counts):
        raise ValueError(f"the chosen layers lie in {len(depth)} numbered blocks, too few for {len(counts)} counts")
    place = {block: i * len(counts) // len(depth) for i, block in enumerate(depth)}
    return {path: counts[place[block]] for path, block in blocks.items()}


def _block(path: str) -> int | None:
    """The first number in a path."""
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
    return None if number is None else int(number.group(1))
