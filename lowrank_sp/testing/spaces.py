"""The contract of a space: projection on its tangent spaces and a first-order retraction that lands on it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..spaces import Space
from .common import in_library, random_like, require, require_close

__all__ = ["check_space"]


def check_space(
    space: Any,
    shape: tuple[int, int] = (7, 3),
    *,
    library: str = "numpy",
    dtype: Any = "float64",
    batch: tuple[int, ...] = (),
    seed: int = 0,
    tol: float = 1e-10,
) -> None:
    """Check that a space keeps what `lowrank_sp.spaces.Space` promises.

    At a random point: the projection is idempotent, self-adjoint and linear; the retraction stays on the
    space and agrees with the straight line to first order; transport ends in the tangent space; a batch
    gives the same as its elements; torch gives the same as NumPy. A point is taken to lie on the space when
    retracting it by a zero step leaves it where it is.

    Parameters
    ----------
    space : Space
    shape : tuple of int
        Core shape of the points.
    library : {"numpy", "torch"}
    dtype : numpy dtype
        Real or complex.
    batch : tuple of int
        Leading axes.
    seed : int
    tol : float
        Relative tolerance of equalities.

    Raises
    ------
    AssertionError
        With the property that does not hold.
    """
    require(isinstance(space, Space), f"{space!r} is not a lowrank_sp.spaces.Space")
    rng = np.random.default_rng(seed)
    x = space.random(rng, (*batch, *shape)).astype(dtype)
    x = space.retract(x + 0.3 * random_like(x, rng), 0 * x, 0.0)
    g, h = random_like(x, rng), random_like(x, rng)
    name = type(space).__name__
    if library != "numpy":
        _same_in(space, x, g, library, name, tol)
    if batch:
        _batch_is_loop(space, x, g, len(batch), name, tol)
    x, g, h = (in_library(a, library) for a in (x, g, h))
    _check_projection(space, x, g, h, name, tol)
    _check_retraction(space, x, g, name, tol)
    new = space.retract(x, g, 0.3)
    moved = space.transport(new, space.project(x, h))
    require_close(space.project(new, moved), moved, f"{name}.transport lands in the tangent space", tol)


def _check_projection(space: Any, x: Any, g: Any, h: Any, name: str, tol: float) -> None:
    pg, ph = space.project(x, g), space.project(x, h)
    require_close(space.project(x, pg), pg, f"{name}.project is idempotent", tol)
    require_close(xp.inner(pg, h), xp.inner(g, ph), f"{name}.project is self-adjoint", tol)
    require_close(space.project(x, 2 * g - h), 2 * pg - ph, f"{name}.project is linear", tol)


def _check_retraction(space: Any, x: Any, g: Any, name: str, tol: float) -> None:
    require_close(space.retract(x, g, 0.0), x, f"{name}.retract by zero stays where it is", tol)
    for lr in (0.1, 1.0):
        new = space.retract(x, g, lr)
        require_close(space.retract(new, 0 * g, 0.0), new, f"{name}.retract lands on the space", tol)
    tangent, gaps = space.project(x, g), []
    for lr in (1e-2, 1e-3):
        gaps.append(abs(space.retract(x, g, lr) - (x - lr * tangent)).max())
    require(
        gaps[1] <= 0.02 * gaps[0] + tol,
        f"{name}.retract is not first order: off the line by {gaps[0]:.1e} at 1e-2, {gaps[1]:.1e} at 1e-3",
    )


def _batch_is_loop(space: Any, x: Any, g: Any, axes: int, name: str, tol: float) -> None:
    flat = [a.reshape(-1, *a.shape[axes:]) for a in (x, g, space.project(x, g), space.retract(x, g, 0.3))]
    for xk, gk, projected, retracted in zip(*flat, strict=True):
        require_close(space.project(xk, gk), projected, f"{name}.project of a batch", tol)
        require_close(space.retract(xk, gk, 0.3), retracted, f"{name}.retract of a batch", tol)


def _same_in(space: Any, x: Any, g: Any, library: str, name: str, tol: float) -> None:
    y, h = in_library(x, library), in_library(g, library)
    require_close(space.project(y, h), space.project(x, g), f"{name}.project in {library} and NumPy", tol)
    require_close(space.retract(y, h, 0.3), space.retract(x, g, 0.3), f"{name}.retract in {library} and NumPy", tol)
