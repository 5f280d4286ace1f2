"""Differentiable operations that keep less for backward than automatic differentiation would."""

from .applied import add_applied, applied
from .blocks import block_products, times_blocks, turned_linear
from .channels import KEPT, add_channels
from .product import times_linear
from .sides import add_sides
from .thin import add_thin, beside, compute_dtype, outer, rebuilt_linear, rescale, rescaled_linear

__all__ = [
    "KEPT",
    "add_applied",
    "add_channels",
    "add_sides",
    "add_thin",
    "applied",
    "beside",
    "block_products",
    "compute_dtype",
    "outer",
    "rebuilt_linear",
    "rescale",
    "rescaled_linear",
    "times_blocks",
    "times_linear",
    "turned_linear",
]
