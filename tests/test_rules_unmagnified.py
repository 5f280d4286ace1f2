"""LoRA-RITE's rule against a plain transcription with QR factorizations and full-sized bases."""

import numpy as np
import pytest
import scipy.linalg

import lowrank_sp as lr
from lowrank_sp.rules import Unmagnified

D1, D2 = 0.8, 0.95


def reference(target, x, y, steps, lr_):
    """Both factors, moments kept in the full space: ``M Q^T`` and ``Q V Q^T`` need no transport but a projection."""
    factors = [x.copy(), y.copy()]
    first = [np.zeros((len(f), len(p))) for f, p in ((x, y), (y, x))]
    second = [np.zeros((len(p), len(p))) for p in (y, x)]
    for t in range(1, steps + 1):
        full = factors[0] @ factors[1].T - target
        moves = []
        for i, gradient in enumerate((full, full.T)):
            q, r = np.linalg.qr(factors[1 - i])
            d1, d2 = (d * (1 - d ** (t - 1)) / (1 - d**t) for d in (D1, D2))
            u = gradient @ q
            onto = q @ q.T
            second[i] = d2 * onto @ second[i] @ onto + (1 - d2) * q @ (u.T @ u) @ q.T / len(u)
            whitening = scipy.linalg.fractional_matrix_power(q.T @ second[i] @ q, -0.5)
            first[i] = d1 * first[i] @ onto + (1 - d1) * u @ whitening @ q.T
            moves.append(first[i] @ q @ np.linalg.inv(r).T)
        factors = [f - lr_ * move for f, move in zip(factors, moves, strict=True)]
    return factors[0] @ factors[1].T


@pytest.mark.covers("O33")
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_transcription(steps):
    rng = np.random.default_rng(0)
    target = rng.standard_normal((8, 7))
    point = lr.BurerMonteiro(rng.standard_normal((8, 3)), rng.standard_normal((7, 3)))
    expected = reference(target, point.left, point.right, steps, 0.05)
    rule = Unmagnified(D1, D2, epsilon=0.0)
    state = rule.init(point)
    for _ in range(steps):
        direction, state = rule.update(point.pullback(point.dense() - target), state, point)
        new = point.retract(direction, 0.05)
        state = rule.carry(state, point, new)
        point = new
    assert np.allclose(point.dense(), expected, atol=1e-9)


def test_from_a_zero_factor_the_other_one_waits():
    rng = np.random.default_rng(1)
    point = lr.BurerMonteiro(np.zeros((6, 2)), rng.standard_normal((5, 2)))
    gradient = point.pullback(rng.standard_normal((6, 5)))
    rule = Unmagnified()
    direction, state = rule.update(gradient, rule.init(point), point)
    assert np.array_equal(direction.right, np.zeros((5, 2)))
    assert np.isfinite(direction.left).all()
    assert abs(direction.left).max() > 0
    new = point.retract(direction, 0.1)
    state = rule.carry(state, point, new)
    direction, _ = rule.update(new.pullback(rng.standard_normal((6, 5))), state, new)
    assert np.isfinite(direction.right).all()
    assert abs(direction.right).max() > 0


@pytest.mark.parametrize("name", ["decay", "decay_squares"])
def test_decays_out_of_range_are_refused(name):
    point = lr.BurerMonteiro(np.ones((2, 1)), np.ones((2, 1)))
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\), got 1"):
        Unmagnified(**{name: 1.0}).init(point)
