"""Equal-shaped adapters stacked on a batch axis, on which an update rule runs once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowrank_sp import xp
from lowrank_sp.factors import ByFactor, Factors
from lowrank_sp.rules import Chain, Mixing, Rule, mixed, retract
from lowrank_sp.spaces import STIEFEL, retract_all

from .adapter import Adapter
from .distributed import gather, placements, scatter_
from .fused import Split, advance, descend_, kernel_takes, split
from .precision import full_precision

__all__ = ["Bucket", "Job", "blocks", "counters", "step_together"]

# Bytes of factors that a rule works on at once on a processor: with gradients, moments and what it computes on the
# way they stay in cache, and the allocator reuses their memory. Other devices want as few and large calls as can be.
BLOCK = 4 << 20


class Aim(NamedTuple):
    """Where a bucket is about to move: its tensors, the point, the point after decay, and what the rule says."""

    columns: list[list[Tensor]]
    point: Any
    start: Any
    direction: Any
    state: Any
    wrt: tuple[int, ...]


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
        self.splits = [split(rule, self.form, move, group) for group in self.groups]
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

    @property
    def size(self) -> int:
        """Bytes of the factors."""
        return len(self.adapters) * _bytes(self.adapters[0])

    def columns(self) -> list[list[Tensor]]:
        """For every array of the form its tensors, one for each adapter."""
        return [[getattr(adapter, name) for adapter in self.adapters] for name in self.form.names]

    # one step -------------------------------------------------------------------------------------
    @property
    def fused(self) -> Split | None:
        """The parts of the rule, if the arrays whose turn it is can move by one pass of Adam."""
        moving = [getattr(self.adapters[0], self.form.names[i]) for i in self.groups[self.turn]]
        return self.splits[self.turn] if all(map(kernel_takes, moving)) else None

    @property
    def kin(self) -> tuple[Any, ...] | None:
        """What buckets have in common that can form their small matrices at once; None where they cannot."""
        first = self.adapters[0].point().arrays()[0]
        kind = (self.form, first.shape[-1], first.dtype, first.device)
        fused = self.splits[self.turn]
        if fused is None and self.move is retract and issubclass(self.form, ByFactor) and STIEFEL in self.form.spaces:
            return STIEFEL, *kind
        if fused is None or fused.mixing is None or not fused.mixing.mixes(self.form) or self.fused is None:
            return None
        return fused.mixing, *kind

    def look(self, columns: list[list[Tensor]]) -> tuple[Any, Any]:
        """Point and gradient of all adapters; the gradient is zero for arrays whose turn it is not."""
        wrt = self.groups[self.turn]
        stacks = [_stack_with_grad(column) if i in wrt else (_stack(column), None) for i, column in enumerate(columns)]
        point = self.form(*[whole for whole, _ in stacks])
        state = self.states[self.turn]
        if state is None:
            self.states[self.turn] = self.rule.init(point)
        elif self._late(state):
            self.states[self.turn] = self.rule.carry(state, point, point)
        return point, self.form(*[0 * whole if grad is None else grad for whole, grad in stacks])

    def step(self, lr: Any, decay: float, loss: Any = None) -> None:
        """One step of the group of arrays whose turn it is."""
        fused, columns = self.fused, self.columns()
        alone = fused is not None and fused.head is None and not fused.curved
        if alone and self.states[self.turn] is not None and all(_own(columns[i]) for i in self.groups[self.turn]):
            self.descend(columns, None, None, (), lr, decay)
            return
        if fused is None:
            aim = self.aim(lr, decay, loss)
            self.arrive(aim, self.move(aim.start, aim.direction, lr, aim.wrt))
            return
        point, grad = self.look(columns)
        before: tuple[Any, ...] = ()
        if fused.head is not None:
            grad, before = fused.head.update(grad, self.states[self.turn][: fused.position], point, loss)
        self.descend(columns, point, grad, before, lr, decay)

    def aim(self, lr: Any, decay: float, loss: Any) -> Aim:
        """The first half of a step: all that is known before the point moves."""
        columns = self.columns()
        point, grad = self.look(columns)
        wrt = self._moved(columns)
        direction, state = advance(self.rule, grad, self.states[self.turn], point, loss)
        return Aim(columns, point, self._decayed(point, wrt, lr * decay), direction, state, wrt)

    def arrive(self, aim: Aim, new: Any) -> None:
        """The second half: the adapters and the state at the new point."""
        for i in aim.wrt:
            scatter_(aim.columns[i], new.arrays()[i])
        self._done(self.rule.carry(aim.state, aim.point, new))

    def descend(
        self,
        columns: list[list[Tensor]],
        point: Any,
        direction: Any,
        before: tuple[Any, ...],
        lr: Any,
        decay: float,
    ) -> None:
        """Adam on a direction, or on the gradients themselves, and the move, in one pass over what there is.

        ``before`` are the states of the rules in front of Adam.
        """
        fused: Any = self.splits[self.turn]
        state = self.states[self.turn]
        count, first, second = state[fused.position] if isinstance(self.rule, Chain) else state
        count = count + 1
        first, second = (part.map(Tensor.contiguous) for part in (first, second))  # rows of it are written to
        landed, passes = [], {}
        for i in self._moved(columns):
            grads = [_own_grad(t) for t in columns[i]] if direction is None else _rows(direction.arrays()[i])
            own = _own(columns[i])
            targets = columns[i] if own else point.arrays()[i].clone(memory_format=torch.contiguous_format)
            moments = [part.arrays()[i].unbind(0) for part in (first, second)]
            lists = passes.setdefault((fused.rates[i], self.form.spaces[i].linear, targets[0].dtype), [[], [], [], []])
            for whole, part in zip(lists, (columns[i] if own else _rows(targets), grads, *moments), strict=True):
                whole += part
            landed += [] if own else [(i, targets)]
        for (rate, shrinks, _), lists in passes.items():
            descend_(fused.adam, count, lists, lr * rate, decay / rate if shrinks else 0.0)
        for i, targets in landed:
            scatter_(columns[i], targets)
        mine = (count, first, second)
        state = (*before, mine, *state[fused.position + 1 :]) if isinstance(self.rule, Chain) else mine
        if (fused.curved or any(True for _ in leaves(before))) and not self._late(state):
            state = self.rule.carry(state, point, self._point(columns))
        self._done(state)

    def _late(self, state: Any) -> bool:
        """Whether moments are carried when the next step looks at the new point, which then is stacked anyway.

        Adam's alone can be: they are projected, and what they were carried from does not matter.
        """
        fused = self.fused
        if fused is None or not fused.curved:
            return False
        return not (isinstance(self.rule, Chain) and any(True for _ in leaves(state[: fused.position])))

    def _moved(self, columns: list[list[Tensor]]) -> tuple[int, ...]:
        """The arrays whose turn it is, without those that got no gradient in any adapter, such as frozen ones."""
        return tuple(i for i in self.groups[self.turn] if any(t.grad is not None for t in columns[i]))

    def _done(self, state: Any) -> None:
        self.states[self.turn] = state
        self.turn = (self.turn + 1) % len(self.groups)

    def _point(self, columns: list[list[Tensor]]) -> Any:
        return self.form(*[_stack(column) for column in columns])

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
        point = self._point(self.columns())
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


class Job(NamedTuple):
    """A bucket and the numbers of its parameter group."""

    bucket: Bucket
    lr: Any
    decay: float


@torch.no_grad()
@full_precision()
def step_together(jobs: Sequence[Job], loss: Any = None) -> None:
    """One step of every bucket; buckets of one kin form their small matrices at once."""
    for kin, wave in _waves(jobs):
        if kin is None:
            for bucket, lr, decay in wave:
                bucket.step(lr, decay, loss)
        elif kin[0] == STIEFEL:
            _land(wave, loss)
        else:
            _step_kin(kin[0], wave)


def _land(wave: list[Job], loss: Any) -> None:
    """Retract the orthonormal factors of all buckets at once."""
    aims = [job.bucket.aim(job.lr, job.decay, loss) for job in wave]
    parts = []
    for job, aim in zip(wave, aims, strict=True):
        spaces, ndims, arrays, moves = (
            job.bucket.form.spaces,
            aim.start.ndims,
            aim.start.arrays(),
            aim.direction.arrays(),
        )
        parts += [(spaces[i], arrays[i], moves[i], xp.expand(job.lr, ndims[i])) for i in aim.wrt]
    landed = iter(retract_all(parts))
    for job, aim in zip(wave, aims, strict=True):
        arrays = list(aim.start.arrays())
        for i in aim.wrt:
            arrays[i] = next(landed)
        job.bucket.arrive(aim, job.bucket.form(*arrays))


def _step_kin(rule: Mixing, wave: list[Job]) -> None:
    columns = [job.bucket.columns() for job in wave]
    looks = [job.bucket.look(column) for job, column in zip(wave, columns, strict=True)]
    parts = [rule.products(grad, point) for point, grad in looks]
    pairs = rule.mix(parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True))))
    start = 0
    for (bucket, lr, decay), column, (point, grad) in zip(wave, columns, looks, strict=True):
        own, start = slice(start, start + len(bucket.adapters)), start + len(bucket.adapters)
        mine = tuple(tuple(a if a is None else a[own] for a in pair) for pair in pairs)
        bucket.descend(column, point, mixed(grad, point, mine), ((),), lr, decay)


def _waves(jobs: Sequence[Job]) -> Iterator[tuple[Any, list[Job]]]:
    """Jobs that go together, and their kin: on a processor no more than what stays in cache."""
    waiting: dict[Any, list[Job]] = {}
    for job in jobs:
        kin = job.bucket.kin
        wave = waiting.setdefault(kin, [])
        full = sum(other.bucket.size for other in wave) + job.bucket.size > BLOCK
        if wave and full and kin is not None and kin[-1].type == "cpu":
            yield kin, wave
            wave = waiting[kin] = []
        wave.append(job)
    yield from waiting.items()


def blocks(adapters: list[Adapter]) -> list[list[Adapter]]:
    """Equal adapters in runs of as many as are best updated at once."""
    arrays = adapters[0].point().arrays()
    whole = arrays[0].device.type != "cpu" or any(placements(a) is not None for a in arrays)
    size = len(adapters) if whole else max(1, BLOCK // _bytes(adapters[0]))
    return [adapters[start : start + size] for start in range(0, len(adapters), size)]


def _bytes(adapter: Adapter) -> int:
    return sum(a.numel() * a.element_size() for a in adapter.point().arrays())


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


def _own(column: list[Tensor]) -> bool:
    """Whether the parameters are what a rule computes with: whole, dense, and not of less than single precision."""
    precise = column[0].dtype in (torch.float32, torch.float64)
    return precise and placements(column[0]) is None and all(t.is_contiguous() for t in column)


def _rows(stack: Tensor) -> Sequence[Tensor]:
    return stack.contiguous().unbind(0)


def _own_grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.contiguous()


def _stack_with_grad(column: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors and their gradients, zero where there is none: by one operation where they are of one type."""
    grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in column]
    if placements(column[0]) is not None or any(g.dtype != column[0].dtype for g in grads):
        return _stack(column), _stack(grads)
    both = _stack([*column, *grads])
    return both[: len(column)], both[len(column) :]
