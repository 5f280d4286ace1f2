"""Tensor problems, their starts, the solvers on them, and the one-line entry points."""

import warnings
from math import prod

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator

import lowrank_sp as lr
from lowrank_sp.problems.tensor_robust import keep_largest_in_fibers
from lowrank_sp.tensors import SampledTensor, TensorPattern, unfold

FORMS = [lr.CP, lr.Tucker, lr.TensorTrain]
EVERY = pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)


def instances(form, seed=0, **kwargs):
    """One problem of each kind, with its rank."""
    make = lr.synthetic
    return {
        "factorization": make.tensor_factorization((6, 7, 8), 2, form, seed=seed, **kwargs),
        "sensing": make.tensor_sensing((5, 6, 7), 2, form, seed=seed, **kwargs),
        "completion": make.tensor_completion((14, 15, 16), 2, form, observed=0.25, seed=seed, **kwargs),
        "robust": make.tensor_robust((16, 17, 18), 2, form, seed=seed, **kwargs),
    }


@pytest.mark.covers("S13", "S14")
@pytest.mark.parametrize("library", ["numpy", "torch"])
@EVERY
def test_gradients_are_those_of_autograd(form, library):
    """Of the loss as a function of the arrays; of the trimmed one with the trimmed entries held."""
    for name, problem in instances(form).items():
        point = form.random(problem.shape, 2, np.random.default_rng(1))
        leaves = [torch.as_tensor(a).clone().requires_grad_() for a in point.arrays()]
        dense = type(point)(*leaves).dense()
        if name == "sensing":
            gap = torch.as_tensor(problem.matrix) @ dense.reshape(-1) - torch.as_tensor(problem.data)
        elif name == "completion":
            gap = dense[tuple(torch.as_tensor(i) for i in problem.pattern.indices)] - torch.as_tensor(problem.data)
        else:
            gap = dense - torch.as_tensor(problem.data)
        if name == "robust":
            gap = gap * torch.as_tensor(problem.residual(point) != 0)
        (0.5 * (gap**2).sum()).backward()
        if library == "torch":
            problem, point = in_torch(name, problem), point.map(torch.as_tensor)
        assert np.isclose(float(problem.loss(problem.residual(point))), 0.5 * float((gap**2).sum().detach()))
        for got, leaf in zip(problem.gradient(point).arrays(), leaves, strict=True):
            assert np.allclose(got, leaf.grad), name


def in_torch(name, problem):
    data = torch.as_tensor(problem.data)
    if name == "sensing":
        return lr.TensorSensing(torch.as_tensor(problem.matrix), data, problem.shape)
    if name == "completion":
        return lr.TensorCompletion([torch.as_tensor(i) for i in problem.pattern.indices], data, problem.shape)
    kind = lr.RobustTensorPCA if name == "robust" else lr.TensorFactorization
    return kind(data)


def test_a_linear_operator_is_as_good_as_its_matrix():
    problem = lr.synthetic.tensor_sensing((4, 5, 6), 2, measurements=90, seed=1)
    other = lr.TensorSensing(aslinearoperator(problem.matrix), problem.data, problem.shape)
    point = lr.Tucker.random(problem.shape, 2, np.random.default_rng(2))
    for a, b in zip(problem.gradient(point).arrays(), other.gradient(point).arrays(), strict=True):
        assert np.allclose(a, b)
    assert lr.solve(other, lr.inits.spectral(other, lr.Tucker, 2), lr.ScaledCG(), max_iter=20).fun < problem.scale


def test_nan_marks_unknown_entries():
    rng = np.random.default_rng(3)
    tensor = rng.standard_normal((4, 5, 6))
    tensor[rng.random(tensor.shape) < 0.4] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = (lr.TensorCompletion.from_array(a) for a in (tensor, torch.as_tensor(tensor)))
    assert np.array_equal(ours.data, tensor[~np.isnan(tensor)])
    assert np.array_equal(theirs.data.numpy(), ours.data)
    assert np.isclose(ours.observed, np.mean(~np.isnan(tensor)))


