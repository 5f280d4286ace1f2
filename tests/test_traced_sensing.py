"""One pass over stored matrices for images and gradients: against separate products, and the same solves."""

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp import kernels
from lowrank_sp.problems import ensembles
from lowrank_sp.problems.ensembles import DenseEnsemble, MaskedEnsemble
from lowrank_sp.problems.sensing import Traced

pytest.importorskip("numba")


@pytest.fixture
def compiled(monkeypatch):
    monkeypatch.setattr(kernels, "WORK", 0)
    monkeypatch.setattr(ensembles, "LARGE", 0)


def stack_of(count, dtype=float):
    return np.random.default_rng(0).standard_normal((count, 6, 5)).astype(dtype)


@pytest.mark.parametrize("dtype", [float, np.float32])
@pytest.mark.parametrize("count", [1, 3, 4, 9, 30])
def test_images_and_gradients_are_those_of_two_products(compiled, count, dtype):
    rng, stack = np.random.default_rng(1), stack_of(count, dtype)
    problem = lr.MatrixSensing(stack, np.ones(count, dtype), (6, 5))
    points = [lr.BurerMonteiro.random((6, 5), 2, rng).map(lambda a: a.astype(dtype)) for _ in range(3)]
    images = problem.measure(points[:2], points[2:])
    assert all(isinstance(image, Traced) for image in images)
    tolerance = 1e-12 if dtype is float else 1e-4
    for image, matrix in zip(images, (points[0].dense() + points[1].dense(), points[2].dense()), strict=True):
        values = np.einsum("kij,ij->k", stack, matrix)
        assert np.allclose(np.asarray(image), values, atol=tolerance)
        assert np.allclose(problem.backproject(image), np.einsum("kij,k->ij", stack, values), atol=tolerance * count)
        assert problem.backproject(image).dtype == dtype


@pytest.mark.parametrize("kept", [0, 1, 6, 13])
def test_masked_measurements_are_those_of_the_chosen_matrices(compiled, kept):
    rng, stack, mask = np.random.default_rng(1), stack_of(13), np.zeros(13, bool)
    mask[rng.permutation(13)[:kept]] = True
    other = rng.random(13) < 0.7
    points = [lr.BurerMonteiro.random((6, 5), 2, rng) for _ in range(2)]
    masked = MaskedEnsemble(DenseEnsemble(stack), mask)
    for ensemble, chosen in ((masked, mask), (MaskedEnsemble(masked, other), mask & other)):
        pairs = ensemble.traced([[p] for p in points])
        assert pairs is not None
        for (image, back), point in zip(pairs, points, strict=True):
            values = np.einsum("kij,ij->k", stack, point.dense()) * chosen
            assert np.allclose(image, values)
            assert np.allclose(back, np.einsum("kij,k->ij", stack, values))


def test_separation_of_measurements_is_the_same_in_one_pass(monkeypatch):
    rng = np.random.default_rng(3)
    stack, truth = rng.standard_normal((200, 8, 7)), np.outer(np.arange(8.0), np.ones(7))
    data = np.einsum("kij,ij->k", stack, truth)
    data[::10] += 50.0
    found = []
    for large in (0, 10**18):
        monkeypatch.setattr(kernels, "WORK", large)
        monkeypatch.setattr(ensembles, "LARGE", large)
        found.append(lr.robust_sense(stack, data, (8, 7), 1))
    assert all(np.allclose(one.result.point.dense(), truth, atol=1e-8) for one in found)
    assert np.array_equal(found[0].sparse != 0, found[1].sparse != 0)


def test_sums_keep_their_gradients(compiled):
    rng = np.random.default_rng(2)
    problem = lr.MatrixSensing(stack_of(20), rng.standard_normal(20), (6, 5))
    a, b = problem.measure(*[(lr.BurerMonteiro.random((6, 5), 2, rng),) for _ in range(2)])
    plain = rng.standard_normal(20)
    mixed = plain + np.float64(2.0) * a
    mixed += -b
    for value in (mixed, mixed - plain, -mixed):
        assert np.allclose(problem.backproject(value), problem.operator.adjoint(np.asarray(value)), atol=1e-12)
    assert np.isclose(problem.inner(a, plain), np.asarray(a) @ plain)
    assert np.isclose(problem.loss(mixed), 0.5 * np.linalg.norm(np.asarray(mixed)) ** 2)


def test_measurements_that_changed_are_projected_anew(compiled):
    problem = lr.MatrixSensing(stack_of(20), np.ones(20), (6, 5))
    residual = np.arange(20.0)
    before = problem.backproject(residual)
    assert problem.backproject(residual) is before
    residual[3] += 1
    assert np.allclose(problem.backproject(residual), problem.operator.adjoint(residual))


@pytest.mark.parametrize("solver", ["ScaledCG", "ScaledGD", "AltScaledGD", "ALS", "RiemannianCG"])
def test_solves_are_the_same(monkeypatch, solver):
    made = lr.synthetic.sensing(14, 12, 2, 250, 5.0, seed=0)
    start = lr.inits.spectral(made, lr.BurerMonteiro, 2)
    found = []
    for large in (0, 10**18):
        monkeypatch.setattr(kernels, "WORK", large)
        monkeypatch.setattr(ensembles, "LARGE", large)
        found.append(lr.solve(made, start, lr.SOLVERS[solver](), 15, 0.0))
    first, second = found
    assert np.allclose(first.point.dense(), second.point.dense(), atol=1e-8)
    assert np.allclose(first.history["loss"], second.history["loss"], rtol=1e-5, atol=1e-12 * made.scale)


def test_other_maps_tensors_batches_and_complex_data_take_separate_passes(compiled):
    stack = stack_of(20) + 1j * stack_of(20)
    problem = lr.MatrixSensing(stack, np.ones(20, complex), (6, 5))
    point = lr.BurerMonteiro(np.ones((6, 1), complex), np.ones((5, 1), complex))
    assert all(isinstance(image, np.ndarray) for image in problem.measure((point,), (point,)))
    tensors = lr.MatrixSensing(torch.as_tensor(stack_of(20)), torch.ones(20).double(), (6, 5))
    point = lr.BurerMonteiro(np.ones((6, 1)), np.ones((5, 1)))
    images = tensors.measure(*[(point.map(torch.as_tensor),)] * 2)
    assert all(torch.is_tensor(image) for image in images)
    real = lr.MatrixSensing(stack_of(20), np.ones((3, 20)), (6, 5))
    batch = point.map(lambda a: np.stack([a] * 3))
    assert np.shape(real.measure((batch,), (batch,))[0]) == (3, 20)
    assert lr.QuadraticEnsemble(np.ones((4, 3))).traced([[point], [point]]) is None
