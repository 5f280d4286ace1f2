"""Updates that are a function of every entry of a thin product, formed for the product with the weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lowrank_sp.parameterizations.elementwise import Elementwise

from ..functions import add_entrywise, entrywise_linear
from ..layers import LayerType
from .base import Combine, Formed, dropping, frozen_product

__all__ = ["Entrywise"]


@dataclass(frozen=True)
class Entrywise(Combine):
    """``W + s phi(L R^T)`` for a scalar function of every entry: SineLoRA, LoRAN.

    As `Formed`, in a third of the passes over matrices of the size of the layer, none of which is wider than the
    activations; with dropout on the input, a product for the change alone. Forms without such a function, layers other
    than linear ones or with a weight that trains, and starts that are subtracted take the way of `Formed`.
    """

    additive = True

    def forward(self, kind, layer, x, adapter):
        if not _direct(kind, layer, adapter):
            return Formed().forward(kind, layer, x, adapter)
        rows, scale = kind.rows(layer, x), adapter.scale * adapter.noise.gate(adapter.training)
        if dropping(adapter, x):
            seen = kind.rows(layer, adapter.noise.input(x, True))
            out = add_entrywise(kind.fresh(layer, rows), seen, adapter.point(), scale)
        else:
            out = entrywise_linear(rows, lambda: kind.weight(layer), layer.bias, adapter.point(), scale)
        return kind.restore(layer, x, out)

    def meet(self, weight, update, extras):
        return weight + update


def _direct(kind: LayerType, layer: Any, adapter: Any) -> bool:
    """Whether the layer is a frozen product, and the update a function of every entry of another one."""
    return frozen_product(kind, layer) and issubclass(adapter.form, Elementwise) and not adapter.shifted
