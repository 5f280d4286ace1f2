"""Functions of small matrices by products alone, as on an accelerator: against scipy, and against NumPy's route."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lowrank_sp as lr
from lowrank_sp import definite, matrix_functions, xp
from lowrank_sp.namespaces import is_torch
from lowrank_sp.rules import RULES

INSTANCES = st.builds(
    dict,
    r=st.sampled_from([1, 2, 5, 8, 20]),
    batch=st.sampled_from([(), (3,), (2, 2)]),
    dtype=st.sampled_from(["float32", "float64", "complex64", "complex128"]),
    condition=st.floats(0, 0.6),  # digits of the condition number, relative to those of the type
    size=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**16),
)


@pytest.fixture(autouse=True, scope="module")
def remote():
    """Tensors of the host count as those of a device."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (definite, matrix_functions):
            patch.setattr(module, "is_remote", is_torch)
        yield


def normal(rng, shape, dtype):
    z = rng.standard_normal(shape)
    return (z + 1j * rng.standard_normal(shape) if "complex" in dtype else z).astype(dtype)


def unitaries(rng, shape, r, dtype):
    wide = "complex128" if "complex" in dtype else "float64"
    return np.linalg.qr(normal(rng, (*shape, r, r), wide))[0]


class Instance:
    """Hermitian matrices with a condition number, and what is known of them."""

    def __init__(self, r, batch, dtype, condition, size, seed):
        self.rng, self.r, self.batch, self.dtype, self.size = np.random.default_rng(seed), r, batch, dtype, size
        self.eps = float(np.finfo(dtype).eps)
        self.condition = self.eps**-condition if r > 1 else 1.0

    def psd(self):
        q = unitaries(self.rng, self.batch, self.r, self.dtype)
        return ((q * np.geomspace(self.size, self.size / self.condition, self.r)) @ q.conj().mT).astype(self.dtype)

    def close(self, got, expected, loss):
        """Relative to the largest entry, up to ``loss`` times the rounding."""
        got, expected = (np.asarray(a, dtype="complex128") for a in (got, expected))
        assert np.abs(got - expected).max() <= 100 * self.r * loss * self.eps * np.abs(expected).max()


def wide(a):
    return a.astype("complex128" if np.iscomplexobj(a) else "float64")


def loop(function, *stacks):
    shape, r = stacks[0].shape[:-2], stacks[0].shape[-1]
    flat = [a.reshape(-1, r, r) for a in stacks]
    return np.stack([function(*matrices) for matrices in zip(*flat, strict=True)]).reshape(*shape, r, r)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(INSTANCES)
def test_polar_factors(settings):
    """With singular values of any spread: unitary, and ``U^H A`` the Hermitian factor, as a stable method makes it."""
    case = Instance(**settings)
    u, v = (unitaries(case.rng, case.batch, case.r, case.dtype) for _ in "uv")
    s = np.geomspace(case.size, case.size / case.condition, case.r)
    a, hermitian = ((u * s) @ v.conj().mT).astype(case.dtype), (v * s) @ v.conj().mT
    factor = matrix_functions.unitary(torch.as_tensor(a), case.eps / case.r).numpy()
    assert factor.dtype == a.dtype
    case.close(wide(factor).conj().mT @ wide(a), hermitian, 1.0)
    case.close(wide(factor).conj().mT @ wide(factor), np.broadcast_to(np.eye(case.r), a.shape), 1.0)
    case.close(factor, u @ v.conj().mT, case.condition)
    case.close(factor, loop(lambda b: scipy.linalg.polar(b)[0], wide(a)), case.condition)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(INSTANCES)
def test_roots(settings):
    case = Instance(**settings)
    p = case.psd()
    root = loop(scipy.linalg.sqrtm, wide(p))
    case.close(xp.inverse_root_psd(torch.as_tensor(p)), loop(scipy.linalg.inv, root), case.condition)
    case.close(xp.inverse_root_psd(torch.as_tensor(p)), xp.inverse_root_psd(p), case.condition)
    shift = 0.1 * case.size**0.5
    shifted = loop(scipy.linalg.inv, root + shift * np.eye(case.r))
    case.close(xp.resolvent_root_psd(torch.as_tensor(p), shift), shifted, case.condition)
    case.close(xp.resolvent_root_psd(p, shift), shifted, case.condition)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(INSTANCES)
def test_geometric_means(settings):
    case = Instance(**settings)
    px, py = case.psd(), case.psd() / case.size
    s, s_inv = xp.riccati(torch.as_tensor(px), torch.as_tensor(py))
    expected, expected_inv = xp.riccati(px, py)
    case.close(s, expected, case.condition)
    case.close(s_inv, expected_inv, case.condition)
    case.close(wide(s.numpy()) @ wide(px) @ wide(s.numpy()), py, case.condition)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(INSTANCES, st.sampled_from([1e-9, 1e-3, 1.0]))
