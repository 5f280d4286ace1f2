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
        (lr.complete_tensor(hidden, 2, form), "by ScaledCG" if form is lr.CP else "the best of ScaledCG with loss"),
        (lr.sense_tensor(operator, measured, SHAPE, 2, form), "ScaledCG"),
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
