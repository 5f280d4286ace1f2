"""The baselines against dense brute force: the iterations themselves, their solutions, and recovery."""

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp.baselines import APG, BASELINES, NIHT, PCP, SVP, SVT, SoftImpute
from lowrank_sp.baselines.common import Sum, combine, frobenius, leading, overlap, spectral_norm

LIBRARIES = pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])


def easy(seed=0):
    problem = lr.synthetic.completion(40, 30, 2, observed=0.7, seed=seed)
    return problem, lr.inits.spectral(problem, lr.BurerMonteiro, 2)


def shrunk(a, penalty):
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    return (u * np.maximum(s - penalty, 0)) @ vh


def known(problem):
    mask, target = np.zeros(problem.shape, bool), np.zeros(problem.shape)
    mask[problem.pattern.rows, problem.pattern.cols] = True
    target[mask] = problem.data
    return mask, target


@LIBRARIES
def test_block_power_finds_the_leading_triplets(convert):
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((k, 6)))[0] for k in (20, 15))
    a = (u * 0.1 ** np.arange(6)) @ v.T
    found = leading(convert(a), convert(np.zeros((15, 0))), 3, powers=12)
    assert np.allclose(found.values, [1, 0.1, 0.01])
    assert np.allclose(found.dense(), (u[:, :3] * 0.1 ** np.arange(3)) @ v[:, :3].T, atol=1e-3)
    assert np.isclose(spectral_norm(convert(a), convert(a), 15), 1.0)


def test_sums_of_points_are_sums_of_matrices():
    a, b = (lr.BurerMonteiro.random((8, 6), 2, np.random.default_rng(k)) for k in range(2))
    dense = 2 * a.dense() - 3 * b.dense()
    assert np.allclose(combine((2.0, a), (-3.0, b)).dense(), dense)
    assert np.isclose(frobenius(combine((2.0, a), (-3.0, b))), np.linalg.norm(dense))
    assert np.isclose(overlap(a, b), np.vdot(a.dense(), b.dense()))
    total = Sum((2.0, a), (-3.0, b.dense()))
    assert np.allclose(total @ np.eye(6), dense)
    assert np.allclose(total.adjoint() @ np.eye(8), dense.T)


@pytest.mark.covers("O19", "S04")
@pytest.mark.parametrize("solver", [SoftImpute, APG])
def test_nuclear_norm_methods_reach_the_minimiser_of_the_convex_program(solver):
    problem, start = easy()
    mask, target = known(problem)
    penalty = 0.05 * np.linalg.norm(target, 2)
    w = np.zeros(problem.shape)
    for _ in range(3000):
        w = shrunk(np.where(mask, target, w), penalty)
    result = lr.solve(problem, start, solver(0.05, rank=30), max_iter=3000, tol=1e-12)
    assert np.allclose(result.point.dense(), w, atol=1e-6)


def test_the_step_of_sensing_is_found_by_halving():
    made = lr.synthetic.sensing(12, 10, 2, seed=0)
    problem = lr.MatrixSensing(3 * made.operator.rows.reshape(-1, 12, 10), 3 * made.data, (12, 10), made.truth)
    result = lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, 2), APG(), max_iter=1500, tol=1e-10)
    assert result.history["error"][-1] < 1e-5


@pytest.mark.covers("O19")
def test_svt_is_uzawas_iteration():
    problem, start = easy()
    mask, target = known(problem)
    norm, size = np.linalg.norm(target, 2), 1.2 / problem.observed
    tau = 5 * norm / problem.observed
    dual, w = np.ceil(tau / (size * norm)) * size * target, None
    for _ in range(300):
        w = shrunk(dual, tau)
        dual = dual + size * np.where(mask, target - w, 0)
    result = lr.solve(problem, start, SVT(rank=30), max_iter=300, tol=0)
    assert np.linalg.norm(result.point.dense() - w) < 1e-3 * np.linalg.norm(w)


