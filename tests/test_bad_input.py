"""Bad input gets an error of the right kind that names the argument, and half-bad input a warning."""

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import aslinearoperator

import lowrank_sp as lr
from lowrank_sp.rules import Adam, LossDamped, Momentum, Scaled
from lowrank_sp.solve import solve

A = np.arange(12.0).reshape(4, 3)
PROBLEM = lr.MatrixFactorization(A)
START = lr.BurerMonteiro(np.ones((4, 1)), np.ones((3, 1)))
ROWS, COLS, VALUES = np.array([0, 1, 2, 3, 0]), np.array([0, 1, 2, 0, 1]), np.arange(5.0)


def with_entry(value):
    a = A.copy()
    a[1, 2] = value
    return a


DATA = {
    "NaN in a target": (lambda: lr.MatrixFactorization(with_entry(np.nan)), ValueError, "target holds 1 NaN"),
    "infinity in a target": (
        lambda: lr.MatrixFactorization(with_entry(np.inf)),
        ValueError,
        "target holds 1",
    ),
    "NaN in a tensor": (
        lambda: lr.MatrixFactorization(torch.as_tensor(with_entry(np.nan))),
        ValueError,
        "target holds 1 NaN",
    ),
    "NaN in a sparse target": (
        lambda: lr.MatrixFactorization(scipy.sparse.csr_array(with_entry(np.nan))),
        ValueError,
        "target holds 1 NaN",
    ),
    "vector as a target": (
        lambda: lr.MatrixFactorization(np.ones(3)),
        ValueError,
        "target must have at least 2",
    ),
    "empty target": (lambda: lr.MatrixFactorization(np.ones((0, 3))), ValueError, "target is empty"),
    "text as a target": (lambda: lr.MatrixFactorization([["a"]]), TypeError, "target must be numeric"),
    "objects as a target": (lambda: lr.MatrixFactorization([[None]]), TypeError, "target must be numeric"),
    "ragged target": (
        lambda: lr.MatrixFactorization([[1.0], [1.0, 2.0]]),
        TypeError,
        "target must be a numeric",
    ),
    "no target": (lambda: lr.factorize(None, rank=1), TypeError, "target must be numeric"),
    "no observations": (
        lambda: lr.MatrixCompletion(np.array([], int), np.array([], int), np.array([]), (4, 3)),
        ValueError,
        "empty",
    ),
    "only NaN": (
        lambda: lr.MatrixCompletion.from_array(np.full((4, 3), np.nan)),
        ValueError,
        "no observed entries",
    ),
    "integers in from_array": (
        lambda: lr.MatrixCompletion.from_array(np.ones((4, 3), int)),
        TypeError,
        "array must be",
    ),
    "three axes in from_array": (
        lambda: lr.MatrixCompletion.from_array(np.ones((2, 4, 3))),
        ValueError,
        "two axes",
    ),
    "empty sparse": (lambda: lr.complete(scipy.sparse.coo_array((4, 3)), rank=1), ValueError, "empty"),
    "row out of range": (
        lambda: lr.MatrixCompletion(ROWS + 1, COLS, VALUES, (4, 3)),
        ValueError,
        r"rows .*\[0, 4\)",
    ),
    "negative column": (
        lambda: lr.MatrixCompletion(ROWS, COLS - 1, VALUES, (4, 3)),
        ValueError,
        r"cols .*\[0, 3\)",
    ),
    "floating rows": (
        lambda: lr.MatrixCompletion(ROWS * 1.0, COLS, VALUES, (4, 3)),
        TypeError,
        "rows must hold int",
    ),
    "mask as rows": (
        lambda: lr.MatrixCompletion(ROWS > 1, COLS, VALUES, (4, 3)),
        TypeError,
        "rows must hold int",
    ),
    "two axes of columns": (
        lambda: lr.MatrixCompletion(ROWS, COLS[None], VALUES, (4, 3)),
        ValueError,
        "cols must have one axis",
    ),
    "duplicates": (
        lambda: lr.MatrixCompletion(ROWS * 0, COLS * 0, VALUES, (4, 3)),
        ValueError,
        r"repeat 4 .*\(0, 0\)",
    ),
    "lengths": (
        lambda: lr.MatrixCompletion(ROWS, COLS, VALUES[:4], (4, 3)),
        ValueError,
        "rows, cols and values",
    ),
    "NaN values": (
        lambda: lr.MatrixCompletion(ROWS, COLS, VALUES * np.nan, (4, 3)),
        ValueError,
        "values holds 5",
    ),
    "shape of three": (
        lambda: lr.MatrixCompletion(ROWS, COLS, VALUES, (4, 3, 2)),
        ValueError,
        "shape must be a pair",
    ),
    "shape of zero": (
        lambda: lr.MatrixCompletion(ROWS, COLS, VALUES, (4, 0)),
        ValueError,
        "shape must hold positive",
    ),
    "short measurements": (
        lambda: lr.MatrixSensing(np.ones((5, 4, 3)), np.ones(4), (4, 3)),
        ValueError,
        "measurements has 4 values",
    ),
    "long operator rows": (
        lambda: lr.MatrixSensing(np.ones((5, 13)), np.ones(5), (4, 3)),
        ValueError,
        "operator has rows of length 13",
    ),
    "long linear operator": (
        lambda: lr.MatrixSensing(aslinearoperator(np.ones((5, 13))), np.ones(5), (4, 3)),
        ValueError,
        "operator acts",
    ),
    "operator of another shape": (
        lambda: lr.MatrixSensing(np.ones((5, 3, 4)), np.ones(5), (4, 3)),
        ValueError,
        "operator acts on",
    ),
    "NaN operator": (
        lambda: lr.MatrixSensing(np.full((5, 4, 3), np.nan), np.ones(5), (4, 3)),
        ValueError,
        "operator holds 60",
    ),
    "NaN measurements": (
        lambda: lr.MatrixSensing(np.ones((5, 4, 3)), np.full(5, np.nan), (4, 3)),
        ValueError,
        "measurements holds 5",
    ),
    "vectors of two counts": (
        lambda: lr.RankOneEnsemble(np.ones((5, 4)), np.ones((6, 3))),
        ValueError,
        "left and right must hold as many",
    ),
    "signs": (
        lambda: lr.SubsampledOrthogonal(np.ones(11), np.arange(3), (4, 3)),
        ValueError,
        "signs must have shape",
    ),
}

