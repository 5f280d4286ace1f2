"""Greedy methods that add one product of two vectors in every iteration: Frank-Wolfe and rank-one pursuit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import xp
from ..coverage import covers
from ..descent import Solver, State
from ..parameterizations import SVD, BurerMonteiro
from .common import SPARE, begin, combine, frobenius, leading

__all__ = ["FrankWolfe", "RankOnePursuit"]

POWERS = 4  # products with the gradient and its adjoint for every new pair of vectors


def _leading_pair(problem: Any, residual: Any, basis: Any, seed: int) -> tuple[SVD, BurerMonteiro]:
    """Leading triplets of the gradient, and ``-u v^H`` of the first."""
    width = min(1 + SPARE, *problem.shape)
    found = leading(problem.backproject(residual), basis, width, POWERS, seed)
    return found, BurerMonteiro(-found.left[:, :1], found.right[:, :1])


@covers("O20")
@dataclass(frozen=True)
class FrankWolfe(Solver):
    """``W <- (1 - t) W - t radius u v^H``: conditional gradients over the ball ``||W||_* <= radius``.

    (u, v) is the leading singular pair of the gradient, the only thing that an iteration computes of it; t is the
    exact minimiser in [0, 1].

    Parameters
    ----------
    radius : float
        Of the ball in the nuclear norm. A start outside is scaled onto it.

    Raises
    ------
    ValueError
        If the radius is not positive.

    Notes
    -----
    The recorded gradient norm is the duality gap over the radius, ``<W - S, grad f(W)> / radius`` with ``S`` the corner
    of the ball: the loss is at most the gap above its least value. Its rate is 1 / k, whatever the rank.
    Source: :cite:`jaggi2013frankwolfe`; section VI-B of :cite:`survey2026sp`.
    """

    radius: float
    name: str = "FrankWolfe"
    form: ClassVar[type] = SVD

    def __post_init__(self):
        if not self.radius > 0:
            raise ValueError(f"radius must be positive, got {self.radius}")

    def start(self, problem, point):
        point = begin(problem, point, self.name)
        size = float(abs(point.values).sum())
        point = SVD(point.left, point.values * min(1.0, self.radius / size) if size else point.values, point.right)
        residual = problem.residual(point)
        return State(point, residual, problem.loss(residual), None, (point.right, 0))

    def step(self, problem, state):
        point, residual, (basis, count) = state.point, state.residual, state.memory
        found, pair = _leading_pair(problem, residual, basis, count)
        corner = BurerMonteiro(self.radius * pair.left, pair.right)
        change = problem.residual(corner) - residual
        curvature, slope = float(problem.inner(change, change)), float(problem.inner(change, residual))
        t = min(max(-slope / curvature, 0.0), 1.0) if curvature > 0 else 0.0
        new = _slim(combine((1.0 - t, point), (t, corner)))
        residual = problem.residual(new) if count % problem.refresh == 0 else residual + t * change
        norm = max(-slope, 0.0) / self.radius
        return State(new, residual, problem.loss(residual), norm, (found.right, count + 1))


def _slim(point: BurerMonteiro) -> SVD:
    """As singular triplets, without those of rounding, at most as many as the matrix has."""
    triplets = point.to(SVD)
    kept = int((triplets.values > 1e-14 * abs(triplets.values[:1]).max()).sum())
    kept = min(max(kept, 1), *triplets.shape)
    return SVD(triplets.left[:, :kept], triplets.values[:kept], triplets.right[:, :kept])


class _Atom(NamedTuple):
    """A point, its image, and the inner products of the image with those of the atoms before it."""

    point: BurerMonteiro
    image: Any
    row: tuple[float, ...]


@covers("O20")
@dataclass(frozen=True)
class RankOnePursuit(Solver):
    """``W = c_0 W_0 + sum_k c_k u_k v_k^H``: a pair of vectors in every iteration, then all weights by least squares.

    Orthogonal matching pursuit whose atoms are products of two vectors: (u_k, v_k) is the leading singular pair of
    the gradient. After k iterations from zero the rank is k, so ``max_iter`` is the rank.

    Notes
    -----
    Greedy: for a rank that is known, descent on factors finds better matrices. What chains of adapters of rank one do
    with gradient steps is done here with exact ones.
    Source: :cite:`wang2014pursuit`; section VI-B of :cite:`survey2026sp`.
    """

    name: str = "RankOnePursuit"
    form: ClassVar[type] = BurerMonteiro

    def start(self, problem, point):
        first = begin(problem, point, self.name)
        point = combine((1.0, first))
        residual = problem.residual(point)
        atoms = ()
        if frobenius(point) > 0:
            atoms = (_Atom(point, residual + problem.data, ()),)
        return State(point, residual, problem.loss(residual), None, (atoms, first.right, 0))

    def step(self, problem, state):
        atoms, basis, count = state.memory
        found, pair = _leading_pair(problem, state.residual, basis, count)
        image = problem.measure((pair,))[0]
        row = tuple(float(problem.inner(image, atom.image)) for atom in atoms)
        atoms = (*atoms, _Atom(pair, image, row))
        gram = np.array([[*atom.row, float(problem.inner(atom.image, atom.image))] + [0.0] * (len(atoms) - 1 - k)
                         for k, atom in enumerate(atoms)])  # fmt: skip
        wanted = np.array([float(problem.inner(atom.image, problem.data)) for atom in atoms])
        weights = np.linalg.lstsq(gram + np.tril(gram, -1).T, wanted, rcond=1e-14)[0]
        terms = list(zip(map(float, weights), atoms, strict=True))
        point = combine(*[(c, atom.point) for c, atom in terms])
        residual = sum((c * atom.image for c, atom in terms), -problem.data)
        size = float(xp.to_numpy(found.values).max())
        return State(point, residual, problem.loss(residual), size, (atoms, found.right, count + 1))
