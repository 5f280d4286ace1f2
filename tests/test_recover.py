"""The one-line entry points: what they choose, say and reach with no argument but the rank, or without even that."""

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp.escalate import misfit, split, validated_ridge
from lowrank_sp.ranks import rank_by_gap, rank_by_noise_edge, rank_of_completion
from lowrank_sp.result import join

NOISE = (0.0, 1e-3, 1e-2)


def completion(seed, over=(2.5, 8.0), tame=False):
    """A random completion instance, and its rank; tame: every singular value stands out of the noise."""
    rng = np.random.default_rng([1, seed])
    (m, n), rank = (int(k) for k in rng.integers(60, 400, 2)), int(rng.integers(1, 9))
    noise = float(rng.choice(NOISE))
    condition_number = 10 ** rng.uniform(0, 1.3 if tame and noise else 3) if rank > 1 else 1.0
    observed = min(0.9, rng.uniform(*over) * rank * (m + n - rank) / (m * n))
    least = min(rank + 1, int(0.8 * observed * min(m, n)))
    return lr.synthetic.completion(m, n, rank, observed, condition_number, noise, seed, least=least), rank


def sensing(seed):
    rng = np.random.default_rng([2, seed])
    m, n = (int(k) for k in rng.integers(12, 45, 2))
    rank = min(int(rng.integers(1, 5)), min(m, n) // 4)
    condition_number = 10 ** rng.uniform(0, 3) if rank > 1 else 1.0
    count = min(int(rng.uniform(2.5, 6) * rank * (m + n - rank)), m * n)
    ensemble = str(rng.choice(["gaussian", "rank-one", "subsampled-orthogonal"]))
    noise = float(rng.choice(NOISE))
    return lr.synthetic.sensing(m, n, rank, count, condition_number, noise, seed, ensemble), rank


def quadratic(seed):
    rng = np.random.default_rng([3, seed])
    n, rank = int(rng.integers(10, 80)), int(rng.choice([1, 1, 1, 2, 3]))
    condition_number = 10 ** rng.uniform(0, 3) if rank > 1 else 1.0
    dtype = complex if rng.random() < 0.5 else float
    count, noise = int(rng.uniform(7, 12) * n * rank), float(rng.choice(NOISE))
    return lr.synthetic.quadratic(n, rank, count, condition_number, noise, seed, dtype), rank


def oracle(problem):
    """The error of least squares that is told the tangent space of the truth, by scipy's solver."""
    from scipy.sparse.linalg import LinearOperator, lsqr

    truth = problem.truth
    point = truth if isinstance(truth, lr.SymmetricBurerMonteiro) else truth.balanced()
    noise = problem.data - problem.measure((point,))[0]
    arrays = point.arrays()
    sizes = np.cumsum([a.size for a in arrays])
    double = 2 if np.iscomplexobj(arrays[0]) else 1

    def unpack(v):
        v = v[: v.size // 2] + 1j * v[v.size // 2 :] if double == 2 else v
        return type(point)(*[b.reshape(a.shape) for a, b in zip(arrays, np.split(v, sizes[:-1]), strict=True)])

    def forward(v):
        return problem.measure(point.expansion(unpack(v), range(len(arrays)))[0])[0]

    def backward(y):
        g = np.concatenate([np.ravel(a) for a in point.pullback(problem.backproject(y)).arrays()])
        return np.concatenate((np.real(g), np.imag(g))) if double == 2 else g

    operator = LinearOperator((noise.size, double * sizes[-1]), matvec=forward, rmatvec=backward, dtype=float)
    change = unpack(lsqr(operator, noise, atol=1e-12, btol=1e-12, iter_lim=2000)[0])
    return np.linalg.norm(point.pushforward(change)) / np.linalg.norm(point.dense())


def recovered(problem, point):
    """Within twice the error of the oracle, or 1e-5 of the truth of exact data."""
    return float(problem.error(point)) <= max(1e-5, 2 * oracle(problem))


@pytest.mark.slow
@pytest.mark.covers("S03")
def test_complete_succeeds_on_random_instances():
    made = [completion(seed, (2.2, 6.0)) for seed in range(40)]
    assert sum(recovered(p, lr.complete(p, rank).point) for p, rank in made) >= 38


@pytest.mark.slow
@pytest.mark.covers("S01")
def test_sense_succeeds_on_random_instances():
    made = [sensing(seed) for seed in range(40)]
    assert sum(recovered(p, lr.sense(p.operator, p.data, p.shape, rank).point) for p, rank in made) >= 38


@pytest.mark.slow
@pytest.mark.covers("S06")
def test_phase_retrieval_succeeds_on_random_instances():
    made = [quadratic(seed) for seed in range(40)]
    assert sum(recovered(p, lr.phase_retrieval(p.operator.vectors, p.data, rank).point) for p, rank in made) >= 38


@pytest.mark.covers("S03")
@pytest.mark.parametrize("seed", range(6))
def test_complete_reaches_the_oracle(seed):
    problem, rank = completion(seed)
    assert recovered(problem, lr.complete(problem, rank).point)


# what it chooses ---------------------------------------------------------------------------------------------


def test_easy_data_take_one_solver():
    problem = lr.synthetic.completion(80, 60, 3, 0.4, 10.0, seed=0)
    result = lr.complete(problem, 3)
    assert result.success
    assert "rank 3 as given" in result.choice
    assert "ALS" in result.choice
    assert "IRLS" not in result.choice


@pytest.mark.covers("S03")
def test_an_ill_conditioned_matrix_of_few_entries_takes_the_reweighted_solver():
    n, rank = 500, 5
    spectrum = np.geomspace(1, 1e-8, rank)
    observed = 3 * rank * (2 * n - rank) / n**2
    problem = lr.synthetic.completion(n, n, rank, observed, 1e8, seed=0, least=rank, spectrum=spectrum)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, rank)
    assert lr.solve(problem, start, lr.ALS(), 500).history["error"][-1] > 1e-4
    result = lr.complete(problem, rank)
    assert result.history["error"][-1] < 1e-8
    assert result.success
    assert result.choice.index("ALS") < result.choice.index("MatrixIRLS")


@pytest.mark.covers("S03")
@pytest.mark.parametrize("n", [200, 300])
def test_a_singular_value_below_the_residual_is_found(n):
    """At condition number 1e11 the data are met to 1e-9 without the last component; it is found all the same."""
    rank, over = 4, 3
    spectrum = np.geomspace(1, 1e-11, rank)
    observed = over * rank * (2 * n - rank) / n**2
    problem = lr.synthetic.completion(n, n, rank, observed, 1e11, seed=0, least=rank, spectrum=spectrum)
    result = lr.complete(problem, rank)
    assert result.success
    found = np.linalg.svd(result.point.dense(), compute_uv=False)[:rank]
    assert np.allclose(found, spectrum, rtol=1e-2)
    assert "open -> MatrixIRLS" in result.choice
    assert "not found" not in result.choice


def test_a_rank_above_that_of_the_data_is_reported():
    problem = lr.synthetic.completion(80, 70, 2, 0.5, 10.0, seed=0)
    result = lr.complete(problem, 3)
    assert result.success
    assert result.history["error"][-1] < 1e-9
    assert result.choice.endswith("is not found: the rank may be smaller")
    coarse = lr.complete(problem, 3, tol=1e-6)  # a coarse fit by request
    assert "MatrixIRLS" not in coarse.choice.split("open")[-1]


def test_no_iterations_are_no_error():
    matrix = np.where(np.random.default_rng(0).random((9, 8)) < 0.8, np.random.default_rng(1).random((9, 8)), np.nan)
    result = lr.complete(matrix, 2, max_iter=0)
    assert result.nit == 0
    assert not result.success


ONE = np.where(np.eye(4, 3) * np.eye(4, 3)[0] > 0, 2.0, np.nan)
PLACES, BATCH = np.indices((4, 3)).reshape(2, -1), np.ones((2, 12))


@pytest.mark.parametrize("data", [ONE, lr.MatrixCompletion(*PLACES, BATCH, (4, 3))], ids=["one entry", "batch"])
@pytest.mark.filterwarnings("ignore:.*no observed entry", "ignore:1 entries for 6 degrees of freedom")
def test_what_cannot_be_held_out_has_no_automatic_rank(data):
    problem = lr.MatrixCompletion.of(data)
    assert np.allclose(problem.residual(lr.complete(data, 1).point), 0, atol=1e-10)
    with pytest.raises(
        ValueError, match=r"takes one matrix with at least two known entries, got values of shape \((1,|2, 12)\)"
    ):
        lr.complete(data, "auto")


def test_noisy_data_take_a_validated_ridge():
    """Weak components under the noise are fitted to it by least squares, and not with the ridge."""
    problem = lr.synthetic.completion(160, 140, 4, 0.1, 300.0, noise=0.02, seed=0, least=4)
    plain, ridged = lr.complete(problem, 4, validation=0.0), lr.complete(problem, 4)
    assert "no ridge" in plain.choice
    assert "chosen on 10% held-out entries" in ridged.choice
    assert ridged.history["error"][-1] < 0.7 * plain.history["error"][-1]


def test_the_history_runs_through_all_stages():
    problem = lr.synthetic.completion(80, 60, 3, 0.3, 10.0, noise=0.01, seed=0)
    history = lr.complete(problem, 3).history
    assert len({len(values) for values in history.values()}) == 1
    assert np.array_equal(history["iteration"], np.arange(len(history["iteration"])))
    assert (np.diff(history["seconds"]) >= 0).all()


def test_joined_results_end_with_the_last():
    problem = lr.synthetic.completion(30, 20, 2, 0.5, seed=0)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 2)
    first = lr.solve(problem, start, lr.ALS(), 3)
    second = lr.solve(problem, first.point, lr.ScaledCG(), 5)
    both = join([first, second], "two solvers", seconds=1.0)
    assert (both.nit, both.choice, both.fun) == (8, "two solvers", second.fun)
    assert np.allclose(both.history["loss"], np.concatenate((first.history["loss"], second.history["loss"][1:])))
    expected = first.history["seconds"][-1] + second.history["seconds"][-1] + 1.0
    assert np.isclose(both.history["seconds"][-1], expected)