INITS = {
    "rank zero": (
        lambda: lr.inits.spectral(PROBLEM, lr.BurerMonteiro, 0),
        ValueError,
        "rank must lie between 1",
    ),
    "negative rank": (lambda: lr.inits.gaussian(PROBLEM, lr.BurerMonteiro, -1), ValueError, "rank must lie"),
    "rank above min": (
        lambda: lr.inits.gaussian(PROBLEM, lr.BurerMonteiro, 4),
        ValueError,
        r"min\(m, n\) = 3",
    ),
    "rank one half": (
        lambda: lr.inits.nystrom(PROBLEM, lr.BurerMonteiro, 1.5),
        ValueError,
        "rank must be an integer",
    ),
    "rank true": (
        lambda: lr.inits.nystrom(PROBLEM, lr.BurerMonteiro, True),
        ValueError,
        "rank must be an integer",
    ),
    "rank as text": (lambda: lr.factorize(A, rank="3"), (TypeError, ValueError), "rank"),
    "rank missing": (lambda: lr.factorize(A, rank=None), (TypeError, ValueError), "rank"),
    "rank NaN": (lambda: lr.factorize(A, rank=np.nan), ValueError, "rank"),
    "rank of a one-liner": (
        lambda: lr.complete(with_entry(np.nan), rank=9),
        ValueError,
        "rank must lie between",
    ),
    "scale zero": (
        lambda: lr.inits.gaussian(PROBLEM, lr.BurerMonteiro, 1, scale=0),
        ValueError,
        "scale must be",
    ),
    "array as a problem": (
        lambda: lr.inits.spectral(A, lr.BurerMonteiro, 1),
        TypeError,
        "problem must be a problem",
    ),
    "text as a form": (lambda: lr.inits.spectral(PROBLEM, "svd", 1), TypeError, "form must be"),
    "point as a form": (lambda: lr.inits.spectral(PROBLEM, START, 1), TypeError, "form must be"),
    "symmetric form of a rectangle": (
        lambda: lr.inits.gaussian(PROBLEM, lr.SymmetricBurerMonteiro, 1),
        ValueError,
        "needs a square matrix",
    ),
}

