"""Updates that multiply the weight by a square matrix: rotations and reflections of the input of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lowrank_sp.coverage import covers

from .combines import Combine
from .layers import CONV1D, LINEAR
from .starts import Start

__all__ = ["Identity", "Multiplied", "MultipliedScaled", "one"]


def one(alpha: float, rank: int) -> float:
    """No scale: a rotation has none."""
    return 1.0


@covers("P97")
@dataclass(frozen=True)
class Multiplied(Combine):
    """``W P`` with a square P (in, in), which acts on the activations before the layer.

    P is never formed in training. Only for layers that multiply rows of activations by a matrix.
    Source: section IV-D of :cite:`survey2026sp`.
    """

    def image(self, shape):
        return shape[1], shape[1]

    def forward(self, kind, layer, x, adapter):
        return kind.restore(layer, x, layer(self.turned(kind, layer, x, adapter)))

    def turned(self, kind: Any, layer: Any, x: Any, adapter: Any) -> torch.Tensor:
        """The rows of activations after P.

        Raises
        ------
        TypeError
            For layers that do not multiply rows of activations.
        """
        if kind not in (LINEAR, CONV1D):
            raise TypeError(f"rotations of the input need a linear layer, got {type(layer).__name__}")
        return kind.apply(layer, kind.rows(layer, x), adapter.point())

    def meet(self, weight, update, extras):
        return weight @ update.to(weight.dtype)


@dataclass(frozen=True)
class MultipliedScaled(Multiplied):
    """``diag(s) W P`` with a trained factor for every output, as the published code of BOFT has it."""

    def extras(self, weight):
        return {"outputs": torch.ones(weight.shape[0], device=weight.device)}

    def forward(self, kind, layer, x, adapter):
        out = kind.unbiased(layer, self.turned(kind, layer, x, adapter))
        return kind.restore(layer, x, kind.rescale(layer, out, kind.by_channel(out, adapter.outputs)))

    def meet(self, weight, update, extras):
        return extras["outputs"].to(weight.dtype)[:, None] * super().meet(weight, update, extras)


@dataclass(frozen=True)
class Identity(Start):
    """The identity matrix, at a point where every array has a gradient."""

    def __call__(self, site):
        point = site.form.identity(site.shape[1], site.rank, site.rng)
        device = site.weight().device
        return point.map(lambda a: torch.as_tensor(a, device=device))
