"""Adam in one pass over parameters, moments and gradients: the kernel behind fused AdamW, for the rule of the core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_sp.factors import Factors
from lowrank_sp.rules import Adam, Chain, Mixing, PerFactor, Rule, retract, translate
from lowrank_sp.spaces import FIXED

__all__ = ["Split", "advance", "descend_", "kernel_takes", "split"]

# Kinds of devices for which torch brings the kernel.
DEVICES = {"cpu", "cuda"}


class Split(NamedTuple):
    """A rule as a chain before Adam, Adam, and rates behind it: `descend_` does the last two and the move in one pass.

    ``mixing`` is the only rule in front of Adam, if it is of that kind; ``position`` is that of Adam in the chain;
    ``curved`` says that moments have to be carried to the new point.
    """

    head: Chain | None
    mixing: Mixing | None
    adam: Adam
    rates: tuple[float, ...]
    position: int
    curved: bool


def split(rule: Rule, form: type[Factors], move: Callable[..., Any], wrt: Sequence[int]) -> Split | None:
    """The parts of a rule that ends in Adam, for arrays that then move in straight lines; None for any other."""
    straight = move is translate or (move is retract and all(form.spaces[i].linear for i in wrt))
    if not straight or any(form.spaces[i] is FIXED for i in wrt):
        return None
    parts, rates = rule.rules if isinstance(rule, Chain) else (rule,), (1.0,) * len(form.names)
    if isinstance(parts[-1], PerFactor):
        parts, rates = parts[:-1], parts[-1].rates
    if not parts or not isinstance(parts[-1], Adam) or not all(rate > 0 for rate in rates):
        return None
    curved = not all(space.linear for space in form.spaces)
    head = parts[:-1]
    mixing = head[0] if len(head) == 1 and isinstance(head[0], Mixing) else None
    return Split(Chain(head) if head else None, mixing, parts[-1], rates, len(head), curved)


def kernel_takes(tensor: Tensor) -> bool:
    """Whether there is a kernel for real numbers of this kind, on this device."""
    return tensor.device.type in DEVICES and tensor.is_floating_point()


def descend_(
    adam: Adam,
    count: Tensor,
    columns: Sequence[Sequence[Tensor]],
    lr: Any,
    decay: float = 0.0,
) -> None:
    """One step of AdamW, in place.

    Parameters
    ----------
    adam : Adam
    count : Tensor
        Number of this step, from one.
    columns : four sequences of Tensor
        Parameters, gradients, and both moments: contiguous, of one type and device.
    lr, decay : float
        Decoupled decay shrinks parameters by ``lr decay``.
    """
    parameters, grads, first, second = (list(column) for column in columns)
    torch._fused_adamw_(
        parameters, grads, first, second, [], [count.float()] * len(grads),
        lr=lr, beta1=adam.decay, beta2=adam.decay_squares, weight_decay=decay, eps=adam.epsilon,
        amsgrad=False, maximize=False,
    )  # fmt: skip


def advance(rule: Rule, grad: Any, state: Any, point: Any, loss: Any) -> tuple[Any, Any]:
    """``rule.update``, but Adam writes over its moments instead of making new ones."""
    if isinstance(rule, Chain):
        states = []
        for part, old in zip(rule.rules, state, strict=True):
            grad, new = advance(part, grad, old, point, loss)
            states.append(new)
        return grad, tuple(states)
    if not isinstance(rule, Adam):
        return rule.update(grad, state, point, loss)
    count, *moments = state
    grad, first, second = (part.map(torch.Tensor.contiguous) for part in (grad, *moments))
    columns = [grad.arrays(), first.arrays(), second.arrays()]
    if not all(kernel_takes(a) for column in columns for a in column):
        return rule.update(grad, state, point, loss)
    count = count + 1
    direction = grad.map(torch.zeros_like)
    descend_(rule, count, [direction.arrays(), *columns], -1.0)  # from zero, upwards
    return direction, (count, first, second)