SYNTHETIC = {
    "condition number": (
        lambda: lr.synthetic.factorization(4, 3, 2, condition_number=0.5),
        ValueError,
        "condition_number must be",
    ),
    "condition number of rank one": (
        lambda: lr.synthetic.factorization(4, 3, 1, condition_number=2),
        ValueError,
        "rank 1 has condition_number 1",
    ),
    "observed zero": (lambda: lr.synthetic.completion(4, 3, 1, observed=0), ValueError, "observed must lie"),
    "observed two": (lambda: lr.synthetic.completion(4, 3, 1, observed=2.0), ValueError, "observed must lie"),
    "negative noise": (
        lambda: lr.synthetic.factorization(4, 3, 1, noise=-1),
        ValueError,
        "noise must not be neg",
    ),
    "no measurements": (
        lambda: lr.synthetic.sensing(4, 3, 1, measurements=0),
        ValueError,
        "measurements must be",
    ),
    "too many coefficients": (
        lambda: lr.synthetic.sensing(4, 3, 1, measurements=13, ensemble="subsampled-orthogonal"),
        ValueError,
        "at most",
    ),
    "ensemble": (
        lambda: lr.synthetic.sensing(4, 3, 1, ensemble="fourier"),
        ValueError,
        "ensemble must be one of",
    ),
    "rank": (lambda: lr.synthetic.completion(4, 3, 4), ValueError, "rank must lie"),
    "shape": (lambda: lr.synthetic.completion(0, 3, 1), ValueError, "shape must hold positive"),
}

TENSOR = START.map(torch.as_tensor)

