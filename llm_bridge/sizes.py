"""What a rank means for forms that count something else: sizes for a layer (out, in), never too large for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lowrank_sp.parameterizations import square_size

__all__ = [
    "Fitting",
    "Times",
    "block_count",
    "block_side",
    "butterfly_side",
    "even",
    "half",
    "shorter_side",
    "single",
    "square",
    "values_of_lora",
]


@dataclass(frozen=True)
class Fitting:
    """The largest size up to the rank that a form can have in the layer, such as terms of Kronecker products."""

    form: Any

    def __call__(self, shape: tuple[int, int], rank: int) -> int:
        return next((k for k in range(rank, 1, -1) if self._holds(shape, k)), 1)

    def _holds(self, shape: tuple[int, int], size: int) -> bool:
        try:
            self.form.shapes(shape, size)
        except ValueError:
            return False
        return True


@dataclass(frozen=True)
class Times:
    """``factor`` for every rank, at most as many as a real transform of the layer has."""

    factor: int

    def __call__(self, shape: tuple[int, int], rank: int) -> int:
        return min(self.factor * rank, shape[0] * shape[1] // 2 + 1)


def values_of_lora(shape: tuple[int, int], rank: int) -> int:
    """As many values as the factors of LoRA have, ``r (out + in)``, and at most all entries."""
    return min(rank * sum(shape), shape[0] * shape[1])


def single(shape: tuple[int, int], rank: int) -> int:
    """One, whatever the rank."""
    return 1


def square(shape: tuple[int, int], rank: int) -> int:
    """The side of a square matrix with the parameters of LoRA, at most the shorter side of the layer."""
    return min(square_size(shape, rank), *shape)


def shorter_side(shape: tuple[int, int], rank: int) -> int:
    """As many as there are singular values, whatever the rank."""
    return min(shape)


def half(shape: tuple[int, int], rank: int) -> int:
    """Half of the rank, at least 1."""
    return max(1, rank // 2)


def even(shape: tuple[int, int], rank: int) -> int:
    """The rank, or the next even number."""
    return rank + rank % 2


def block_side(shape: tuple[int, int], rank: int) -> int:
    """The side of square blocks along the inputs: the smallest divisor of their number from the rank on, above 1."""
    n = shape[1]
    return next((b for b in range(max(rank, 2), n + 1) if n % b == 0), n)


def butterfly_side(shape: tuple[int, int], rank: int) -> int:
    """The same for two factors of a butterfly: an even side whose double divides the number of inputs."""
    n = shape[1]
    return next((b for b in range(max(rank + rank % 2, 2), n // 2 + 1, 2) if n % (2 * b) == 0), 2)


def block_count(shape: tuple[int, int], rank: int) -> int:
    """The number of blocks along the inputs: the largest divisor of their number up to the rank."""
    return next(k for k in range(min(rank, shape[1]), 0, -1) if shape[1] % k == 0)
