"""The rank from data: at the width of the fit, and what has no single rank."""

import numpy as np
import pytest

import lowrank_sp as lr


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize(("shape", "rank", "count"), [((12, 10), 2, 120), ((12, 7), 4, 174), ((9, 8), 1, 60)])
def test_sense_finds_a_rank_that_leaves_no_column_of_the_fit_to_spare(shape, rank, count, noise):
    problem = lr.synthetic.sensing(*shape, rank, count, 2.0 if rank > 1 else 1.0, noise, seed=0)
    assert lr.sense(problem.operator, problem.data, shape, "auto").point.rank == rank


def test_batches_have_no_single_rank():
    pair = np.random.default_rng(0).standard_normal((2, 6, 5))
    with pytest.raises(ValueError, match=r"takes one matrix, got data of shape \(2, 6, 5\)"):
        lr.factorize(pair, "auto")
    operator = np.random.default_rng(1).standard_normal((20, 6, 5))
    with pytest.raises(ValueError, match=r"takes one matrix, got data of shape \(2, 20\)"):
        lr.sense(operator, np.einsum("kij,bij->bk", operator, pair), (6, 5), "auto")
