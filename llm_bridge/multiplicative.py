"""Updates that multiply the weight by a square matrix: rotations and reflections of the input of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowrank_sp.coverage import covers

from .combines import Combine
from .functions import compute_dtype, own_types, turned_linear
from .layers import CONV1D, LINEAR, hooked
from .precision import precise
from .starts import Start

__all__ = ["Identity", "Multiplied", "MultipliedScaled", "one"]


def one(alpha: float, rank: int) -> float:
    """No scale: a rotation has none."""
    return 1.0


@covers("P97")
@dataclass(frozen=True)
class Multiplied(Combine):
    """``W P`` with a square P (in, in), which acts on the activations before the layer.

    P is never formed in training; where it is the identity and a few columns, ``W P`` is W and a thin update that W has
    a part in. Only for layers that multiply rows of activations by a matrix.
    Source: section IV-D of :cite:`survey2026sp`.
    """

    def image(self, shape):
        return shape[1], shape[1]

    def forward(self, kind, layer, x, adapter):
        return kind.restore(layer, x, self.output(kind, layer, x, adapter))

    def output(self, kind: Any, layer: Any, x: Any, adapter: Any) -> Tensor:
        """Of the layer for the rows of activations after P, in memory that nobody else looks at.

        P takes inverses, so that it is made in at least single precision.

        Raises
        ------
        TypeError
            For layers that do not multiply rows of activations.
        """
        if kind not in (LINEAR, CONV1D):
            raise TypeError(f"rotations of the input need a linear layer, got {type(layer).__name__}")
        rows, point = kind.rows(layer, x), adapter.point()
        if _direct(layer) and point.blocky(len(rows)):
            rows = rows.to(compute_dtype(rows))
            return turned_linear(rows, lambda: kind.weight(layer), layer.bias, adapter.form, point.arrays())
        if point.near_identity:
            return kind.add(layer, rows, kind.fresh(layer, rows), _thin(kind.weight(layer), rows, point), 1.0)
        turned = kind.apply(layer, precise(rows), point).to(rows.dtype)
        return kind.fresh(layer, turned)

    def meet(self, weight, update, extras):
        return weight @ update.to(weight.dtype)


@dataclass(frozen=True)
class MultipliedScaled(Multiplied):
    """``diag(s) W P`` with a trained factor for every output, as the published code of BOFT has it."""

    def extras(self, weight):
        return {"outputs": torch.ones(weight.shape[0], device=weight.device)}

    def forward(self, kind, layer, x, adapter):
        out = self.output(kind, layer, x, adapter)
        return kind.restore(layer, x, kind.rescale(layer, out, kind.by_channel(out, adapter.outputs)))

    def meet(self, weight, update, extras):
        return extras["outputs"].to(weight.dtype)[:, None] * super().meet(weight, update, extras)


def _thin(weight: Tensor, rows: Tensor, point: Any) -> tuple[Tensor, Tensor]:
    """``W A`` and B, of the type of W and in at least single precision."""
    with own_types(rows):
        a, b = point.map(precise).change()
        return (a.to(weight.dtype).mT @ weight.mT).mT, b


def _direct(layer: Any) -> bool:
    """Whether the layer is a plain frozen product that nobody watches."""
    frozen = layer.weight.is_floating_point() and not layer.weight.requires_grad
    watched = hooked(layer) or layer._forward_pre_hooks
    return frozen and not watched and not torch.compiler.is_compiling()


@dataclass(frozen=True)
class Identity(Start):
    """The identity matrix, at a point where every array has a gradient."""

    def __call__(self, site):
        point = site.form.identity(site.shape[1], site.rank, site.rng)
        device = site.weight().device
        return point.map(lambda a: torch.as_tensor(a, device=device))
