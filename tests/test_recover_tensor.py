"""The one-line entry points for tensors: what they take, what they say, and how they stop."""

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp import recover_tensor

SHAPE = (8, 9, 10)


def instance(noise=0.0):
    """A tensor of rank 2 and which of its entries are known."""
    problem = lr.synthetic.tensor_factorization(SHAPE, 2, lr.CP, noise=noise, seed=0)
    return problem.data, np.random.default_rng(1).random(SHAPE) < 0.5


def test_masked_arrays_and_sparse_tensors_hold_the_known_entries():
    tensor, known = instance()
    expected = lr.complete_tensor(np.where(known, tensor, np.nan), 2).point.dense()
    masked = np.ma.array(np.where(known, tensor, 0.0), mask=~known)
    assert np.array_equal(lr.complete_tensor(masked, 2).point.dense(), expected)
    indices = torch.as_tensor(np.stack(known.nonzero()))
    sparse = torch.sparse_coo_tensor(indices, torch.as_tensor(tensor[known]), SHAPE, check_invariants=True)
    assert torch.allclose(lr.complete_tensor(sparse, 2).point.dense(), torch.as_tensor(expected), atol=1e-6)


@pytest.mark.parametrize("form", [lr.CP, lr.Tucker])
def test_results_say_what_was_chosen(form):
    tensor, known = instance(noise=0.1)
    hidden = np.where(known, tensor, np.nan)
    operator = np.random.default_rng(2).standard_normal((400, *SHAPE))
    measured = np.einsum("nijk,ijk->n", operator, tensor)
    for result, chain in [
        (lr.factorize_tensor(tensor, 2, form), "truncated decomposition -> AltScaledGD"),
        (lr.complete_tensor(hidden, 2, form), "by ScaledCG" if form is lr.CP else "the best of RiemannianCG with loss"),
        (lr.sense_tensor(operator, measured, SHAPE, 2, form), "by ScaledCG" if form is lr.CP else "RiemannianCG"),
        (lr.robust_tensor_pca(tensor, 2, form).result, "outliers per fiber -> ScaledCG on the rest"),
    ]:
        assert result.choice.startswith(f"{form.__name__} of rank 2 as given; ")
        assert chain in result.choice


@pytest.mark.parametrize("form", [lr.CP, lr.Tucker])
def test_an_interrupt_ends_the_whole_call(form, monkeypatch):
    tensor, known = instance()
    real, solves = recover_tensor.solve, []

    def interrupt(iteration, point, loss):
        raise KeyboardInterrupt

    def solve(*arguments, **options):
        solves.append(1)
        return real(*arguments, **{**options, "callback": interrupt})

    monkeypatch.setattr(recover_tensor, "solve", solve)
    with pytest.raises(KeyboardInterrupt):
        lr.complete_tensor(np.where(known, tensor, np.nan), 2, form)
    assert len(solves) == 1


def noisy(form=lr.Tucker, noise=0.1):
    return lr.synthetic.tensor_completion((20, 21, 22), 2, form, 0.3, noise=noise, seed=3)


@pytest.mark.parametrize("form", [lr.CP, lr.Tucker, lr.TensorTrain])
def test_noisy_data_are_fitted_until_the_loss_hardly_falls(form):
    """In few iterations, to an error next to that of the minimiser."""
    problem = noisy(form)
    result = lr.complete_tensor(problem, 2, form)
    assert result.status is lr.Status.SETTLED
    assert result.success
    assert result.converged
    best = lr.solve(problem, problem.truth, lr.ScaledCG(), max_iter=500, tol=1e-10)
    assert result.nit < 60
    assert result.history["error"][-1] < 1.1 * best.history["error"][-1]


def test_exact_data_are_met_to_the_tolerance():
    result = lr.complete_tensor(noisy(noise=0.0), 2)
    assert result.solver.name == "RiemannianCG"
    assert isinstance(result.point, lr.Tucker)
    assert result.history["error"][-1] < 1e-9


def test_solvers_that_do_not_agree_are_no_success(monkeypatch):
    monkeypatch.setattr(recover_tensor, "AGREE", -1.0)
    result = lr.complete_tensor(noisy(), 2)
    assert result.status is lr.Status.STALLED
    assert not result.success
    assert result.choice.count("with loss") == 3


@pytest.mark.parametrize("form", [lr.CP, lr.Tucker, lr.TensorTrain])
def test_fewer_entries_than_degrees_of_freedom_are_a_warning(form):
    tensor = np.random.default_rng(0).standard_normal((6, 6, 6))
    tensor[np.indices(tensor.shape).sum(0) % 3 == 0] = np.nan
    with pytest.warns(UserWarning, match="144 values for .* degrees of freedom"):
        lr.complete_tensor(tensor, 6 if form is not lr.CP else 10, form, max_iter=3)
