"""What a start of the factors is given, and what it has to return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["Start", "StartSite"]


@dataclass(frozen=True)
class StartSite:
    """What a start knows about its layer.

    Attributes
    ----------
    form : type of MatrixFactors
    shape : tuple of int
        ``(out, in)``.
    rank : int
    scale : float
        s: the layer will compute ``W + s F``.
    rng : numpy.random.Generator
        Depends on the seed and the name of the layer only.
    weight : callable () -> Tensor
        The pretrained ``W`` (out, in) in single precision or better.
    statistic : Any
        What the calibration collected for the layer, where the start asks for something.
    given : frozenset of str
        Arrays that another layer provides: a start need not draw them.
    """

    form: type[Any]
    shape: tuple[int, int]
    rank: int
    scale: float
    rng: np.random.Generator
    weight: Any
    statistic: Any = None
    given: frozenset[str] = frozenset()

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers beside the weight."""
        return self.beside(self.rng.standard_normal(shape))

    def uniform(self, bound: float, *shape: int) -> Tensor:
        """Numbers from ``U(-bound, bound)`` beside the weight."""
        return self.beside(self.rng.uniform(-bound, bound, shape))

    def beside(self, array: np.ndarray) -> Tensor:
        """An array on the device of the weight, in its type unless it holds integers."""
        weight = self.weight()
        kind = None if array.dtype.kind in "iub" else weight.dtype
        return torch.as_tensor(array, dtype=kind, device=weight.device)

    def require(self, *names: str) -> None:
        """Raise a ``TypeError`` unless the form has these arrays and no others."""
        if self.form.names != names:
            raise TypeError(
                f"this start gives {', '.join(names)}, but {self.form.__name__} has {', '.join(self.form.names)}; "
                "give the recipe another form or start"
            )


class Start(ABC):
    """A start of the factors.

    ``moves`` says that the update does not vanish there, so that it is subtracted from the layer's output;
    ``needs`` names the statistic to calibrate, if any: ``"gradients"`` or ``"inputs"``.
    """

    moves: ClassVar[bool] = False
    needs: ClassVar[str | None] = None

    @abstractmethod
    def __call__(self, site: StartSite) -> Any:
        """The point of the form of the site, of torch tensors on the device of the weight."""
