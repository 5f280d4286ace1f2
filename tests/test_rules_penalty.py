"""Decoupled penalties and SteLLA's gradient against their definitions."""

import numpy as np
import pytest
import scipy.optimize
import torch

import lowrank_sp as lr
from lowrank_sp.rules import Adam, Canonical, Orthogonality, Plain, Shrinkage, chain
from lowrank_sp.spaces import STIEFEL


@pytest.mark.covers("P10", "O40", "O41")
@pytest.mark.parametrize("form", Orthogonality.needs, ids=lambda f: f.__name__)
def test_the_pull_is_the_gradient_of_the_penalty(form):
    point = form.random((6, 5), 3, np.random.default_rng(0)).map(torch.as_tensor)
    arrays = [a.clone().requires_grad_() for a in point.arrays()]
    tall = [a for name, a in zip(point.names, arrays, strict=True) if name in ("left", "right")]
    penalty = sum(((a.T @ a - torch.eye(3)) ** 2).sum() for a in tall)
    expected = torch.autograd.grad(0.7 * penalty, arrays, materialize_grads=True)
    zero = point.map(torch.zeros_like)
    direction, _ = Orthogonality(0.7).update(zero, (), point)
    assert all(torch.allclose(a, b) for a, b in zip(direction.arrays(), expected, strict=True))


def test_behind_adam_it_is_not_rescaled():
    rng = np.random.default_rng(1)
    point = lr.BurerMonteiro.random((6, 5), 2, rng)
    gradient = lr.BurerMonteiro.random((6, 5), 2, rng)
    alone, _ = Adam().update(gradient, Adam().init(point), point)
    rule = chain(Adam(), Orthogonality(0.1))
    both, _ = rule.update(gradient, rule.init(point), point)
    pull, _ = Orthogonality(0.1).update(gradient.map(np.zeros_like), (), point)
    assert np.allclose(both.left, alone.left + pull.left)


def test_it_makes_factors_orthonormal():
    point = lr.BurerMonteiro.random((6, 5), 2, np.random.default_rng(2)).map(lambda a: 0.3 * a)
    zero = point.map(np.zeros_like)
    for _ in range(200):
        point = point.retract(Orthogonality(1.0).update(zero, (), point)[0], 0.05)
    assert np.allclose(point.left.T @ point.left, np.eye(2), atol=1e-8)


@pytest.mark.covers("O38")
@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_shrinkage_is_the_proximal_step(convert):
    rng = np.random.default_rng(3)
    point, direction = (lr.DiagonalCore.random((6, 5), 4, rng).map(convert) for _ in range(2))
    moved = np.asarray(point.values - 0.3 * direction.values)
    new = Shrinkage(0.9)(point, direction, 0.3)

    def proximal(v):
        objective = lambda x: 0.5 * (x - v) ** 2 + 0.27 * abs(x)  # noqa: E731
        return scipy.optimize.fminbound(objective, -5.0, 5.0, xtol=1e-10)

    assert np.allclose(np.asarray(new.values), [proximal(v) for v in moved], atol=1e-4)
    assert ((np.asarray(new.values) == 0) == (abs(moved) <= 0.27)).all()
    assert np.allclose(np.asarray(new.left), np.asarray(point.left - 0.3 * direction.left))


def test_shrinkage_of_complex_numbers_keeps_their_phase():
    point = lr.DiagonalCore(np.ones((3, 2)) + 0j, np.array([3 + 4j, 0.1j]), np.ones((3, 2)) + 0j)
    new = Shrinkage(1.0)(point, point.map(np.zeros_like), 1.0)
    assert np.allclose(new.values, [(3 + 4j) * 0.8, 0])


def test_shrinkage_waits_for_its_turn_and_takes_batches():
    rng = np.random.default_rng(4)
    point = lr.DiagonalCore.random((4, 4), 2, rng, batch=(3,))
    zero = point.map(np.zeros_like)
    assert np.array_equal(Shrinkage(1.0)(point, zero, 0.1, (0,)).values, point.values)
    steps = np.array([0.1, 0.2, 0.3])
    new = Shrinkage(1.0)(point, zero, steps)
    for i, step in enumerate(steps):
        single = Shrinkage(1.0)(point.map(lambda a, i=i: a[i]), zero.map(lambda a, i=i: a[i]), step)
        assert np.allclose(new.values[i], single.values)


def test_gates_that_the_loss_does_not_need_close():
    """A target of rank one, fitted with four gates: three of them end at exactly zero."""
    rng = np.random.default_rng(5)
    target = np.outer(rng.standard_normal(8), rng.standard_normal(6))
    target /= np.linalg.norm(target)
    u, _, vh = np.linalg.svd(target)
    point = lr.DiagonalCore(u[:, :4], np.full(4, 0.5), vh[:4].T)
    for _ in range(300):
        residual = point.dense() - target
        point = Shrinkage(0.05)(point, point.pullback(residual), 0.1)
    assert np.count_nonzero(point.values) == 1


@pytest.mark.covers("O13")
def test_the_canonical_gradient_represents_the_differential():
    """``tr(d^T (I - X X^T / 2) xi) = <G, xi>`` for every tangent vector xi: the definition of the metric."""
    rng = np.random.default_rng(6)
    point = lr.PoLAR.random((7, 6), 3, rng)
    gradient = lr.PoLAR(*[rng.standard_normal(a.shape) for a in point.arrays()])
    direction, _ = Canonical().update(gradient, (), point)
    for x, g, d in zip(point.arrays()[::2], gradient.arrays()[::2], direction.arrays()[::2], strict=True):
        assert np.allclose(STIEFEL.project(x, d), d)
        for _ in range(3):
            xi = STIEFEL.project(x, rng.standard_normal(x.shape))
            assert np.isclose(np.sum(d * xi) - 0.5 * np.sum((x.T @ d) * (x.T @ xi)), np.sum(g * xi))
    assert np.array_equal(direction.core, gradient.core)


def test_a_chain_needs_what_its_pickiest_rule_needs():
    assert chain(Plain(), Adam(), Orthogonality()).needs == Orthogonality.needs


def test_negative_weights_are_refused():
    point = lr.BurerMonteiro(np.ones((2, 1)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="weight must not be negative, got -1"):
        Orthogonality(-1.0).init(point)
    with pytest.raises(ValueError, match="weight must not be negative, got -1"):
        Shrinkage(-1.0)


def test_an_array_that_a_form_lacks_cannot_shrink():
    point = lr.BurerMonteiro(np.ones((2, 1)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="BurerMonteiro has no array 'values'; it has left, right"):
        Shrinkage(0.1)(point, point, 0.1)