def test_a_split_is_a_partition():
    problem = lr.synthetic.completion(30, 20, 2, 0.5, seed=0)
    rest, (rows, cols, values) = split(problem, 0.2)
    assert values.size == 60
    parts = [rest.pattern.rows * 20 + rest.pattern.cols, rows * 20 + cols]
    assert np.array_equal(np.sort(np.concatenate(parts)), problem.pattern.rows * 20 + problem.pattern.cols)
    assert np.allclose(np.sort(np.concatenate((rest.data, values))), np.sort(problem.data))


def test_the_validated_ridge_is_zero_for_exact_data():
    problem = lr.synthetic.completion(60, 50, 2, 0.5, seed=0)
    point = lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, 2), lr.ALS()).point
    ridge, fitted, _ = validated_ridge(problem, point, 0.1)
    assert ridge == 0
    assert misfit(problem, fitted) < 1e-8


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_libraries_and_types(convert, kind):
    made = lr.synthetic.completion(60, 50, 2, 0.4, 100.0, noise=1e-3, seed=0)
    array = np.full((60, 50), np.nan, kind)
    array[made.pattern.rows, made.pattern.cols] = made.data
    result = lr.complete(convert(array), 2)
    assert type(result.point.left) is type(convert(array))
    assert result.point.left.dtype == convert(array).dtype
    assert made.error(result.point.map(np.asarray)) < 2e-3


