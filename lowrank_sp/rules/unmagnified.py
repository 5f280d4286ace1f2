"""Adam in the orthonormal bases of the partner factors, which no gauge can change: LoRA-RITE."""

from __future__ import annotations

from collections.abc import Sequence
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
    same step. What depends on the point alone is computed when the point moves, and first moments are turned to the
    new basis within the sum that they enter next: each saves passes over the factors. The escaped mass (off by
    default in the published code) and the clipping of unmagnified gradients over all layers are left out; clip
    gradients as usual. A zero factor gives its partner a zero step.
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
        inverses = _inverses(point)
        return counter(point), zero_like(point), 0 * inverses, inverses, 0 * inverses + xp.eye_like(inverses)

    def update(self, grad, state, point, loss=None):
        count, first, squares, inverses, turns = state
        count = count + 1
        w1, w2 = ((1 - d) / (1 - d**count) for d in (self.decay, self.decay_squares))
        seen = [xp.times(g, xp.adjoint(inverse)) for g, inverse in zip(grad.arrays(), _halves(inverses), strict=True)]
        squares = xp.blend(squares, _pair([xp.gram(u) / u.shape[-2] for u in seen]), w2)
        whitenings = _halves(w1 * xp.resolvent_root_psd(squares, self.epsilon))
        parts = zip(first.arrays(), _halves((1 - w1) * turns), seen, whitenings, strict=True)
        first = BurerMonteiro(*[xp.combine(m, turn, u, whitening) for m, turn, u, whitening in parts])
        moves = [xp.times(m, inverse) for m, inverse in zip(first.arrays(), _halves(inverses), strict=True)]
        return BurerMonteiro(*moves), (count, first, squares, inverses, turns)

    def carry(self, state, old, new):
        count, first, squares, inverses, _ = state
        after = _inverses(new)
        partners = zip(old.arrays()[::-1], new.arrays()[::-1], strict=True)
        turns = inverses @ _pair([xp.cross(a, b) for a, b in partners]) @ xp.adjoint(after)
        return count, first, xp.adjoint(turns) @ squares @ turns, after, turns


def _inverses(point: Any) -> Any:
    """``R^{-H}`` of the partner of every factor, (..., 2, r, r)."""
    return xp.inverse_cholesky(_pair([xp.gram(a) for a in point.arrays()[::-1]]))


def _pair(arrays: Sequence[Any]) -> Any:
    """What belongs to both factors as one batch of small matrices, (..., 2, r, r)."""
    return xp.namespace(*arrays).stack(tuple(arrays), -3)


def _halves(pair: Any) -> tuple[Any, Any]:
    return pair[..., 0, :, :], pair[..., 1, :, :]
