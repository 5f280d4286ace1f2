"""Penalties that act beside the rule instead of in the loss: orthogonality of the factors, and sparse gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import xp
from ..coverage import covers
from ..factors import Factors
from ..parameterizations import SVD, BurerMonteiro, Core, DiagonalCore, PoLAR
from .base import Rule

__all__ = ["Orthogonality", "Shrinkage"]


@covers("P10", "O40", "O41")
@dataclass(frozen=True)
class Orthogonality(Rule):
    """Add the gradient of ``weight (||X^H X - I||_F^2 + ||Y^H Y - I||_F^2)`` to the direction.

    Behind another rule, as in ``chain(Adam(), Orthogonality(0.1))``, the penalty is decoupled from it, as the
    weight decay of AdamW is: its pull is not rescaled by what the rule does to the gradient of the loss.

    Parameters
    ----------
    weight : float
        Not negative; a step of size lr is stable for ``8 lr weight < 1``.

    Notes
    -----
    AdaLoRA, SORSA and soft orthogonal LoRA put the same penalty into the loss. Equation (36) of
    :cite:`he2026unified`; :cite:`zhang2023adalora`, :cite:`cao2024sorsa`.
    """

    weight: float = 0.1
    needs = (BurerMonteiro, Core, DiagonalCore, PoLAR, SVD)

    def init(self, point):
        if not self.weight >= 0:
            raise ValueError(f"weight must not be negative, got {self.weight}")
        return ()

    def update(self, grad, state, point, loss=None):
        arrays = zip(point.names, point.arrays(), grad.arrays(), strict=True)
        pulled = [xp.add_times(g, x, self._pull(x)) if name in ("left", "right") else g for name, x, g in arrays]
        return type(point)(*pulled), state

    def _pull(self, x: Any) -> Any:
        """``4 weight (X^H X - I)``: X times it is the gradient of ``weight ||X^H X - I||_F^2``."""
        p = xp.gram(x)
        return 4 * self.weight * (p - xp.eye_like(p))

    def carry(self, state, old, new):
        return state


@covers("O38")
@dataclass(frozen=True)
class Shrinkage:
    """A way to move: retract, then shrink one array towards zero by ``lr weight`` (soft thresholding).

    The proximal step on ``weight ||s||_1``: entries that the loss does not need become exactly zero. To be given
    where a solver or a recipe asks how a point moves.

    Parameters
    ----------
    weight : float
        Not negative.
    name : str
        Which array.

    Raises
    ------
    ValueError
        If the weight is negative, or, when a point moves, its form has no array with that name.

    Notes
    -----
    SoRA's gates. The source is named by :cite:`survey2026sp` only; the formula is that of :cite:`ding2023sora`.
    """

    weight: float
    name: str = "values"

    def __post_init__(self):
        if not self.weight >= 0:
            raise ValueError(f"weight must not be negative, got {self.weight}")

    def __call__(self, point: Factors, direction: Factors, lr: Any, wrt: Sequence[int] | None = None) -> Any:
        if self.name not in point.names:
            raise ValueError(f"{type(point).__name__} has no array {self.name!r}; it has {', '.join(point.names)}")
        new = point.retract(direction, lr, wrt)
        index = point.names.index(self.name)
        if wrt is not None and index not in wrt:
            return new
        array = new.arrays()[index]
        return new.with_array(index, _soften(array, xp.expand(lr * self.weight, point.ndims[index])))


def _soften(a: Any, threshold: Any) -> Any:
    """Entries with their absolute value reduced by the threshold, or zero."""
    size = abs(a)
    return a * ((size > threshold) * (1 - threshold / (size + (size == 0))))
