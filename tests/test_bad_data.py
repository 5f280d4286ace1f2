"""What one-line entry points make of masks, ranges, graphs of gradients, limits, warnings and interrupts."""

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp.result import Status


def matrix(m=30, n=25, rank=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))


def known(shape, share=0.6, seed=1):
    return np.random.default_rng(seed).random(shape) < share


@pytest.mark.parametrize("dtype, scale", [(np.float32, 1e6), (np.float32, 1e-9), (float, 1e30)])
def test_the_spectral_start_does_not_see_the_scale_of_the_operator(dtype, scale):
    stack, truth = np.random.default_rng(5).standard_normal((300, 12, 10)), matrix(12, 10)
    starts = []
    for c in (1.0, scale):
        scaled = (c * stack).astype(dtype)
        problem = lr.MatrixSensing(scaled, np.einsum("kij,ij->k", scaled, truth.astype(dtype)), (12, 10))
        starts.append(lr.inits.spectral(problem, lr.BurerMonteiro, 2).dense())
    assert np.allclose(*starts, atol=1e-4)
    assert np.linalg.norm(starts[1] - truth) < 0.6 * np.linalg.norm(truth)


@pytest.mark.parametrize("value", [1e150, 1e-160, 1e-300])
def test_data_whose_gradients_overflow_are_refused(value):
    stack = np.random.default_rng(0).standard_normal((40, 5, 4))
    with pytest.raises(ValueError, match=r"measurements holds values up to .* divide the data by"):
        lr.sense(stack, value * np.ones(40), (5, 4), 1)
    with pytest.raises(ValueError, match=r"target holds values up to .* float32"):
        lr.factorize(np.full((5, 4), 1e20, np.float32), 1)
    assert lr.factorize(np.zeros((5, 4)), 1).fun == 0.0  # zeros are fine


def test_results_of_weights_have_no_graph():
    weight = torch.nn.Parameter(torch.as_tensor(matrix()))
    assert not lr.factorize(weight, 2).point.left.requires_grad
    holes = torch.where(torch.as_tensor(known(weight.shape)), weight.detach(), torch.nan).requires_grad_()
    found = lr.complete(holes, 2).point.dense()
    assert not found.requires_grad
    assert torch.allclose(found, weight.detach(), atol=1e-6)


def test_masks_are_unknown_entries():
    full = matrix()
    masked = np.ma.array(np.where(known(full.shape), full, 0.0), mask=~known(full.shape))
    assert np.allclose(lr.complete(masked, 2).point.dense(), full, atol=1e-6)
    spoilt = masked.copy()
    i, j = np.argwhere(known(full.shape))[7]
    spoilt[i, j] += 100.0
    result, sparse = lr.robust_pca(spoilt, 2)
    assert np.argwhere(sparse).tolist() == [[i, j]]
    assert np.allclose(result.point.dense(), full, atol=1e-6)
    with pytest.raises(TypeError, match=r"target masks \d+ entries; lr.complete"):
        lr.factorize(masked, 2)


def test_whole_shapes_only():
    with pytest.raises(ValueError, match=r"shape must be a pair of integers \(m, n\), got \(40.5, 30\)"):
        lr.MatrixCompletion([0, 1], [0, 1], [1.0, 2.0], (40.5, 30))


