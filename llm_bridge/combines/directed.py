"""Updates of normed directions, less the first of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lowrank_sp.parameterizations import DeLoRA

from ..functions import add_normed
from ..layers import CONV1D, LINEAR, QUANTIZED, LayerType
from ..noise import RankDropout
from .base import Additive, Combine

__all__ = ["Directed"]


@dataclass(frozen=True)
class Directed(Combine):
    """``W + s (F - F_0)`` for the normed directions of DeLoRA.

    As `Additive`, with the norms, the two sides and their gradients in a third of the operations, each of which is so
    small that a GPU takes longer to launch it than to do it. Other forms and layers than linear ones, starts that are
    not subtracted, norms that train and dropout of rank components take the way of `Additive`.
    """

    additive = True

    def forward(self, kind, layer, x, adapter):
        if not _direct(kind, adapter):
            return Additive().forward(kind, layer, x, adapter)
        rows = kind.rows(layer, x)
        out = kind.fresh(layer, rows)
        seen = adapter.noise.input(x, adapter.training)
        rows = rows if seen is x else kind.rows(layer, seen)
        scale = adapter.scale * adapter.noise.gate(adapter.training)
        return kind.restore(layer, x, add_normed(out, rows, adapter.point(), adapter.start(), scale))

    def meet(self, weight, update, extras):
        return weight + update


def _direct(kind: LayerType, adapter: Any) -> bool:
    """Whether the update is a difference of two thin products of rows of activations."""
    normed = issubclass(adapter.form, DeLoRA) and adapter.shifted and not adapter.norms.requires_grad
    plain = kind in (LINEAR, CONV1D, QUANTIZED) and not isinstance(adapter.noise, RankDropout)
    return normed and plain and not torch.compiler.is_compiling()
