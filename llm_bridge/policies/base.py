"""What policies of ranks have in common: the gated adapters that they act on, and a budget that falls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lowrank_sp.parameterizations import DiagonalCore

from ..adapter import Adapter
from ..distributed import placements, unwrapped
from ..inject import acting, known
from ..steps import Companion

__all__ = ["Budget", "RankPolicy", "gated"]


class RankPolicy(Companion):
    """A companion of an optimizer that decides which components of the updates act.

    Attributes
    ----------
    adapters : dict
        By path; of the form `lowrank_sp.DiagonalCore`, whose gates are the components' switches.
    steps : int
        Taken so far.
    """

    # Gates have one owner; restarts may begin again what only counts components, not what sets the gates itself.
    excludes = ("Pruning", "Growing", "HardConcreteGates", "SelectionWeights")

    adapters: dict[str, Adapter]
    steps: int

    def parameters(self):
        return [p for adapter in self.adapters.values() for p in adapter.parameters()]

    def ranks(self) -> dict[str, int]:
        """By path, the number of components whose gate is not zero."""
        return {path: int(adapter.values.count_nonzero()) for path, adapter in self.adapters.items()}


def gated(model: nn.Module, name: str) -> dict[str, Adapter]:
    """The active adapters with this name by path.

    Of the model inside, where it is wrapped for data parallelism.

    Raises
    ------
    ValueError
        If there is no such adapter, it is not active or it is sharded.
    TypeError
        If its form has no gates that train.
    """
    model = unwrapped(model)
    made = known(model, name).recipe
    found = acting(model, name)
    for path, adapter in found.items():
        if not issubclass(adapter.form, DiagonalCore) or set(adapter.trains) != set(adapter.form.names):
            raise TypeError(
                f"{path}: a policy of ranks needs components with gates, all of them trained, which recipe "
                f"{made.name!r} does not have; take 'adalora', or another one with the form DiagonalCore"
            )
        if any(placements(p) is not None for p in adapter.parameters()):
            raise ValueError(f"{path}: the factors are sharded; policies of ranks work on whole ones")
    return found


@dataclass(frozen=True)
class Budget:
    """How many components may act: all at first, then fewer along a cubic, and the target in the end.

    ``b = b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_i - t_f))^3`` for ``t_i <= t <= T - t_f``.

    Parameters
    ----------
    target : int
        Components that a layer keeps in the end, on average.
    steps : int
        T, of the whole run.
    first, last : int
        t_i and t_f: steps with all components at the beginning, and with the target at the end.
    every : int
        Steps between changes while the budget falls.

    Raises
    ------
    ValueError
        If a number is out of range, or no step is left for the budget to fall.

    Notes
    -----
    Source: :cite:`zhang2023adalora`; equations (38)-(39) of :cite:`he2026unified`.
    """

    target: int
    steps: int
    first: int = 0
    last: int = 0
    every: int = 1

    def __post_init__(self):
        if self.target < 1 or self.every < 1 or self.first < 0 or self.last < 0:
            raise ValueError(f"target and every must be positive, first and last not negative, got {self}")
        if self.first + self.last >= self.steps:
            raise ValueError(f"first + last must be less than steps, got {self.first} + {self.last} of {self.steps}")

    def at(self, step: int, components: int, layers: int) -> int:
        """Components of all layers that may act after a step, counted from 1, out of so many."""
        final = self.target * layers
        if step <= self.first:
            return components
        if step > self.steps - self.last:
            return final
        left = 1 - (step - self.first) / (self.steps - self.first - self.last)
        return int((components - final) * left**3 + final)

    def due(self, step: int) -> bool:
        """Whether components are chosen after this step."""
        return step > self.first and (step > self.steps - self.last or step % self.every == 0)

    def watched(self, step: int) -> bool:
        """Whether the importance of components is still observed in this step."""
        return step < self.steps - self.last


def zero_gradients(adapters: dict[str, Adapter], off: dict[str, torch.Tensor]) -> None:
    """Drop the gradients of gates that are off, so that they stay where they are."""
    for path, adapter in adapters.items():
        if adapter.values.grad is not None:
            adapter.values.grad.masked_fill_(off[path], 0.0)
