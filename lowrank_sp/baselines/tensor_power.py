"""Canonical polyadic decomposition one component at a time: tensor power iteration and deflation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import xp
from ..coverage import covers
from ..descent import Solver, State
from ..parameterizations import CP
from ..problems import TensorFactorization
from ..tensors import mode_product

__all__ = ["PowerDeflation"]

Array = Any


@covers("O17")
@dataclass(frozen=True)
class PowerDeflation(Solver):
    """Find the best rank-one tensor by power iteration, subtract it, and go on with the rest.

    Every iteration of the solver fits one component to what the others leave, ``r`` of them make a round; from the
    second round on the old component is where it starts. For an orthogonally decomposable tensor the first round
    is exact, whatever the start.

    Parameters
    ----------
    restarts : int
        Random starts of the power iteration, of which the one with the largest component is kept.
    sweeps : int
        Most power iterations for a component; all modes are updated in turn.
    seed : int

    Notes
    -----
    Source: :cite:`anandkumar2014tensor`, for a different factor in every mode.
    """

    restarts: int = 10
    sweeps: int = 100
    seed: int = 0
    name: str = "PowerDeflation"
    form: ClassVar[None] = None

    def __post_init__(self):
        for name, value in (("restarts", self.restarts), ("sweeps", self.sweeps)):
            if int(value) != value or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")

    def start(self, problem, point):
        if not isinstance(problem, TensorFactorization):
            raise TypeError(f"PowerDeflation needs a TensorFactorization, not {type(problem).__name__}")
        if not isinstance(point, CP) or point.batch_shape:
            raise TypeError(f"PowerDeflation needs one CP start, got {type(point).__name__} {point.batch_shape}")
        empty = point.map(lambda a: 0 * a)  # components are found, not refined
        residual = problem.residual(empty)
        return State(empty, residual, problem.loss(residual), None, 0)

    def step(self, problem, state):
        point, count = state.point, state.memory
        k = count % point.rank
        columns = [a[:, k] for a in point.arrays()]
        rest = _outer(columns) - state.residual
        found = self._component(rest, columns if count >= point.rank else None, count)
        arrays = [_with_column(a, k, v) for a, v in zip(point.arrays(), found, strict=True)]
        point = type(point)(*arrays)
        residual = problem.residual(point)
        norm = point.pullback(residual).norm()
        return State(point, residual, problem.loss(residual), norm, count + 1)

    def _component(self, tensor: Array, old: list[Array] | None, count: int) -> list[Array]:
        """Vectors whose outer product is the best rank-one tensor found; they share its norm."""
        if old is not None:
            return _shared(*self._iterate(tensor, [_unit(v) for v in old]))
        rng = np.random.default_rng((self.seed, count))
        starts = [[xp.asarray_like(rng.standard_normal(n), tensor) for n in tensor.shape] for _ in range(self.restarts)]
        runs = [self._iterate(tensor, [_unit(v) for v in start]) for start in starts]
        return _shared(*max(runs, key=lambda run: float(abs(run[1]))))

    def _iterate(self, tensor: Array, vectors: list[Array]) -> tuple[list[Array], Array]:
        size = 0.0
        for _ in range(self.sweeps):
            before = size
            for k in range(len(vectors)):
                image = _contracted(tensor, vectors, k)
                size = xp.inner(image, image, 1) ** 0.5
                vectors = [*vectors[:k], _unit(image), *vectors[k + 1 :]]
            if float(abs(size - before)) <= 1e-15 * float(size):
                break
        return vectors, size


def _unit(v: Array) -> Array:
    size = xp.inner(v, v, 1) ** 0.5
    return v / (size + (size == 0))


def _contracted(tensor: Array, vectors: list[Array], skip: int) -> Array:
    """The tensor times all vectors but one, in the mode that is left."""
    for k, v in enumerate(vectors):
        if k != skip:
            tensor = mode_product(tensor, v.conj()[None], k, len(vectors))
    return tensor.reshape(-1)


def _outer(vectors: list[Array]) -> Array:
    return CP(*(v[:, None] for v in vectors)).dense()


def _shared(vectors: list[Array], size: Any) -> list[Array]:
    root = size ** (1 / len(vectors))
    return [root * v for v in vectors]


def _with_column(a: Array, k: int, column: Array) -> Array:
    return xp.namespace(a).concatenate((a[:, :k], column[:, None], a[:, k + 1 :]), -1)