def test_sums_over_samples_in_blocks_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr("lowrank_sp.tensors.BLOCK", 7)
    rng = np.random.default_rng(4)
    indices = [rng.integers(0, n, 50) for n in (4, 5, 6)]
    values, rows = rng.standard_normal(50), rng.standard_normal((4, 5, 3))
    pattern = TensorPattern(indices, (4, 5, 6))

    def fn(block):
        return rows[block[0], block[1]]

    expected, grams = np.zeros((6, 3)), np.zeros((6, 3, 3))
    for i, j, k, v in zip(*indices, values, strict=True):
        expected[k] += v * rows[i, j]
        grams[k] += np.outer(rows[i, j], rows[i, j])
    assert np.allclose(SampledTensor(pattern, values).accumulate(2, fn), expected)
    assert np.allclose(SampledTensor(pattern, values).accumulate(None, fn)[0], expected.sum(0))
    assert np.allclose(pattern.grams(2, fn), grams)
    assert np.allclose(pattern.grams(None, fn)[0], grams.sum(0))


def test_trimming_keeps_what_is_large_in_every_fiber():
    tensor = np.random.default_rng(5).standard_normal((5, 6, 4))
    kept = keep_largest_in_fibers(tensor, 0.4, 3)
    expected = np.zeros_like(tensor)
    for place in np.ndindex(*tensor.shape):
        largest = True
        for axis in range(3):
            fiber = np.abs(tensor[tuple(slice(None) if k == axis else i for k, i in enumerate(place))])
            largest &= (fiber > abs(tensor[place])).sum() < round(0.4 * len(fiber))
        if largest:
            expected[place] = tensor[place]
    assert np.array_equal(kept, expected)
    batch = np.stack((tensor, 2 * tensor[::-1]))
    assert np.array_equal(keep_largest_in_fibers(batch, 0.4, 3)[0], kept)


@EVERY
def test_the_spectral_start_solves_an_exact_factorization(form):
    problem = lr.synthetic.tensor_factorization((6, 7, 8), 3, form, condition_number=10.0, seed=6)
    start = lr.inits.spectral(problem, form, 3)
    assert start.distance(problem.truth) < 1e-9 * problem.truth.frobenius()


@EVERY
def test_the_spectral_start_from_samples_is_that_of_the_filled_tensor(form):
    """With every entry known, samples and the dense tensor give one start."""
    problem = lr.synthetic.tensor_completion((6, 7, 8), 2, form, observed=1.0, seed=7)
    start = lr.inits.spectral(problem, form, 2)
    assert start.distance(problem.truth) < 1e-7 * problem.truth.frobenius()
    there = in_torch("completion", problem)
    assert np.allclose(lr.inits.spectral(there, form, 2).dense(), start.dense(), atol=1e-7)


@EVERY
def test_a_gaussian_start_fits_the_problem(form):
    problem = lr.synthetic.tensor_factorization((4, 5, 6), 2, form, seed=8)
    start = lr.inits.gaussian(problem, form, 2, seed=0)
    assert start.shape == problem.shape
    assert all(abs(a).max() < 1 for a in start.arrays())


@pytest.mark.covers("O14", "O03")
@pytest.mark.parametrize("solver", [lr.GD, lr.AltGD, lr.ScaledGD, lr.AltScaledGD, lr.ScaledCG, lr.ALS])
@EVERY
def test_solvers_recover_well_conditioned_tensors(form, solver):
    kappa = {} if form is lr.CP else {"condition_number": 2.0}
    for name in ("factorization", "sensing", "completion"):
        problem = instances(form, seed=9, **kappa)[name]
        start = lr.inits.spectral(problem, form, 2)
        if name == "factorization":
            start = start + form.random(problem.shape, 2, np.random.default_rng(0)).scale(0.02)
        result = lr.solve(problem, start, solver(), max_iter=600, tol=1e-8)
        assert result.history["error"][-1] < 1e-4, (name, result.message)


@pytest.mark.covers("O16")
@pytest.mark.parametrize("solver", [lr.RiemannianGD, lr.RiemannianCG])
def test_riemannian_descent_recovers_trains(solver):
    for name, problem in instances(lr.TensorTrain, seed=10).items():
        start = lr.inits.spectral(problem, lr.FixedRankTrain, 2)
        first = start.arrays()[0][0]
        assert np.allclose(first.T @ first, np.eye(2))
        result = lr.solve(problem, start, solver(), max_iter=400, tol=1e-8)
        assert result.history["error"][-1] < 1e-5, (name, result.message)


@pytest.mark.covers("O16")
def test_riemannian_unit_steps_converge_quadratically_on_full_observation():
    problem = lr.synthetic.tensor_factorization((6, 7, 8), 2, lr.TensorTrain, seed=11)
    start = lr.FixedRankTrain.from_tensor(problem.data + 0.01 * np.sin(np.arange(336.0)).reshape(6, 7, 8), 2)
    errors = lr.solve(problem, start, lr.RiemannianGD(1.0), max_iter=3, tol=0).history["error"]
    assert errors[1] < 20 * errors[0] ** 2
    assert errors[3] < 1e-11


