"""`robust_sense`: wrong measurements are found and dropped, noise is averaged as if they had been known, bad input."""

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp.problems.ensembles import DenseEnsemble, MaskedEnsemble

LIBRARIES = pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])


@pytest.mark.covers("S01")
@LIBRARIES
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_it_reaches_least_squares_that_know_the_wrong_measurements(convert, noise):
    made = lr.synthetic.robust_sensing(24, 20, 2, outliers=0.2, noise=noise, condition_number=5.0, seed=0)
    stack = made.operator.rows.reshape(-1, 24, 20)
    result, sparse = lr.robust_sense(convert(stack), convert(made.data), (24, 20), 2)
    assert result.success
    point, sparse = result.point.map(np.asarray), np.asarray(sparse)
    clean = stack.reshape(-1, 480) @ made.truth.dense().reshape(-1)
    wrong = abs(made.data - clean) > max(6 * noise, 1e-9) * clean.std()
    assert ((sparse != 0) == wrong).mean() > 0.98
    known = lr.MatrixSensing(stack[~wrong], made.data[~wrong], (24, 20), made.truth)
    best = lr.solve(known, made.truth, lr.ScaledCG()).history["error"][-1]
    assert made.error(point) < max(1e-9, 1.1 * best)
    assert "ScaledCG of the rest" in result.choice


def test_it_needs_fewer_iterations_than_subgradients_alone():
    made = lr.synthetic.robust_sensing(24, 20, 2, outliers=0.2, seed=1)
    alone = lr.solve(made, lr.inits.spectral(made, lr.BurerMonteiro, 2), lr.ScaledGD(), 1000)
    assert lr.robust_sense(made.operator, made.data, (24, 20), 2).result.nit < 0.6 * alone.nit


@LIBRARIES
def test_fewer_measurements_than_degrees_of_freedom_are_a_warning(convert):
    """Rank 1 of 6 x 5 has ten; of thirteen measurements with a fifth of outliers ten are right."""
    rng = np.random.default_rng(0)
    truth = np.outer(rng.standard_normal(6), rng.standard_normal(5))
    for count, sense in ((9, lr.sense), (10, lr.sense), (11, lr.robust_sense), (13, lr.robust_sense)):
        stack = rng.standard_normal((count, 6, 5))
        arguments = convert(stack), convert(np.einsum("kij,ij->k", stack, truth)), (6, 5), 1
        if count in (10, 13):  # warnings are errors
            sense(*arguments, max_iter=2)
            continue
        which = "9 measurements" if count == 9 else "9 measurements that are no outliers"
        with pytest.warns(UserWarning, match=f"{which} for 10 degrees of freedom"):
            sense(*arguments, max_iter=2)


@LIBRARIES
def test_a_masked_map_is_the_map_of_the_kept_measurements(convert):
    rng = np.random.default_rng(0)
    stack, mask = rng.standard_normal((9, 4, 3)), rng.random(9) < 0.5
    point = lr.BurerMonteiro.random((4, 3), 2, rng)
    ours = MaskedEnsemble(DenseEnsemble(convert(stack)), convert(mask))
    image = np.asarray(ours.measure([[point.map(convert)]])[0])
    assert np.allclose(image[mask], np.einsum("kij,ij->k", stack[mask], point.dense()))
    assert not image[~mask].any()
    y = rng.standard_normal(9)
    assert np.allclose(np.asarray(ours.adjoint(convert(y))), np.einsum("k,kij->ij", y[mask], stack[mask]))


@pytest.mark.parametrize("kind", [float, complex])
def test_several_images_in_one_pass_are_those_of_each(kind):
    """More measurements than fit in one block of the cache."""
    rng = np.random.default_rng(0)
    stack = rng.standard_normal((150, 30, 40)).astype(kind) + (1j if kind is complex else 0)
    points = [lr.BurerMonteiro.random((30, 40), 2, rng) for _ in range(3)]
    images = DenseEnsemble(stack).measure([[p] for p in points])
    for image, p in zip(images, points, strict=True):
        assert np.allclose(image, np.einsum("kij,ij->k", stack.conj(), p.dense()))


Y = np.ones(6)
STACK = np.ones((6, 3, 3))
ERRORS = {
    "share": (
        lambda: lr.robust_sense(STACK, Y, (3, 3), 1, outliers=0.7),
        ValueError,
        r"outliers must lie in \[0, 0.5\)",
    ),
    "rank": (lambda: lr.robust_sense(STACK, Y, (3, 3), 4), ValueError, "rank must lie between 1 and"),
    "count": (lambda: lr.robust_sense(STACK, Y[:4], (3, 3), 1), ValueError, "measurements has 4 values"),
    "batch": (
        lambda: lr.robust_sense(STACK, np.ones((2, 6)), (3, 3), 1),
        ValueError,
        "measurements must have one axis",
    ),
    "NaN": (lambda: lr.robust_sense(STACK, Y * np.nan, (3, 3), 1), ValueError, "measurements holds 6 NaN"),
}


@pytest.mark.parametrize("call, kind, message", [pytest.param(*c, id=k) for k, c in ERRORS.items()])
def test_the_error_names_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_small_wrong_measurements_are_found_too():
    """They hide behind an early fit, which is why a poor fit sends subgradients on."""
    for seed in range(3):
        made = lr.synthetic.robust_sensing(30, 30, 3, outliers=0.2, condition_number=10.0, seed=seed)
        clean = made.operator.measure([[made.truth]])[0]
        measurements = clean + 0.02 * (made.data - clean)
        result, sparse = lr.robust_sense(made.operator, measurements, (30, 30), 3)
        assert result.success
        assert made.error(result.point) < 1e-9
        assert np.array_equal(sparse != 0, made.data != clean) or np.allclose(sparse, measurements - clean, atol=1e-6)
