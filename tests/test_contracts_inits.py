"""Every registered starting point keeps the contract of `lowrank_sp.testing.check_init`, on every form."""

import numpy as np
import pytest

import lowrank_sp as lr
from lowrank_sp.testing import check_init


@pytest.mark.covers("lowrank_sp.inits.*")
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("form", lr.FORMS.values(), ids=lr.FORMS)
@pytest.mark.parametrize("init", lr.inits.INITS.values(), ids=lr.inits.INITS)
def test_contract(init, form, library, batch):
    check_init(init, form, library=library, batch=batch, exact=init is lr.inits.spectral)


@pytest.mark.parametrize("init", lr.inits.INITS.values(), ids=lr.inits.INITS)
def test_contract_in_complex_numbers(init):
    check_init(init, dtype="complex128", exact=init is lr.inits.spectral)
    check_init(init, lr.PoLAR, dtype="complex128", exact=init is lr.inits.spectral)


@pytest.mark.covers("I13", "I28")
@pytest.mark.parametrize("init", [lr.inits.nystrom, lr.inits.stiefel], ids=["nystrom", "stiefel"])
@pytest.mark.parametrize("form", [lr.BurerMonteiro, lr.SVD, lr.PoLAR, lr.FixedRank], ids=lambda f: f.__name__)
def test_starts_that_promise_zero_start_at_zero(init, form):
    problem = lr.synthetic.factorization(9, 7, rank=2, seed=0)
    assert not init(problem, form, 3, seed=1).dense().any()


@pytest.mark.covers("I13", "I15")
@pytest.mark.parametrize("init", [lr.inits.nystrom, lr.inits.half_nystrom], ids=["nystrom", "half_nystrom"])
def test_nystrom_columns_lie_in_the_column_space_of_the_target(init):
    problem = lr.synthetic.factorization(9, 7, rank=2, seed=0)
    left = init(problem, lr.BurerMonteiro, 2, seed=1).left
    basis = np.linalg.svd(problem.data)[0][:, :2]
    assert np.linalg.matrix_rank(left) == 2
    assert np.allclose(basis @ (basis.T @ left), left, atol=1e-13)


@pytest.mark.covers("I13")
def test_two_sided_sketch_is_exact_at_rank_one_and_has_both_subspaces_in_general():
    one = lr.synthetic.factorization(9, 7, rank=1, seed=0)
    assert np.allclose(lr.inits.nystrom_two_sided(one, lr.BurerMonteiro, 1, seed=1).dense(), one.data, atol=1e-13)
    two = lr.synthetic.factorization(9, 7, rank=2, seed=0)
    u, _, vt = np.linalg.svd(two.data)
    start = lr.inits.nystrom_two_sided(two, lr.BurerMonteiro, 2, seed=1).dense()
    assert np.allclose(u[:, :2] @ (u[:, :2].T @ start @ vt[:2].T) @ vt[:2], start, atol=1e-13)


@pytest.mark.covers("I04")
@pytest.mark.parametrize("size", [30, 520])
def test_spectral_start_is_the_truncated_svd_of_a_noisy_target(size):
    """At 520 by the randomized method, whose range finder must reach it on a decaying spectrum."""
    rng = np.random.default_rng(0)
    q1, q2 = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    values = 0.7 ** np.arange(size)
    problem = lr.MatrixFactorization((q1 * values) @ q2.T)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 4)
    assert np.allclose(start.dense(), (q1[:, :4] * values[:4]) @ q2[:, :4].T, atol=1e-10)
    assert np.allclose(start.left.T @ start.left, start.right.T @ start.right, atol=1e-10)


@pytest.mark.covers("I14")
def test_gaussian_starts_have_the_stated_scale_and_are_independent_along_the_batch():
    problem = lr.synthetic.factorization(60, 50, rank=2, seed=0)
    start = lr.inits.gaussian(problem, lr.BurerMonteiro, 20, scale=0.3, seed=0, batch=3)
    assert start.batch_shape == (3,)
    assert np.isclose(start.left.std(), 0.3, rtol=0.05)
    assert np.abs(np.corrcoef(start.left.reshape(3, -1)) - np.eye(3)).max() < 0.1


@pytest.mark.parametrize("name", ["gaussian", "stiefel", "nystrom", "nystrom_two_sided", "half_nystrom"])
def test_other_seeds_give_other_starts(name):
    problem = lr.synthetic.factorization(9, 7, rank=2, seed=0)
    a, b = (lr.inits.INITS[name](problem, lr.BurerMonteiro, 2, seed=s) for s in (0, 1))
    assert not np.allclose(a.left, b.left)


@pytest.mark.parametrize("kind", ["sensing", "completion"])
@pytest.mark.parametrize("init", lr.inits.INITS.values(), ids=lr.inits.INITS)
def test_starts_fit_problems_with_indirect_data(init, kind):
    if kind == "sensing":
        problem = lr.synthetic.sensing(9, 7, rank=2, seed=0)
    else:
        problem = lr.synthetic.completion(20, 16, rank=2, observed=0.6, seed=0)
    start = init(problem, lr.BurerMonteiro, 2, seed=0)
    assert start.shape == problem.shape
    assert np.isfinite(problem.residual(start)).all()


def test_the_contract_notices_a_wrong_start():
    def forgetful(problem, form, rank, seed=None):
        return lr.inits.gaussian(problem, form, rank)

    with pytest.raises(AssertionError, match="same seed"):
        check_init(forgetful)
    with pytest.raises(AssertionError, match="exact rank"):
        check_init(lr.inits.gaussian, exact=True)