@pytest.mark.covers("O14")
def test_constant_tucker_steps_are_the_published_update():
    """Every array by its own normal equations, at the old point, with Kronecker products written out."""
    rng = np.random.default_rng(12)
    problem = lr.TensorFactorization(rng.standard_normal((4, 5, 6)))
    point = lr.Tucker.random((4, 5, 6), (2, 3, 2), rng)
    new = lr.solve(problem, point, lr.ScaledGD(0.3), max_iter=1, tol=0).point
    core, *u = point.arrays()
    gap = point.dense() - problem.data
    for k in range(3):
        others = [u[j] for j in range(3) if j != k]
        breve = np.kron(*others) @ unfold(core, k, 3).T
        expected = u[k] - 0.3 * unfold(gap, k, 3) @ breve @ np.linalg.inv(breve.T @ breve)
        assert np.allclose(new.arrays()[k + 1], expected)
    pinv = [np.linalg.pinv(a) for a in u]
    assert np.allclose(new.arrays()[0], core - 0.3 * np.einsum("ijk,ai,bj,ck->abc", gap, *pinv))


@pytest.mark.covers("O14")
@pytest.mark.slow
def test_tucker_completion_at_the_published_step_does_not_see_the_condition_number():
    """Step and start of the published code, at a smaller size."""
    counts = []
    for kappa in (1.0, 5.0):
        problem = lr.synthetic.tensor_completion((40, 40, 40), 5, observed=0.2, condition_number=kappa, seed=0)
        start = lr.inits.spectral(problem, lr.Tucker, 5)
        result = lr.solve(problem, start, lr.ScaledGD(0.3 / problem.observed), max_iter=80, tol=0)
        counts.append([result.iterations_to(level) for level in (1e-3, 1e-6)])
    assert np.allclose(*counts, rtol=0.1, atol=2)
    assert counts[0][1] < 70


def test_a_batch_runs_like_its_elements():
    rng = np.random.default_rng(13)
    truths = [lr.synthetic.low_tensor((5, 6, 7), 2, seed=s).dense() for s in (1, 2)]
    problem = lr.TensorFactorization(np.stack(truths), order=3)
    start = lr.Tucker.random((5, 6, 7), 2, rng, (2,))
    start = start.map(lambda a, b: a + 0.1 * b, start)
    both = lr.solve(problem, start, lr.AltScaledGD(), max_iter=5, tol=0)
    for k, truth in enumerate(truths):
        single = lr.solve(
            lr.TensorFactorization(truth), start.map(lambda a, k=k: a[k]), lr.AltScaledGD(), max_iter=5, tol=0
        )
        assert np.allclose(both.point.dense()[k], single.point.dense())
    indices = np.nonzero(rng.random((5, 6, 7)) < 0.7)
    sampled = lr.TensorCompletion(indices, np.stack([t[indices] for t in truths]), (5, 6, 7))
    start = lr.inits.spectral(sampled, lr.Tucker, 2)
    assert start.batch_shape == (2,)
    assert (lr.solve(sampled, start, lr.ScaledGD(), max_iter=60).fun < 1e-4).all()


def test_noise_and_truth_of_synthetic_problems():
    clean = lr.synthetic.tensor_completion((9, 8, 7), 2, condition_number=4.0, seed=14)
    noisy = lr.synthetic.tensor_completion((9, 8, 7), 2, condition_number=4.0, noise=0.1, seed=14)
    assert np.array_equal(clean.data, clean.truth.entries(*clean.pattern.indices))
    assert np.isclose(np.linalg.norm(noisy.data - clean.data) / np.linalg.norm(clean.data), 0.1, rtol=0.3)
    for k, values in enumerate(([1.0, 0.25], [1.0, 1.0], [1.0, 1.0])):
        s = np.linalg.svd(unfold(clean.truth.dense(), k, 3), compute_uv=False)[:2]
        if k == 0:
            assert np.allclose(s, values)
    train = lr.synthetic.low_tensor((5, 6, 7), (2, 3), lr.TensorTrain, condition_number=4.0, seed=15)
    assert np.allclose(np.linalg.svd(train.dense().reshape(30, 7), compute_uv=False)[:3], [1, 0.625, 0.25])
    weights = np.linalg.norm(lr.synthetic.low_tensor((5, 6, 7), 3, lr.CP, 4.0, seed=16).arrays()[0], axis=0)
    assert np.allclose(weights, [1, 0.625, 0.25])


