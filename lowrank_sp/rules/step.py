"""Step-size policies: constant, geometric, Polyak, exact line search, backtracking, Barzilai-Borwein."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from .geometry import translate
from .line import Move, Place, evaluate, line_minimum, line_step, sized
from .polynomial import minimize_polynomial

__all__ = [
    "Auto",
    "Backtracking",
    "BarzilaiBorwein",
    "Constant",
    "ExactLineSearch",
    "Geometric",
    "Move",
    "Place",
    "Polyak",
    "Search",
    "minimize_polynomial",
    "parse_step",
]


class Search(ABC):
    """Chooses how far to move along ``-direction``."""

    @abstractmethod
    def init(self) -> Any:
        """The state before the first step."""

    @abstractmethod
    def advance(self, place: Place, move: Move, state: Any) -> tuple[Place, Any]:
        """The new place and state."""


def parse_step(step_size: Any, auto: Search | None = None) -> Search:
    """A policy from ``"auto"``, a positive number or a policy; ``auto`` is what the first stands for.

    Raises
    ------
    ValueError
        If the number is not positive and finite, or the text is not ``"auto"``.
    """
    if isinstance(step_size, Search):
        return step_size
    if isinstance(step_size, str) and step_size == "auto":
        return Auto() if auto is None else auto
    if isinstance(step_size, (int, float)) and not isinstance(step_size, bool):
        return Constant(float(step_size))
    raise ValueError(
        f'step_size must be "auto", a positive number or a step policy such as ExactLineSearch(), got {step_size!r}'
    )


@dataclass(frozen=True)
class Constant(Search):
    """The same step every time."""

    step: float

    def __post_init__(self):
        if not (self.step > 0 and np.isfinite(self.step)):
            raise ValueError(f"step_size must be positive and finite, got {self.step}")

    def init(self):
        return ()

    def advance(self, place, move, state):
        return move.to(place, self.step), state


@dataclass(frozen=True)
class Polyak(Search):
    """``(loss - minimum) / <grad, direction>``: for problems whose least loss is known, or can be estimated.

    Parameters
    ----------
    minimum : float, optional
        The least loss. None takes the estimate of the problem (`LeastSquares.gap`): zero for squares, and for
        sums of absolute values what the median of the residuals says, which outliers do not move.

    Notes
    -----
    Source: :cite:`polyak1969`; over scaled directions :cite:`tong2021subgradient`.
    """

    minimum: float | None = 0.0

    def init(self):
        return ()

    def advance(self, place, move, state):
        gap = move.problem.gap(place.residual, place.loss) if self.minimum is None else place.loss - self.minimum
        slope = move.gradient.inner(move.direction)
        return move.to(place, gap / (slope + (slope == 0))), state


@dataclass(frozen=True)
class Geometric(Search):
    """``initial decay^t / sqrt(<grad, direction>)``: the move itself shrinks geometrically.

    For nonsmooth losses, whose gradients do not vanish at the solution. It converges at the rate ``decay`` if
    that is slow enough for the problem; 0.9 to 0.95 suits well-posed ones.

    Parameters
    ----------
    initial : float
        Length of the first move, in the metric of the rule: for ScaledGD in the units of ``||W||_F``. A few
        times the distance from the start to the solution is safe.
    decay : float
        In (0, 1).

    Notes
    -----
    Source: :cite:`tong2021subgradient`.
    """

    initial: float
    decay: float = 0.9

    def __post_init__(self):
        if not (self.initial > 0 and np.isfinite(self.initial)):
            raise ValueError(f"initial must be positive and finite, got {self.initial}")
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must lie in (0, 1), got {self.decay}")

    def init(self):
        return self.initial

    def advance(self, place, move, state):
        slope = move.gradient.inner(move.direction)
        return move.to(place, state / (slope + (slope <= 0)) ** 0.5 * (slope > 0)), state * self.decay


@dataclass(frozen=True)
class ExactLineSearch(Search):
    """The global minimiser of the loss along the line in the factors.

    For least squares the residual is a polynomial in the step, so its squared norm is minimised by
    solving for the roots of a derivative (a cubic for two factors): no trial evaluations. The residual is
    updated by the same polynomial and recomputed every ``refresh`` steps, or when the loss has dropped
    by a factor 1e8, so rounding does not accumulate.

    Parameters
    ----------
    refresh : int
        Largest number of polynomial updates in a row.
    constraint_weight : float
        Weight, relative to the squared data norm, of ``1/2 ||X^H X - I||^2`` for orthonormal factors
        moved in straight lines (landing methods).
    """

    refresh: int = 20
    constraint_weight: float = 0.0

    def init(self):
        return (0, None)

    def advance(self, place, move, state):
        age, reference = state
        weight = self.constraint_weight * move.problem.scale if self.constraint_weight else 0.0
        move, _ = sized(place, move)
        step, path = line_minimum(place, move, weight)
        if self._stale(move.problem, age, place.loss, reference):
            new = move.to(place, step)
            return new, (1, new.loss)
        point = move.mover(place.point, move.direction, step, move.wrt)
        residual = evaluate(path, step, move.problem.data_ndim)
        return Place(point, residual, move.problem.loss(residual)), (age + 1, reference)

    def _stale(self, problem: Any, age: int, loss: Any, reference: Any) -> bool:
        if reference is None or age >= min(self.refresh, problem.refresh):
            return True
        return bool((loss < 1e-8 * reference).any())


@dataclass(frozen=True)
class Backtracking(Search):
    """Armijo backtracking on the manifold, from the exact minimiser of the straight line in the factors.

    A direction that does not descend, or along which no step gains enough, is replaced by the gradient.

    Parameters
    ----------
    decrease : float
        Share of the linear prediction that a step must gain.
    most : int
        Halvings before the search gives up and stays where it is.
    """

    decrease: float = 1e-4
    most: int = 30

    def init(self):
        return ()

    def advance(self, place, move, state):
        for direction in (move.direction, move.gradient):
            trial = move._replace(direction=direction)
            step = line_step(place, trial)
            slope = move.gradient.inner(direction)
            if not bool((slope > 0).all()):
                continue
            for _ in range(self.most):
                new = trial.to(place, step)
                enough = new.loss <= place.loss - self.decrease * step * slope
                if bool(enough.all()):
                    return new, state
                step = step * 0.5 if isinstance(step, float) else step * (0.5 + 0.5 * enough)
        return place, state


@covers("O01")
@dataclass(frozen=True)
class BarzilaiBorwein(Search):
    """``<s, s> / <s, y>`` with the last change of point ``s`` and of gradient ``y``.

    The first step, steps with negative curvature, and steps after which the loss exceeds the largest of
    the last ``memory`` losses are replaced by the exact line search. Source: :cite:`barzilai1988`.
    """

    memory: int = 8

    def init(self):
        return (None, None, ())

    def advance(self, place, move, state):
        if not move.problem.smooth:
            return Polyak(None).advance(place, move, ())[0], state
        old_point, old_gradient, losses = state
        losses = (*losses, place.loss)[-self.memory :]
        kept = (place.point, move.gradient, losses)
        if old_point is not None:
            change = place.point - old_point
            curvature = change.inner(move.gradient - old_gradient)
            if bool((curvature > 0).all()):
                new = move.to(place, change.inner(change) / curvature)
                if bool((new.loss <= _largest(losses)).all()):
                    return new, kept
        auto = Auto()
        return auto.advance(place, move, auto.init())[0], kept


def _largest(losses: tuple[Any, ...]) -> Any:
    total = losses[0]
    for loss in losses[1:]:
        total = xp.namespace(loss).maximum(total, loss)
    return total


@dataclass(frozen=True)
class Secant(Search):
    """The step of the last move, corrected to where the slope along it would have vanished.

    ``t <g, d> / (<g, d> - <g_new, d>)`` with the last step t, gradient g and direction d: Barzilai-Borwein in
    the metric of the rule, for losses whose line search is only a model. The first step, and one after which
    the loss would exceed the largest of the last ``memory`` losses, is the minimiser of the model, backtracked.
    Source: after :cite:`barzilai1988`.
    """

    memory: int = 8

    def init(self):
        return (None, ())

    def advance(self, place, move, state):
        last, losses = state
        losses = (*losses, place.loss)[-self.memory :]
        slope = move.gradient.inner(move.direction)
        steps = [_secant_step(move, *last)] if last is not None else []
        for step in (*steps, None):
            step = line_step(place, move) if step is None else step
            new = move.to(place, step)
            if bool((new.loss <= _largest(losses)).all()):
                return new, ((move.direction, step, slope), losses)
        return Backtracking(most=8).advance(place, move, ())[0], (None, losses)


def _secant_step(move: Move, direction: Any, step: Any, slope: Any) -> Any:
    """Where the slope along the last move vanishes, or None when it grew."""
    drop = slope - move.gradient.inner(direction)
    return step * slope / drop if bool((drop > 0).all()) else None


@dataclass(frozen=True)
class Auto(Search):
    """The step that needs no tuning, by the loss and the way the point moves.

    Along straight lines of the factors: the exact minimiser of a quadratic loss, and a secant step for others;
    on a manifold: backtracking; Polyak's step with an estimated minimum where the loss has kinks.
    """

    exact: ExactLineSearch = ExactLineSearch()
    manifold: Backtracking = Backtracking()
    kinked: Polyak = Polyak(None)
    modelled: Secant = Secant()

    def init(self):
        return None

    def advance(self, place, move, state):
        chosen = self._choose(place, move)
        return chosen.advance(place, move, chosen.init() if state is None else state)

    def _choose(self, place: Place, move: Move) -> Search:
        if not move.problem.smooth:
            return self.kinked
        straight = move.mover is translate or all(place.point.spaces[i].linear for i in move.wrt)
        if not (straight and place.point.polynomial):
            return self.manifold
        return self.exact if move.problem.quadratic else self.modelled
