"""The one loop: statuses, history, batches, libraries, precision, callbacks and the one-line entry points."""

import numpy as np
import pytest
import scipy.sparse
import torch

import lowrank_sp as lr
from lowrank_sp import Status

SHAPE, RANK = (14, 11), 2


def instance(condition_number=3.0, seed=0):
    problem = lr.synthetic.factorization(*SHAPE, RANK, condition_number, seed=seed)
    return problem, lr.inits.gaussian(problem, lr.BurerMonteiro, RANK, scale=0.5, seed=seed)


# statuses -------------------------------------------------------------------------------------------------


def test_converged_on_noisy_data():
    problem = lr.synthetic.factorization(*SHAPE, RANK, noise=0.1, seed=0)
    start = lr.inits.gaussian(problem, lr.BurerMonteiro, RANK, scale=0.5, seed=0)
    result = lr.solve(problem, start, lr.ScaledGD(), tol=1e-8)
    assert result.status is Status.CONVERGED
    assert result.success
    assert result.message == result.status.value
    assert result.history["gradient_norm"][-1] <= 1e-8 * result.history["gradient_norm"][1]
    s = np.linalg.svd(problem.data, compute_uv=False)
    assert np.isclose(result.fun, 0.5 * (s[RANK:] ** 2).sum())


def test_exact_on_clean_data_even_with_tol_zero():
    problem, start = instance()
    result = lr.solve(problem, start, lr.AltScaledGD(1.0), tol=0)
    assert result.status is Status.EXACT
    assert result.success
    assert result.nit < 10


def test_max_iter():
    problem, start = instance()
    result = lr.solve(problem, start, lr.GD(1e-3), max_iter=7)
    assert result.status is Status.MAX_ITER
    assert not result.success
    assert result.nit == 7


def test_no_iteration_at_all():
    problem, start = instance()
    result = lr.solve(problem, start, lr.GD(0.1), max_iter=0)
    assert result.nit == 0
    assert result.point is start
    assert np.isclose(result.fun, problem.loss(problem.residual(start)))


def test_stalled_in_a_cycle():
    """ScaledGD with step 1 on a scalar jumps between p and a^2 / p for ever."""
    problem = lr.MatrixFactorization(np.array([[1.0]]))
    start = lr.BurerMonteiro(np.array([[2.0]]), np.array([[1.0]]))
    result = lr.solve(problem, start, lr.ScaledGD(1.0), max_iter=1000)
    assert result.status is Status.STALLED
    assert not result.success
    assert np.allclose(sorted(set(np.round(result.history["loss"], 9))), [0.125, 0.5])
    assert lr.solve(problem, start, lr.ScaledGD(1.0), max_iter=100, tol=0).status is Status.MAX_ITER


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_diverged_returns_the_last_finite_point_and_advice(convert):
    problem = lr.MatrixFactorization(convert(instance()[0].data))
    start = instance()[1].map(convert)
    result = lr.solve(problem, start, lr.GD(50.0), max_iter=100)
    assert result.status is Status.DIVERGED
    assert not result.success
    assert result.nit < 10
    assert all(np.isfinite(np.asarray(a)).all() for a in result.point.arrays())
    assert np.isfinite(result.history["loss"]).all()
    assert np.isclose(result.fun, float(problem.loss(problem.residual(result.point))))
    assert 'step_size="auto"' in result.message


def test_a_true_callback_stops():
    problem, start = instance()
    seen = []

    def callback(iteration, point, loss):
        seen.append((iteration, float(loss)))
        assert np.isclose(loss, problem.loss(problem.residual(point)))
        return iteration == 4

    result = lr.solve(problem, start, lr.GD(0.05), callback=callback, tol=0)
    assert result.status is Status.CALLBACK
    assert [k for k, _ in seen] == [1, 2, 3, 4]
    assert np.allclose([loss for _, loss in seen], result.history["loss"][1:])
    assert np.isclose(result.fun, seen[-1][1])


def test_results_are_printed_with_shapes_for_arrays():
    problem, start = instance()
    result = lr.solve(problem, start, lr.GD(0.05), max_iter=3)
    lines = dict(line.strip().split(": ", 1) for line in repr(result).splitlines())
    assert lines["message"] == result.message
    sizes = ", ".join(f"{name} {array.shape}" for name, array in zip(result.point.names, result.point.arrays()))
    assert lines["point"] == f"{type(result.point).__name__}: {sizes}"
    assert (lines["nit"], lines["solver"], lines["success"]) == ("3", "GD", "False")
    assert "choice" not in lines


