"""Differentiable operations that keep less for backward than automatic differentiation would."""

from .applied import add_applied, applied
from .channels import KEPT, add_channels
from .product import times_linear
from .thin import add_thin, beside, compute_dtype, outer, rebuilt_linear, rescale, rescaled_linear

__all__ = [
    "KEPT",
    "add_applied",
    "add_channels",
    "add_thin",
    "applied",
    "beside",
    "compute_dtype",
    "outer",
    "rebuilt_linear",
    "rescale",
    "rescaled_linear",
    "times_linear",
]
