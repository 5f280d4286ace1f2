"""What the solvers must do: exact sequences, identities between methods, and orders of convergence."""

import numpy as np
import pytest
import scipy.linalg

import lowrank_sp as lr
from lowrank_sp.metrics import convergence_order, convergence_rate
from lowrank_sp.rules import Horizontal, Landing, Refactored, Scaled

M, N, R = 20, 16, 3


def instance(seed=0, rank=R):
    rng = np.random.default_rng(seed)
    return lr.BurerMonteiro.random((M, N), rank, rng), rng.standard_normal((M, N)), rng


def gauges(point, rng, count=3):
    return [point, *(point.gauge(point.random_gauge(rng)) for _ in range(count))]


def projectors(point):
    """Orthogonal projectors on the column spaces, by scipy."""
    return [q @ q.T for q in (scipy.linalg.orth(a) for a in point.arrays())]


def matrix_step(rule, point, g):
    """The first-order change of the matrix that the rule makes of the full gradient ``g``."""
    direction, _ = rule.update(point.pullback(g), rule.init(point), point)
    return direction.left @ point.right.T + point.left @ direction.right.T


# sequences ------------------------------------------------------------------------------------------------


def scalar_sequence(step, count):
    """z_1 = step and ``z+ = (1-s)^2 z + 2 s (1-s) + s^2 / z``: the share of A that has been found."""
    z, out = step, []
    for _ in range(count):
        out.append(abs(z - 1))
        z = (1 - step) ** 2 * z + 2 * step * (1 - step) + step**2 / z
    return out


@pytest.mark.covers("T30", "O04", "I13")
@pytest.mark.parametrize("condition_number", [1.0, 10.0, 1000.0])
def test_scaled_gd_from_nystrom_at_one_half_is_quadratic_whatever_the_condition(condition_number):
    problem = lr.synthetic.factorization(M, N, R, condition_number, seed=0)
    start = lr.inits.nystrom(problem, lr.BurerMonteiro, R, seed=1)
    errors = lr.solve(problem, start, lr.ScaledGD(0.5), max_iter=5, tol=0).history["error"][1:]
    published = [0.5, 0.125, 3.472e-3, 3.0e-6, 2.26e-12]
    assert np.allclose(errors[:4], published[:4], rtol=5e-3)
    assert errors[4] < 1e-10 if condition_number > 10 else np.isclose(errors[4], published[4], rtol=0.01)


@pytest.mark.covers("T30")
@pytest.mark.parametrize("step", [0.3, 0.45, 0.6])
def test_scaled_gd_from_nystrom_follows_the_scalar_recursion(step):
    problem = lr.synthetic.factorization(M, N, R, 100.0, seed=2)
    start = lr.inits.nystrom(problem, lr.BurerMonteiro, R, seed=3)
    errors = lr.solve(problem, start, lr.ScaledGD(step), max_iter=12, tol=0).history["error"][1:]
    assert np.allclose(errors, scalar_sequence(step, 12), rtol=1e-6, atol=1e-11)


@pytest.mark.covers("T30")
def test_scaled_gd_off_one_half_is_linear():
    """At 0.3 the ratio is ``|1 - 2 step| = 0.4``."""
    problem = lr.synthetic.factorization(M, N, R, 10.0, seed=0)
    start = lr.inits.nystrom(problem, lr.BurerMonteiro, R, seed=1)
    errors = lr.solve(problem, start, lr.ScaledGD(0.3), max_iter=22, tol=0).history["error"]
    assert np.isclose(convergence_rate(errors, floor=1e-10), 0.4, rtol=1e-3)


@pytest.mark.covers("T30", "I14")
def test_scaled_gd_from_a_random_start_is_linear_with_one_minus_the_step():
    problem = lr.synthetic.factorization(M, N, R, 10.0, seed=0)
    start = lr.inits.gaussian(problem, lr.BurerMonteiro, R, scale=1.0, seed=0)
    errors = lr.solve(problem, start, lr.ScaledGD(0.5), max_iter=45, tol=0).history["error"]
    assert np.isclose(convergence_rate(errors, floor=1e-11), 0.5, rtol=0.02)


