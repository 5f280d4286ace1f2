"""State tomography: Pauli maps against Kronecker products, recovery of states, shot noise and weights."""

from functools import reduce
from itertools import product

import numpy as np
import pytest
import scipy.linalg
import torch

import lowrank_sp as lr
from lowrank_sp.problems.tomography import walsh_hadamard

LIBRARIES = pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
PAULI = {
    "I": np.eye(2),
    "X": np.array([[0, 1], [1, 0]]),
    "Y": np.array([[0, -1j], [1j, 0]]),
    "Z": np.diag([1, -1]),
}
ALL3 = ["".join(letters) for letters in product("IXYZ", repeat=3)]


def dense(string):
    """The Pauli string as a matrix."""
    return reduce(np.kron, (PAULI[letter] for letter in string))


def complex_numbers(rng, *shape):
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def fidelity(a, b):
    """``(tr |sqrt(a) sqrt(b)|)^2`` of two density matrices."""
    root = scipy.linalg.sqrtm(a + 1e-14 * np.eye(len(a)))
    return np.real(np.trace(scipy.linalg.sqrtm(root @ b @ root + 1e-14 * np.eye(len(a))))) ** 2


@LIBRARIES
def test_the_transform_is_that_of_the_hadamard_matrix(convert):
    x = np.random.default_rng(0).standard_normal((3, 16))
    assert np.allclose(walsh_hadamard(convert(x)), x @ scipy.linalg.hadamard(16))


@pytest.mark.covers("S07")
@LIBRARIES
def test_all_strings_against_kronecker_products(convert):
    rng = np.random.default_rng(0)
    x = complex_numbers(rng, 8, 2)
    operator = lr.PauliEnsemble(ALL3, like=convert(np.zeros(1)))
    values = np.asarray(operator.expectations(lr.SymmetricBurerMonteiro(convert(x))))
    expected = [np.trace(dense(s) @ x @ x.conj().T).real for s in ALL3]
    assert np.allclose(values, expected)


@pytest.mark.covers("S07")
@LIBRARIES
def test_the_adjoint_is_the_weighted_sum_of_the_strings(convert):
    rng = np.random.default_rng(1)
    strings = [ALL3[k] for k in rng.permutation(64)[:20]]
    weights = rng.uniform(0.5, 2, 20)
    operator = lr.PauliEnsemble(strings, weights, convert(np.zeros(1)))
    y = rng.standard_normal((2, 20))
    gains = operator.gain * (weights / weights.mean()) ** 0.5
    back = np.asarray(operator.adjoint(convert(y)) @ convert(np.eye(8, dtype=complex)))
    for row, matrix in zip(y, back, strict=True):
        assert np.allclose(matrix, sum(g * c * dense(s) for g, c, s in zip(gains, row, strings, strict=True)))
    point = lr.BurerMonteiro(complex_numbers(rng, 8, 2), complex_numbers(rng, 8, 2))
    image = np.asarray(operator.measure([[point.map(convert)]])[0])
    assert np.allclose(y @ image, [np.vdot(b, point.dense()).real for b in back])


def test_the_gradient_is_autograd():
    rng = np.random.default_rng(2)
    x, y = complex_numbers(rng, 8, 2), rng.standard_normal(64)
    operator = lr.PauliEnsemble(ALL3)
    problem = lr.MatrixSensing(operator, operator.scaled(y), (8, 8))
    ours = problem.gradient(lr.SymmetricBurerMonteiro(x)).factor
    leaf = torch.as_tensor(x).requires_grad_()
    matrices = torch.as_tensor(np.stack([dense(s) for s in ALL3]))
    values = torch.einsum("kij,jr,ir->k", matrices, leaf, leaf.conj()).real
    (0.5 * operator.gain**2 * (values - torch.as_tensor(y)).square().sum()).backward()
    assert np.allclose(ours, leaf.grad)


def test_the_map_is_close_to_an_isometry_and_exact_for_all_strings():
    x = complex_numbers(np.random.default_rng(3), 8, 2)
    point = lr.SymmetricBurerMonteiro(x)
    image = lr.PauliEnsemble(ALL3).measure([[point]])[0]
    assert np.isclose(np.linalg.norm(image), np.linalg.norm(point.dense()))


