"""Phase retrieval: images from squared magnitudes of random measurements, by conjugate gradients and Wirtinger flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from time import perf_counter
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import lowrank_sp as lr
from studies.phase_retrieval import plots

Cell = Mapping[str, Any]
Row = Mapping[str, Any]

MET = 1e-5  # relative error of a recovered image
FLOW = 0.05  # the constant step of Wirtinger flow, divided by the mean intensity and the number of measurements
PICTURED = (3, 8)  # digits


@lru_cache(maxsize=1)
def _digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    return load_digits().images[:10] / 16.0  # pyright: ignore[reportAttributeAccessIssue]


def _flow(intensities: np.ndarray) -> Any:
    return lr.GD(FLOW / float(intensities.sum()))


SOLVERS: dict[str, tuple[Callable[[np.ndarray], Any], int]] = {
    "ScaledCG": (lambda _: lr.ScaledCG(), 1000),
    "GD, automatic step": (lambda _: lr.GD(), 1500),
    "ScaledGD, exact step": (lambda _: lr.ScaledGD(), 1500),
    "Wirtinger flow": (_flow, 2500),
}


def run(cell: Cell) -> Row:
    """One digit from its intensities, with or without noise."""
    image = _digits()[cell["digit"]]
    signal, rng = image.ravel(), np.random.default_rng((cell["digit"], 1))
    vectors = rng.standard_normal((round(cell["ratio"] * signal.size), signal.size))
    clean = (vectors @ signal) ** 2
    noise = rng.standard_normal(clean.size)
    intensities = clean + cell["noise"] * np.linalg.norm(clean) / np.linalg.norm(noise) * noise
    operator = lr.QuadraticEnsemble(vectors)
    problem = lr.MatrixSensing(operator, intensities, operator.shape)
    make, iterations = SOLVERS[cell["method"]]
    tick = perf_counter()
    start = lr.inits.spectral(problem, lr.SymmetricBurerMonteiro, 1)
    result = lr.solve(problem, start, make(intensities), iterations, 1e-12)
    seconds = perf_counter() - tick
    found, first = (_aligned(point.factor[:, 0], signal) for point in (result.point, start))
    row: dict[str, Any] = {
        "seconds": seconds,
        "iterations": int(result.nit),
        "error": _error(found, signal),
        "start_error": _error(first, signal),
        "floor": _floor(vectors, signal, intensities - clean) if cell["noise"] else 0.0,
    }
    if cell["digit"] in PICTURED and cell["method"] == "ScaledCG":
        row |= {"truth": image.tolist(), "found": found.reshape(image.shape).round(4).tolist()}
    return row


def _aligned(found: np.ndarray, signal: np.ndarray) -> np.ndarray:
    return found if found @ signal >= 0 else -found


def _error(found: np.ndarray, signal: np.ndarray) -> float:
    return float(np.linalg.norm(found - signal) / np.linalg.norm(signal))


def _floor(vectors: np.ndarray, signal: np.ndarray, noise: np.ndarray) -> float:
    """The relative error of least squares linearised at the truth: ``J dx = e`` with rows ``2 (a_i x) a_i``."""
    jacobian = 2 * (vectors @ signal)[:, None] * vectors
    return float(np.linalg.norm(np.linalg.lstsq(jacobian, noise)[0]) / np.linalg.norm(signal))


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Success rates over the digits, ratios of iterations on digits that both methods recover, and noise floors."""
    exact = [row for row in rows if row["part"] == "oversampling"]
    noisy = [row for row in rows if row["part"] == "noise"]
    ratios = sorted({row["ratio"] for row in exact})
    high = [ratio for ratio in ratios if ratio >= 6]

    def rate(method: str, ratio: float) -> float:
        return plots.rate(exact, method, ratio, MET)

    def iterations(other: str) -> list[float]:
        by = {(row["method"], row["ratio"], row["digit"]): row for row in exact if row["error"] <= MET}
        pairs = [(by[key], by.get((other, *key[1:]))) for key in by if key[0] == "ScaledCG"]
        return [ours["iterations"] / theirs["iterations"] for ours, theirs in pairs if theirs]

    return {
        "cg_high": [rate("ScaledCG", ratio) for ratio in high],
        "cg_four": [rate("ScaledCG", 4.0)],
        "flow_high": [rate("Wirtinger flow", ratio) for ratio in high],
        "cg_over_flow": [rate("ScaledCG", ratio) - rate("Wirtinger flow", ratio) for ratio in ratios],
        "cg_two": [rate("ScaledCG", 2.0)] if 2.0 in ratios else [],
        "cg_iterations_flow": iterations("Wirtinger flow"),
        "cg_iterations_gd": iterations("GD, automatic step"),
        "noise_floor": [row["error"] / row["floor"] for row in noisy if row["noise"] <= 0.01],
        "noise_floor_strong": [row["error"] / row["floor"] for row in noisy if row["noise"] > 0.01],
    }


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Success rates, iterations and times; errors under noise."""
    return plots.tables(rows, MET)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Success against oversampling, iterations, error under noise, and recovered digits."""
    return plots.figures(rows, MET)
