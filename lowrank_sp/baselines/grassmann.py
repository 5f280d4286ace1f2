"""The best Tucker approximation as a function of the subspaces alone, on a product of Grassmann manifolds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .. import xp
from ..coverage import covers
from ..descent import Solver, State
from ..parameterizations import Tucker
from ..problems import TensorFactorization
from ..tensors import mode_product, unfold

__all__ = ["GrassmannTucker"]

Array = Any


@covers("O15")
@dataclass(frozen=True)
class GrassmannTucker(Solver):
    """Ascent of ``||A x_1 U_1^H ... x_d U_d^H||^2`` over subspaces: for orthonormal U_k the best core is known.

    All subspaces move at once, along the Riemannian gradient ``(I - U_k U_k^H) B_k C_k^H`` divided by the Gram matrix
    of the core, ``C_k C_k^H``, with B_k and C_k the unfoldings of the tensor contracted with all factors but one, and
    with all. Steps are halved until the gain is a share of what the gradient promises, and a QR factorization takes
    them back.

    Parameters
    ----------
    share : float
        In (0, 1).

    Raises
    ------
    ValueError
        If the share is out of range.

    Notes
    -----
    For `Tucker` points with a factor in every mode; the recorded gradient norm is that of half the square. Where HOOI
    solves for one subspace after the other by singular vectors, this needs products and QR factorizations alone. The
    survey names the approach only; this is the problem of the first source in the metric of the second.
    Source: :cite:`elden2009grassmann`, :cite:`kasai2016tucker`; section V-F of :cite:`survey2026sp`.
    """

    share: float = 1e-4
    name: str = "GrassmannTucker"
    form: ClassVar[None] = None

    def __post_init__(self):
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie in (0, 1), got {self.share}")

    def start(self, problem, point):
        if not isinstance(problem, TensorFactorization):
            raise TypeError(f"GrassmannTucker needs a TensorFactorization, not {type(problem).__name__}")
        if not isinstance(point, Tucker) or point.batch_shape or len(point.names) != len(problem.shape) + 1:
            raise TypeError(f"GrassmannTucker needs one Tucker start with all factors, got {type(point).__name__}")
        return _state(problem, type(point), [xp.orthonormalize(u) for u in point.arrays()[1:]], None, 1.0)

    def step(self, problem, state):
        factors = list(state.point.arrays()[1:])
        before, (size,) = _square(state.point.arrays()[0]), state.memory
        gradients, directions = zip(*(_ascent(problem.data, factors, k) for k in range(len(factors))), strict=True)
        promised = sum(float(xp.inner(g, d)) for g, d in zip(gradients, directions, strict=True))
        size = min(2 * size, 1.0)
        while size > 1e-10:
            moved = [xp.orthonormalize(u + size * d) for u, d in zip(factors, directions, strict=True)]
            if _square(_contracted(problem.data, moved)) - before >= 2 * self.share * size * promised:
                break
            size = size / 2
        else:
            moved = factors
        norm = sum(float(xp.inner(g, g)) for g in gradients) ** 0.5
        return _state(problem, type(state.point), moved, norm, size)


def _state(problem: TensorFactorization, form: Any, factors: list[Array], norm: float | None, size: float) -> State:
    point = form(_contracted(problem.data, factors), *factors)
    residual = problem.residual(point)
    return State(point, residual, problem.loss(residual), norm, (size,))


def _contracted(tensor: Array, factors: list[Array], but: int | None = None) -> Array:
    """``A x_1 U_1^H ... x_d U_d^H``, without one mode."""
    for k, u in enumerate(factors):
        if k != but:
            tensor = mode_product(tensor, xp.adjoint(u), k, len(factors))
    return tensor


def _square(core: Array) -> float:
    return float(xp.inner(core, core, core.ndim))


def _ascent(tensor: Array, factors: list[Array], k: int) -> tuple[Array, Array]:
    """The Riemannian gradient in one subspace, and the same divided by the Gram matrix of the core."""
    u, wide = factors[k], unfold(_contracted(tensor, factors, k), k, len(factors))
    core = xp.adjoint(u) @ wide
    gradient = wide @ xp.adjoint(core)
    gradient = gradient - u @ (xp.adjoint(u) @ gradient)
    return gradient, xp.divide_psd(gradient, core @ xp.adjoint(core), 1e-12)