# the rank ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_the_noise_edge_counts_what_stands_out(ratio):
    """Signals 1.5 times above the edge of the noise spectrum, whose place random matrix theory knows."""
    rng = np.random.default_rng(0)
    m, n = 200, int(200 * ratio)
    noise = rng.standard_normal((m, n)) / m**0.5
    edge = 1 + ratio**0.5
    left, right = (np.linalg.qr(rng.standard_normal((k, 3)))[0] for k in (m, n))
    s = np.linalg.svd(noise + 1.7 * edge * left @ right.T, compute_uv=False)
    assert rank_by_noise_edge(s, (m, n)) == 3
    assert rank_by_noise_edge(np.linalg.svd(noise, compute_uv=False), (m, n)) == 1  # at least one


def test_the_widest_gap_ignores_rounding():
    assert rank_by_gap([1.0, 0.5, 1e-14, 1e-17]) == 2
    assert rank_by_gap([1.0]) == 1
    assert rank_by_gap([0.0, 0.0]) == 1


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_factorize_finds_the_rank(noise):
    problem = lr.synthetic.factorization(70, 50, 4, 5.0, noise, seed=0)
    result = lr.factorize(problem.data, "auto")
    assert result.point.rank == 4
    assert "rank 4 from the singular values above noise" in result.choice


