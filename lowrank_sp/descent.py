"""Descent: one solver for every composition of an update rule, a step policy, a move and an order of blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from . import xp
from .factors import ByFactor, Factors
from .parameterizations import BurerMonteiro
from .problems.base import LeastSquares
from .rules import Rule, check_needs, retract
from .rules.step import Move, Place, Search
from .spaces import FIXED

__all__ = ["AlternatingLeastSquares", "Descent", "Solver", "State"]

# The share of the best over-relaxation that is taken: beyond that one, rates rise fast.
SAFE = 0.8


class State(NamedTuple):
    """Where a solver is: the point with its residual and loss, the last gradient norm, and its memory."""

    point: Any
    residual: Any
    loss: Any
    gradient_norm: Any
    memory: Any


class Solver(ABC):
    """Turns a problem and a start into a sequence of states; `lowrank_sp.solve` is the loop.

    ``descends`` says that it lowers the loss of the problem, so that a long time without a lower one is a stall.
    """

    name: str
    form: type[Factors] | None
    descends: ClassVar[bool] = True

    @abstractmethod
    def start(self, problem: LeastSquares, point: Any) -> State:
        """The state at ``point``."""

    @abstractmethod
    def step(self, problem: LeastSquares, state: State) -> State:
        """One iteration."""


@dataclass(frozen=True)
class Descent(Solver):
    """Move the factors along the directions of a rule.

    Parameters
    ----------
    rule : Rule
        Turns gradients into directions.
    steps : tuple of Search
        Step policy of each block, or one for all.
    blocks : "all", "each" or tuple of tuples of array names
        ``"all"``: every array moves at once. ``"each"``: one after the other in the order of the form, each
        from the gradient at the newest point. Explicit groups otherwise, the first with all arrays that no group
        names. Fixed arrays are in none. A form with its own manifold
        (`FixedRank`) always moves as one.
    mover : callable
        How a point moves: `retract`, `retract_qr`, `translate` or `orthographic`.
    name : str
    form : type, optional
        If the start is a `BurerMonteiro` point, run in this form instead and convert back at the end.
    """

    rule: Rule
    steps: tuple[Search, ...]
    blocks: Any = "all"
    mover: Any = retract
    name: str = "Descent"
    form: type[Factors] | None = None

    def start(self, problem, point):
        check_needs(self.rule, point)
        residual = problem.residual(point)
        groups = self._groups(point)
        memory = tuple((self.rule.init(point), search.init()) for _, search in groups)
        return State(point, residual, problem.loss(residual), None, (groups, memory))

    def _groups(self, point: Factors) -> tuple[tuple[tuple[int, ...], Search], ...]:
        """Pairs of array indices and step policy."""
        names, moving = point.names, [i for i, space in enumerate(point.spaces) if space is not FIXED]
        if self.blocks == "all" or not isinstance(point, ByFactor):
            groups = (tuple(range(len(names))),)
        elif self.blocks == "each":
            groups = tuple((i,) for i in moving)
        else:
            groups = tuple(tuple(i for i in moving if names[i] in block) for block in self.blocks)
            named = {i for group in groups for i in group}
            rest = tuple(i for i in moving if i not in named)
            groups = (groups[0] + rest, *groups[1:])
        steps = self.steps * len(groups) if len(self.steps) == 1 else self.steps
        return tuple((group, step) for group, step in zip(groups, steps, strict=False) if group)

    def step(self, problem, state):
        place = Place(state.point, state.residual, state.loss)
        groups, memories = state.memory
        kept, square = [], 0.0
        for (wrt, search), (rule_state, search_state) in zip(groups, memories, strict=True):
            point = place.point
            gradient = self._gradient(problem, place, wrt)
            tangent = gradient if point.flat else point.project(gradient)
            square = square + tangent.inner(tangent)
            direction, rule_state = self.rule.update(gradient, rule_state, point, place.loss)
            move = Move(problem, tangent, direction, self.mover, wrt)
            place, search_state = search.advance(place, move, search_state)
            kept.append((self.rule.carry(rule_state, point, place.point), search_state))
        return State(*place, square**0.5, (groups, tuple(kept)))

    def _gradient(self, problem: LeastSquares, place: Place, wrt: tuple[int, ...]) -> Factors:
        """Gradient in the arrays that move; zeros elsewhere."""
        point, g = place.point, problem.backproject(problem.slope(place.residual))
        if len(wrt) == len(point.names):
            return point.pullback(g)
        parts = [point.partial(i, g) if i in wrt else 0 * a for i, a in enumerate(point.arrays())]
        return type(point)(*parts)


@dataclass(frozen=True)
class AlternatingLeastSquares(Solver):
    """Solve for one factor at a time, exactly or by preconditioned conjugate gradients.

    Every block solve carries a Tikhonov ridge, relative to the mean Gram matrix of the block,
    ``max(floor, min(factor * ||residual|| / ||y||, cap * decay^t))``: large while the fit is poor, which
    leads ill-conditioned and sparsely sampled problems to the right solution, and vanishing with the residual
    (the idea of PrecGD's damping), so that exact data are fitted exactly.

    Two blocks are over-relaxed: each moves by a little more than to its solution, which still lowers the loss, and
    by how much follows from the rate at which sweeps get shorter. Of a rate ``q`` that leaves some ``q / 4``.

    Parameters
    ----------
    factor, cap, decay, floor : float
        The schedule above.
    relaxation : float
        Most that a block moves, relative to the way to its solution, in [1, 2); 1 for plain sweeps.
    rebalance : bool
        Equalize the Gram matrices of the two factors after every sweep (`BurerMonteiro` only).

    Notes
    -----
    With a positive ``floor`` the gradient norm that is recorded is the relative change of the residual in a sweep,
    in the units of the gradient of the data. Over-relaxation is for single `BurerMonteiro` points; its best amount,
    of which eight tenths are taken, is that of :cite:`young1954sor` for two blocks.
    """

    factor: float = 0.3
    cap: float = 0.1
    decay: float = 0.9
    floor: float = 0.0
    relaxation: float = 1.3
    rebalance: bool = True
    name: str = "ALS"
    form: ClassVar[None] = None

    def __post_init__(self):
        if not 1 <= self.relaxation < 2:
            raise ValueError(f"relaxation must lie in [1, 2), got {self.relaxation}")

    def start(self, problem, point):
        if not point.flat:
            raise TypeError(
                f"ALS needs a form without constraints, got {type(point).__name__}; "
                "convert the start with start.to(lr.BurerMonteiro)"
            )
        if not problem.smooth:
            raise TypeError(f"ALS needs a sum of squares, not {type(problem).__name__}; use lr.ScaledGD()")
        residual = problem.residual(point)
        unit = point.pullback(problem.backproject(problem.data)).norm() ** 2 if self.floor else None
        return State(point, residual, problem.loss(residual), None, (self.cap, unit, 1.0, 0.0))

    def step(self, problem, state):
        point, residual, (cap, unit, relaxed, last) = state.point, state.residual, state.memory
        misfit = float(xp.to_numpy(2 * state.loss).max() / problem.scale) ** 0.5 if problem.scale else 0.0
        ridge = max(self.floor, min(self.factor * misfit, cap))
        relaxes = self.relaxation > 1 and isinstance(point, BurerMonteiro) and not point.batch_shape
        square = moved = 0.0
        for i in range(len(point.names)):
            change, part = problem.sweep_block(point, i, ridge, residual)
            if relaxes:
                moved += _size(change, point.arrays()[1 - i])
                change = relaxed * change
            point, square, residual = point.with_array(i, point.arrays()[i] + change), square + part, None
        if self.rebalance and isinstance(point, BurerMonteiro):
            point = point.balanced()
        residual = problem.residual(point)
        if unit is not None:  # a ridge that stays keeps the gradient of the loss alone from vanishing
            change = residual - state.residual
            square = unit * problem.inner(change, change) / (problem.scale or 1.0)
        memory = (cap * self.decay, unit, self._relaxation(relaxed, moved, last), moved)
        return State(point, residual, problem.loss(residual), square**0.5, memory)

    def _relaxation(self, relaxed: float, moved: float, last: float) -> float:
        """How much to over-relax after sweeps whose squared lengths were ``last`` and then ``moved``."""
        if not 0 < moved < np.inf or not last:
            return relaxed
        rate = min((moved / last) ** 0.5, 1.0)
        plain = min((rate + relaxed - 1) ** 2 / (rate * relaxed**2), 1.0)  # what it would be without relaxation
        return min(1 + SAFE * (2 / (1 + (1 - plain) ** 0.5) - 1), self.relaxation)


def _size(change: Any, other: Any) -> float:
    """The squared norm of the change of the matrix."""
    return float(xp.to_numpy(xp.inner(change @ xp.gram(other), change)))