def test_an_interrupt_keeps_the_work_and_can_be_continued():
    problem, start = instance()

    def callback(iteration, point, loss):
        if iteration == 5:
            raise KeyboardInterrupt

    result = lr.solve(problem, start, lr.GD(0.05), callback=callback, tol=0, max_iter=20)
    assert result.status is Status.INTERRUPTED
    assert result.nit == 5
    rest = lr.solve(problem, result.point, lr.GD(0.05), tol=0, max_iter=15)
    whole = lr.solve(problem, start, lr.GD(0.05), tol=0, max_iter=20)
    assert np.allclose(rest.point.dense(), whole.point.dense(), atol=1e-14)


def test_other_errors_of_a_callback_are_the_callers():
    problem, start = instance()

    def callback(iteration, point, loss):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        lr.solve(problem, start, lr.GD(0.05), callback=callback)


# history --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", lr.SOLVERS)
def test_history_arrays_have_one_length_and_true_values(name):
    problem, start = instance()
    result = lr.solve(problem, start, lr.SOLVERS[name](), max_iter=6, tol=0)
    history = result.history
    assert set(history) == {"iteration", "seconds", "loss", "gradient_norm", "error"}
    assert {len(v) for v in history.values()} == {result.nit + 1}
    assert history["iteration"].tolist() == list(range(result.nit + 1))
    assert (np.diff(history["seconds"]) >= 0).all()
    dense = result.point.dense()
    assert np.isclose(history["loss"][-1], 0.5 * np.linalg.norm(dense - problem.data) ** 2, atol=1e-20)
    truth = problem.truth.dense()
    expected = np.linalg.norm(dense - truth) / np.linalg.norm(truth)
    assert np.isclose(history["error"][-1], expected, rtol=1e-6, atol=1e-13)
    assert type(result.point) is lr.BurerMonteiro


def test_gradient_norm_is_that_of_the_point_before_the_step():
    problem, start = instance()
    history = lr.solve(problem, start, lr.GD(0.05), max_iter=3, tol=0).history
    assert np.isnan(history["gradient_norm"][0])
    residual = start.dense() - problem.data
    expected = np.hypot(np.linalg.norm(residual @ start.right), np.linalg.norm(residual.T @ start.left))
    assert np.isclose(history["gradient_norm"][1], expected)


def test_error_is_kept_when_the_truth_is_known_only():
    problem, start = instance()
    assert "error" not in lr.solve(lr.MatrixFactorization(problem.data), start, lr.GD(0.1), max_iter=2).history


def test_iterations_to_a_level():
    problem, start = instance()
    result = lr.solve(problem, start, lr.GD(0.3), max_iter=200, tol=0)
    first = int(result.iterations_to(1e-3))
    assert result.history["error"][first] <= 1e-3 < result.history["error"][first - 1]
    assert result.iterations_to(0.0, "loss") == np.inf
    with pytest.raises(ValueError, match="history has no 'accuracy'"):
        result.iterations_to(1e-3, "accuracy")


def test_progress_bar(capsys):
    problem, start = instance()
    lr.solve(problem, start, lr.GD(0.1), max_iter=5, tol=0, progress=True)
    shown = capsys.readouterr().err
    assert "GD" in shown
    assert "5/5" in shown
    lr.solve(problem, start, lr.GD(0.1), max_iter=5, tol=0)
    assert capsys.readouterr().err == ""


# every solver on every form, library, batch and precision -------------------------------------------------

PAIRS = [
    pytest.param(name, form, id=f"{name}-{form.__name__}")
    for name in lr.SOLVERS
    for form in (lr.BurerMonteiro, lr.PoLAR, lr.SVD, lr.FixedRank)
    if form is lr.BurerMonteiro
    or (name in ("GD", "AltGD", "ScaledGD", "AltScaledGD", "ScaledCG", "PrecGD", "RiemannianGD", "RiemannianCG"))
    or (name, form) == ("LandingGD", lr.PoLAR)
]


