"""Ways in which an update meets the weight of a layer: added, times the base, or as a new direction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lowrank_sp.coverage import covers

from ..functions import add_times, beside, outer
from ..layers import CONV1D, LINEAR, QUANTIZED
from ..precision import precise

if TYPE_CHECKING:
    from ..adapter import Adapter
    from ..layers import LayerType

__all__ = [
    "Additive",
    "Combine",
    "Formed",
    "MagnitudeDirection",
    "TimesBase",
    "accumulate",
    "dropping",
    "frozen_product",
]


class Combine(ABC):
    """From the weight ``W`` (out, in) of a layer and the update ``F`` of an adapter to the adapted layer.

    ``additive`` says that several adapters on one layer simply add up; ``mergeable`` that the adapted layer is
    the same layer with another weight.
    """

    additive: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True

    def check(self, paths: Sequence[str]) -> None:
        """Raise a ``ValueError`` if a setting names a layer that is none of these."""
        return None

    def at(self, path: str) -> Combine:
        """The same for one layer, where settings name layers."""
        return self

    def extras(self, weight: Tensor) -> dict[str, Tensor]:
        """Trainable arrays beside the factors, by name, at their start."""
        return {}

    def image(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The shape of ``F`` for a layer (out, in)."""
        return shape

    @abstractmethod
    def forward(self, kind: LayerType, layer: Any, x: Any, adapter: Adapter) -> Tensor:
        """The output of the adapted layer."""

    @abstractmethod
    def meet(self, weight: Tensor, update: Tensor, extras: dict[str, Tensor]) -> Tensor:
        """The matrix (out, in) of the adapted layer from ``W`` and ``s F``, in at least single precision."""

    def weight(self, weight: Tensor, adapter: Adapter) -> Tensor:
        """The matrix (out, in) of the adapted layer, in the type of ``weight``."""
        extras = {name: getattr(adapter, name) for name in adapter.extras}
        return self.meet(precise(weight), adapter.update(), extras).to(weight.dtype)

    def noisy_weight(self, weight: Tensor, adapter: Adapter) -> Tensor:
        """`weight` with the noise of training, for layers that take nothing but one weight."""
        build, arrays = _builder(self, adapter)
        return build(weight, *arrays).to(weight.dtype)


@dataclass(frozen=True)
class Additive(Combine):
    """``W + s F``, the rule of LoRA. The update acts on the activations and is added in place to the output."""

    additive = True

    def forward(self, kind, layer, x, adapter):
        rows = kind.rows(layer, x)
        return kind.restore(layer, x, accumulate(kind, layer, x, rows, kind.fresh(layer, rows), adapter))

    def meet(self, weight, update, extras):
        return weight + update


@dataclass(frozen=True)
class Formed(Combine):
    """``W + s F`` formed for one product, and formed again in backward: for forms that are no thin product.

    Costs one product of the size of the layer more than a frozen layer, and keeps nothing but the input.
    """

    additive = True

    def forward(self, kind, layer, x, adapter):
        return _formed(self, kind, layer, x, adapter)

    def meet(self, weight, update, extras):
        return weight + update


@covers("P47")
@dataclass(frozen=True)
class TimesBase(Combine):
    """``W + W o (s F)`` with the entrywise product: HiRA, of rank up to rank(W) r.

    One product with the formed weight, which is formed again in backward and never kept; with dropout on the input,
    one more for the change alone. Source: :cite:`huang2025hira`; equation (8) of :cite:`survey2026sp`.
    """

    def forward(self, kind, layer, x, adapter):
        drops = dropping(adapter, x)
        if not adapter.thin or adapter.shifted or (drops and not frozen_product(kind, layer)):
            return _formed(self, kind, layer, x, adapter)
        rows = kind.rows(layer, x)
        seen, factors, scale = _thin(kind, layer, x, rows, adapter)
        if not drops:
            return kind.restore(layer, x, kind.times(layer, seen, factors, scale))
        out = add_times(kind.fresh(layer, rows), seen, lambda: kind.weight(layer), factors, scale)
        return kind.restore(layer, x, out)

    def meet(self, weight, update, extras):
        return torch.addcmul(weight, weight, update)


@covers("P90")
@dataclass(frozen=True)
class MagnitudeDirection(Combine):
    """``m o (W + s F) / ||W + s F||`` with one norm per output and a trainable magnitude ``m``: DoRA.

    The norm enters as a constant, as in section 4.3 of the source. It comes from ``||W||``, ``W Y`` and Gram
    matrices of rank size, never from the sum. Source: :cite:`liu2024dora`.

    Parameters
    ----------
    recompute : bool or tuple of str
        Where backward finds the output before it is scaled, which the gradient of the magnitude needs. By default
        it divides the scaled output, which is kept (as the next operation often does anyway); else it computes
        the output again, which keeps nothing but the input and costs one more product of the size of a linear
        layer. Both compute the same. In a tuple are the layers that compute it again: paths, their ends, or
        regular expressions. `llm_bridge.unkept` finds those where this saves memory. Layers that are not linear,
        and forms that are no thin product, always keep the output.

    Notes
    -----
    A row of W + s F that vanishes has no direction: its output is zero and its magnitude does not move.
    """

    recompute: bool | tuple[str, ...] = False

    def __post_init__(self):
        names = self.recompute
        if not isinstance(names, bool):
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise TypeError(f"recompute must be a bool or a tuple of names of layers, got {names!r}")
            object.__setattr__(self, "recompute", tuple(names))

    def check(self, paths):
        from ..sites import matches

        if isinstance(self.recompute, bool):
            return
        for name in self.recompute:
            if not any(matches(path, name) for path in paths):
                raise ValueError(f"recompute holds {name!r}, which is none of the chosen layers, such as {paths[0]}")

    def at(self, path):
        from ..sites import matches

        if isinstance(self.recompute, bool):
            return self
        return replace(self, recompute=any(matches(path, name) for name in self.recompute))

    def extras(self, weight):
        return {"magnitude": weight.float().norm(dim=1)}

    def forward(self, kind, layer, x, adapter):
        with torch.no_grad():
            norm = adapter.row_norms(kind.weight(layer), layer.weight)
        vector, rows = _quotient(adapter.magnitude, norm), kind.rows(layer, x)
        if self.recompute and adapter.thin:
            seen, factors, scale = _thin(kind, layer, x, rows, adapter)
            return kind.restore(layer, x, kind.rescaled(layer, rows, seen, factors, scale, vector))
        out = accumulate(kind, layer, x, rows, kind.fresh(layer, rows), adapter)
        return kind.restore(layer, x, kind.rescale(layer, out, vector))

    def meet(self, weight, update, extras):
        full = weight + update
        return full * _quotient(extras["magnitude"], full.norm(dim=1).detach())[:, None]