def test_factorize_finds_the_rank_of_a_sparse_matrix():
    from scipy.sparse import block_diag, csr_array

    blocks = [np.outer(np.arange(1, 9), np.ones(6)) for _ in range(5)]
    result = lr.factorize(csr_array(block_diag(blocks)), "auto")
    assert result.point.rank == 5


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_complete_finds_the_rank(noise):
    problem = lr.synthetic.completion(120, 90, 4, 0.35, 5.0, noise, seed=0)
    result = lr.complete(problem, "auto")
    assert result.point.rank == 4
    assert "rank 4 from 10% held-out entries" in result.choice
    assert recovered(problem, result.point)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_sense_finds_the_rank(noise):
    problem = lr.synthetic.sensing(25, 20, 2, 500, 5.0, noise, seed=0)
    result = lr.sense(problem.operator, problem.data, problem.shape, "auto")
    assert result.point.rank == 2
    assert recovered(problem, result.point)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_robust_pca_finds_the_rank(noise):
    problem = lr.synthetic.robust(70, 60, 3, 0.05, condition_number=5.0, noise=noise, seed=0)
    result, _ = lr.robust_pca(problem.data, "auto")
    assert result.point.rank == 3
    assert problem.error(result.point) < max(1e-6, noise)


@pytest.mark.slow
def test_the_rank_of_random_completions_is_found():
    """Within the condition numbers that leave the last singular value above the noise."""
    made = [completion(seed, (3.0, 8.0), tame=True) for seed in range(30)]
    assert sum(rank_of_completion(problem, 0.1)[0] == rank for problem, rank in made) >= 28


@pytest.mark.slow
def test_the_rank_of_random_sensing_and_outliers_is_found():
    rng = np.random.default_rng(0)
    good = 0
    for seed in range(20):
        rank, noise = int(rng.integers(1, 5)), float(rng.choice(NOISE))
        condition_number = 10 ** rng.uniform(0, 1.0) if rank > 1 else 1.0
        p = lr.synthetic.sensing(35, 25, rank, 6 * rank * (60 - rank), condition_number, noise, seed)
        good += lr.sense(p.operator, p.data, p.shape, "auto").point.rank == rank
        q = lr.synthetic.robust(90, 70, rank, 0.06, 10.0, condition_number, noise, seed)
        good += lr.robust_pca(q.data, "auto").result.point.rank == rank
    assert good >= 38


# bad input ---------------------------------------------------------------------------------------------------

HIDDEN = np.where(np.eye(4) > 0, np.nan, 1.0)
ERRORS = {
    "word": (lambda: lr.complete(HIDDEN, "automatic"), ValueError, 'rank must be an integer or "auto", got'),
    "rank": (lambda: lr.complete(HIDDEN, 9), ValueError, "rank must lie between 1 and"),
    "validation": (lambda: lr.complete(HIDDEN, 1, validation=0.9), ValueError, r"validation must lie in \[0, 0.5\]"),
    "factorize": (lambda: lr.factorize(np.eye(3), "best"), ValueError, "rank must be an integer or"),
    "least": (lambda: lr.synthetic.completion(9, 9, 2, 0.2, least=5), ValueError, "cannot give every row"),
}


@pytest.mark.parametrize("call, kind, message", [pytest.param(*c, id=k) for k, c in ERRORS.items()])
def test_the_error_names_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_every_row_and_column_gets_the_least_number_of_entries():
    problem = lr.synthetic.completion(50, 40, 2, 0.1, seed=0, least=3)
    assert problem.data.size == 200
    for index, size in ((problem.pattern.rows, 50), (problem.pattern.cols, 40)):
        assert np.bincount(index, minlength=size).min() >= 3


def test_small_outliers_hardly_bend_the_robust_fit():
    ratios = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        truth = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 50))
        wrong = rng.random(truth.shape) < 0.15
        sizes = rng.uniform(0.1, 0.5, truth.shape) * rng.choice([-1, 1], truth.shape)  # two to ten deviations
        seen = truth + 0.05 * rng.standard_normal(truth.shape) + wrong * sizes
        known = np.nonzero(~wrong)
        best = lr.complete(lr.MatrixCompletion(*known, seen[known], truth.shape), 3, validation=0.0)
        found = lr.robust_pca(seen, 3).result
        ratios.append(np.linalg.norm(found.point.dense() - truth) / np.linalg.norm(best.point.dense() - truth))
    assert np.median(ratios) < 1.45  # of who knows the wrong entries; 1.7 where five deviations decide
