"""The line along which a move goes: its direction in the size of the point, the loss on it, and the least one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import xp
from .polynomial import loss_polynomial, minimize_polynomial

__all__ = ["Move", "Place", "evaluate", "line_minimum", "line_step", "sized"]


class Place(NamedTuple):
    """A point together with its residual and its loss."""

    point: Any
    residual: Any
    loss: Any


class Move(NamedTuple):
    """A proposed move: gradient and direction at a place, how to move, and which arrays."""

    problem: Any
    gradient: Any
    direction: Any
    mover: Any
    wrt: tuple[int, ...]

    def to(self, place: Place, step: Any) -> Place:
        """The place after the step, with a freshly computed residual."""
        point = self.mover(place.point, self.direction, step, self.wrt)
        residual = self.problem.residual(point)
        return Place(point, residual, self.problem.loss(residual))


def sized(place: Place, move: Move) -> tuple[Move, Any]:
    """The same line with a direction of the size of the point, and by which power of two: no rounding sees it.

    Directions have the size of the squared measurements, and the loss along them that of their fifth power, squared:
    data in other units leave the range of single precision.
    """
    size, length = _length(place.point, move.wrt), _length(move.direction, move.wrt)
    backend = xp.namespace(length)
    factor = backend.exp2(backend.round(backend.log2((size + (size == 0)) / (length + (length == 0)))))
    arrays = list(move.direction.arrays())
    for i in move.wrt:
        arrays[i] = xp.expand(factor, place.point.ndims[i]) * arrays[i]
    return move._replace(direction=type(move.direction)(*arrays)), factor


def _length(point: Any, wrt: tuple[int, ...]) -> Any:
    """The norm over the arrays that move."""
    arrays = point.arrays()
    return sum(xp.inner(arrays[i], arrays[i], point.ndims[i]) for i in wrt) ** 0.5


def _path(place: Place, move: Move) -> list[Any]:
    """Residual coefficients ``c_k`` along ``x - t d``, moving in a straight line in the factors."""
    images = move.problem.measure(*place.point.expansion(move.direction, move.wrt))
    return [place.residual, *[-image if k % 2 == 0 else image for k, image in enumerate(images)]]


def line_minimum(place: Place, move: Move, weight: float = 0.0) -> tuple[Any, list[Any]]:
    """The exact minimiser along the line, as a number or one per batch element, and the path."""
    if not move.problem.smooth:
        raise TypeError(
            f"a line search needs a sum of squares, not {type(move.problem).__name__}; "
            'use step_size="auto", lr.Polyak(...) or lr.Geometric(...)'
        )
    path = _path(place, move)
    inner = move.problem.inner
    products = [[inner(a, b) for b in path[: i + 1]] for i, a in enumerate(path)]
    coefficients = loss_polynomial(products)
    if weight:
        coefficients = _add(coefficients, weight * _orthogonality_polynomial(place.point, move))
    step = minimize_polynomial(coefficients)
    return (float(step) if step.ndim == 0 else xp.asarray_like(step, place.loss)), path


def line_step(place: Place, move: Move) -> Any:
    """The exact minimiser alone."""
    trial, factor = sized(place, move)
    step, _ = line_minimum(place, trial)
    return step * (float(factor) if isinstance(step, float) else factor)


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    size = max(a.shape[-1], b.shape[-1])
    pad = [np.pad(c, [(0, 0)] * (c.ndim - 1) + [(0, size - c.shape[-1])]) for c in (a, b)]
    return pad[0] + pad[1]


def _orthogonality_polynomial(point: Any, move: Move) -> np.ndarray:
    """``1/2 sum ||X(t)^H X(t) - I||^2`` along the line, over the orthonormal factors that move."""
    total: Any = np.zeros(5)
    for i in move.wrt:
        if not point.spaces[i].linear:
            x, d = point.arrays()[i], move.direction.arrays()[i]
            cross = xp.adjoint(x) @ d
            p = xp.gram(x)
            terms = [
                p - xp.eye_like(p),
                -(cross + xp.adjoint(cross)),
                xp.gram(d),
            ]
            total = total + loss_polynomial([[xp.inner(a, b) for b in terms[: k + 1]] for k, a in enumerate(terms)])
    return total


def evaluate(path: list[Any], step: Any, ndim: int) -> Any:
    """``sum_k step^k path[k]``."""
    t = xp.expand(step, ndim)
    total = path[0] + t * path[1]
    for k, image in enumerate(path[2:], start=2):
        total += t**k * image
    return total
