"""Where a factor lives: tangent projection, retraction and transport of flat, Stiefel and fixed factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from . import xp

__all__ = [
    "FIXED",
    "FLAT",
    "SPACES",
    "STIEFEL",
    "STIEFEL_QR",
    "Fixed",
    "Flat",
    "Space",
    "Stiefel",
    "StiefelQR",
    "retract_all",
]

Array = Any


class Space(ABC):
    """A smooth set of matrices ``(..., m, r)`` with the Euclidean metric.

    ``linear`` says that straight lines along tangent vectors stay in it.
    """

    linear: ClassVar[bool] = False

    @abstractmethod
    def project(self, x: Array, g: Array) -> Array:
        """Orthogonal projection of the ambient vector ``g`` on the tangent space at ``x``."""

    @abstractmethod
    def retract(self, x: Array, direction: Array, lr: Any) -> Array:
        """A point of the space that agrees with ``x - lr * project(x, direction)`` to first order."""

    @abstractmethod
    def random(self, rng: Any, shape: tuple[int, ...]) -> Any:
        """A NumPy point of the space drawn from its natural distribution."""

    def transport(self, new: Array, v: Array) -> Array:
        """Carry the tangent vector ``v`` to the point ``new`` by projection."""
        return self.project(new, v)


@dataclass(frozen=True)
class Flat(Space):
    """All matrices (or vectors) of a shape."""

    linear = True

    def project(self, x, g):
        return g

    def retract(self, x, direction, lr):
        return xp.descend(x, direction, lr)

    def random(self, rng, shape):
        return rng.standard_normal(shape)


@dataclass(frozen=True)
class Fixed(Space):
    """One point alone: an array that a form carries but nothing moves, such as a random basis or an index.

    The tangent space is {0}: tangent vectors and gradients hold zeros there. Integer arrays keep their type.
    """

    linear = True

    def project(self, x, g):
        return xp.namespace(g).zeros_like(g)

    def retract(self, x, direction, lr):
        return x

    def random(self, rng, shape):
        return rng.standard_normal(shape)


def _add_normal(base: Array, x: Array, g: Array, factor: Any) -> Array:
    """``base + factor x sym(x^H g)``: what sticks out of the tangent space at an orthonormal ``x``."""
    xg = xp.cross(x, g)
    return xp.add_times(base, x, xg + xp.adjoint(xg), factor * 0.5)


def _step(x: Array, direction: Array, lr: Any) -> Array:
    """``x - lr project(x, direction)``."""
    return _add_normal(xp.descend(x, direction, lr), x, direction, lr)


def _polar_factors(arrays: Sequence[Array]) -> list[Array]:
    """``y (y^H y)^{-1/2}`` of every array, with the small matrices of all as one batch where they are of one size."""
    grams = [xp.gram(y) for y in arrays]
    if len({(p.shape[-1], p.dtype) for p in grams}) > 1:
        return [xp.times(y, xp.inverse_root_psd(p)) for y, p in zip(arrays, grams, strict=True)]
    roots = xp.inverse_root_psd(xp.namespace(*grams).concatenate([p.reshape(-1, *p.shape[-2:]) for p in grams]))
    made, start = [], 0
    for y, p in zip(arrays, grams, strict=True):
        own, start = slice(start, start + prod(p.shape[:-2])), start + prod(p.shape[:-2])
        made.append(xp.times(y, roots[own].reshape(p.shape)))
    return made


def retract_all(parts: Sequence[tuple[Space, Array, Array, Any]]) -> list[Array]:
    """``space.retract(x, direction, lr)`` of many; polar factors share one call for their small matrices."""
    steps = [_step(x, d, lr) for space, x, d, lr in parts if space is STIEFEL]
    landed = iter(_polar_factors(steps) if steps else ())
    return [next(landed) if space is STIEFEL else space.retract(x, d, lr) for space, x, d, lr in parts]


@dataclass(frozen=True)
class Stiefel(Space):
    """Matrices with orthonormal columns, ``x^H x = I``, with the polar retraction.

    ``project``: ``g - x sym(x^H g)``. ``retract``: ``(x - lr e)(I + lr^2 e^H e)^{-1/2}`` with the tangent
    ``e``; the Gram matrix is computed from the step itself, so rounding does not accumulate.
    Source: :cite:`absil2008book`; the update of :cite:`lion2025polar`.
    """

    def project(self, x, g):
        return _add_normal(g, x, g, -1.0)

    def retract(self, x, direction, lr):
        return _polar_factors([_step(x, direction, lr)])[0]

    def random(self, rng, shape):
        return xp.polar(rng.standard_normal(shape))


@dataclass(frozen=True)
class StiefelQR(Space):
    """The Stiefel manifold with the QR retraction (Q factor, columns signed)."""

    def project(self, x, g):
        return _add_normal(g, x, g, -1.0)

    def retract(self, x, direction, lr):
        return xp.orthonormalize(_step(x, direction, lr))

    def random(self, rng, shape):
        return xp.orthonormalize(rng.standard_normal(shape))


FLAT = Flat()
FIXED = Fixed()
STIEFEL = Stiefel()
STIEFEL_QR = StiefelQR()
SPACES: dict[str, Space] = {"flat": FLAT, "fixed": FIXED, "stiefel": STIEFEL, "stiefel_qr": STIEFEL_QR}
