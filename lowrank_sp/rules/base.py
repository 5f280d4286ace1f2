"""An update rule is a pair of pure functions on factors: gradient and state in, direction and state out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import xp
from ..factors import Factors
from ..parameterizations import FORMS

__all__ = ["Chain", "Mixing", "PerFactor", "Plain", "Rule", "chain", "check_needs", "mixed"]


class Rule(ABC):
    """Turns gradients into directions; a solver or optimizer then moves by ``-lr * direction``.

    ``needs`` lists the classes, one of which a point must be; ``equivariant`` says whether the matrix
    follows the same path from every gauge-equivalent start, and is a tested promise;
    ``preserves_equivariance`` says that a rule keeps that property of the rule before it.
    """

    needs: ClassVar[tuple[type, ...]] = (Factors,)
    equivariant: ClassVar[bool] = False
    preserves_equivariance: ClassVar[bool] = False

    @abstractmethod
    def init(self, point: Factors) -> Any:
        """The state before the first step: arrays, factors and tuples of them."""

    @abstractmethod
    def update(self, grad: Any, state: Any, point: Any, loss: Any = None) -> tuple[Any, Any]:
        """``(direction, state)`` for the gradient at ``point``; ``loss`` is its loss, where known."""

    @abstractmethod
    def carry(self, state: Any, old: Any, new: Any) -> Any:
        """Move whatever the state accumulates from the point ``old`` to the point ``new``."""


class Mixing(Rule):
    """A rule without state that turns every array into ``grad A + array B``, with small matrices A and B.

    They depend on products of thin matrices alone. So whoever moves many points can form the products of each,
    and the small matrices of all at once: ``mixed(grad, point, rule.mix(rule.products(grad, point)))`` is the
    direction of ``update``.
    """

    @abstractmethod
    def mixes(self, form: type[Factors]) -> bool:
        """Whether that holds for points of this form."""

    @abstractmethod
    def products(self, grad: Any, point: Any) -> tuple[Any, ...]:
        """Small arrays (..., r, r), or numbers (...), with the batch axes of the point."""

    @abstractmethod
    def mix(self, products: tuple[Any, ...]) -> tuple[tuple[Any, Any], ...]:
        """A and B for every array of the point: (..., r, r), None for I and 0; or numbers (...) in place of A alone."""


def mixed(grad: Any, point: Any, pairs: tuple[tuple[Any, Any], ...]) -> Any:
    """``grad A + point B``, array by array."""
    arrays = zip(grad.arrays(), point.arrays(), pairs, strict=True)
    return type(point)(*[_mix(g, x, a, b) for g, x, (a, b) in arrays])


def _mix(g: Any, x: Any, a: Any, b: Any) -> Any:
    if b is None:
        if a is None or a.ndim == g.ndim:
            return g if a is None else xp.times(g, a)
        return g * xp.expand(a, 2)
    return xp.add_times(g, x, b) if a is None else xp.combine(g, a, x, b)


def check_needs(rule: Rule, point: Factors) -> None:
    """Raise a ``TypeError`` that names the missing capability unless ``rule`` can act on ``point``."""
    if not isinstance(point, rule.needs):
        wanted = " or ".join(cls.__name__ for cls in rule.needs)
        fitting = [name for name, form in FORMS.items() if issubclass(form, rule.needs)]
        raise TypeError(
            f"{type(rule).__name__} needs a {wanted} point, got {type(point).__name__}; "
            f"convert the start, for example with start.to(lr.{fitting[0]})"
        )


@dataclass(frozen=True)
class Plain(Rule):
    """The gradient itself, projected on the tangent space where the form has one: (Riemannian) gradient descent."""

    preserves_equivariance = True

    def init(self, point):
        return ()

    def update(self, grad, state, point, loss=None):
        return point.project(grad), state

    def carry(self, state, old, new):
        return state


@dataclass(frozen=True)
class Chain(Rule):
    """Rules applied one after the other: each sees the direction of the one before as its gradient."""

    rules: tuple[Rule, ...]

    @property
    def needs(self) -> tuple[type, ...]:
        """Those of the rule that the fewest forms satisfy; `init` checks them all."""
        accepted = {rule.needs: sum(issubclass(form, rule.needs) for form in FORMS.values()) for rule in self.rules}
        return min(accepted, key=lambda classes: accepted[classes])

    @property
    def equivariant(self) -> bool:
        return self.rules[0].equivariant and all(rule.preserves_equivariance for rule in self.rules[1:])

    def init(self, point):
        for rule in self.rules:
            check_needs(rule, point)
        return tuple(rule.init(point) for rule in self.rules)

    def update(self, grad, state, point, loss=None):
        states = []
        for rule, part in zip(self.rules, state, strict=True):
            grad, part = rule.update(grad, part, point, loss)
            states.append(part)
        return grad, tuple(states)

    def carry(self, state, old, new):
        return tuple(rule.carry(part, old, new) for rule, part in zip(self.rules, state, strict=True))


def chain(*rules: Rule) -> Chain:
    """Compose rules from left to right, as ``chain(Scaled(), Momentum())``."""
    return Chain(tuple(rules))


@dataclass(frozen=True)
class PerFactor(Rule):
    """Multiply the direction of each array by its own rate (LoRA+ style), in the order of ``point.names``."""

    rates: tuple[float, ...]
    preserves_equivariance = True

    def init(self, point):
        if len(self.rates) != len(point.names):
            raise ValueError(
                f"rates has {len(self.rates)} entries, but {type(point).__name__} has {len(point.names)} "
                f"arrays: {', '.join(point.names)}"
            )
        return ()

    def update(self, grad, state, point, loss=None):
        return type(grad)(*[rate * g for rate, g in zip(self.rates, grad.arrays(), strict=True)]), state

    def carry(self, state, old, new):
        return state