@pytest.mark.covers("S16")
def test_a_strong_spike_is_found_and_a_weak_one_is_not():
    overlaps = []
    for strength in (6.0, 0.5):
        problem = lr.synthetic.spiked_tensor(20, strength=strength, seed=17)
        found = lr.factorize_tensor(problem.data, 1, lr.CP).point
        a, v = (p.arrays()[0][:, 0] / np.linalg.norm(p.arrays()[0]) for p in (found, problem.truth))
        overlaps.append(abs(a @ v))
    assert overlaps[0] > 0.9 > 0.5 > overlaps[1]


@pytest.mark.covers("S14")
@pytest.mark.parametrize("form", [*FORMS, lr.FixedRankTrain], ids=lambda f: f.__name__)
def test_complete_tensor_needs_only_the_rank(form):
    kind = lr.TensorTrain if form is lr.FixedRankTrain else form
    truth = lr.synthetic.low_tensor((16, 18, 20), 3, kind, condition_number=5.0, seed=18).dense()
    unknown = np.random.default_rng(19).random(truth.shape) > 0.25
    tensor = np.where(unknown, np.nan, truth)
    result = lr.complete_tensor(tensor, rank=3, form=form)
    assert isinstance(result.point, form)
    assert np.linalg.norm(result.point.dense() - truth) < 1e-7 * np.linalg.norm(truth)
    if form is lr.Tucker:
        there = lr.complete_tensor(torch.as_tensor(tensor), rank=3)
        assert torch.allclose(there.point.dense(), torch.as_tensor(truth), atol=1e-7)


@pytest.mark.slow
@EVERY
def test_complete_tensor_succeeds_on_random_instances(form):
    good = 0
    for seed in range(3):
        rng = np.random.default_rng(100 + seed)
        shape, rank = tuple(int(n) for n in rng.integers(15, 26, 3)), int(rng.integers(2, 5))
        kappa, noise = 10 ** rng.uniform(0, 1.5), float(rng.choice([0.0, 1e-3, 1e-2]))
        unknowns = form.parameter_count(shape, rank)
        observed = min(0.5, max(0.12, 9 * unknowns / prod(shape)))
        problem = lr.synthetic.tensor_completion(shape, rank, form, observed, kappa, noise, seed=seed)
        error = lr.complete_tensor(problem, rank, form).history["error"][-1]
        good += error < max(1e-5, 3 * noise * (unknowns / problem.data.size) ** 0.5)
    assert good == 3


@pytest.mark.covers("S14")
@pytest.mark.parametrize(("kappa", "noise", "seed"), [(13.0, 1e-2, 24), (96.0, 0.0, 7)])
def test_components_hidden_by_the_sampling_of_a_stronger_one_are_found(kappa, noise, seed):
    problem = lr.synthetic.tensor_completion((29, 23, 37), 2, lr.CP, 0.1, kappa, noise, seed=seed)
    error = lr.complete_tensor(problem, 2, lr.CP).history["error"][-1]
    assert error < max(1e-7, 3 * noise * (178 / problem.data.size) ** 0.5)
    weak = 1 / np.hypot(1, kappa)  # the share of the second component
    assert error < 0.1 * weak


@EVERY
def test_factorize_and_sense_tensor(form):
    problem = lr.synthetic.tensor_factorization((6, 7, 8), 2, form, noise=1e-3, seed=20)
    result = lr.factorize_tensor(problem.data, rank=2, form=form)
    assert result.success
    assert result.point.distance(problem.truth) < 1e-3 * problem.truth.frobenius()
    problem = lr.synthetic.tensor_sensing((5, 6, 7), 2, form, seed=21)
    result = lr.sense_tensor(problem.matrix, problem.data, (5, 6, 7), rank=2, form=form)
    assert result.point.distance(problem.truth) < 1e-7 * problem.truth.frobenius()


@pytest.mark.covers("S05")
@EVERY
def test_robust_tensor_pca_separates(form):
    problem = lr.synthetic.tensor_robust((16, 17, 18), 2, form, outliers=0.1, condition_number=3.0, seed=22)
    truth = problem.truth.dense()
    for outliers in (None, 0.12):
        result, sparse = lr.robust_tensor_pca(problem.data, rank=2, form=form, outliers=outliers)
        assert np.linalg.norm(result.point.dense() - truth) < 1e-6 * np.linalg.norm(truth)
        assert np.linalg.norm(sparse - (problem.data - truth)) < 1e-4 * np.linalg.norm(sparse)