@pytest.mark.covers("O05")
@pytest.mark.parametrize("condition_number", [1.0, 10.0, 1000.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_alternating_scaled_gd_with_step_one_needs_one_sweep(condition_number, scale):
    problem = lr.synthetic.factorization(M, N, R, condition_number, seed=4)
    start = lr.inits.gaussian(problem, lr.BurerMonteiro, R, scale=scale, seed=5)
    result = lr.solve(problem, start, lr.AltScaledGD(1.0), max_iter=1, tol=0)
    assert result.history["error"][1] < 1e-10


def near_start(problem):
    """The truncated SVD of the target with some noise."""
    noisy = problem.data + 0.05 * np.random.default_rng(0).standard_normal((M, N))
    return lr.inits.spectral(lr.MatrixFactorization(noisy), lr.FixedRank, R)


@pytest.mark.covers("O10")
def test_fixed_rank_descent_with_step_one_squares_the_error():
    problem = lr.synthetic.factorization(M, N, R, 5.0, seed=0)
    errors = lr.solve(problem, near_start(problem), lr.RiemannianGD(1.0), max_iter=6, tol=0).history["error"]
    assert convergence_order(errors) > 1.8
    assert errors[-1] < 1e-13


@pytest.mark.covers("O10")
def test_the_orthographic_retraction_makes_a_step_of_one_exact():
    """The target has the rank and the tangent part that define the retracted point, so it is that point."""
    problem = lr.synthetic.factorization(M, N, R, 5.0, seed=0)
    solver = lr.RiemannianGD(1.0, retraction="orthographic")
    errors = lr.solve(problem, near_start(problem), solver, max_iter=1, tol=0).history["error"]
    assert errors[0] > 0.1
    assert errors[1] < 1e-13


@pytest.mark.covers("O03")
def test_als_without_a_ridge_needs_one_sweep():
    problem = lr.synthetic.factorization(M, N, R, 10.0, seed=6)
    start = lr.inits.gaussian(problem, lr.BurerMonteiro, R, seed=7)
    result = lr.solve(problem, start, lr.ALS(ridge=0.0), max_iter=1, tol=0)
    assert result.history["error"][1] < 1e-10


# the direction in the matrix ------------------------------------------------------------------------------


@pytest.mark.covers("O32", "O09")
def test_lora_pro_moves_along_the_tangent_projection_in_every_gauge():
    point, g, rng = instance()
    px, py = projectors(point)
    expected = px @ g + g @ py - px @ g @ py
    for other in gauges(point, rng):
        assert np.allclose(matrix_step(Horizontal(), other, g), expected, atol=1e-10)


@pytest.mark.covers("O09", "T27")
def test_lora_pro_is_horizontal_in_the_euclidean_metric():
    point, g, rng = instance(1)
    for other in gauges(point, rng):
        d, _ = Horizontal().update(other.pullback(g), (), other)
        assert np.allclose(other.left.T @ d.left, d.right.T @ other.right, atol=1e-10)


@pytest.mark.covers("O04", "O06")
def test_scaled_gd_moves_along_both_subspaces():
    point, g, rng = instance(2)
    px, py = projectors(point)
    for other in gauges(point, rng):
        assert np.allclose(matrix_step(Scaled(), other, g), px @ g + g @ py, atol=1e-10)


@pytest.mark.covers("T27")
def test_scaled_gradient_is_horizontal_in_its_own_metric():
    """Orthogonal, in ``<a, b M>`` with the Gram matrices M, to every gauge direction ``(X U, -Y U^T)``."""
    point, g, rng = instance(3)
    d, _ = Scaled().update(point.pullback(g), (), point)
    px, py = point.left.T @ point.left, point.right.T @ point.right
    for _ in range(3):
        u = rng.standard_normal((R, R))
        vertical = point.left @ u, -point.right @ u.T
        inner = np.vdot(d.left @ py, vertical[0]) + np.vdot(d.right @ px, vertical[1])
        assert abs(inner) < 1e-10


@pytest.mark.covers("O07")
def test_reflora_moves_along_the_moduli_of_the_matrix_in_every_gauge():
    """``G |W|_R + |W|_L G`` with the two moduli from scipy's polar decomposition."""
    point, g, rng = instance(4)
    w = point.dense()
    left, right = (scipy.linalg.polar(w, side=s)[1] for s in ("left", "right"))
    for other in gauges(point, rng):
        assert np.allclose(matrix_step(Refactored(), other, g), g @ right + left @ g, atol=1e-9)


@pytest.mark.covers("O07")
def test_reflora_is_a_gradient_step_of_the_balanced_factors():
    """The whole step of the matrix, second order included, and the balanced pair by its definition."""
    point, _, _ = instance(5)
    problem = lr.MatrixFactorization(np.random.default_rng(6).standard_normal((M, N)))
    u, s, vt = np.linalg.svd(point.dense())
    x, y = u[:, :R] * s[:R] ** 0.5, vt[:R].T * s[:R] ** 0.5
    residual = x @ y.T - problem.data
    expected = (x - 0.01 * residual @ y) @ (y - 0.01 * residual.T @ x).T
    got = lr.solve(problem, point, lr.RefLoRA(0.01), max_iter=1, tol=0).point.dense()
    assert np.allclose(got, expected, atol=1e-10)


@pytest.mark.covers("O07")
def test_balanced_factors_have_equal_gram_matrices_and_the_same_product():
    point, _, rng = instance(6)
    for other in gauges(point, rng):
        even = other.balanced()
        assert np.allclose(even.left.T @ even.left, even.right.T @ even.right, atol=1e-10)
        assert np.allclose(even.dense(), point.dense(), atol=1e-10)


@pytest.mark.covers("O08")
def test_scalar_reflora_is_blind_to_the_scalar_gauge_only():
    point, _, rng = instance(7)
    problem = lr.MatrixFactorization(rng.standard_normal((M, N)))

    def path(start):
        return lr.solve(problem, start, lr.RefLoRAScalar(1e-3), max_iter=5, tol=0).point.dense()

    scaled = lr.BurerMonteiro(10 * point.left, point.right / 10)
    assert np.allclose(path(scaled), path(point), atol=1e-10)
    assert not np.allclose(path(gauges(point, rng)[1]), path(point), atol=1e-3)


# landing --------------------------------------------------------------------------------------------------


def landing_instance():
    """A PoLAR point off the manifold with gradients."""
    rng = np.random.default_rng(8)
    point = lr.PoLAR.random((M, N), R, rng)
    point = point.map(lambda a: a + 0.1 * rng.standard_normal(a.shape))
    return point, point.map(lambda a: rng.standard_normal(a.shape))


@pytest.mark.covers("O12")
def test_thin_landing_field_is_the_published_square_one():
    """``(G X^T - X G^T) X + penalty X (X^T X - I)`` with m x m products, for both outer factors."""
    point, grad = landing_instance()
    field, _ = Landing(penalty=0.7).update(grad, (), point)
    strength = 0.7 * np.linalg.norm(point.core) ** 2
    for x, g, got in ((point.left, grad.left, field.left), (point.right, grad.right, field.right)):
        skew = g @ x.T - x @ g.T
        assert np.allclose(got, skew @ x + strength * x @ (x.T @ x - np.eye(R)), atol=1e-10)
    assert np.array_equal(field.core, grad.core)


@pytest.mark.covers("O12")
def test_the_two_parts_of_the_landing_field_are_orthogonal():
    point, grad = landing_instance()
    fields = [Landing(penalty=p).update(grad, (), point)[0].left for p in (1.0, 2.0)]
    pull = fields[1] - fields[0]
    tangent = fields[0] - pull
    assert np.linalg.norm(pull) > 1
    assert abs(np.vdot(pull, tangent)) < 1e-10 * np.linalg.norm(pull) * np.linalg.norm(tangent)


@pytest.mark.covers("O12")
@pytest.mark.parametrize("step", ["auto", 0.2])
def test_landing_ends_on_the_manifold_at_the_solution(step):
    problem = lr.synthetic.factorization(M, N, R, 2.0, seed=9)
    start = lr.inits.nystrom(problem, lr.PoLAR, R, seed=0)
    result = lr.solve(problem, start, lr.LandingGD(step, penalty=1.0), max_iter=2000, tol=1e-12)
    assert result.success
    assert result.history["error"][-1] < 1e-6
    for x in (result.point.left, result.point.right):
        assert np.abs(x.T @ x - np.eye(R)).max() < 1e-5


@pytest.mark.covers("T34", "O11", "P24")
def test_core_of_polar_with_step_one_is_the_compressed_target():
    """After one step: ``Theta = U^T A V`` with the *new* U and V."""
    problem = lr.synthetic.factorization(M, N, R, 3.0, seed=10)
    start = lr.inits.stiefel(problem, lr.PoLAR, R, seed=0)
    start = start.with_array(1, np.eye(R))
    end = lr.solve(problem, start, lr.RiemannianGD(0.1, core_step_size=1.0), max_iter=1, tol=0).point
    assert not np.allclose(end.left, start.left)
    assert np.allclose(end.core, end.left.T @ problem.data @ end.right, atol=1e-12)