CALLS = {
    "complete": lambda **k: lr.complete(np.where(known((8, 7), 0.9), matrix(8, 7), np.nan), 1, **k),
    "factorize": lambda **k: lr.factorize(matrix(8, 7), 1, **k),
    "sense": lambda **k: lr.sense(np.ones((40, 5, 4)), np.ones(40), (5, 4), 1, **k),
    "robust_pca": lambda **k: lr.robust_pca(matrix(), 1, **k),
    "robust_sense": lambda **k: lr.robust_sense(np.ones((40, 5, 4)), np.ones(40), (5, 4), 1, **k),
    "phase_retrieval": lambda **k: lr.phase_retrieval(np.ones((40, 4)), np.ones(40), **k),
    "tomography": lambda **k: lr.tomography(["II"], [1.0], **k),
    "hadamard": lambda **k: lr.hadamard_decomposition(matrix(8, 7), 1, **k),
    "complete_signal": lambda **k: lr.complete_signal(np.ones(9), 1, **k),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_limits_are_checked_at_the_entry(call):
    for bad in (None, "5", 2.5, True, np.nan, -1):
        with pytest.raises(ValueError, match="max_iter must be an integer that is not negative, got"):
            call(max_iter=bad)
    for bad in (None, "a", -1e-3, np.inf):
        with pytest.raises(ValueError, match="tol must be a finite number that is not negative, got"):
            call(tol=bad)


def test_validation_is_a_number():
    with pytest.raises(ValueError, match=r"validation must lie in \[0, 0.5\], got None"):
        lr.complete(matrix(), 1, validation=None)


def test_warnings_point_at_the_line_of_the_user():
    holes = matrix(6, 5)
    holes[2] = np.nan
    with pytest.warns(UserWarning, match="1 of 6 rows have no observed entry") as caught:
        lr.complete(holes, 1, max_iter=2)
    assert caught[0].filename == __file__
    stack = np.random.default_rng(0).standard_normal((3, 6, 5))
    with pytest.warns(UserWarning, match="3 measurements for 10 degrees of freedom") as caught:
        lr.sense(stack, np.ones(3), (6, 5), 1, max_iter=2)
    assert caught[0].filename == __file__
    sparse = matrix(6, 5)
    sparse[[0, 1, 2], [0, 1, 2]] = np.nan
    with pytest.warns(UserWarning, match="27 entries for 28 degrees of freedom") as caught:
        lr.complete(sparse, 4, max_iter=2)
    assert caught[0].filename == __file__


def test_an_interrupt_ends_all_stages(monkeypatch):
    """The first stage reports it; no other stage begins."""
    import lowrank_sp.escalate
    import lowrank_sp.separate

    rng = np.random.default_rng(0)
    noisy = np.where(known((30, 25)), matrix() + rng.standard_normal((30, 25)), np.nan)
    calls = []

    def stopped(problem, start, *args, **kwargs):
        calls.append(1)
        kwargs["callback"] = _raise
        return lr.solve(problem, start, *args, **kwargs)

    monkeypatch.setattr(lowrank_sp.escalate, "solve", stopped)
    result = lr.complete(noisy, 2)
    assert result.status is Status.INTERRUPTED
    assert "interrupted" in result.choice
    assert len(calls) == 1
    monkeypatch.setattr(lowrank_sp.separate, "solve", stopped)
    with pytest.raises(KeyboardInterrupt):
        lr.robust_pca(matrix(), 2)
    assert len(calls) == 2


def _raise(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize("half", [np.float16, torch.float16, torch.bfloat16], ids=str)
def test_half_precision_becomes_single(half):
    there = matrix(12, 10, 1).astype(np.float16) if half is np.float16 else torch.as_tensor(matrix(12, 10, 1)).to(half)
    single = np.float32 if half is np.float16 else torch.float32
    stack = there.reshape(1, 12, 10) * (there[:1, :1] * 0 + 1)
    for found in (
        lr.factorize(there, 1),
        lr.complete(there, 1),
        lr.robust_pca(there, 1).result,
        lr.solve(lr.MatrixSensing(stack, stack[:, 0, 0], (12, 10)), lr.BurerMonteiro(*_ones(single)), lr.GD(), 1),
    ):
        assert found.point.left.dtype == single


def _ones(single):
    library = np if single is np.float32 else torch
    return library.ones((12, 1), dtype=single), library.ones((10, 1), dtype=single)


def test_torch_is_told_of_types_that_it_does_not_multiply():
    rng = np.random.default_rng(0)
    stack, truth = torch.as_tensor(rng.standard_normal((40, 4, 3))), torch.ones(4, 3).double()
    data = torch.einsum("kij,ij->k", stack, truth)
    for operator, measurements in ((stack.float(), data), (stack, data.float()), (stack, data.to(torch.complex64))):
        for sense in (lr.sense, lr.robust_sense):
            with pytest.raises(TypeError, match=r"measurements are .* and the operator is .* convert one of them"):
                sense(operator, measurements, (4, 3), 1)
    vectors = stack[:, :, 0].to(torch.complex64)
    intensities = abs(vectors @ torch.ones(4, dtype=torch.complex64)) ** 2
    assert lr.phase_retrieval(vectors, intensities).success  # real, as they should be
    with pytest.raises(TypeError, match=r"torch.float64 and the operator is torch.complex64"):
        lr.phase_retrieval(vectors, intensities.double())
    assert np.allclose(lr.sense(stack.float().numpy(), data.numpy(), (4, 3), 1).point.dense(), 1, atol=1e-5)