SOLVE = {
    "step zero": (lambda: lr.GD(0), ValueError, "step_size must be positive"),
    "negative step": (lambda: lr.ScaledGD(-0.5), ValueError, "step_size must be positive"),
    "step NaN": (lambda: lr.AltGD(np.nan), ValueError, "step_size must be positive"),
    "step in words": (lambda: lr.GD("fast"), ValueError, "step_size must be .*auto"),
    "step missing": (lambda: lr.GD(None), ValueError, "step_size must be .*auto"),
    "core step": (lambda: lr.RiemannianGD(0.1, core_step_size=-1), ValueError, "step_size must be positive"),
    "retraction": (lambda: lr.RiemannianGD(retraction="svd"), ValueError, "retraction must be one of"),
    "ridge": (lambda: lr.ALS(ridge=-1), ValueError, "ridge must be"),
    "damping": (
        lambda: solve(PROBLEM, START, lr.ScaledGD(damping=-1)),
        ValueError,
        "damping must not be negative",
    ),
    "penalty": (
        lambda: solve(PROBLEM, START, lr.LandingGD(penalty=0)),
        ValueError,
        "penalty must be positive",
    ),
    "factor": (lambda: solve(PROBLEM, START, lr.PrecGD(factor=0)), ValueError, "factor must be positive"),
    "decay": (lambda: Momentum(1.0).init(START), ValueError, "decay must lie in"),
    "loss missing": (lambda: LossDamped().update(START, (), START), ValueError, "needs the loss"),
    "problem": (lambda: solve(A, START, lr.GD()), TypeError, "problem must be a problem"),
    "start": (lambda: solve(PROBLEM, A, lr.GD()), TypeError, "start must be a point"),
    "solver class": (lambda: solve(PROBLEM, START, lr.GD), TypeError, "solver must be a solver"),
    "solver name": (lambda: solve(PROBLEM, START, "GD"), TypeError, "solver must be a solver"),
    "rule as a solver": (lambda: solve(PROBLEM, START, Scaled()), TypeError, "solver must be a solver"),
    "max_iter": (lambda: solve(PROBLEM, START, lr.GD(), max_iter=-1), ValueError, "max_iter must be"),
    "fractional max_iter": (
        lambda: solve(PROBLEM, START, lr.GD(), max_iter=1.5),
        ValueError,
        "max_iter must be",
    ),
    "tol": (lambda: solve(PROBLEM, START, lr.GD(), tol=-1e-3), ValueError, "tol must be"),
    "tol NaN": (lambda: solve(PROBLEM, START, lr.GD(), tol=np.nan), ValueError, "tol must be"),
    "start of another shape": (
        lambda: solve(lr.MatrixFactorization(A.T), START, lr.GD()),
        ValueError,
        r"start has shape \(4, 3\)",
    ),
    "start with NaN": (
        lambda: solve(PROBLEM, START.scale(np.nan), lr.GD()),
        ValueError,
        "start.left holds NaN",
    ),
    "tensor start": (lambda: solve(PROBLEM, TENSOR, lr.GD()), TypeError, "share a library"),
    "tensor problem": (
        lambda: solve(lr.MatrixFactorization(torch.as_tensor(A)), START, lr.GD()),
        TypeError,
        "share a library",
    ),
    "mixed positions": (
        lambda: lr.MatrixCompletion(torch.as_tensor(ROWS), COLS, VALUES, (4, 3)),
        TypeError,
        "share a library",
    ),
    "mixed operator": (
        lambda: lr.MatrixSensing(torch.ones(5, 4, 3), np.ones(5), (4, 3)),
        TypeError,
        "share a library",
    ),
    "RefLoRA on PoLAR": (
        lambda: solve(PROBLEM, START.to(lr.PoLAR), lr.RefLoRA()),
        TypeError,
        "needs a BurerMonteiro point.*lr.Burer",
    ),
    "LoRA-Pro on SVD": (
        lambda: solve(PROBLEM, START.to(lr.SVD), lr.LoRAPro()),
        TypeError,
        "needs a BurerMonteiro point, got SVD",
    ),
    "landing on SVD": (
        lambda: solve(PROBLEM, START.to(lr.SVD), lr.LandingGD()),
        TypeError,
        "needs a PoLAR point",
    ),
    "ALS on PoLAR": (lambda: solve(PROBLEM, START.to(lr.PoLAR), lr.ALS()), TypeError, "without constraints"),
    "Adam on fixed rank": (
        lambda: lr.rules.check_needs(Adam(), START.to(lr.FixedRank)),
        TypeError,
        "needs a ByFactor point",
    ),
}


def cases(*groups):
    return [pytest.param(*case, id=name) for group in groups for name, case in group.items()]


@pytest.mark.parametrize("call, kind, message", cases(DATA, INITS, SYNTHETIC, SOLVE))
def test_the_error_names_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_rows_and_columns_without_observation_are_a_warning(convert):
    data = [convert(a) for a in (np.array([0, 1]), np.array([0, 0]), np.array([1.0, 2.0]))]
    with pytest.warns(UserWarning, match="no observed entry") as caught:
        lr.MatrixCompletion(*data, (4, 3))
    texts = [str(w.message) for w in caught]
    assert any("2 of 4 rows" in t for t in texts)
    assert any("2 of 3 columns" in t for t in texts)


def test_integer_targets_are_taken_as_floating():
    assert lr.MatrixFactorization(A.astype(int)).data.dtype == np.float64
    assert lr.MatrixFactorization(torch.as_tensor(A).int()).data.dtype == torch.float64
