"""Bad input of tensor problems and their entry points gets an error that names the argument."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator

import lowrank_sp as lr


def holed():
    tensor = np.arange(60.0).reshape(3, 4, 5)
    tensor[0, 0, 0] = np.nan
    return tensor


A = np.arange(60.0).reshape(3, 4, 5)
INDICES, VALUES = np.nonzero(A < 40), A[A < 40]
BAD = {
    "NaN": (lambda: lr.TensorFactorization(holed()), ValueError, "target holds 1 NaN"),
    "vector": (lambda: lr.TensorFactorization(np.ones(3)), ValueError, "at least 2 axes"),
    "text": (lambda: lr.factorize_tensor([["a"]], rank=1), TypeError, "target must be numeric"),
    "order": (lambda: lr.TensorFactorization(A, order=4), ValueError, "order must be an integer between 2 and .* 3"),
    "only NaN": (lambda: lr.complete_tensor(A * np.nan, rank=1), ValueError, "no observed entries"),
    "integers": (lambda: lr.complete_tensor(A.astype(int), rank=1), TypeError, "must be floating"),
    "one axis": (lambda: lr.complete_tensor(A[0, 0], rank=1), ValueError, "at least two axes"),
    "rank": (lambda: lr.complete_tensor(holed(), rank=7), ValueError, "rank must lie between"),
    "rank of zero": (lambda: lr.complete_tensor(holed(), rank=0, form=lr.TensorTrain), ValueError, "positive integer"),
    "rank to be found": (lambda: lr.complete_tensor(holed(), "auto"), ValueError, '"auto" is for matrices'),
    "matrix form": (lambda: lr.complete_tensor(holed(), 1, lr.SVD), TypeError, "form must be a tensor form"),
    "no form": (lambda: lr.factorize_tensor(A, 1, "cp"), TypeError, "form must be"),
    "matrix form in a start": (
        lambda: lr.inits.spectral(lr.TensorFactorization(A), lr.BurerMonteiro, 1),
        TypeError,
        "needs a tensor form such as lr.Tucker",
    ),
    "number of indices": (
        lambda: lr.TensorCompletion(INDICES[:2], VALUES, (3, 4, 5)),
        ValueError,
        "one array per mode",
    ),
    "lengths": (lambda: lr.TensorCompletion(INDICES, VALUES[1:], (3, 4, 5)), ValueError, "must have one length"),
    "range": (
        lambda: lr.TensorCompletion(INDICES, VALUES, (3, 4, 4)),
        ValueError,
        r"indices\[2\] must lie in \[0, 4\)",
    ),
    "duplicates": (
        lambda: lr.TensorCompletion([i * 0 for i in INDICES], VALUES, (3, 4, 5)),
        ValueError,
        r"repeat 39 positions, the first is \(0, 0, 0\)",
    ),
    "floating indices": (
        lambda: lr.TensorCompletion([i * 1.0 for i in INDICES], VALUES, (3, 4, 5)),
        TypeError,
        r"indices\[0\] must hold integers",
    ),
    "libraries": (
        lambda: lr.TensorCompletion(INDICES, torch.as_tensor(VALUES), (3, 4, 5)),
        TypeError,
        "share a library",
    ),
    "shape of one": (lambda: lr.TensorCompletion(INDICES, VALUES, (3,)), ValueError, "at least two positive integers"),
    "shape of text": (lambda: lr.TensorCompletion(INDICES, VALUES, "abc"), ValueError, "must hold integers"),
    "operator": (
        lambda: lr.TensorSensing(np.ones((7, 59)), np.ones(7), (3, 4, 5)),
        ValueError,
        "act on the 60 entries",
    ),
    "measurements": (lambda: lr.TensorSensing(np.ones((7, 60)), np.ones(6), (3, 4, 5)), ValueError, "operator makes 7"),
    "batch of an operator": (
        lambda: lr.TensorSensing(aslinearoperator(np.ones((7, 60))), np.ones((2, 7)), (3, 4, 5)),
        TypeError,
        "give the operator as an array",
    ),
    "outliers": (lambda: lr.RobustTensorPCA(A, outliers=0.6), ValueError, r"outliers must lie in \(0, 0.5\)"),
    "factor": (lambda: lr.RobustTensorPCA(A, 0.3, factor=4), ValueError, "factor must lie in"),
    "start of another shape": (
        lambda: lr.solve(
            lr.TensorFactorization(A), lr.CP.random((3, 4, 4), 1, np.random.default_rng(0)), lr.ScaledGD()
        ),
        ValueError,
        "start has shape",
    ),
    "observed": (lambda: lr.synthetic.tensor_completion((3, 4, 5), 1, observed=0.0), ValueError, "observed must lie"),
    "condition": (
        lambda: lr.synthetic.low_tensor((3, 4, 5), 1, condition_number=0.5),
        ValueError,
        "condition_number must be at least 1",
    ),
    "form of a truth": (lambda: lr.synthetic.low_tensor((3, 4, 5), 1, lr.SVD), TypeError, "form must be lr.CP"),
    "strength": (lambda: lr.synthetic.spiked_tensor(4, strength=-1.0), ValueError, "strength must be positive"),
    "components": (lambda: lr.synthetic.orthogonal_tensor((3, 4, 5), 4), ValueError, "the least size"),
    "count": (
        lambda: lr.synthetic.tensor_sensing((3, 4, 5), 1, measurements=0),
        ValueError,
        "measurements must be at least 1",
    ),
}


@pytest.mark.parametrize("make, error, message", BAD.values(), ids=BAD)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_unobserved_places_are_a_warning():
    with pytest.warns(UserWarning, match="1 of 3 places of mode 0 have no observed entry"):
        lr.TensorCompletion(INDICES, VALUES, (3, 4, 5))