@pytest.mark.covers("O01", "O02", "O03", "O04", "O05", "O07", "O08", "O09", "O10", "O11", "O12")
@pytest.mark.parametrize("name, form", PAIRS)
def test_every_solver_solves_a_factorization_untuned(name, form):
    problem = lr.synthetic.factorization(*SHAPE, RANK, 3.0, seed=2)
    start = lr.inits.gaussian(problem, form, RANK, scale=0.5, seed=2)
    result = lr.solve(problem, start, lr.SOLVERS[name](), max_iter=2000, tol=1e-9)
    assert result.success, result.message
    assert type(result.point) is form
    assert np.allclose(result.point.dense(), problem.data, atol=1e-6)


@pytest.mark.parametrize("name, form", PAIRS)
def test_torch_equals_numpy(name, form):
    problem = lr.synthetic.factorization(*SHAPE, RANK, 3.0, seed=0)
    start = lr.inits.gaussian(problem, form, RANK, scale=0.5, seed=0)
    twin = lr.MatrixFactorization(torch.as_tensor(problem.data), problem.truth.map(torch.as_tensor))
    ours, theirs = (
        lr.solve(p, s, lr.SOLVERS[name](), max_iter=6, tol=0)
        for p, s in ((problem, start), (twin, start.map(torch.as_tensor)))
    )
    assert isinstance(theirs.point.arrays()[0], torch.Tensor)
    assert all(isinstance(v, np.ndarray) for v in theirs.history.values())
    assert np.allclose(theirs.history["loss"], ours.history["loss"], rtol=1e-6, atol=1e-14)
    assert np.allclose(theirs.point.dense().numpy(), ours.point.dense(), atol=1e-6)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", [n for n in lr.SOLVERS if n != "ALS"])
def test_batched_solve_is_a_loop(name, convert):
    """Two targets at once; policies that look at all elements together (BB, backtracking) get a step."""
    step = dict.fromkeys(("RiemannianGD", "RiemannianCG"), 0.3)
    step |= dict.fromkeys(("LandingGD", "GD", "RefLoRA", "RefLoRAScalar"), 0.1)
    problems = [lr.synthetic.factorization(*SHAPE, RANK, 3.0, noise=0.1, seed=s) for s in (0, 1)]
    starts = [lr.inits.gaussian(p, lr.BurerMonteiro, RANK, scale=0.5, seed=5) for p in problems]
    solver = lr.SOLVERS[name](step.get(name, "auto"))
    batch = lr.MatrixFactorization(convert(np.stack([p.data for p in problems])))
    start = starts[0].map(lambda a, b: convert(np.stack((a, b))), starts[1])
    together = lr.solve(batch, start, solver, max_iter=5, tol=0)
    assert together.history["loss"].shape == (6, 2)
    for k in range(2):
        alone = lr.solve(problems[k], starts[k], solver, max_iter=5, tol=0)
        assert np.allclose(together.history["loss"][:, k], alone.history["loss"], rtol=1e-6, atol=1e-14)
        assert np.allclose(together.point.dense()[k], alone.point.dense(), atol=1e-6)


def test_a_batch_of_starts_for_one_problem():
    problem = lr.synthetic.completion(20, 16, rank=2, observed=0.7, seed=0)
    starts = lr.inits.gaussian(problem, lr.BurerMonteiro, 2, scale=0.5, seed=0, batch=3)
    result = lr.solve(problem, starts, lr.ScaledCG(), max_iter=300)
    assert result.converged.shape == result.fun.shape == (3,)
    assert result.success
    assert np.allclose(result.point.dense(), problem.truth.dense(), atol=1e-5)


def test_a_diverging_element_does_not_spoil_the_others():
    problem, start = instance()
    batch = start.map(lambda a: np.stack((a, 300 * a)))
    result = lr.solve(problem, batch, lr.GD(0.3), max_iter=400, tol=1e-9)
    assert result.status is Status.DIVERGED
    assert not result.success
    assert result.converged.tolist() == [True, False]
    assert np.isfinite(result.history["loss"]).all()
    assert all(np.isfinite(a).all() for a in result.point.arrays())
    alone = lr.solve(problem, start, lr.GD(0.3), max_iter=400, tol=1e-9)
    assert np.allclose(result.point.dense()[0], alone.point.dense(), atol=1e-12)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", lr.SOLVERS)