@pytest.mark.parametrize("solver", [SVP(1.0), NIHT()], ids=["SVP", "NIHT"])
def test_projected_gradients_are_those_of_the_dense_formula(solver):
    problem = lr.synthetic.sensing(12, 10, 2, seed=0)
    stack = problem.operator.rows.reshape(-1, 12, 10)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 2)
    w = start.dense()
    for _ in range(3):
        g = np.einsum("k,kij->ij", np.einsum("kij,ij->k", stack, w) - problem.data, stack)
        u, _, _ = np.linalg.svd(w)
        p = u[:, :2] @ u[:, :2].T @ g
        size = 1.0 if solver.step_size else np.vdot(p, p) / np.sum(np.einsum("kij,ij->k", stack, p) ** 2)
        a, s, b = np.linalg.svd(w - size * g)
        w = (a[:, :2] * s[:2]) @ b[:2]
    result = lr.solve(problem, start, solver, max_iter=3, tol=0)
    assert np.allclose(result.point.dense(), w, atol=5e-2 * np.linalg.norm(w))


@pytest.mark.covers("S04", "O19")
@pytest.mark.parametrize("name", [name for name in BASELINES if name not in ("PCP", "RobustADMM")])
def test_baselines_recover_an_easy_completion(name):
    problem, start = easy()
    solver = SVP(1 / problem.observed) if name == "SVP" else BASELINES[name]()
    result = lr.solve(problem, start, solver, max_iter=800, tol=1e-10)
    assert isinstance(result.point, lr.BurerMonteiro)
    assert result.history["error"][-1] < {"SoftImpute": 1e-2, "SVT": 1e-3}.get(name, 1e-5)


@LIBRARIES
@pytest.mark.covers("S05", "O19")
@pytest.mark.parametrize("rank", [None, 8])
def test_pursuit_separates_without_knowing_the_rank(convert, rank):
    made = lr.synthetic.robust(50, 40, 2, 0.05, condition_number=20.0, seed=0)
    problem = lr.RobustPCA(convert(made.data), 0.05)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 2)
    result = lr.solve(problem, start, PCP(rank=rank), max_iter=500, tol=1e-9)
    low = np.asarray(result.point.dense())
    assert np.linalg.norm(low - made.truth.dense()) < 1e-6 * np.linalg.norm(low)
    assert np.linalg.matrix_rank(low, 1e-6) == 2


@LIBRARIES
@pytest.mark.parametrize("solver", [SoftImpute(), APG(), SVT(), SVP(), NIHT()], ids=lambda s: s.name)
def test_baselines_run_in_the_library_of_the_data(convert, solver):
    made, _ = easy()
    problem = lr.MatrixCompletion(
        *map(convert, (made.pattern.rows.astype(int), made.pattern.cols.astype(int), made.data)), made.shape
    )
    result = lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, 2), solver, max_iter=5, tol=0)
    assert type(result.point.left) is type(problem.data)


BATCH = lr.BurerMonteiro.random((40, 30), 2, np.random.default_rng(0), (2,))
ERRORS = {
    "kinks": (
        lambda: lr.solve(
            lr.synthetic.robust_sensing(6, 5, 1, seed=0), lr.BurerMonteiro(np.ones((6, 1)), np.ones((5, 1))), APG()
        ),
        TypeError,
        "APG needs a quadratic problem, not RobustSensing",
    ),
    "batch": (lambda: lr.solve(easy()[0], BATCH, SVP()), ValueError, "one problem at a time"),
    "pursuit": (lambda: lr.solve(*easy(), PCP()), TypeError, "PCP needs a RobustPCA problem"),
    "penalty": (lambda: SoftImpute(-1.0), ValueError, "penalty must fall"),
    "decay": (lambda: APG(decay=0.0), ValueError, "decay must lie"),
    "threshold": (lambda: SVT(0.0), ValueError, "threshold must be positive"),
    "step": (lambda: SVP(-1.0), ValueError, "step_size must be positive"),
    "weight": (lambda: PCP(weight=0.0), ValueError, "weight must be positive"),
}


@pytest.mark.parametrize("call, kind, message", [pytest.param(*c, id=k) for k, c in ERRORS.items()])
def test_the_error_names_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
