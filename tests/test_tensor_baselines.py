"""tensorly's decompositions behind `lr.solve`, and deflation for orthogonally decomposable tensors."""

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp.baselines import CPALS, HOOI, TENSOR_BASELINES, TTSVD, PowerDeflation

FORMS = {"CPALS": lr.CP, "HOOI": lr.Tucker, "TTSVD": lr.TensorTrain}
tensorly = pytest.importorskip("tensorly")


@pytest.mark.covers("S13")
@pytest.mark.parametrize("name", FORMS)
def test_iterations_are_those_of_tensorly(name):
    from tensorly.decomposition import parafac, tensor_train, tucker

    form = FORMS[name]
    problem = lr.synthetic.tensor_factorization((6, 7, 8), 2, form, noise=0.1, seed=0)
    start = form.random((6, 7, 8), 2, np.random.default_rng(1))
    result = lr.solve(problem, start, TENSOR_BASELINES[name](), max_iter=5, tol=0)
    if name == "CPALS":
        expected = parafac(problem.data, 2, n_iter_max=5, init=start.to_tensorly(), tol=0).to_tensor()
    elif name == "HOOI":
        first = start.balanced().to_tensorly()
        core, factors = tucker(problem.data, (2, 2, 2), n_iter_max=5, init=tuple(first), tol=0)
        expected = tensorly.tucker_to_tensor((core, factors))
    else:
        expected = tensor_train(problem.data, [1, 2, 2, 1]).to_tensor()
    assert np.allclose(result.point.dense(), expected)
    assert isinstance(result.point, form)
    assert len(result.history["error"]) == 6


@pytest.mark.covers("O03")
@pytest.mark.parametrize("name", FORMS)
def test_they_complete_a_tensor_with_many_samples(name):
    form = FORMS[name]
    problem = lr.synthetic.tensor_completion((10, 11, 12), 2, form, observed=0.8, seed=2)
    start = lr.inits.spectral(problem, form, 2)
    result = lr.solve(problem, start, TENSOR_BASELINES[name](), max_iter=100, tol=1e-8)
    assert result.history["error"][-1] < 1e-5
    theirs = np.array(result.history["loss"])
    assert (np.diff(theirs) <= 1e-12).all()


@pytest.mark.covers("O17")
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_deflation_decomposes_an_orthogonal_tensor_in_one_round(library):
    problem = lr.synthetic.orthogonal_tensor((6, 7, 8), 4, condition_number=3.0, seed=3)
    truth = problem.truth
    if library == "torch":
        problem = lr.TensorFactorization(torch.as_tensor(problem.data))
    start = lr.inits.gaussian(problem, lr.CP, 4, seed=0)
    result = lr.solve(problem, start, PowerDeflation(), max_iter=4, tol=0)
    assert np.linalg.norm(np.asarray(result.point.dense()) - truth.dense()) < 1e-10
    weights = np.prod([np.linalg.norm(np.asarray(a), axis=0) for a in result.point.arrays()], axis=0)
    assert np.allclose(sorted(weights), np.linspace(1 / 3, 1, 4))


@pytest.mark.covers("O17")
def test_further_rounds_lower_the_loss_of_a_tensor_that_is_not_orthogonal():
    problem = lr.synthetic.tensor_factorization((6, 7, 8), 3, lr.CP, seed=4)
    start = lr.inits.gaussian(problem, lr.CP, 3, seed=0)
    loss = lr.solve(problem, start, PowerDeflation(), max_iter=60, tol=0).history["loss"]
    assert (np.diff(loss) < 1e-12).all()
    assert loss[60] < 0.1 * loss[3]


PROBLEM = lr.TensorFactorization(np.ones((3, 4, 5)))
MATRIX = lr.MatrixFactorization(np.ones((3, 4)))


def point(form, shape=(3, 4, 5)):
    return form.random(shape, 1, np.random.default_rng(0))


BAD = {
    "a matrix for tensorly": (lambda: lr.solve(MATRIX, point(lr.CP, (3, 4)), CPALS()), "tensor to factorize"),
    "another form": (lambda: lr.solve(PROBLEM, point(lr.CP), HOOI()), "HOOI needs a Tucker start, got CP3"),
    "torch": (
        lambda: lr.solve(
            lr.TensorFactorization(torch.ones(3, 4, 5)), point(lr.TensorTrain).map(torch.as_tensor), TTSVD()
        ),
        "NumPy data",
    ),
    "a matrix to deflate": (lambda: lr.solve(MATRIX, point(lr.CP, (3, 4)), PowerDeflation()), "TensorFactorization"),
    "a Tucker start to deflate": (lambda: lr.solve(PROBLEM, point(lr.Tucker), PowerDeflation()), "one CP start"),
}


@pytest.mark.parametrize("make, message", BAD.values(), ids=BAD)
def test_bad_input(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_bad_settings():
    with pytest.raises(ValueError, match="restarts must be a positive integer, got 0"):
        PowerDeflation(restarts=0)
