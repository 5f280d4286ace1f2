"""Points from some of their distances: the map against its definition, recovery, anchors, containers, bad input."""

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.spatial import procrustes
from scipy.spatial.distance import pdist, squareform

import lowrank_sp as lr

LIBRARIES = pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])


def instance(n, dimension, share, seed=0, noise=0.0):
    """Points, and a share of the distances between them, some of them in one triangle alone."""
    rng = np.random.default_rng(seed)
    points = rng.random((n, dimension))
    distances = squareform(pdist(points) * (1 + noise * rng.standard_normal(n * (n - 1) // 2)))
    known = np.triu(rng.random((n, n)) < share, 1)
    known |= known.T & (rng.random((n, n)) < 0.5)
    return points, np.where(known, distances, np.nan)


def pairs(n, count, seed=0):
    rng = np.random.default_rng(seed)
    i, j = np.triu_indices(n, 1)
    chosen = rng.permutation(i.size)[:count]
    flip = rng.random(count) < 0.5
    return np.where(flip, j[chosen], i[chosen]), np.where(flip, i[chosen], j[chosen])


@LIBRARIES
def test_measurements_are_squared_distances_and_the_adjoint_passes_the_dot_test(convert):
    rng = np.random.default_rng(1)
    i, j = pairs(7, 12)
    operator = lr.DistanceEnsemble(i, j, 7, convert(np.zeros(1)))
    x, y = rng.standard_normal((3, 7, 2)), rng.standard_normal((3, 12))
    image = np.asarray(operator.measure([[lr.SymmetricBurerMonteiro(convert(x))]])[0])
    assert np.allclose(image, ((x[:, i] - x[:, j]) ** 2).sum(-1))
    general = lr.BurerMonteiro(rng.standard_normal((3, 7, 2)), rng.standard_normal((3, 7, 2)))
    image = np.asarray(operator.measure([[general.map(convert)]])[0])
    back = np.asarray(operator.adjoint(convert(y)) @ convert(np.stack([np.eye(7)] * 3)))
    assert np.allclose((y * image).sum(-1), (back * general.dense()).sum((-2, -1)))
    other = np.asarray(operator.adjoint(convert(y)).adjoint() @ convert(np.stack([np.eye(7)] * 3)))
    assert np.allclose(back.mT, other)


@LIBRARIES
def test_the_gradient_is_autograd(convert):
    rng = np.random.default_rng(2)
    i, j = pairs(6, 10)
    x, y = rng.standard_normal((6, 2)), rng.random(10)
    problem = lr.MatrixSensing(lr.DistanceEnsemble(i, j, 6, convert(y)), convert(y), (6, 6))
    ours = np.asarray(problem.gradient(lr.SymmetricBurerMonteiro(convert(x))).factor)
    leaf = torch.as_tensor(x).requires_grad_()
    (0.5 * (((leaf[i] - leaf[j]) ** 2).sum(-1) - torch.as_tensor(y)).square().sum()).backward()
    assert np.allclose(ours, leaf.grad)


def test_unknown_distances_are_shortest_paths_at_the_start():
    """On a line of points at 0, 1, 3 and 6."""
    operator = lr.DistanceEnsemble([2, 0, 2], [3, 1, 1], 4)
    squares = np.array([9.0, 1.0, 4.0])
    line = np.array([0.0, 1, 3, 6])
    assert np.allclose(operator.paths(squares), abs(line[:, None] - line))
    gram = operator.surrogate(squares)
    assert np.allclose(gram, np.outer(line - line.mean(), line - line.mean()))


@LIBRARIES
def test_all_distances_are_classical_scaling(convert):
    points, distances = instance(12, 3, 2.0)
    found = lr.localize(convert(distances), 3)
    positions = np.asarray(found.positions)
    assert found.result.nit <= 1
    assert np.allclose(pdist(positions), pdist(points))
    assert np.allclose(positions.mean(0), 0)
    gram = positions.T @ positions
    assert np.allclose(gram, np.diag(np.diag(gram)))
    assert (np.diff(np.diag(gram)) < 0).all()


@pytest.mark.covers("S12")
@pytest.mark.parametrize("n, dimension, share", [(50, 2, 0.35), (40, 3, 0.3)], ids=["plane", "space"])
def test_points_are_found_from_some_distances(n, dimension, share):
    """The second instance needs the way through more dimensions."""
    points, distances = instance(n, dimension, share)
    found = lr.localize(distances, dimension)
    assert procrustes(points, found.positions)[2] < 1e-12
    assert ("in 5 dimensions" in found.result.choice) == (dimension == 3)
    assert np.allclose(found.result.point.factor, found.positions)


def test_noise_of_distances_is_that_of_positions():
    points, distances = instance(60, 2, 0.5, noise=0.05)
    found = lr.localize(distances, 2)
    assert procrustes(points, found.positions)[2] < 0.08**2
    assert "relative residual" in found.result.choice


@LIBRARIES
def test_anchors_fix_the_motion(convert):
    points, distances = instance(30, 2, 0.6)
    mirrored = 10 * points @ np.array([[0.6, 0.8], [0.8, -0.6]]) + 5
    anchors = np.full_like(points, np.nan)
    anchors[[3, 7, 20]] = mirrored[[3, 7, 20]]
    found = lr.localize(convert(10 * distances), 2, convert(anchors))
    assert np.allclose(np.asarray(found.positions), mirrored, atol=1e-7)


def test_containers_agree():
    points, distances = instance(25, 2, 0.7)
    expected = lr.localize(distances, 2).positions
    i, j = (~np.isnan(distances)).nonzero()
    masked = np.ma.array(np.nan_to_num(distances), mask=np.isnan(distances))
    for same in (coo_array((distances[i, j], (i, j)), distances.shape), masked, distances.T):
        assert np.allclose(lr.localize(same, 2).positions, expected, atol=1e-8)
    single = lr.localize(distances.astype(np.float32), 2).positions
    assert single.dtype == np.float32
    assert procrustes(points, single)[2] < 1e-8
    whole = np.round(squareform(pdist(np.arange(5.0)[:, None]))).astype(int)
    assert np.allclose(pdist(lr.localize(whole, 1).positions), pdist(np.arange(5.0)[:, None]))


def test_fewer_distances_than_coordinates_are_a_warning():
    distances = squareform(pdist(np.random.default_rng(0).random((5, 2))))
    distances[[0, 1], [3, 4]] = distances[[3, 4], [0, 1]] = np.nan
    with pytest.warns(UserWarning, match="8 distances for 9 coordinates"):
        lr.localize(distances, 3, max_iter=2)


def change(i, j, value):
    distances = 1 - np.eye(4)
    distances[i, j] = value
    return distances


D = 1 - np.eye(4)
APART = np.kron(np.eye(2), 1 - np.eye(2))
ERRORS = {
    "vector": (lambda: lr.localize(np.ones(4), 2), ValueError, r"square matrix, got shape \(4,\)"),
    "shape": (lambda: lr.localize(np.ones((4, 3)), 2), ValueError, r"square matrix, got shape \(4, 3\)"),
    "nothing": (lambda: lr.localize(np.full((4, 4), np.nan), 2), ValueError, "no known distance between"),
    "diagonal": (lambda: lr.localize(change(1, 1, 2.0), 2), ValueError, "to themselves must be zero"),
    "negative": (lambda: lr.localize(change(0, 1, -2.0), 2), ValueError, "real and not negative"),
    "symmetry": (lambda: lr.localize(change(0, 1, 2.0), 2), ValueError, "symmetric, but .* differ by 1"),
    "infinite": (lambda: lr.localize(change(0, 1, np.inf), 2), ValueError, "distances holds 1 NaN or infinite"),
    "apart": (lambda: lr.localize(np.where(APART > 0, 1, np.nan), 1), ValueError, "do not connect the points.* 2 of"),
    "dimension": (lambda: lr.localize(D, 4), ValueError, "dimension must be an integer from 1 to n - 1 = 3"),
    "anchors": (lambda: lr.localize(D, 2, np.ones((3, 2))), ValueError, r"anchors must have shape \(4, 2\)"),
    "few": (lambda: lr.localize(D, 2, np.full((4, 2), np.nan)), ValueError, "at least 3 positions, got 0"),
    "same": (lambda: lr.DistanceEnsemble([0, 2], [1, 2], 3), ValueError, "pair point 2 with itself"),
    "twice": (lambda: lr.DistanceEnsemble([0, 1], [1, 0], 3), ValueError, "repeat a pair"),
    "range": (lambda: lr.DistanceEnsemble([0, 3], [1, 0], 3), ValueError, r"first must lie in \[0, 3\)"),
    "lengths": (lambda: lr.DistanceEnsemble([0, 1], [1], 3), ValueError, "must have one length"),
}


@pytest.mark.filterwarnings("ignore:.*coordinates up to motions")
@pytest.mark.parametrize("call, kind, message", [pytest.param(*c, id=k) for k, c in ERRORS.items()])
def test_the_error_names_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
