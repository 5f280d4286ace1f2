"""Differentiable operations that keep less for backward than automatic differentiation would."""

from .applied import add_applied, applied
from .blocks import block_products, times_blocks, turned_linear
from .channels import KEPT, add_channels
from .entrywise import add_entrywise, entrywise_linear
from .normed import add_normed
from .product import add_times, times_linear
from .sides import add_sides
from .splines import GRID, ORDER, add_splines, spline_basis
from .thin import add_thin, beside, compute_dtype, narrowed, outer, own_types, rebuilt_linear, rescale, rescaled_linear

__all__ = [
    "GRID",
    "KEPT",
    "ORDER",
    "add_applied",
    "add_channels",
    "add_entrywise",
    "add_normed",
    "add_sides",
    "add_splines",
    "add_thin",
    "add_times",
    "applied",
    "beside",
    "block_products",
    "compute_dtype",
    "entrywise_linear",
    "narrowed",
    "outer",
    "own_types",
    "rebuilt_linear",
    "rescale",
    "rescaled_linear",
    "spline_basis",
    "times_blocks",
    "times_linear",
    "turned_linear",
]
