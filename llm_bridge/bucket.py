"""Equal-shaped adapters stacked on a batch axis, on which an update rule runs once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_sp.factors import Factors
from lowrank_sp.rules import Rule

from .adapter import Adapter
from .distributed import gather, scatter_

__all__ = ["Bucket", "counters"]


class Bucket:
    """Adapters of one form and shape with one rule, and the state of that rule.

    Parameters
    ----------
    adapters : list of Adapter
        Of the same form, with arrays of the same shapes, types and devices.
    rule, move, blocks
        Those of the recipe.
    group : int
        Number of the parameter group that it belongs to.
    """

    def __init__(
        self,
        adapters: list[Adapter],
        rule: Rule,
        move: Callable[..., Any],
        blocks: tuple[tuple[str, ...], ...] | None,
        group: int = 0,
    ):
        first = adapters[0]
        self.adapters = adapters
        self.blocks = blocks
        self.group = group
        self.form = first.form
        self.rule = rule
        self.move = move
        self.trained = tuple(i for i, name in enumerate(self.form.names) if name in first.trains)
        groups = (self.form.names,) if blocks is None else blocks
        self.groups = [tuple(i for i in self.trained if self.form.names[i] in group) for group in groups]
        self.states: list[Any] = [None] * len(self.groups)
        self.turn = 0

    def part(self, numbers: list[int]) -> Bucket:
        """Some of the adapters with their share of the state."""
        part = Bucket([self.adapters[i] for i in numbers], self.rule, self.move, self.blocks, self.group)
        part.restack([self.unstack(i) for i in numbers])
        return part

    def split_idle(self) -> list[Bucket]:
        """Itself, or the adapters with a gradient and those without: what got none must not move."""
        idle = [all(p.grad is None for p in self.parameters(i)) for i in range(len(self.adapters))]
        if not any(idle) or all(idle):
            return [self]
        return [self.part([i for i, flag in enumerate(idle) if flag == want]) for want in (False, True)]

    @property
    def idle(self) -> bool:
        """Whether no adapter has a gradient."""
        return all(p.grad is None for p in self.parameters(0))

    def columns(self) -> list[list[Tensor]]:
        """For every array of the form its tensors, one for each adapter."""
        return [[getattr(adapter, name) for adapter in self.adapters] for name in self.form.names]

    @torch.no_grad()
    def step(self, lr: Any, decay: float, loss: Any = None) -> None:
        """One step of the group of arrays whose turn it is."""
        turn, self.turn = self.turn, (self.turn + 1) % len(self.groups)
        wrt, columns = self.groups[turn], self.columns()
        point = self.form(*[_stack(column) for column in columns])
        grad = self.form(*[_stack_grad(columns[i]) if i in wrt else 0 * a for i, a in enumerate(point.arrays())])
        if self.states[turn] is None:
            self.states[turn] = self.rule.init(point)
        direction, state = self.rule.update(grad, self.states[turn], point, loss)
        new = self.move(self._decayed(point, wrt, lr * decay), direction, lr, wrt)
        self.states[turn] = self.rule.carry(state, point, new)
        for i in wrt:
            scatter_(columns[i], new.arrays()[i])

    def _decayed(self, point: Factors, wrt: tuple[int, ...], amount: float) -> Factors:
        """Weight decay, decoupled from the rule; only where shrinking keeps an array in its space."""
        if amount == 0:
            return point
        arrays = list(point.arrays())
        for i in wrt:
            if self.form.spaces[i].linear:
                arrays[i] = arrays[i] * (1 - amount)
        return self.form(*arrays)

    # state in and out -----------------------------------------------------------------------------
    def parameters(self, index: int) -> list[nn.Parameter]:
        """The parameters of one adapter that the bucket moves."""
        return [getattr(self.adapters[index], self.form.names[i]) for i in self.trained]

    def unstack(self, index: int) -> dict[str, Any]:
        """The part of the state that belongs to one adapter: numbered tensors."""
        kept: dict[str, Any] = {"turn": self.turn}
        for turn, state in enumerate(self.states):
            for number, leaf in enumerate(leaves(state)):
                kept[f"{turn}.{number}"] = leaf[index].clone() if leaf.ndim else leaf.clone()
        return kept

    def restack(self, parts: list[dict[str, Any]]) -> None:
        """Take back what `unstack` gave, one part for each adapter, all with the same counters."""
        self.turn = int(parts[0]["turn"])
        point = self.form(*[_stack(column) for column in self.columns()])
        for turn in range(len(self.groups)):
            if not any(key.startswith(f"{turn}.") for key in parts[0]):
                self.states[turn] = None
                continue
            template = self.rule.init(point)
            device = point.arrays()[0].device
            fresh = []
            for number, leaf in enumerate(leaves(template)):
                column = [part[f"{turn}.{number}"].to(device) for part in parts]
                fresh.append(torch.stack(column) if leaf.ndim else column[0].clone())
            self.states[turn] = rebuild(template, iter(fresh))


def counters(part: dict[str, Any]) -> tuple[Any, ...]:
    """What adapters of one bucket must agree on: whose turn it is, and the numbers of the state."""
    return (part["turn"], *((key, float(v)) for key, v in part.items() if key != "turn" and v.ndim == 0))


def leaves(state: Any) -> Iterator[Tensor]:
    """All tensors of a state, in order."""
    if isinstance(state, Factors):
        yield from state.arrays()
    elif isinstance(state, tuple):
        for part in state:
            yield from leaves(part)
    elif isinstance(state, Tensor):
        yield state


def rebuild(template: Any, fresh: Iterator[Tensor]) -> Any:
    """A state like ``template`` with its tensors replaced, in order."""
    if isinstance(template, Factors):
        return type(template)(*[next(fresh) for _ in template.arrays()])
    if isinstance(template, tuple):
        return tuple(rebuild(part, fresh) for part in template)
    return next(fresh) if isinstance(template, Tensor) else template


def _stack(column: list[Tensor]) -> Tensor:
    """Tensors on a new first axis, in at least single precision."""
    stacked = gather(column)
    return stacked if stacked.dtype == torch.float64 or not stacked.is_floating_point() else stacked.float()


def _stack_grad(column: list[Tensor]) -> Tensor:
    return _stack([torch.zeros_like(t) if t.grad is None else t.grad for t in column])
