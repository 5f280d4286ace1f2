"""Measures against scipy, closed forms, and curves whose rate is known."""

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.stats import entropy, ortho_group

import lowrank_sp as lr
from lowrank_sp import metrics


@pytest.mark.covers("T10", "D13")
def test_stable_rank_lies_between_one_and_the_rank():
    rng = np.random.default_rng(0)
    x = lr.BurerMonteiro.random((9, 7), 3, rng)
    s = np.linalg.svd(x.dense(), compute_uv=False)
    assert np.isclose(metrics.stable_rank(x), np.linalg.norm(x.dense()) ** 2 / np.linalg.norm(x.dense(), 2) ** 2)
    assert np.isclose(metrics.stable_rank(x.dense()), metrics.stable_rank(x))
    assert 1 <= metrics.stable_rank(x) <= 3
    assert s[0] > 0
    assert np.isclose(metrics.stable_rank(np.outer(rng.random(4), rng.random(3))), 1)
    assert np.isclose(metrics.stable_rank(np.eye(6)[:, :4]), 4)


@pytest.mark.covers("T13")
def test_effective_rank_is_the_exponential_of_the_entropy():
    values = np.array([3.0, 1.0, 0.5, 0.0])
    u, v = ortho_group.rvs(4, size=2, random_state=1)
    w = (u * values) @ v
    assert np.isclose(metrics.effective_rank(w), np.exp(entropy(values)))
    assert np.isclose(metrics.effective_rank(np.eye(7)[:, :5]), 5)
    assert np.isclose(metrics.effective_rank(np.ones((4, 3))), 1)


def test_ranks_of_batches_and_tensors():
    x = lr.BurerMonteiro.random((6, 5), 2, np.random.default_rng(2), (3,))
    for measure in (metrics.stable_rank, metrics.effective_rank):
        one_by_one = [measure(w) for w in x.dense()]
        assert np.allclose(measure(x), one_by_one)
        assert np.allclose(measure(x.map(torch.as_tensor)).numpy(), one_by_one)


def test_zero_matrices_have_rank_zero():
    pair = np.stack([np.zeros((4, 3)), np.eye(4)[:, :3]])
    for measure in (metrics.stable_rank, metrics.effective_rank):
        assert measure(pair[0]) == 0
        assert np.allclose(measure(pair), [0, 3])
        assert np.allclose(measure(torch.as_tensor(pair)).numpy(), [0, 3])
        assert measure(lr.BurerMonteiro(np.ones((4, 2)), np.zeros((3, 2)))) == 0


