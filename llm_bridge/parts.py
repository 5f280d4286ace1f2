"""Matrices inside attention and recurrent modules, which take their weights whole instead of calling layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lowrank_sp.coverage import covers

from .adapter import Adapted
from .layers import PART, PROJECTION, LayerType

__all__ = ["AdaptedPart", "Part", "check_host", "close_host", "is_host", "kind_of", "open_host", "parts"]

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class Part(nn.Module):
    """Some rows of a parameter of a host module, standing for the linear layer that they are.

    It owns nothing: the parameter stays where it is, under its name.

    Parameters
    ----------
    host : Module
    parameter : str
        Name of the parameter.
    rows : slice
    """

    host: Any

    def __init__(self, host: nn.Module, parameter: str, rows: slice):
        super().__init__()
        self.__dict__["host"] = host  # not as a submodule: the host holds this one
        self.parameter = parameter
        self.rows = rows

    @property
    def weight(self) -> Tensor:
        """W (out, in), a view."""
        return self.host._parameters[self.parameter][self.rows]

    @property
    def bias(self) -> None:
        """The host adds it."""
        return None

    def replace(self, weight: Tensor) -> Tensor:
        """Write another W; returns a copy of the one before."""
        with torch.no_grad():
            old = self.weight.clone()
            self.weight.copy_(weight)
        return old

    def extra_repr(self) -> str:
        return f"{self.parameter}[{self.rows.start or 0}:{self.rows.stop}]"


class AdaptedPart(Adapted):
    """A matrix of a host with its adapters; the host asks it for `weight` and gets the adapted one.

    The sum is formed in every pass, so that the fused kernels of the host stay in use, and its gradient has the
    size of the matrix: a step costs what training the matrix in full would cost, without optimizer state for it.
    """

    @property
    def weight(self) -> Any:
        """The adapted matrix."""
        if self.routes is not None:
            raise ValueError(
                "attention and recurrent modules take one weight for the whole batch, so that a batch cannot mix "
                "adapters there; exclude them, or run the samples of each adapter on their own"
            )
        weight = self.kind.weight(self.base)
        if self.merged:
            return weight
        for name in self.active:
            weight = self.adapter(name).combine.noisy_weight(weight, self.adapter(name))
        return weight


def is_host(module: nn.Module) -> bool:
    """Whether the matrices of a module are to be adapted one by one, as `parts` lists them."""
    return isinstance(module, (nn.MultiheadAttention, nn.RNNBase))


def parts(host: nn.Module) -> dict[str, nn.Module]:
    """The matrices of a host by the name under which adapters find them.

    ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj`` of an attention module, ``ih_l0``, ``hh_l0``,
    ``ih_l0_reverse``, ... of a recurrent one: there the gates of a layer and direction are one stacked matrix.
    """
    found = _projections(host) if isinstance(host, nn.MultiheadAttention) else _gates(host)
    for name in found:
        child = host._modules.get(name)
        if isinstance(child, Adapted):
            found[name] = child.base
    return found


def _projections(host: nn.MultiheadAttention) -> dict[str, nn.Module]:
    size, found = host.embed_dim, {}
    for i, name in enumerate(_PROJECTIONS):
        if host._qkv_same_embed_dim:
            found[name] = Part(host, "in_proj_weight", slice(i * size, (i + 1) * size))
        else:
            found[name] = Part(host, f"{name}_weight", slice(0, size))
    return found | {"out_proj": host.out_proj}


def _gates(host: Any) -> dict[str, nn.Module]:
    names = [name for name, _ in host.named_parameters(recurse=False) if name.startswith("weight_")]
    return {_label(name): Part(host, name, slice(0, len(host._parameters[name]))) for name in names}


def _label(parameter: str) -> str:
    return parameter.removeprefix("weight_")


def _own(host: nn.Module, label: str, stored: Tensor) -> Tensor:
    """The adapted matrix with that name, or the stored one."""
    child = host._modules.get(label)
    return child.weight if isinstance(child, AdaptedPart) else stored


class OpenAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` that reads its weights through its adapters."""

    @property
    def in_proj_weight(self) -> Tensor | None:
        """The three input projections."""
        stored = self._parameters["in_proj_weight"]
        if stored is None:
            return None
        rows = zip(_PROJECTIONS, stored.chunk(3), strict=True)
        return torch.cat([_own(self, name, part) for name, part in rows])

    @property
    def q_proj_weight(self) -> Tensor | None:
        """Where query, key and value differ in size."""
        return self._separate("q_proj")

    @property
    def k_proj_weight(self) -> Tensor | None:
        """As for the query."""
        return self._separate("k_proj")

    @property
    def v_proj_weight(self) -> Tensor | None:
        """As for the query."""
        return self._separate("v_proj")

    def _separate(self, name: str) -> Tensor | None:
        stored = self._parameters[f"{name}_weight"]
        return None if stored is None else _own(self, name, stored)


@covers("P14")
class _OpenRecurrent(nn.RNNBase):
    """A recurrent module that reads its weights through its adapters, one update for the gates of a layer.

    Source: section VI-G of :cite:`shunfoundation`.
    """

    @property
    def _flat_weights(self) -> list[Any]:
        return [
            None if self._parameters.get(name) is None else _own(self, _label(name), self._parameters[name])
            for name in self._flat_weights_names
        ]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Any]) -> None:
        """The module lists its parameters for itself; here they are always looked up."""


class OpenLSTM(_OpenRecurrent, nn.LSTM):
    """``nn.LSTM`` with adapters."""


class OpenGRU(_OpenRecurrent, nn.GRU):
    """``nn.GRU`` with adapters."""


class OpenRNN(_OpenRecurrent, nn.RNN):
    """``nn.RNN`` with adapters."""


_OPEN: dict[type, type] = {nn.MultiheadAttention: OpenAttention, nn.LSTM: OpenLSTM, nn.GRU: OpenGRU, nn.RNN: OpenRNN}


def check_host(host: nn.Module) -> None:
    """Refuse a subclass, which may use its weights in ways of its own.

    Raises
    ------
    TypeError
    """
    if type(host) not in _OPEN and type(host) not in _OPEN.values():
        name = type(host).__name__
        raise TypeError(f"{name} is a subclass of a module of torch, which no adapter can enter; exclude it")


def open_host(host: nn.Module) -> None:
    """Let a host read its weights through adapters; it keeps its identity, its parameters and their names."""
    check_host(host)
    host.__class__ = _OPEN.get(type(host), type(host))


def close_host(host: nn.Module) -> None:
    """Give a host its own class back once no adapter is left in it."""
    back = {opened: kind for kind, opened in _OPEN.items()}
    if type(host) in back and not any(isinstance(child, AdaptedPart) for child in host.children()):
        host.__class__ = back[type(host)]


def kind_of(module: nn.Module) -> LayerType | None:
    """The type of a matrix in a host, None for any other module."""
    if isinstance(module, Part):
        return PART
    return PROJECTION if isinstance(module, NonDynamicallyQuantizableLinear) else None