@pytest.mark.covers("S14")
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("share", [0.02, 0.5])
@pytest.mark.parametrize("form", [*FORMS, lr.HierarchicalTucker, lr.FixedRankTucker], ids=lambda f: f.__name__)
def test_samples_and_their_gradients_are_those_of_the_dense_tensor(form, share, library):
    """Few and many samples take different ways, and the longest mode is not the last."""
    rng, shape = np.random.default_rng(30), (17, 5, 6)
    point = form.random(shape, 2, rng)
    indices = np.nonzero(rng.random(shape) < share)
    g = np.zeros(shape)
    g[indices] = rng.standard_normal(len(indices[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem = lr.TensorCompletion(indices, g[indices], shape)
    expected = point.pullback(g)
    images = [sum(x.dense() for x in points)[indices] for points in point.expansion(expected, range(len(point.names)))]
    if library == "torch":
        problem, point, expected = in_torch_quietly(problem), point.map(torch.as_tensor), expected.map(torch.as_tensor)
    got = problem.measure((point,), *point.expansion(expected, range(len(point.names))))
    assert np.allclose(got[0], point.dense()[indices])
    assert all(np.allclose(a, b) for a, b in zip(got[1:], images, strict=True))
    for i, a in enumerate(point.pullback(problem.backproject(problem.data)).arrays()):
        assert np.allclose(a, expected.arrays()[i])
        assert np.allclose(point.partial(i, problem.backproject(problem.data)), expected.arrays()[i])


@pytest.mark.covers("O03")
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("share", [0.04, 0.6])
@pytest.mark.parametrize("form", [*FORMS, lr.Tucker.of(3, (0, 2))], ids=lambda f: f.__name__)
def test_normal_equations_are_those_of_the_sampled_differential(form, share, dtype):
    """Columns of the differential one by one, for few and for many samples."""
    rng, shape = np.random.default_rng(34), (7, 5, 6)
    point = form.random(shape, 2, rng)
    if dtype == "complex128":
        point = point.map(lambda a: a + 1j * rng.standard_normal(a.shape))
    indices = np.nonzero(rng.random(shape) < share)
    pattern = TensorPattern(indices, shape)
    for i, array in enumerate(point.arrays()):
        units = np.eye(array.size).reshape(-1, *array.shape)
        design = np.stack([point.with_array(i, unit).dense()[indices] for unit in units], 1)
        whole = design.conj().T @ design
        places = point.as_rows(i, np.arange(array.size).reshape(array.shape))
        expected = np.stack([whole[np.ix_(p, p)] for p in places])
        there = TensorPattern([torch.as_tensor(k) for k in indices], shape)
        assert np.allclose(point.grams(i, pattern), expected)
        assert np.allclose(point.map(torch.as_tensor).grams(i, there), expected)


def in_torch_quietly(problem):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return in_torch("completion", problem)


@pytest.mark.parametrize("kind", ["factorization", "sensing", "completion", "robust"])
def test_riemannian_conjugate_gradients_recover_tucker_tensors(kind):
    problem = instances(lr.Tucker, seed=31, condition_number=50.0)[kind]
    start = lr.inits.spectral(problem, lr.FixedRankTucker, 2)
    assert np.allclose(start.arrays()[1].T @ start.arrays()[1], np.eye(2))
    result = lr.solve(problem, start, lr.RiemannianCG(), max_iter=300, tol=1e-9)
    assert result.history["error"][-1] < 1e-6, result.message
    assert np.allclose(result.point.arrays()[2].T @ result.point.arrays()[2], np.eye(2))


def test_riemannian_conjugate_gradients_do_not_see_the_condition_number():
    counts = []
    for kappa in (1.0, 100.0):
        problem = lr.synthetic.tensor_completion((30, 30, 30), 3, observed=0.3, condition_number=kappa, seed=32)
        truth = lr.FixedRankTucker.from_tucker(problem.truth)
        start = truth.retract(truth.random(truth.shape, 3, np.random.default_rng(33)), 1e-4)
        counts.append(lr.solve(problem, start, lr.RiemannianCG(), max_iter=60, tol=0.0).iterations_to(1e-10))
    assert max(counts) < 40
    assert counts[1] < counts[0] + 8
