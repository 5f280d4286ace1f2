"""Tensor instances with a chosen size, rank, condition number, noise and seed, that carry their truth."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .. import trains, xp
from ..coverage import covers
from ..parameterizations import CP, TensorTrain, Tucker
from ..tensors import mode_product
from .checks import check_tensor_shape
from .sampling import noise_like, sample_positions
from .tensor import TensorCompletion, TensorFactorization, TensorSensing
from .tensor_robust import RobustTensorPCA, keep_largest_in_fibers

__all__ = [
    "low_tensor",
    "orthogonal_tensor",
    "spiked_tensor",
    "tensor_completion",
    "tensor_factorization",
    "tensor_robust",
    "tensor_sensing",
]


def low_tensor(
    shape: tuple[int, ...], rank: Any, form: Any = Tucker, condition_number: float = 1.0, seed: Any = None
) -> Any:
    """A random tensor of exact rank in one of the tensor forms.

    Parameters
    ----------
    shape : tuple of int
    rank : int or tuple of int
        The size of the form.
    form : type
        `Tucker`: orthonormal factors and a core whose unfoldings have singular values 1, as in the published
        code of :cite:`tong2022tensor` (random where the ranks differ), scaled from 1 to ``1 / condition_number``
        in the first mode. `CP`: components of norms from 1 to ``1 / condition_number``, with factors uniform on
        the sphere. `TensorTrain`: orthonormal cores, with such singular values at the last bond.
    condition_number : float
        Ratio of the largest to the smallest of these numbers, which are spaced linearly.
    seed : int or Generator, optional

    Raises
    ------
    ValueError
        If the rank does not fit the shape or ``condition_number < 1``.
    """
    shape = check_tensor_shape(shape)
    if not (np.isfinite(condition_number) and condition_number >= 1):
        raise ValueError(f"condition_number must be at least 1, got {condition_number}")
    rng = np.random.default_rng(seed)
    base = next((f for f in (CP, Tucker, TensorTrain) if isinstance(form, type) and issubclass(form, f)), None)
    if base is None:
        raise TypeError(f"form must be lr.CP, lr.Tucker or lr.TensorTrain, got {form!r}")
    return GENERATORS[base](shape, rank, condition_number, rng)


def _spaced(count: int, condition_number: float) -> np.ndarray:
    return np.linspace(1.0, 1.0 / condition_number, count)


def _tucker(shape: tuple[int, ...], rank: Any, condition_number: float, rng: np.random.Generator) -> Any:
    ranks = Tucker.shapes(shape, rank)[0]
    if len(set(ranks)) == 1:
        r, d = ranks[0], len(ranks)
        core = (np.indices(ranks).sum(0) % r == 0) * r ** (1 - d / 2)
    else:
        core = rng.standard_normal(ranks)
        flat = core.reshape(ranks[0], -1)
        core = xp.orthonormalize(flat.T).T.reshape(ranks)
    core = mode_product(core, np.diag(_spaced(ranks[0], condition_number)), 0, len(ranks))
    return Tucker(core, *(xp.orthonormalize(rng.standard_normal((n, r))) for n, r in zip(shape, ranks, strict=True)))


def _cp(shape: tuple[int, ...], rank: Any, condition_number: float, rng: np.random.Generator) -> Any:
    factors = [rng.standard_normal(core) for core in CP.shapes(shape, rank)]
    first, *rest = (a / np.linalg.norm(a, axis=0) for a in factors)
    return CP(first * _spaced(first.shape[1], condition_number), *rest)


def _train(shape: tuple[int, ...], rank: Any, condition_number: float, rng: np.random.Generator) -> Any:
    cores = trains.left_orthogonal(TensorTrain.random(shape, rank, rng).arrays())
    last = xp.orthonormalize(cores[-1][..., 0].T).T
    cores[-1] = (_spaced(len(last), condition_number)[:, None] * last)[..., None]
    return TensorTrain(*cores)


GENERATORS: dict[Any, Any] = {Tucker: _tucker, CP: _cp, TensorTrain: _train}


def tensor_factorization(
    shape: tuple[int, ...],
    rank: Any,
    form: Any = Tucker,
    condition_number: float = 1.0,
    noise: float = 0.0,
    seed: Any = None,
) -> TensorFactorization:
    """A dense target ``truth + noise``; ``noise`` is relative to the Frobenius norm of the truth.

    >>> tensor_factorization((4, 5, 6), rank=2, seed=0).shape
    (4, 5, 6)
    """
    first, second = np.random.default_rng(seed).spawn(2)
    truth = low_tensor(shape, rank, form, condition_number, first)
    clean = truth.dense()
    return TensorFactorization(clean + noise_like(second, clean, noise), truth=truth, noiseless=noise == 0.0)


@covers("S14")
def tensor_completion(
    shape: tuple[int, ...],
    rank: Any,
    form: Any = Tucker,
    observed: float = 0.3,
    condition_number: float = 1.0,
    noise: float = 0.0,
    seed: Any = None,
) -> TensorCompletion:
    """Uniformly sampled entries of a low-rank truth.

    Parameters
    ----------
    shape, rank, form, condition_number
        As for `low_tensor`.
    observed : float
        Share of entries observed, in (0, 1].
    noise : float
        Relative to the norm of the clean samples.

    >>> tensor_completion((8, 9, 10), rank=1, observed=0.5, seed=0).data.shape
    (360,)
    """
    if not 0 < observed <= 1:
        raise ValueError(f"observed must lie in (0, 1], got {observed}")
    first, second = np.random.default_rng(seed).spawn(2)
    truth = low_tensor(shape, rank, form, condition_number, first)
    total = prod(truth.shape)
    indices = np.unravel_index(sample_positions(second, total, max(1, round(observed * total))), truth.shape)
    clean = truth.entries(*indices)
    return TensorCompletion(indices, clean + noise_like(second, clean, noise), truth.shape, truth)


@covers("S14")
def tensor_sensing(
    shape: tuple[int, ...],
    rank: Any,
    form: Any = Tucker,
    measurements: int | None = None,
    condition_number: float = 1.0,
    noise: float = 0.0,
    seed: Any = None,
) -> TensorSensing:
    """Gaussian measurements of a low-rank truth, with entries N(0, 1/N).

    Parameters
    ----------
    measurements : int, optional
        Six times the number of parameters of the form, by default.
    shape, rank, form, condition_number
        As for `low_tensor`.
    noise : float
        Relative to the norm of the clean measurements.

    >>> tensor_sensing((3, 4, 5), rank=1, measurements=50, seed=0).data.shape
    (50,)
    """
    first, second = np.random.default_rng(seed).spawn(2)
    truth = low_tensor(shape, rank, form, condition_number, first)
    count = 6 * type(truth).parameter_count(truth.shape, rank) if measurements is None else int(measurements)
    if count < 1:
        raise ValueError(f"measurements must be at least 1, got {count}")
    operator = second.standard_normal((count, prod(truth.shape))) / count**0.5
    clean = operator @ truth.dense().reshape(-1)
    return TensorSensing(operator, clean + noise_like(second, clean, noise), truth.shape, truth)


def tensor_robust(
    shape: tuple[int, ...],
    rank: Any,
    form: Any = Tucker,
    outliers: float = 0.1,
    magnitude: float = 10.0,
    condition_number: float = 1.0,
    noise: float = 0.0,
    seed: Any = None,
) -> RobustTensorPCA:
    """A low-rank truth plus sparse outliers, at most ``outliers`` of every fiber.

    Parameters
    ----------
    shape, rank, form, condition_number
        As for `low_tensor`.
    outliers : float
        Share of every fiber, in (0, 0.5): the largest entries of a Gaussian tensor.
    magnitude : float
        Standard deviation of that Gaussian tensor, in root mean squares of the entries of the truth.
    noise : float
        Dense Gaussian noise, relative to the norm of the truth.

    >>> tensor_robust((10, 10, 10), rank=1, seed=0).data.shape
    (10, 10, 10)
    """
    if not 0 < outliers < 0.5:
        raise ValueError(f"outliers must lie in (0, 0.5), got {outliers}")
    first, second = np.random.default_rng(seed).spawn(2)
    truth = low_tensor(shape, rank, form, condition_number, first)
    clean = truth.dense()
    size = magnitude * np.linalg.norm(clean) / clean.size**0.5
    sparse = keep_largest_in_fibers(size * second.standard_normal(clean.shape), outliers, clean.ndim)
    return RobustTensorPCA(clean + noise_like(second, clean, noise) + sparse, outliers, truth=truth)


@covers("S16")
def spiked_tensor(size: int, order: int = 3, strength: float = 1.0, seed: Any = None) -> TensorFactorization:
    """``strength sqrt(size) v o ... o v + Z`` with a random unit vector v and standard Gaussian noise Z.

    The spike can be seen for a ``strength`` above a constant, but the known algorithms of polynomial time need
    one that grows as ``size^((order - 2) / 4)``. The truth is a `CP` point of rank one.

    Notes
    -----
    Z is not symmetrized. Source: :cite:`richard2014tensor`.

    >>> spiked_tensor(5, strength=4.0, seed=0).truth.rank
    1
    """
    shape = check_tensor_shape((size,) * order)
    if not (np.isfinite(strength) and strength > 0):
        raise ValueError(f"strength must be positive and finite, got {strength}")
    first, second = np.random.default_rng(seed).spawn(2)
    v = first.standard_normal((size, 1))
    v = v / np.linalg.norm(v)
    truth = CP(strength * size**0.5 * v, *(v for _ in shape[1:]))
    return TensorFactorization(truth.dense() + second.standard_normal(shape), truth=truth)


def orthogonal_tensor(
    shape: tuple[int, ...], rank: int, condition_number: float = 1.0, noise: float = 0.0, seed: Any = None
) -> TensorFactorization:
    """An orthogonally decomposable tensor: a `CP` truth whose factors have orthonormal columns.

    Weights are spaced linearly from 1 to ``1 / condition_number``; ``noise`` is relative to the norm.

    Notes
    -----
    Source: :cite:`anandkumar2014tensor`.

    >>> orthogonal_tensor((4, 5, 6), rank=3, seed=0).shape
    (4, 5, 6)
    """
    shape = check_tensor_shape(shape)
    if not 1 <= rank <= min(shape):
        raise ValueError(f"rank must lie between 1 and {min(shape)}, the least size of {shape}, got {rank}")
    first, second = np.random.default_rng(seed).spawn(2)
    factors = [xp.orthonormalize(first.standard_normal((n, rank))) for n in shape]
    truth = CP(factors[0] * _spaced(rank, condition_number), *factors[1:])
    clean = truth.dense()
    return TensorFactorization(clean + noise_like(second, clean, noise), truth=truth, noiseless=noise == 0.0)
