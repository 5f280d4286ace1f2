"""The same code on an accelerator: results stay there and agree with the processor. Run with ``pytest -m gpu``."""

import warnings

import numpy as np
import pytest

import lowrank_sp as lr

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.gpu


def there(array, device):
    """A NumPy array as a tensor of the device."""
    array = np.ascontiguousarray(array)
    return torch.as_tensor(array.astype(np.int64) if array.dtype.kind in "iu" else array).to(device)


def factorization(device):
    host = lr.synthetic.factorization(60, 50, 4, condition_number=10.0, seed=0)
    return host, lr.MatrixFactorization(there(host.data, device)), 4


def sensing(device):
    host = lr.synthetic.sensing(30, 25, 3, condition_number=10.0, seed=0)
    rows = there(host.operator.rows, device).reshape(-1, 30, 25)
    return host, lr.MatrixSensing(rows, there(host.data, device), (30, 25)), 3


def completion(device):
    host = lr.synthetic.completion(100, 80, 3, observed=0.35, condition_number=10.0, seed=0)
    places = [there(a, device) for a in (host.pattern.rows, host.pattern.cols)]
    return host, lr.MatrixCompletion(*places, there(host.data, device), (100, 80)), 3


@pytest.mark.slow
@pytest.mark.parametrize("make", [factorization, sensing, completion])
@pytest.mark.parametrize("name", ["ScaledGD", "AltScaledGD", "ScaledCG", "RiemannianGD", "ALS", "RefLoRA"])
def test_solvers_run_on_the_device(make, name, device):
    host, problem, rank = make(device)
    init = lr.inits.nystrom if make is factorization else lr.inits.spectral  # spectral solves that one
    start = init(problem, lr.BurerMonteiro, rank=rank)
    result = lr.solve(problem, start, lr.SOLVERS[name]())
    assert result.point.left.device.type == device
    found = result.point.map(lambda a: a.cpu().numpy())
    assert lr.metrics.relative_error(found, host.truth) < 1e-8


def test_batches_stay_on_the_device(device):
    _, problem, rank = factorization(device)
    starts = lr.inits.gaussian(problem, lr.BurerMonteiro, rank=rank, seed=1, batch=8)
    result = lr.solve(problem, starts, lr.AltScaledGD(), max_iter=50)
    assert result.point.left.shape == (8, 60, 4)
    assert result.point.left.device.type == device
    assert result.converged.all()


def holes(shape, places, values):
    """An array with NaN wherever nothing is known."""
    array = np.full(shape, np.nan, values.dtype)
    array[tuple(np.asarray(p) for p in places)] = values
    return array


def complete(device, rank=2):
    host = lr.synthetic.completion(30, 24, 2, observed=0.6, seed=0)
    pattern = host.pattern
    return lr.complete(there(holes((30, 24), (pattern.rows, pattern.cols), host.data), device), rank).point


def irls(device):
    host = lr.synthetic.completion(30, 24, 2, observed=0.5, seed=0)
    places = [there(a, device) for a in (host.pattern.rows, host.pattern.cols)]
    problem = lr.MatrixCompletion(*places, there(host.data, device), (30, 24))
    return lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, rank=2), lr.MatrixIRLS(), 20).point


def sense(device):
    host = lr.synthetic.sensing(16, 12, 2, seed=0)
    rows = there(host.operator.rows, device).reshape(-1, 16, 12)
    return lr.sense(rows, there(host.data, device), (16, 12), rank=2).point


def robust_sense(device):
    host = lr.synthetic.robust_sensing(16, 12, 2, seed=0)
    rows = there(host.operator.rows, device).reshape(-1, 16, 12)
    return lr.robust_sense(rows, there(host.data, device), (16, 12), 2).result.point


def robust_pca(device):
    host = lr.synthetic.robust(30, 24, 2, 0.05, condition_number=2.0, seed=0)
    return lr.robust_pca(there(host.data, device), 2).result.point


def phase_retrieval(device):
    host = lr.synthetic.quadratic(12, 1, seed=0)
    return lr.phase_retrieval(there(host.operator.vectors, device), there(host.data, device)).point


def tomography(device):
    host = lr.synthetic.tomography(3, 1, seed=0)
    values = there(host.operator.expectations(host.truth), device)
    return lr.tomography(host.operator.strings, values).point


def hankel(device):
    known = np.sort(np.random.default_rng(0).choice(41, 28, replace=False))
    samples = np.exp(2j * np.pi * 0.13 * known) + np.exp(2j * np.pi * 0.31 * known)
    problem = lr.HankelCompletion(there(known, device), there(samples, device), 41)
    return lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, rank=2), lr.ScaledGD(), 60).point


def tensor_completion(device):
    host = lr.synthetic.tensor_completion((7, 6, 5), 2, observed=0.6, seed=0)
    return lr.complete_tensor(there(holes((7, 6, 5), host.pattern.indices, host.data), device), 2).point


def tensor_sensing(device):
    host = lr.synthetic.tensor_sensing((6, 5, 4), 2, seed=0)
    rows = there(host.matrix, device).reshape(-1, 6, 5, 4)
    return lr.sense_tensor(rows, there(host.data, device), (6, 5, 4), 2).point


def robust_tensor(device):
    host = lr.synthetic.tensor_robust((9, 8, 7), 2, seed=0)
    return lr.robust_tensor_pca(there(host.data, device), 2).result.point


def hadamard(device):
    return lr.hadamard_decomposition(there(lr.synthetic.hadamard(10, 8, 2, seed=0).data, device), 2).point


def factorized(form):
    def factorize(device):
        host = lr.synthetic.tensor_factorization((6, 5, 4), 2, seed=0)
        return lr.factorize_tensor(there(host.data, device), 2, form).point

    return pytest.param(factorize, id=form.__name__)


PROBLEMS = [
    sense, complete, phase_retrieval, tomography, hankel, factorized(lr.CP), factorized(lr.TensorTrain),
]  # fmt: skip
LONGER = [
    irls, robust_sense, robust_pca, tensor_completion, tensor_sensing, robust_tensor, hadamard,
    factorized(lr.Tucker), factorized(lr.HierarchicalTucker),
    pytest.param(lambda device: complete(device, "auto"), id="complete-auto"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("recover", LONGER)
def test_longer_recovery_gives_the_numbers_of_the_processor(recover, device):
    test_recovery_gives_the_numbers_of_the_processor(recover, device)


@pytest.mark.parametrize("recover", PROBLEMS)
def test_recovery_gives_the_numbers_of_the_processor(recover, device):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is said of the data is the same on both
        ours, theirs = recover(device), recover("cpu")
    assert {a.device.type for a in ours.arrays()} == {device}
    expected = theirs.dense()
    assert torch.linalg.vector_norm(ours.dense().cpu() - expected) < 1e-6 * torch.linalg.vector_norm(expected)


def test_a_solve_uploads_nothing_after_its_start(device):
    """Steps read the loss, which is one number; factors and samples stay where they are."""
    if device == "cuda":
        pytest.skip("torch counts no uploads apart")
    from tests.accelerator import watch

    _, problem, rank = completion(device)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, rank=rank)
    for solver in (lr.ALS(), lr.ScaledGD()):
        with watch() as waits:
            lr.solve(problem, start, solver, max_iter=5, tol=0)
        few = sum(waits.uploads.values())
        with watch() as waits:
            lr.solve(problem, start, solver, max_iter=10, tol=0)
        assert sum(waits.uploads.values()) == few
