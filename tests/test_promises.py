"""The promises of the core: what every named solver reaches without tuning, and what completion costs."""

import tracemalloc

import numpy as np
import pytest

import lowrank_sp as lr

# From a Nystrom start (Y_0 = 0) plain gradient descent keeps X^T X - Y^T Y, which stays far from zero: it is slow.
EXCEPTIONS = {("GD", "nystrom", "completion")}


def problem(name: str, condition_number: float, seed: int):
    if name == "factorization":
        return lr.synthetic.factorization(60, 50, 4, condition_number, seed=seed), 4
    if name == "sensing":
        return lr.synthetic.sensing(30, 25, 3, condition_number=condition_number, seed=seed), 3
    return lr.synthetic.completion(100, 80, 3, observed=0.35, condition_number=condition_number, seed=seed), 3


def error(name: str, init: str, kind: str, condition_number: float, seed: int) -> float:
    p, rank = problem(kind, condition_number, seed)
    start = getattr(lr.inits, init)(p, lr.BurerMonteiro, rank=rank, seed=seed)
    result = lr.solve(p, start, lr.SOLVERS[name]())
    assert isinstance(result.point, lr.BurerMonteiro)
    return result.history["error"][-1]


KINDS = ("factorization", "sensing", "completion")
CASES = [(name, init, kind) for name in lr.SOLVERS for init in ("spectral", "nystrom") for kind in KINDS]


@pytest.mark.parametrize(("name", "init", "kind"), [case for case in CASES if case not in EXCEPTIONS])
@pytest.mark.covers("S01", "S02", "S03", "O01", "O02", "O03", "O04", "O05", "O10", "O12")
def test_named_solvers_need_no_tuning(name, init, kind):
    assert error(name, init, kind, condition_number=10.0, seed=1) < 1e-8


@pytest.mark.parametrize(("name", "init", "kind"), sorted(EXCEPTIONS))
def test_stated_exceptions_are_real(name, init, kind):
    assert max(error(name, init, kind, 10.0, seed) for seed in (1, 2, 3)) > 1e-8


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", ["factorization", "sensing"])
@pytest.mark.parametrize("name", ["ScaledCG", "AltScaledGD", "ALS"])
def test_scaled_solvers_at_condition_number_1000(name, kind, seed):
    assert error(name, "spectral", kind, 1000.0, seed) < 1e-8
    assert error(name, "nystrom", kind, 1000.0, seed) < 1e-8


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.covers("T30", "I13")
def test_scaledgd_from_nystrom_is_free_of_the_condition_number(seed):
    counts = []
    for condition_number in (2.0, 100.0, 10_000.0):
        p = lr.synthetic.factorization(80, 60, 4, condition_number, seed=seed)
        start = lr.inits.nystrom(p, lr.BurerMonteiro, rank=4, seed=seed)
        counts.append(lr.solve(p, start, lr.ScaledGD(step_size=0.5)).iterations_to(1e-9))
    assert max(counts) - min(counts) <= 2
    assert max(counts) < 15


@pytest.mark.parametrize("condition_number", [1.0, 10.0, 1000.0])
@pytest.mark.parametrize("init", ["gaussian", "half_nystrom"])
@pytest.mark.covers("O05")
def test_altscaledgd_solves_a_factorization_in_one_sweep(init, condition_number):
    p = lr.synthetic.factorization(60, 50, 4, condition_number, seed=3)
    start = getattr(lr.inits, init)(p, lr.BurerMonteiro, rank=4, seed=4)
    assert lr.solve(p, start, lr.AltScaledGD(step_size=1.0), max_iter=1).history["error"][-1] < 1e-9


@pytest.mark.parametrize("solver", ["ALS", "ScaledCG"])
def test_completion_never_forms_the_matrix(solver):
    m, n, r = 2000, 2000, 10
    dof = r * (m + n - r)
    made = lr.synthetic.completion(m, n, r, observed=5 * dof / (m * n), condition_number=10.0, seed=0)
    rows, cols = made.pattern.rows.astype(np.int64), made.pattern.cols.astype(np.int64)
    values, truth, shape = made.data, made.truth, made.shape
    lr.solve(made, lr.inits.spectral(made, lr.BurerMonteiro, r), lr.SOLVERS[solver](), max_iter=1)  # imports
    tracemalloc.start()
    try:
        p = lr.MatrixCompletion(rows, cols, values, shape, truth)
        start = lr.inits.spectral(p, lr.BurerMonteiro, rank=r)
        result = lr.solve(p, start, lr.SOLVERS[solver](), callback=lambda _, x, __: p.error(x) < 1e-6)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.history["error"][-1] < 1e-6
    assert peak < 3 * (rows.nbytes + cols.nbytes + values.nbytes)
