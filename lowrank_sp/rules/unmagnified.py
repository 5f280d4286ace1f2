"""Adam in the orthonormal bases of the partner factors, which no gauge can change: LoRA-RITE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import xp
from ..coverage import covers
from ..parameterizations import BurerMonteiro
from .accumulate import counter, zero_like
from .base import Rule

__all__ = ["Unmagnified"]


@covers("O33")
@dataclass(frozen=True)
class Unmagnified(Rule):
    """LoRA-RITE: moments of each factor's gradient seen in an orthonormal basis of its partner.

    With ``Y = Q R`` the unmagnified gradient of X is ``u = grad_X R^{-1} = G Q``. Second moments are the r x r
    matrices ``V = decay_squares V + (1 - decay_squares) u^H u / m``, first moments accumulate
    ``u (V^{1/2} + epsilon)^{-1}``, and the direction is ``M R^{-H}``, so that W moves along ``M Q^H``. When the
    point moves, both moments are carried to the new basis by ``Q_old^H Q_new``.

    Parameters
    ----------
    decay, decay_squares : float
        In [0, 1); corrected for the start by the factor ``(1 - d^(t-1)) / (1 - d^t)``.
    epsilon : float
        Added to the root of the second moments.

    Notes
    -----
    R is the Cholesky factor of the Gram matrix, not that of a QR factorization: another orthonormal basis, the
    same step. The escaped mass (off by default in the published code) and the clipping of unmagnified gradients over
    all layers are left out; clip gradients as usual. A zero factor gives its partner a zero step.
    Source: :cite:`yen2025lorarite`; named in section V-D of :cite:`survey2026sp`.
    """

    decay: float = 0.9
    decay_squares: float = 0.999
    epsilon: float = 1e-8
    needs = (BurerMonteiro,)
    equivariant = True

    def init(self, point):
        for name in ("decay", "decay_squares"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        return counter(point), zero_like(point), tuple(0 * xp.gram(a) for a in point.arrays())

    def update(self, grad, state, point, loss=None):
        count, first, squares = state
        count = count + 1
        d1, d2 = (d * (1 - d ** (count - 1)) / (1 - d**count) for d in (self.decay, self.decay_squares))
        firsts, seconds, moves = [], [], []
        pairs = zip(grad.arrays(), point.arrays()[::-1], first.arrays(), squares, strict=True)
        for g, partner, m, v in pairs:
            inverse = xp.inverse_cholesky(xp.gram(partner))
            u = xp.times(g, xp.adjoint(inverse))
            v = d2 * v + (1 - d2) * (xp.gram(u) / u.shape[-2])
            m = xp.add_times(d1 * m, u, (1 - d1) * self._whitening(v))
            firsts.append(m)
            seconds.append(v)
            moves.append(xp.times(m, inverse))
        return BurerMonteiro(*moves), (count, BurerMonteiro(*firsts), tuple(seconds))

    def _whitening(self, v: Any) -> Any:
        """``(V^{1/2} + epsilon)^{-1}``."""
        backend = xp.namespace(v)
        values, vectors = backend.linalg.eigh(v)
        root = backend.maximum(values, 0 * values) ** 0.5 + self.epsilon
        return (vectors / root[..., None, :]) @ xp.adjoint(vectors)

    def carry(self, state, old, new):
        count, first, squares = state
        turns = [_turn(a, b) for a, b in zip(old.arrays()[::-1], new.arrays()[::-1], strict=True)]
        firsts = [xp.times(m, t) for m, t in zip(first.arrays(), turns, strict=True)]
        seconds = tuple(xp.adjoint(t) @ v @ t for v, t in zip(squares, turns, strict=True))
        return count, BurerMonteiro(*firsts), seconds


def _turn(old: Any, new: Any) -> Any:
    """``Q_old^H Q_new``, from Gram matrices only."""
    return xp.inverse_cholesky(xp.gram(old)) @ xp.cross(old, new) @ xp.adjoint(xp.inverse_cholesky(xp.gram(new)))