def test_relative_error_of_two_arrays():
    rng = np.random.default_rng(9)
    a, b = rng.standard_normal((2, 5, 6, 4))
    expected = [np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    assert np.allclose(metrics.relative_error(a, b), expected)
    assert np.allclose(metrics.relative_error(torch.as_tensor(a), torch.as_tensor(b)).numpy(), expected)
    point = lr.BurerMonteiro.random((6, 4), 2, rng)
    assert np.isclose(metrics.relative_error(a[0], point), metrics.relative_error(a[0], point.dense()))


def test_principal_angles():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((8, 3)), rng.standard_normal((8, 2))
    expected = np.sort(subspace_angles(a, b))
    assert np.allclose(metrics.principal_angles(a, b), expected, atol=1e-12)
    assert np.allclose(metrics.principal_angles(b, a), expected, atol=1e-12)
    got = metrics.principal_angles(torch.as_tensor(a), torch.as_tensor(b))
    assert np.allclose(got.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("angle", [1e-12, 1e-6, 0.5, np.pi / 2 - 1e-7, np.pi / 2])
def test_small_and_large_angles_keep_their_digits(angle):
    a, b = np.array([[1.0], [0.0], [0.0]]), np.array([[np.cos(angle)], [np.sin(angle)], [0.0]])
    assert np.isclose(metrics.principal_angles(a, b).item(), angle, rtol=1e-12, atol=0)


def test_gauge_distance_depends_on_the_matrices_alone():
    rng = np.random.default_rng(4)
    a, b = (lr.BurerMonteiro.random((7, 6), 2, rng) for _ in range(2))
    c = a.gauge(a.random_gauge(rng))
    assert metrics.gauge_distance(a, c) < 1e-12
    assert np.isclose(metrics.gauge_distance(a, b), metrics.gauge_distance(c, b))
    assert np.isclose(metrics.gauge_distance(a, b), metrics.gauge_distance(b, a))


def test_gauge_distance_of_scalars():
    """Balanced factors of w > 0 are sqrt(w): the distance of 9 and 4 is sqrt(2) (3 - 2)."""
    a, b = (lr.BurerMonteiro(np.array([[x]]), np.array([[y]])) for x, y in ((9.0, 1.0), (-1.0, -4.0)))
    assert np.isclose(metrics.gauge_distance(a, b), np.sqrt(2))


@pytest.mark.covers("T28")
def test_balancedness():
    rng = np.random.default_rng(5)
    x = lr.BurerMonteiro.random((7, 6), 2, rng)
    assert np.isclose(metrics.balancedness(x), np.linalg.norm(x.left.T @ x.left - x.right.T @ x.right))
    assert metrics.balancedness(x.balanced()) < 1e-12
    assert np.allclose(x.balanced().dense(), x.dense())


@pytest.mark.covers("T28")
def test_gradient_descent_conserves_the_imbalance_as_the_step_vanishes():
    """The drift over a fixed time is first order in the step: a tenth of the step, a tenth of the drift."""
    problem = lr.synthetic.factorization(7, 6, rank=2, seed=0)
    start = lr.BurerMonteiro.random((7, 6), 2, np.random.default_rng(6))
    gap = start.left.T @ start.left - start.right.T @ start.right
    drifts = []
    for step, count in ((1e-2, 10), (1e-3, 100)):
        end = lr.solve(problem, start, lr.GD(step), max_iter=count, tol=0).point
        drifts.append(np.linalg.norm(end.left.T @ end.left - end.right.T @ end.right - gap))
    assert 0.05 < drifts[1] / drifts[0] < 0.2


@pytest.mark.covers("T08")
def test_nuclear_norm_is_the_least_mean_square_of_the_factors():
    rng = np.random.default_rng(7)
    x = lr.BurerMonteiro.random((7, 6), 3, rng)
    nuclear = np.linalg.norm(x.dense(), "nuc")

    def half_squares(p):
        return 0.5 * float(p.inner(p))

    assert np.isclose(half_squares(x.balanced()), nuclear)
    for _ in range(5):
        assert half_squares(x.gauge(x.random_gauge(rng))) > nuclear


@pytest.mark.parametrize("form", lr.FORMS.values(), ids=lr.FORMS)
def test_relative_error_of_factors_and_arrays(form):
    rng = np.random.default_rng(8)
    a, b = (form.random((6, 6), 2, rng) for _ in range(2))
    expected = np.linalg.norm(a.dense() - b.dense()) / np.linalg.norm(b.dense())
    assert np.isclose(metrics.relative_error(a, b), expected)
    assert np.isclose(metrics.relative_error(a, b.dense()), expected)
    assert metrics.relative_error(a, a) < 1e-14


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.99])
def test_linear_rate_is_recovered_through_a_transient_and_a_floor(rate):
    curve = 3.0 * rate ** np.arange(60)
    curve[:5] *= 7
    curve = np.concatenate((curve, np.full(10, 1e-16)))
    assert np.isclose(metrics.convergence_rate(curve), rate, rtol=1e-9)


@pytest.mark.parametrize("order", [1.5, 2.0, 3.0])
def test_order_is_recovered(order):
    errors = [0.3]
    while errors[-1] > 1e-40:
        errors.append(0.8 * errors[-1] ** order)
    assert np.isclose(metrics.convergence_order(np.array(errors), floor=1e-30), order, rtol=1e-9)


@pytest.mark.parametrize("measure", [metrics.convergence_rate, metrics.convergence_order])
def test_curves_that_say_nothing_are_refused(measure):
    with pytest.raises(ValueError, match="at least 3 errors"):
        measure([0.01, 1e-15, 1e-16])
    with pytest.raises(ValueError, match="finite curve"):
        measure([1.0, np.nan])
