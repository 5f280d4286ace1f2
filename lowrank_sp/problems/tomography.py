"""Quantum state tomography: a density matrix from expectation values of Pauli operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import xp
from ..coverage import covers
from ..parameterizations import SymmetricBurerMonteiro
from .checks import as_data, check_rank
from .ensembles import Ensemble
from .sensing import MatrixSensing

__all__ = ["PauliEnsemble", "PauliSum", "normalized", "tomography", "walsh_hadamard"]

Array = Any

LETTERS = "IXYZ"


def walsh_hadamard(x: Array) -> Array:
    """``sum_k (-1)^(z . k) x_k`` for every bit string z, along the last axis, of length a power of two."""
    size, backend = x.shape[-1], xp.namespace(x)
    half = 1
    while half < size:
        pairs = x.reshape(*x.shape[:-1], size // (2 * half), 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = backend.stack((a + b, a - b), -2).reshape(*x.shape[:-1], size)
        half *= 2
    return x


@covers("S07")
class PauliEnsemble(Ensemble):
    """``y_i = gain <P_i, W>`` with Pauli strings ``P_i``, Kronecker products of I, X, Y and Z; of W the Hermitian part.

    A string is a pair of bit masks: X flips the bits of x, Z changes signs by those of z, and both make Y, so that
    ``<P, W>`` is a Walsh-Hadamard coefficient (index z) of the generalized diagonal ``W[k ^ x, k]`` times a power of
    i. All strings with one x cost ``d (r + log d)`` for ``W = X X^H`` of dimension ``d = 2^q``: no operator is
    formed, and with all ``d^2`` strings one application costs ``d^2 (r + q)`` instead of ``d^4``.

    Parameters
    ----------
    strings : sequence of str
        For example ``["XIZ", "ZZI"]``; the first letter acts on the most significant bit.
    weights : array (N,), optional
        Positive weights of the squared residuals, one by default: ``1 / variance`` for measurements of unequal
        precision. Measurements are to be multiplied by their roots, see `scaled`.
    like : array, optional
        Gives the library, the device and the precision; double precision in NumPy by default.

    Raises
    ------
    ValueError, TypeError
        For one string instead of a sequence, no strings, strings of unequal length or with other letters, or weights
        that are not positive.

    Notes
    -----
    The gain is ``sqrt(d^2 / N) / sqrt(d)``, so that ``||A(W)||`` has the size of ``||W||_F`` on average. Source:
    :cite:`gross2010tomography`.
    """

    isotropic = True

    def __init__(self, strings: Any, weights: Any = None, like: Any = None):
        if isinstance(strings, str):
            raise TypeError(f"strings must be a sequence of words such as ['XIZ', 'ZZI'], got {strings!r}")
        self.strings = [str(s) for s in strings]
        if not self.strings:
            raise ValueError("strings is empty: give Pauli strings such as 'XIZ'")
        qubits = len(self.strings[0])
        wrong = [s for s in self.strings if len(s) != qubits or set(s) - set(LETTERS) or not s]
        if wrong:
            raise ValueError(f"strings must be words of one length in the letters I, X, Y and Z, got {wrong[0]!r}")
        self.count, self.qubits = len(self.strings), qubits
        d = 2**qubits
        self.shape = (d, d)
        flips, signs = (_mask(self.strings, letters) for letters in ("XY", "ZY"))
        ys = np.array([s.count("Y") for s in self.strings])
        self.gain = (d / self.count) ** 0.5
        self.flips, self.group = np.unique(flips, return_inverse=True)
        self.signs, self.phase = signs, (-1j) ** ys
        roots = np.ones(self.count) if weights is None else _roots(weights, self.count)
        self.scales = self.gain * roots
        self.index = np.arange(d)
        self._like = 1j * (np.zeros(1) if like is None else like.reshape(-1)[:1])

    def scaled(self, expectations: Any) -> Any:
        """Expectation values (..., N) in the units of the measurements of this map: ``gain sqrt(weight) y``."""
        return expectations * xp.asarray_like(self.scales, expectations)

    def measure(self, sums):
        return [sum(self._one(p) for p in points) for points in sums]

    def _one(self, point: Any) -> Array:
        left, right = point.product()
        rows = [(left[..., self.index ^ x, :] * right.conj()).sum(-1) for x in self.flips]
        table = walsh_hadamard(xp.namespace(left).stack(rows, -2))
        picked = table[..., self.group, self.signs]
        return (picked * xp.asarray_like(self.phase * self.scales, self._like)).real

    def adjoint(self, y):
        return PauliSum(self, y * xp.asarray_like(self.scales, y))

    def expectations(self, point: Any) -> Array:
        """``tr(P_i W)`` (..., N) of a point, without gain and weights."""
        return self._one(point) / xp.asarray_like(self.scales, self._like.real)

    def like(self):
        return self._like


class PauliSum:
    """``sum_i c_i P_i`` for real coefficients: a Hermitian matrix that multiplies thin ones flip by flip."""

    def __init__(self, ensemble: PauliEnsemble, coefficients: Array):
        self.ensemble = ensemble
        e, d = ensemble, ensemble.shape[0]
        values = coefficients * xp.asarray_like(e.phase.conj(), e.like())
        flat = _scattered(values, e.group * d + e.signs, len(e.flips) * d)
        # P[k ^ x, k] is the power of i times the sign of z . k, so a transform gives every generalized diagonal.
        self.diagonals = walsh_hadamard(flat.reshape(*flat.shape[:-1], len(e.flips), d))

    def adjoint(self) -> PauliSum:
        return self

    def __matmul__(self, x: Array) -> Array:
        e, total = self.ensemble, 0.0
        for k, flip in enumerate(e.flips):
            moved = self.diagonals[..., k, :, None] * x
            total = total + moved[..., e.index ^ flip, :]
        return total


def _mask(strings: list[str], letters: str) -> np.ndarray:
    """Bit masks (N,) of the places that hold one of the letters, the first place highest."""
    bits = np.array([[letter in letters for letter in s] for s in strings])
    return bits @ (1 << np.arange(bits.shape[1])[::-1])


def _roots(weights: Any, count: int) -> np.ndarray:
    weights = np.asarray(xp.to_numpy(as_data(weights, "weights", 1)), float)
    if weights.shape != (count,):
        raise ValueError(f"weights must have shape ({count},), got {weights.shape}")
    if not (weights > 0).all():
        raise ValueError("weights must be positive; leave out the strings that should not count")
    return (weights / weights.mean()) ** 0.5


def _scattered(values: Array, places: np.ndarray, size: int) -> Array:
    """Zeros (..., size) with ``values`` (..., N) added at ``places``."""
    if xp.is_torch(values):
        index = xp.namespace(values).as_tensor(places, device=values.device)
        return values.new_zeros((*values.shape[:-1], size)).index_add_(-1, index, values)
    out = np.zeros((*values.shape[:-1], size), values.dtype)
    np.add.at(out, (..., places), values)
    return out


def normalized(point: SymmetricBurerMonteiro) -> tuple[SymmetricBurerMonteiro, float]:
    """The density matrix of a fit: the same point with trace one, and the trace that it had."""
    trace = float(xp.inner(point.factor, point.factor))
    return (point.scale(trace**-0.5) if trace > 0 else point), trace


def tomography(
    qubits: int,
    rank: int = 1,
    measurements: int | None = None,
    shots: int | None = None,
    condition_number: float = 1.0,
    seed: Any = None,
) -> MatrixSensing:
    """Expectation values of random Pauli strings in a random state of the given rank: trace one, positive semidefinite.

    Parameters
    ----------
    qubits : int
        q, at least 1; the density matrix is ``2^q x 2^q``.
    rank : int
    measurements : int, optional
        Different strings, drawn from all ``4^q``; ten times ``rank 2^q`` by default, or all.
    shots : int, optional
        Outcomes that every expectation value is the mean of; exact values by default.
    condition_number : float
        Ratio of the largest to the smallest eigenvalue that is not zero.

    Returns
    -------
    MatrixSensing
        Its operator is a `PauliEnsemble`, its truth the state as `SymmetricBurerMonteiro`.

    >>> tomography(3, seed=0).shape
    (8, 8)
    """
    if not (isinstance(qubits, (int, np.integer)) and qubits >= 1):
        raise ValueError(f"qubits must be a positive integer, got {qubits!r}")
    if shots is not None and shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    d = 2**qubits
    rank = check_rank(rank, (d, d))
    if not condition_number >= 1:
        raise ValueError(f"condition_number must be at least 1, got {condition_number}")
    first, second = np.random.default_rng(seed).spawn(2)
    vectors = np.linalg.qr(first.standard_normal((d, rank)) + 1j * first.standard_normal((d, rank)))[0]
    truth, _ = normalized(SymmetricBurerMonteiro(vectors * np.linspace(1, 1 / condition_number, rank) ** 0.5))
    count = min(d * d, 10 * rank * d) if measurements is None else int(measurements)
    if not 1 <= count <= d * d:
        raise ValueError(f"measurements must lie between 1 and 4^q = {d * d}, got {measurements}")
    operator = PauliEnsemble([_word(k, qubits) for k in second.permutation(d * d)[:count]])
    values = operator.expectations(truth)
    if shots is not None:
        chance = np.clip((1 + values) / 2, 0, 1)
        values = 2 * second.binomial(shots, chance) / shots - 1
    return MatrixSensing(operator, operator.scaled(values), (d, d), truth)


def _word(number: int, qubits: int) -> str:
    """The Pauli string with this number in base four."""
    return "".join(LETTERS[(int(number) >> 2 * k) & 3] for k in reversed(range(qubits)))