def test_sylvester_equations(settings, ratio):
    """With one matrix far smaller than the other, the condition number of the sums counts."""
    case = Instance(**settings)
    p, q, c = case.psd(), ratio * case.psd(), normal(case.rng, (*case.batch, case.r, case.r), case.dtype)
    p, q = (p, q) if case.rng.random() < 0.5 else (q, p)
    x = xp.sylvester_psd(*map(torch.as_tensor, (p.astype(case.dtype), q.astype(case.dtype), c))).numpy()
    expected = loop(scipy.linalg.solve_sylvester, wide(p), wide(q), wide(c))
    case.close(x, expected, case.condition)
    case.close(x, xp.sylvester_psd(p.astype(case.dtype), q.astype(case.dtype), c), case.condition)


@pytest.mark.parametrize("r", [8, 64])
def test_geometric_means_of_matrices_near_the_limit(r):
    """Condition numbers of 1e12: the polar factor sees their root, where an eigendecomposition found nothing."""
    case = Instance(r, (3,), "float64", 12 / -np.log10(np.finfo("float64").eps), 1.0, 0)
    px, py = case.psd(), case.psd()
    for convert in (np.asarray, torch.as_tensor):
        s, s_inv = (np.asarray(a) for a in xp.riccati(convert(px), convert(py)))
        assert np.abs(s @ px @ s - py).max() < 1e-10
        assert np.abs(s @ s_inv - np.eye(r)).max() < 1e-3
        assert np.linalg.eigvalsh((s + s.mT) / 2).min() > 0


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("rank", [1, 3])
def test_singular_matrices(dtype, rank):
    """Nothing overflows, and on the range of the matrix the results are those of NumPy."""
    rng = np.random.default_rng(rank)
    x, y = normal(rng, (2, 9, rank), dtype), normal(rng, (2, 9, 5), dtype)
    p, q = x @ normal(rng, (2, rank, 5), dtype), y
    p, q = p.conj().mT @ p, q.conj().mT @ q
    onto = p @ np.linalg.pinv(p, rcond=1e-4)
    tol = 30 * np.finfo(dtype).eps ** 0.5  # of the root of the floor
    for function in (xp.inverse_root_psd, lambda a: xp.resolvent_root_psd(a, 1e-8)):
        got, expected = function(torch.as_tensor(p)).numpy(), function(p)
        assert np.isfinite(got).all()
        assert np.abs(onto @ (got - expected) @ onto).max() < tol * np.abs(onto @ expected @ onto).max()
    for one, other in ((p, q), (q, p)):
        means = [a.numpy() for a in xp.riccati(torch.as_tensor(one), torch.as_tensor(other))]
        expected = xp.riccati(one, other)
        kept = 1 if one is p else 0  # the other mean has no limit
        assert all(np.isfinite(a).all() for a in means)
        assert np.abs(means[kept] - expected[kept]).max() < tol * np.abs(expected[kept]).max()
    c = p @ normal(rng, (2, 5, 5), dtype) @ p
    solution = xp.sylvester_psd(*map(torch.as_tensor, (p, p, c))).numpy()
    expected = xp.sylvester_psd(p, p, c)
    assert np.abs(onto @ (solution - expected) @ onto).max() < tol * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_zero_matrices(dtype):
    zero, eye = (
        torch.zeros(2, 3, 3, dtype=getattr(torch, dtype)),
        torch.eye(3, dtype=getattr(torch, dtype)).repeat(2, 1, 1),
    )
    for pair in ((zero, eye), (eye, zero), (zero, zero)):
        assert all(torch.equal(a, eye) for a in xp.riccati(*pair))
        assert torch.isfinite(xp.sylvester_psd(*pair, eye)).all()
        assert not xp.sylvester_psd(*pair, zero).any()
    assert not matrix_functions.unitary(zero, 1e-3).any()
    assert torch.isfinite(xp.inverse_root_psd(zero)).all()
    assert torch.allclose(xp.resolvent_root_psd(zero, 0.5), 2 * eye, rtol=1e-5)
    mixed = torch.cat((zero[:1], eye[:1]))
    assert torch.allclose(xp.riccati(mixed, 4 * eye)[0], torch.stack((eye[0], 2 * eye[0])), rtol=1e-5)
    assert torch.allclose(xp.inverse_root_psd(mixed)[1], eye[0], rtol=1e-5)


def test_what_is_not_finite_is_not_hidden():
    bad = torch.full((2, 2), torch.nan)
    for value in (xp.inverse_root_psd(bad), xp.resolvent_root_psd(bad, 0.1), xp.sylvester_psd(bad, bad, bad)):
        assert torch.isnan(value).any()


@pytest.mark.parametrize("name", RULES)
def test_no_rule_looks_at_a_value(name):
    """Tensors without values take every rule through a step on every form: a question for a value would fail."""
    rule, rng = RULES[name], np.random.default_rng(0)
    for form in (lr.BurerMonteiro, lr.PoLAR):
        if issubclass(form, rule.needs):
            point = form.random((9, 7), 3, rng, (4,)).map(lambda a: torch.as_tensor(a).to("meta"))
            state = rule.init(point)
            for _ in range(2):
                direction, state = rule.update(point, state, point, point.inner(point))
                new = point.retract(direction, 0.1)
                state = rule.carry(state, point, new)
                point = new
            assert point.left.shape == (4, 9, 3)
