"""Starting points, and the registry over which their contract tests run."""

from collections.abc import Callable
from typing import Any

from .random import gaussian, stiefel
from .sketch import half_nystrom, nystrom, nystrom_two_sided, spectral
from .tensor import tensor_spectral

__all__ = [
    "INITS",
    "gaussian",
    "half_nystrom",
    "nystrom",
    "nystrom_two_sided",
    "spectral",
    "stiefel",
    "tensor_spectral",
]

INITS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (gaussian, stiefel, nystrom, nystrom_two_sided, half_nystrom, spectral)
}