@pytest.mark.covers("S07", "S01")
@pytest.mark.parametrize("rank, condition_number", [(1, 1.0), (3, 5.0)])
@pytest.mark.parametrize("seed", range(3))
def test_a_state_is_recovered_from_some_of_the_strings(rank, condition_number, seed):
    made = lr.synthetic.tomography(5, rank, 330 * rank, condition_number=condition_number, seed=seed)
    result = lr.tomography(made.operator.strings, made.operator.expectations(made.truth), rank)
    assert result.success
    state = result.point.dense()
    assert np.allclose(state, made.truth.dense(), atol=1e-7)
    assert np.isclose(np.trace(state).real, 1)
    assert "trace 1 normalized to one" in result.choice


@pytest.mark.covers("S07")
def test_shot_noise_costs_what_it_must():
    """Ten times fewer shots, about the square root of ten in error; fidelity near one."""
    errors = []
    for shots in (1000, 100):
        made = lr.synthetic.tomography(4, 1, 256, shots, seed=0)
        values = made.data / made.operator.scales
        assert np.allclose(values * shots, np.round(values * shots))
        point = lr.tomography(made.operator.strings, values).point
        errors.append(float(made.error(point)))
        assert fidelity(made.truth.dense(), point.dense()) > 1 - 100 / shots / 10
    assert 1.8 < errors[1] / errors[0] < 6


@pytest.mark.covers("S07")
def test_weights_by_precision_pay():
    """Half of the strings with a hundred times the shots: weights of one trust the others as much."""
    gains = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        made = lr.synthetic.tomography(4, 1, 200, seed=seed)
        exact = made.operator.expectations(made.truth)
        shots = np.where(rng.random(200) < 0.5, 50, 5000)
        values = 2 * rng.binomial(shots, np.clip((1 + exact) / 2, 0, 1)) / shots - 1
        plain, weighted = (lr.tomography(made.operator.strings, values, weights=w).point for w in (None, shots))
        gains.append(float(made.error(plain) / made.error(weighted)))
    assert np.median(gains) > 2


def test_torch_stays_in_torch():
    made = lr.synthetic.tomography(3, 1, seed=0)
    values = torch.as_tensor(made.operator.expectations(made.truth))
    result = lr.tomography(made.operator.strings, values)
    assert isinstance(result.point.factor, torch.Tensor)
    assert made.error(result.point.map(np.asarray)) < 1e-7


ERRORS = {
    "letters": (lambda: lr.PauliEnsemble(["XIW"]), "letters I, X, Y and Z, got 'XIW'"),
    "lengths": (lambda: lr.PauliEnsemble(["XI", "X"]), "one length"),
    "empty": (lambda: lr.PauliEnsemble([]), "strings is empty"),
    "weights": (lambda: lr.PauliEnsemble(["X", "Z"], [1.0, -1.0]), "weights must be positive"),
    "weight count": (lambda: lr.PauliEnsemble(["X", "Z"], [1.0]), r"weights must have shape \(2,\)"),
    "count": (lambda: lr.tomography(["X", "Z"], np.ones(3)), r"expectations must have shape \(2,\)"),
    "NaN": (lambda: lr.tomography(["X", "Z"], np.array([1, np.nan])), "expectations holds 1 NaN"),
    "imaginary": (lambda: lr.tomography(["X", "Z"], np.ones(2) * 1j), "expectations must be real, got complex128"),
    "one word": (lambda: lr.tomography("XZ", np.ones(2)), "strings must be a sequence of words"),
    "rank": (lambda: lr.tomography(["X", "Z"], np.ones(2), 3), "rank must lie between"),
    "qubits": (lambda: lr.synthetic.tomography(0), "qubits must be a positive integer"),
    "measurements": (lambda: lr.synthetic.tomography(2, 1, 17), "measurements must lie between 1 and 4"),
    "shots": (lambda: lr.synthetic.tomography(2, shots=0), "shots must be at least 1"),
    "condition": (lambda: lr.synthetic.tomography(2, 2, condition_number=0.5), "condition_number must be at least"),
}


@pytest.mark.parametrize("call, message", [pytest.param(*c, id=k) for k, c in ERRORS.items()])
def test_the_error_names_what_is_wrong(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_fewer_strings_than_unknowns_are_a_warning():
    """A pure state of two qubits has six numbers; a repeated string adds none."""
    strings = ["ZI", "IZ", "ZZ", "XX", "YY"]
    with pytest.warns(UserWarning, match="5 different strings for 6 unknowns"):
        lr.tomography([*strings, "ZZ"], np.ones(6), max_iter=1)
    lr.tomography([*strings, "XY"], np.ones(6), max_iter=1)
