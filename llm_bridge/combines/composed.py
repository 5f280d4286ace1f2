"""Thin updates whose sides are put together from arrays that layers share: what is kept is the arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..functions import add_sides
from ..layers import CONV1D, LINEAR, LayerType
from ..noise import RankDropout
from .base import Additive, Combine

__all__ = ["Composed"]


@dataclass(frozen=True)
class Composed(Combine):
    """``W + s F`` for thin forms of several arrays on each side: RaSA, Bi-Share LoRA.

    As `Additive`, but for backward it keeps the arrays, which are there anyway, and not the sides that they make,
    which are put together again. Layers other than linear ones, dropout of rank components and starts that are
    subtracted take the way of `Additive`.
    """

    additive = True

    def forward(self, kind, layer, x, adapter):
        if not _plain(kind, adapter):
            return Additive().forward(kind, layer, x, adapter)
        rows = kind.rows(layer, x)
        out = kind.fresh(layer, rows)
        seen = adapter.noise.input(x, adapter.training)
        rows = rows if seen is x else kind.rows(layer, seen)
        scale = adapter.scale * adapter.noise.gate(adapter.training)
        return kind.restore(layer, x, add_sides(out, rows, adapter.form, adapter.point().arrays(), scale))

    def meet(self, weight, update, extras):
        return weight + update


def _plain(kind: LayerType, adapter: Any) -> bool:
    """Whether the update is one thin product of rows of activations."""
    dropping = isinstance(adapter.noise, RankDropout)
    return kind in (LINEAR, CONV1D) and adapter.thin and not adapter.shifted and not dropping
