"""Single precision: where an array has less, and where products would be computed in less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["full_precision", "precise"]


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 and no bfloat16 in products of float32 inside the block, whatever training allows itself.

    What a rule computes from Gram matrices, roots and orthonormal bases among it, would be left with three digits.
    The thin products that it takes are bound by memory, so nothing is gained by fewer digits.
    """
    host: Any = torch.backends.mkldnn
    backends = (torch.backends.cuda.matmul, host.matmul)
    kept = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, value in zip(backends, kept, strict=True):
            backend.fp32_precision = value


def precise(array: Tensor) -> Tensor:
    """In at least single precision; indices as they are."""
    return array.to(torch.promote_types(array.dtype, torch.float32)) if array.is_floating_point() else array
