"""Updates through tanh and splines of a few channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..functions import add_splines
from ..layers import CONV1D, LINEAR, QUANTIZED, LayerType
from ..nonlinear import Aurora
from .base import Additive, Combine

__all__ = ["Splined"]


@dataclass(frozen=True)
class Splined(Combine):
    """``x W^T + s f(x A) B`` for the channels of AURORA.

    As `Additive`, in half the operations, each of which is so small that a GPU takes longer to launch it than to do
    it. Other forms, layers other than linear ones and starts that are subtracted take the way of `Additive`.
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
        return kind.restore(layer, x, add_splines(out, rows, adapter.point(), scale))

    def meet(self, weight, update, extras):
        return weight + update


def _direct(kind: LayerType, adapter: Any) -> bool:
    """Whether the update bends rows of activations."""
    bends = issubclass(adapter.form, Aurora) and not adapter.shifted
    return bends and kind in (LINEAR, CONV1D, QUANTIZED) and not torch.compiler.is_compiling()
