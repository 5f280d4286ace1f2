"""Stiefel and fixed-rank geometry against geoopt and pymanopt."""

import geoopt
import numpy as np
import pytest
import torch
from pymanopt.manifolds import FixedRankEmbedded, Stiefel

import lowrank_sp as lr
from lowrank_sp.parameterizations import orthographic

RNG_SHAPE = (9, 3)


def instance(seed=0):
    rng = np.random.default_rng(seed)
    return lr.spaces.STIEFEL.random(rng, RNG_SHAPE), rng.standard_normal(RNG_SHAPE)


@pytest.mark.covers("O11")
@pytest.mark.parametrize("space", [lr.spaces.STIEFEL, lr.spaces.STIEFEL_QR], ids=["polar", "qr"])
def test_stiefel_projection(space):
    x, g = instance()
    got = space.project(x, g)
    assert np.allclose(got, Stiefel(*RNG_SHAPE).projection(x, g), atol=1e-13)
    tx, tg = torch.as_tensor(x), torch.as_tensor(g)
    assert np.allclose(got, geoopt.EuclideanStiefel().proju(tx, tg).numpy(), atol=1e-13)


@pytest.mark.covers("O13")
@pytest.mark.parametrize("name, space", [("polar", lr.spaces.STIEFEL), ("qr", lr.spaces.STIEFEL_QR)])
def test_stiefel_retraction_of_pymanopt(name, space):
    x, g = instance(1)
    manifold = Stiefel(*RNG_SHAPE, retraction=name)
    expected = manifold.retraction(x, -0.4 * manifold.projection(x, g))
    assert np.allclose(space.retract(x, g, 0.4), expected, atol=1e-13)


@pytest.mark.covers("O13")
def test_stiefel_qr_retraction_of_geoopt():
    x, g = (torch.as_tensor(a) for a in instance(2))
    manifold = geoopt.EuclideanStiefel()
    expected = manifold.retr(x, -0.4 * manifold.proju(x, g))
    assert torch.allclose(lr.spaces.STIEFEL_QR.retract(x, g, 0.4), expected, atol=1e-13)


def fixed_rank_pair(seed=0, m=8, n=6, r=3):
    """The same point for us and for pymanopt, whose core is diagonal."""
    rng = np.random.default_rng(seed)
    u, v = lr.spaces.STIEFEL.random(rng, (m, r)), lr.spaces.STIEFEL.random(rng, (n, r))
    s = np.array([3.0, 2.0, 0.7])
    return lr.FixedRank(u, np.diag(s), v), (u, s, v.T), FixedRankEmbedded(m, n, r), rng


@pytest.mark.covers("O10")
def test_fixed_rank_tangent_projection():
    ours, theirs, manifold, rng = fixed_rank_pair()
    g = rng.standard_normal((8, 6))
    up, m, vp = manifold.projection(theirs, g)
    got = ours.pullback(g)
    assert all(np.allclose(a, b, atol=1e-13) for a, b in zip(got.arrays(), (up, m, vp), strict=True))


@pytest.mark.covers("O10")
def test_fixed_rank_retraction_and_transport():
    ours, theirs, manifold, rng = fixed_rank_pair(1)
    g = rng.standard_normal((8, 6))
    tangent = manifold.projection(theirs, g)
    u, s, vt = new = manifold.retraction(theirs, -0.3 * tangent)
    moved = ours.retract(ours.pullback(g), 0.3)
    assert np.allclose(moved.dense(), (u * s) @ vt, atol=1e-12)
    left, core, right = manifold.embedding(new, manifold.transport(theirs, new, tangent))
    carried = ours.transport(moved, ours.pullback(g))
    assert np.allclose(moved.pushforward(carried), left @ core @ right.T, atol=1e-12)


@pytest.mark.covers("O10")
def test_fixed_rank_retraction_is_the_truncated_svd_of_the_straight_step():
    ours, _, _, rng = fixed_rank_pair(2)
    tangent = ours.pullback(rng.standard_normal((8, 6)))
    u, s, vt = np.linalg.svd(ours.dense() - 0.8 * ours.pushforward(tangent))
    expected = (u[:, :3] * s[:3]) @ vt[:3]
    assert np.allclose(ours.retract(tangent, 0.8).dense(), expected, atol=1e-12)


@pytest.mark.covers("O10")
def test_orthographic_retraction_changes_the_matrix_along_the_normal_space_only():
    """Its definition: rank r, and the tangent projection of ``R - W`` is the step itself."""
    ours, _, _, rng = fixed_rank_pair(3)
    tangent = ours.pullback(0.3 * rng.standard_normal((8, 6)))
    moved = orthographic(ours, tangent, 0.5)
    step = ours.pullback(moved.dense() - ours.dense())
    assert np.linalg.matrix_rank(moved.dense(), tol=1e-10) == 3
    assert all(np.allclose(a, -0.5 * b, atol=1e-12) for a, b in zip(step.arrays(), tangent.arrays(), strict=True))


def test_orthographic_retraction_falls_back_where_it_does_not_exist():
    """A step that cancels the core leaves nothing to invert; the metric projection is finite."""
    ours, _, _, rng = fixed_rank_pair(4)
    tangent = ours.pullback(rng.standard_normal((8, 6))).with_array(1, ours.core)
    moved = orthographic(ours, tangent, 1.0)
    assert np.allclose(moved.dense(), ours.retract(tangent, 1.0).dense())
    assert np.isfinite(moved.dense()).all()


@pytest.mark.covers("O10")
@pytest.mark.parametrize("retraction", ["projection", "orthographic"])
def test_riemannian_descent_agrees_with_pymanopt_steps(retraction):
    """Three steps of constant size; with the metric projection they are pymanopt's."""
    ours, theirs, manifold, rng = fixed_rank_pair(5)
    problem = lr.MatrixFactorization(rng.standard_normal((8, 6)))
    result = lr.solve(problem, ours, lr.RiemannianGD(0.2, retraction=retraction), max_iter=3, tol=0)
    for _ in range(3):
        u, s, vt = theirs
        gradient = manifold.projection(theirs, (u * s) @ vt - problem.data)
        theirs = manifold.retraction(theirs, -0.2 * gradient)
    gap = np.abs(result.point.dense() - (theirs[0] * theirs[1]) @ theirs[2]).max()
    assert gap < 1e-12 if retraction == "projection" else 1e-6 < gap < 0.2