def accumulate(kind: LayerType, layer: Any, x: Any, rows: Any, out: Tensor, adapter: Adapter) -> Tensor:
    """Add ``s F`` applied to ``x`` to an output for ``rows = kind.rows(layer, x)``; may overwrite ``out``.

    The product is computed in the type of ``out``, that is, of the activations (or of autocast): factors in
    single precision are rounded for it, as autocast does.
    """
    if adapter.thin:
        seen, factors, scale = _thin(kind, layer, x, rows, adapter)
        return kind.add(layer, seen, out, factors, scale)
    seen = adapter.noise.input(x, adapter.training)
    rows = rows if seen is x else kind.rows(layer, seen)
    scale = adapter.scale * adapter.noise.gate(adapter.training)
    if not adapter.shifted:
        return kind.accumulate(layer, rows, out, adapter.point(), scale)
    # The difference first: it is exactly zero as long as nothing has moved.
    change = kind.apply(layer, rows, adapter.point()) - kind.apply(layer, rows, adapter.start())
    return out + scale * change.to(out.dtype)


def _thin(kind: LayerType, layer: Any, x: Any, rows: Any, adapter: Adapter) -> tuple[Any, tuple[Tensor, ...], float]:
    """What the update sees in this pass, its thin factors ``(L, R)`` or ``(L, R, L_0, R_0)``, and its scale."""
    seen = adapter.noise.input(x, adapter.training)
    scale = adapter.scale * adapter.noise.gate(adapter.training)
    factors = adapter.point().product() + (adapter.start().product() if adapter.shifted else ())
    keep = adapter.noise.components(factors[0].shape[-1], factors[0], adapter.training)
    if keep is not None:
        factors = tuple(f if i % 2 == 0 else f * keep for i, f in enumerate(factors))
    return rows if seen is x else kind.rows(layer, seen), factors, scale


def frozen_product(kind: LayerType, layer: Any) -> bool:
    """Whether the layer multiplies rows of activations with a weight that does not train, outside of a compiler."""
    return kind in (LINEAR, CONV1D, QUANTIZED) and not layer.weight.requires_grad and not torch.compiler.is_compiling()


def dropping(adapter: Adapter, x: Any) -> bool:
    """Whether the update would see other activations than the layer."""
    return adapter.training and adapter.noise.on_input and adapter.noise.rate > 0 and x.is_floating_point()


def _formed(combine: Combine, kind: LayerType, layer: Any, x: Any, adapter: Adapter) -> Tensor:
    """One product with the matrix that ``combine`` makes; with dropout, one for the base and one for the change."""
    build, arrays = _builder(combine, adapter)
    rows = kind.rows(layer, x)
    if not dropping(adapter, x):
        return kind.restore(layer, x, kind.rebuilt(layer, rows, build, arrays))
    seen = kind.rows(layer, adapter.noise.input(x, True))
    change = kind.rebuilt(layer, seen, lambda weight, *a: build(weight, *a) - weight, arrays, whole=False)
    return kind.restore(layer, x, kind.fresh(layer, rows) + change)


def _builder(combine: Combine, adapter: Adapter) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """A function of ``W`` and arrays that gives the adapted matrix, with the noise of this pass, and these arrays."""
    form, scale = adapter.form, adapter.scale * adapter.noise.gate(adapter.training)
    arrays = adapter.point().arrays()
    start = (adapter.start(),) if adapter.shifted else ()
    keep = None
    if adapter.thin:
        right = adapter.point().product()[1]
        keep = adapter.noise.components(right.shape[-1], right, adapter.training)

    def build(weight: Tensor, *tensors: Tensor) -> Tensor:
        point, extras = form(*tensors[: len(arrays)]), dict(zip(adapter.extras, tensors[len(arrays) :], strict=True))
        return combine.meet(precise(weight), _image(point, start, scale, keep), extras)

    return build, (*arrays, *(getattr(adapter, name) for name in adapter.extras))


def _image(point: Any, start: tuple[Any, ...], scale: float, keep: Tensor | None) -> Tensor:
    """``scale`` times the image of a point, without that of the start, and without the components that are dropped."""
    if not point.thin:
        return scale * (point.dense() - start[0].dense() if start else point.dense())
    left, right = point.product()
    for left0, right0 in (s.product() for s in start):
        left, right = beside(left, right, left0, right0)
        keep = None if keep is None else keep.repeat(2)
    return outer(left * scale, right if keep is None else right * keep)


def _quotient(magnitude: Tensor, norm: Tensor) -> Tensor:
    """``m / ||w||``, zero for rows without a direction."""
    return magnitude / norm.clamp_min(torch.finfo(norm.dtype).tiny)
