"""Linear layers whose weight other packages have quantized: which they are, and the weight as a plain tensor."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import Tensor, nn

__all__ = ["dequantized", "is_quantized"]


def dequantized(layer: Any) -> Tensor:
    """The weight (out, in) of a quantized linear layer, as a plain floating tensor."""
    weight, kind = layer.weight, type(layer).__name__
    if not _of(type(layer), "bitsandbytes"):
        return weight.dequantize()
    functional = import_module("bitsandbytes.functional")
    if kind != "Linear8bitLt":
        return functional.dequantize_4bit(weight.data, weight.quant_state)
    codes = layer.state.CB if layer.state.CB is not None else weight.CB
    scales = layer.state.SCB if layer.state.SCB is not None else weight.SCB
    return codes.to(scales.dtype) * (scales / 127.0)[:, None]


def _of(kind: type, package: str) -> bool:
    """Whether a class, or one that it derives from, comes from a package, which need not be installed."""
    return any(base.__module__.split(".")[0] == package for base in kind.__mro__)


def is_quantized(layer: nn.Module) -> bool:
    """Whether a linear layer stores its weight in a few bits, by bitsandbytes or torchao."""
    names = ("Linear4bit", "LinearNF4", "LinearFP4", "Linear8bitLt")
    if _of(type(layer), "bitsandbytes"):
        return type(layer).__name__ in names
    return isinstance(layer, nn.Linear) and _of(type(layer.weight), "torchao")
