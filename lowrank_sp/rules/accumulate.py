"""Rules with memory: momentum, Adam and conjugate gradients on top of any other rule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import xp
from ..factors import ByFactor
from .base import Rule

__all__ = ["Adam", "Conjugate", "Momentum"]


def zero_like(point):
    return point.map(lambda a: xp.namespace(a).zeros_like(a))


def counter(point):
    """A 0-d array zero beside the data, so that compiled code sees no Python integer change."""
    first = point.arrays()[0]
    return np.zeros(()) if type(first) is np.ndarray else xp.asarray_like(0.0, first).real


@dataclass(frozen=True)
class Momentum(Rule):
    """Heavy ball: ``v = decay v + grad``. Keeps gauge equivariance of the rule before it.

    Source: :cite:`polyak1964momentum`.
    """

    decay: float = 0.9
    preserves_equivariance = True

    def init(self, point):
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}")
        return zero_like(point)

    def update(self, grad, state, point, loss=None):
        velocity = state.map(lambda v, g: self.decay * v + g, grad)
        return velocity, velocity

    def carry(self, state, old, new):
        return old.transport(new, state)


@dataclass(frozen=True)
class Adam(Rule):
    """Adam with bias correction; elementwise, so it breaks gauge equivariance whatever comes before it.

    It needs arrays that keep their meaning from step to step: the bases of a `FixedRank` point are new after
    every retraction, and squares accumulated in the old ones say nothing about them.
    Source: :cite:`kingma2015adam`.
    """

    decay: float = 0.9
    decay_squares: float = 0.999
    epsilon: float = 1e-8
    needs = (ByFactor,)

    def init(self, point):
        return counter(point), zero_like(point), point.map(lambda a: abs(0 * a))

    def update(self, grad, state, point, loss=None):
        count, first, second = state
        count = count + 1
        b1, b2 = self.decay, self.decay_squares
        first = first.map(lambda m, g: xp.blend(m, g, 1 - b1), grad)
        second = second.map(lambda v, g: xp.blend(v, xp.square(g), 1 - b2), grad)
        c1, c2 = 1 - b1**count, 1 - b2**count
        rise, floor = c1 / c2**0.5, c1 * self.epsilon  # (m / c1) / ((v / c2)^(1/2) + epsilon), in fewer passes
        direction = first.map(lambda m, v: m / (v**0.5 * rise + floor), second)
        return direction, (count, first, second)

    def carry(self, state, old, new):
        count, first, second = state
        return count, old.transport(new, first), second


@dataclass(frozen=True)
class Conjugate(Rule):
    """Nonlinear conjugate gradients over the directions of another rule, with its metric.

    With ``g`` the gradient and ``s`` the direction of ``rule``: ``d = s + beta d_old`` and
    ``beta = max(0, (<g, s> - <g, s_old>) / <g_old, s_old>)`` (Polak-Ribiere+), restarted with ``d = s``
    where ``<g, d> < threshold <g, s>``, and where successive gradients overlap by more than ``overlap``
    (Powell's restart, which keeps sparse completion out of far valleys). Over `Scaled` this is ScaledCG, over
    `Plain` on a manifold Riemannian CG; the line search must be exact or close to it.
    Source: :cite:`hestenes1952cg`; on manifolds :cite:`vandereycken2013lrgeomcg`.
    """

    rule: Rule
    threshold: float = 1e-4
    overlap: float = 0.2

    @property
    def needs(self) -> tuple[type, ...]:
        return self.rule.needs

    @property
    def equivariant(self) -> bool:
        return self.rule.equivariant

    def init(self, point):
        zero = zero_like(point)
        return self.rule.init(point), zero, zero, zero.inner(zero)

    def update(self, grad, state, point, loss=None):
        inner_state, old_direction, old_scaled, old_product = state
        scaled, inner_state = self.rule.update(grad, inner_state, point, loss)
        scaled = point.project(scaled)
        product = grad.inner(scaled)
        denominator = old_product + (old_product == 0)
        overlap = grad.inner(old_scaled)
        beta = (product - overlap) / denominator * (old_product > 0) * (abs(overlap) <= self.overlap * product)
        beta = beta * (beta > 0)
        beta = beta * (product + beta * grad.inner(old_direction) > self.threshold * product)
        direction = scaled + old_direction.scale(beta)
        return direction, (inner_state, direction, scaled, product)

    def carry(self, state, old, new):
        inner_state, direction, scaled, product = state
        inner_state = self.rule.carry(inner_state, old, new)
        return inner_state, old.transport(new, direction), old.transport(new, scaled), product
