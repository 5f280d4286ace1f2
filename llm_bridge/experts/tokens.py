"""The inputs of a layer token by token and sample by sample, and what is known about the samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..adapter import Adapter
from ..layers import LayerType

__all__ = ["labels_of", "samples", "tokens"]


class _Identity:
    """A point that stands for the unit matrix: applied by a layer, it gives what the layer multiplies."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> _Identity:
        return self

    def arrays(self) -> tuple[Tensor, ...]:
        return ()

    def apply(self, x: Tensor) -> Tensor:
        return x


def tokens(kind: LayerType, layer: Any, rows: Any) -> Tensor:
    """What the layer multiplies by its matrix: (..., n), the patches of a convolution as such rows."""
    x = kind.apply(layer, rows, _Identity())
    return x if x.ndim == 2 else x.movedim(1, -1)  # patches of a convolution come as channels


def samples(x: Tensor, count: int) -> Tensor:
    """Inputs (..., n) as (samples, tokens, n).

    Raises
    ------
    ValueError
        If they are not those of so many samples.
    """
    rows = x.flatten(0, -2)
    if len(rows) % count:
        raise ValueError(
            f"this layer got {len(rows)} inputs, which are not those of {count} samples: labels are for layers whose "
            "first axis is the batch, one for every sample"
        )
    return rows.unflatten(0, (count, -1))


def labels_of(adapter: Adapter) -> Tensor | None:
    """What `labelled` has said about the samples of the batch."""
    return vars(adapter).get("labels")