def test_single_precision_stays_single_and_reaches_its_rounding(name, convert):
    problem, start = instance()
    single = lr.MatrixFactorization(convert(problem.data.astype(np.float32)))
    result = lr.solve(single, start.map(lambda a: convert(a.astype(np.float32))), lr.SOLVERS[name](), max_iter=250)
    assert all(a.dtype == convert(np.float32(0)).dtype for a in result.point.arrays())
    assert np.abs(np.asarray(result.point.dense()) - problem.data).max() < 1e-3


@pytest.mark.parametrize("name", ["ScaledGD", "AltScaledGD", "ScaledCG", "RiemannianGD", "ALS", "RefLoRA"])
def test_complex_targets(name):
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal((k, RANK)) + 1j * rng.standard_normal((k, RANK)) for k in SHAPE]
    truth = lr.BurerMonteiro(*factors)
    problem = lr.MatrixFactorization(truth.dense() / 10, truth.scale(0.1))
    start = lr.inits.gaussian(problem, lr.BurerMonteiro, RANK, scale=0.5, seed=0)
    result = lr.solve(problem, start, lr.SOLVERS[name](), max_iter=500)
    assert result.success, result.message
    assert np.allclose(result.point.dense(), problem.data, atol=1e-6)


# sensing, completion, one-liners --------------------------------------------------------------------------


@pytest.mark.covers("S01", "S03")
@pytest.mark.parametrize("name", ["ScaledGD", "AltScaledGD", "ScaledCG", "ALS", "RiemannianGD", "RiemannianCG"])
@pytest.mark.parametrize("kind", ["sensing", "completion"])
def test_indirect_data_are_recovered(name, kind):
    if kind == "sensing":
        problem = lr.synthetic.sensing(16, 12, rank=2, condition_number=4, seed=0)
    else:
        problem = lr.synthetic.completion(60, 50, rank=2, observed=0.5, condition_number=4, seed=0)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 2)
    result = lr.solve(problem, start, lr.SOLVERS[name](), max_iter=500)
    assert result.success, result.message
    assert result.history["error"][-1] < 1e-4


def targets(a):
    return {
        "array": a,
        "sparse": scipy.sparse.csr_array(a),
        "operator": scipy.sparse.linalg.aslinearoperator(a),
    }


@pytest.mark.parametrize("kind", ["array", "sparse", "operator"])
def test_factorize(kind):
    a = lr.synthetic.low_rank(30, 20, 3, 5.0, seed=0).dense()
    result = lr.factorize(targets(a)[kind], rank=3)
    assert result.success
    assert np.allclose(result.point.dense(), a, atol=1e-6)


def test_complete_takes_nan_sparse_and_problem():
    problem = lr.synthetic.completion(40, 30, rank=2, observed=0.5, seed=0)
    rows, cols = problem.pattern.rows, problem.pattern.cols
    array = np.full((40, 30), np.nan)
    array[rows, cols] = problem.data
    sparse = scipy.sparse.coo_array((problem.data, (rows, cols)), shape=(40, 30))
    for data in (array, sparse, problem):
        result = lr.complete(data, rank=2)
        assert result.success
        assert np.allclose(result.point.dense(), problem.truth.dense(), atol=1e-6)


def test_sense():
    problem = lr.synthetic.sensing(16, 12, rank=2, seed=0)
    result = lr.sense(problem.operator, problem.data, (16, 12), rank=2)
    assert result.success
    assert np.allclose(result.point.dense(), problem.truth.dense(), atol=1e-6)


def test_a_solve_that_starts_at_its_solution_has_converged():
    noisy = lr.synthetic.factorization(60, 50, 4, condition_number=5.0, noise=0.01, seed=0)
    result = lr.factorize(noisy.data, rank=4)
    u, s, vt = np.linalg.svd(noisy.data, full_matrices=False)
    best = (u[:, :4] * s[:4]) @ vt[:4]
    assert result.success
    assert result.nit <= 2
    assert np.linalg.norm(result.point.dense() - best) < 1e-12 * np.linalg.norm(best)


@pytest.mark.parametrize("solver", [lr.ScaledCG(), lr.RiemannianGD(), lr.GD(), lr.ALS()])
def test_noise_does_not_keep_a_solve_from_success(solver):
    problem = lr.synthetic.completion(100, 80, 3, observed=0.35, condition_number=5.0, noise=0.01, seed=0)
    result = lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, rank=3), solver)
    assert result.success
    assert result.history["error"][-1] < 0.01
