"""Adapters: the factors of a parameterization as parameters, and the frozen layer that they change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_sp.factors import MatrixFactors
from lowrank_sp.spaces import FIXED

from .combines import Combine, accumulate
from .functions import beside
from .layers import LayerType
from .noise import Noise
from .precision import precise

__all__ = ["Adapted", "Adapter", "key_of"]


def key_of(name: str) -> str:
    """Key of a named adapter among submodules: no legal name can meet an attribute of a module."""
    return f"adapter_{name}"


class Adapter(nn.Module):
    """One update ``s F(factors)`` of one layer.

    Parameters
    ----------
    point : MatrixFactors
        The start, of torch tensors; its arrays become parameters (or buffers, where they do not train).
    scale : float
        s.
    combine : Combine
    noise : Noise
    trains : tuple of str, optional
        Names of the arrays that train; by default all that the form does not fix.
    extras : mapping of str to tensor, optional
        More trainable arrays, which the way of combining needs.
    start : MatrixFactors, optional
        A point whose image is subtracted, so that training starts at the pretrained weight although F does not
        start at zero. The weight of the layer itself is never changed.
    """

    def __init__(
        self,
        point: MatrixFactors,
        scale: float,
        combine: Combine,
        noise: Noise,
        trains: tuple[str, ...] | None = None,
        extras: Mapping[str, Tensor] | None = None,
        start: MatrixFactors | None = None,
    ):
        super().__init__()
        self.form = type(point)
        self.scale = scale
        self.combine = combine
        self.noise = noise
        free = tuple(n for n, space in zip(point.names, point.spaces, strict=True) if space is not FIXED)
        self.trains = free if trains is None else trains
        self.extras = tuple(extras or ())
        for name, array in zip(point.names, point.arrays(), strict=True):
            self._place(name, array, name in self.trains)
        for name, array in (extras or {}).items():
            self._place(name, array, True)
        self.shifted = start is not None
        self._cache: tuple[Any, Tensor] | None = None
        for name, array in zip(start.names, start.arrays(), strict=True) if start else ():
            self.register_buffer(f"start_{name}", array.detach().clone())

    def _place(self, name: str, array: Tensor, trains: bool) -> None:
        """A parameter that trains, or a buffer."""
        array = array.detach().clone(memory_format=torch.contiguous_format)  # sharding asks for it
        if trains:
            self.register_parameter(name, nn.Parameter(array))
        else:
            self.register_buffer(name, array)

    def share(self, name: str, owner: Adapter) -> None:
        """Use the array of another adapter: the same parameter, or the leading part of the same fixed array.

        Raises
        ------
        ValueError
            If the shapes do not allow that.
        """
        own, other = getattr(self, name), getattr(owner, name)
        part = tuple(slice(k) for k in own.shape)
        fits = own.ndim == other.ndim and all(a <= b for a, b in zip(own.shape, other.shape, strict=True))
        if not fits or (name in self.trains and own.shape[1:] != other.shape[1:]):
            raise ValueError(f"{name} {tuple(own.shape)} cannot be part of a shared one {tuple(other.shape)}")
        if name in self.trains:
            if own.shape != other.shape:
                raise ValueError(
                    f"{name} trains and is shared, so it must have one shape, got {tuple(own.shape)} and "
                    f"{tuple(other.shape)}; choose targets of one shape"
                )
            self.register_parameter(name, other)
        else:
            setattr(self, name, other[part])
        if self.shifted:
            setattr(self, f"start_{name}", getattr(owner, f"start_{name}")[part])

    # the update ---------------------------------------------------------------------------------
    def point(self) -> Any:
        """The factors, as a point of the form that `lowrank_sp` works on."""
        return self.form(*[getattr(self, name) for name in self.form.names])

    def start(self) -> Any:
        """The point that is subtracted, or None."""
        return self.form(*[getattr(self, f"start_{name}") for name in self.form.names]) if self.shifted else None

    def terms(self) -> Iterator[tuple[float, Any]]:
        """Signs and points whose images add up to ``F``."""
        yield 1.0, self.point()
        if self.shifted:
            yield -1.0, self.start()

    @property
    def thin(self) -> bool:
        """Whether `product` is the cheapest way to apply the update."""
        return self.form.thin

    def product(self) -> tuple[Tensor, Tensor]:
        """Thin factors ``(left, right)`` of the update without its scale: ``left right^T``.

        With a start that is subtracted, twice the columns; exactly zero as long as nothing has moved.
        """
        factors = self.point().product()
        return beside(*factors, *self.start().product()) if self.shifted else factors

    def update(self) -> Tensor:
        """``s F``, an array (out, in) of the type of the factors, or in single precision if they have less."""
        if self.thin and self.shifted:
            left, right = map(precise, self.product())
            return (self.scale * left) @ right.mT
        dense = self.point().map(precise).dense()
        return self.scale * (dense - self.start().map(precise).dense() if self.shifted else dense)

    def row_norms(self, weight: Tensor, parameter: Tensor) -> Tensor:
        """``||w_i + s f_i||`` for every row: (out,), in at least single precision.

        From ``||w||^2 + 2 s <left, W right> + s^2 <left, left (right^T right)>``, without the sum, where the form
        is thin. ``parameter`` is what the layer stores ``weight`` in: as long as it stays, so does ``||w||^2``.
        """
        if not self.thin:
            return (weight.float() + self.update()).norm(dim=1)
        left, right = self.product()
        cross = (right.to(weight.dtype).mT @ weight.mT).mT.to(left.dtype)
        both = torch.addmm(cross, left, right.mT @ right, beta=2 * self.scale, alpha=self.scale**2)
        change = (left * both).sum(1)
        return (self._squares(weight, parameter) + change).clamp_min(0).sqrt()

    def _squares(self, weight: Tensor, parameter: Tensor) -> Tensor:
        """``||w_i||^2``, computed again only when the weight is another one."""
        if torch.compiler.is_compiling() or parameter.is_inference():  # the latter has no version
            return weight.float().square().sum(1)
        key = (id(parameter), parameter._version, weight.device, weight.dtype)
        if self._cache is None or self._cache[0] != key:
            wide = torch.promote_types(weight.dtype, torch.float32)
            self._cache = key, torch.linalg.vector_norm(weight, dim=1, dtype=wide).square()
        return self._cache[1]

    def extra_repr(self) -> str:
        m, n = self.point().shape
        return f"{self.form.__name__}, out={m}, in={n}, scale={self.scale:.4g}, {self.combine}"


class Adapted(nn.Module):
    """A frozen layer with named adapters, of which the active ones change its output.

    Attributes
    ----------
    base : Module
        The layer as it was; its own parameters are not touched.
    adapters : ModuleDict
        By ``key_of(name)``.
    active : tuple of str
        Names of the adapters that act; several only if all of them are additive.
    merged : tuple of str
        Names of the adapters that the weight of ``base`` holds already.
    """

    # Read by ``save_pretrained`` of transformers, also inside of a Trainer, which refuses to write weights that two
    # modules share unless they are known as such: where the base is tied to another layer, that one's key is enough.
    _tied_weights_keys: ClassVar[dict[str, str]] = {"base.weight": "weight", "original": "weight"}

    def __init__(self, base: nn.Module, kind: LayerType):
        super().__init__()
        self.base = base
        self.kind = kind
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.merged: tuple[str, ...] = ()
        self.original: Any = None
        self.routes: list[tuple[str | None, Tensor]] | None = None

    # what models ask of a layer without calling it
    @property
    def weight(self) -> Any:
        return self.base.weight

    @property
    def bias(self) -> Any:
        return self.base.bias

    def __getattr__(self, name: str) -> Any:
        """Sizes and settings are those of the base."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":
                raise
            return getattr(self.base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """A weight that the model gives the layer, as when it ties weights, is for the base."""
        if name not in ("weight", "bias"):
            super().__setattr__(name, value)
        elif self.merged:
            raise ValueError("the layer cannot take another weight while its weight is merged; unmerge(model) first")
        else:
            setattr(self.base, name, value)

    def adapter(self, name: str) -> Adapter:
        """The adapter with this name."""
        return self.adapters[key_of(name)]

    def names(self) -> tuple[str, ...]:
        """Names of all adapters of the layer, in the order in which they came."""
        return tuple(key[len(key_of("")) :] for key in self.adapters)

    def forward(self, x: Any) -> Tensor:
        if self.routes is not None:
            return self._mixed(x, self.routes)
        if not self.active or self.merged:
            return self.base(x)
        return self._with(x, [self.adapter(name) for name in self.active])

    def _with(self, x: Any, adapters: list[Adapter]) -> Tensor:
        first = adapters[0]
        if len(adapters) == 1:
            return first.combine.forward(self.kind, self.base, x, first)
        rows = self.kind.rows(self.base, x)
        out = self.kind.fresh(self.base, rows)
        for adapter in adapters:
            out = accumulate(self.kind, self.base, x, rows, out, adapter)
        return self.kind.restore(self.base, x, out)

    def _mixed(self, x: Any, routes: list[tuple[str | None, Tensor]]) -> Tensor:
        """Every sample of the batch through its own adapter."""
        total = sum(len(index) for _, index in routes)
        if x.shape[0] != total:
            raise ValueError(
                f"the batch of this layer has {x.shape[0]} samples, but {total} adapters were named: a mixed batch "
                "needs layers whose first axis is the batch, and beams a name each"
            )
        parts = [
            self._with(x[index], [self.adapter(name)]) if name in self.names() else self.base(x[index])
            for name, index in routes
        ]
        order = torch.cat([index for _, index in routes])
        return torch.cat(parts)[order.argsort()]
