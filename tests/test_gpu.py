"""The same code on a CUDA device: results stay there and agree with NumPy. Run with ``pytest -m gpu``."""

import numpy as np
import pytest

import lowrank_sp as lr

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_gpu(array):
    return torch.as_tensor(array, device="cuda")


def pair(kind):
    """A problem in NumPy and the same one on the device."""
    if kind == "factorization":
        host = lr.synthetic.factorization(60, 50, 4, condition_number=10.0, seed=0)
        return host, lr.MatrixFactorization(on_gpu(host.data)), 4
    if kind == "sensing":
        host = lr.synthetic.sensing(30, 25, 3, condition_number=10.0, seed=0)
        rows = on_gpu(host.operator.rows).reshape(-1, 30, 25)
        return host, lr.MatrixSensing(rows, on_gpu(host.data), (30, 25)), 3
    host = lr.synthetic.completion(100, 80, 3, observed=0.35, condition_number=10.0, seed=0)
    places = [on_gpu(a.astype(np.int64)) for a in (host.pattern.rows, host.pattern.cols)]
    return host, lr.MatrixCompletion(*places, on_gpu(host.data), (100, 80)), 3


@pytest.mark.parametrize("kind", ["factorization", "sensing", "completion"])
@pytest.mark.parametrize("name", ["ScaledGD", "AltScaledGD", "ScaledCG", "RiemannianGD", "ALS", "RefLoRA"])
def test_solvers_run_on_the_device(kind, name):
    host, device, rank = pair(kind)
    init = lr.inits.nystrom if kind == "factorization" else lr.inits.spectral  # spectral solves that one
    start = init(device, lr.BurerMonteiro, rank=rank)
    result = lr.solve(device, start, lr.SOLVERS[name]())
    assert result.point.left.device.type == "cuda"
    found = result.point.map(lambda a: a.cpu().numpy())
    assert lr.metrics.relative_error(found, host.truth) < 1e-8


def test_batches_stay_on_the_device():
    _, device, rank = pair("factorization")
    starts = lr.inits.gaussian(device, lr.BurerMonteiro, rank=rank, seed=1, batch=8)
    result = lr.solve(device, starts, lr.AltScaledGD(), max_iter=50)
    assert result.point.left.shape == (8, 60, 4)
    assert result.point.left.device.type == "cuda"
    assert result.converged.all()
