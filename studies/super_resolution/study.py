"""Spectral super-resolution: tones from some samples of a signal, by completing its Hankel matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.linalg import hankel
from scipy.optimize import linear_sum_assignment

import lowrank_sp as lr
from studies.super_resolution import plots
from studies.super_resolution.plots import rate

Cell = Mapping[str, Any]
Row = Mapping[str, Any]
Array = np.ndarray

PADDING = 32  # of the Fourier transform
PICTURED = (0.5, 0.4)  # separation and share of samples of the picture


def tones(count: int, separation: float, length: int, rng: np.random.Generator) -> Array:
    """Frequencies in [0, 1): pairs that are ``separation / length`` apart, pairs far from each other."""
    pairs = -(-count // 2)
    middle = (np.arange(pairs) + rng.uniform(0.25, 0.75, pairs)) / pairs
    apart = np.array([-0.5, 0.5]) * separation / length
    return np.sort((middle[:, None] + apart).ravel()[:count] % 1.0)


def _zero_filled(positions: Array, samples: Array, length: int, count: int) -> Array:
    """The highest peaks of the spectrum of the samples, the others set to zero."""
    filled = np.zeros(length, complex)
    filled[positions] = samples
    size = abs(np.fft.fft(filled, PADDING * length))
    peaks = np.flatnonzero((size > np.roll(size, 1)) & (size >= np.roll(size, -1)))
    return np.sort(peaks[np.argsort(-size[peaks])[:count]]) / size.size


def _completed(positions: Array, samples: Array, length: int, count: int) -> Array:
    """Hankel completion by conjugate gradients, then rotational invariance."""
    problem = lr.HankelCompletion(positions, samples, length)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, count)
    point = lr.solve(problem, start, lr.ScaledCG(), 500, 1e-12).point
    return problem.frequencies(point)


def _esprit(positions: Array, samples: Array, length: int, count: int) -> Array:
    """Rotational invariance on a signal of which every sample is given."""
    rows = length // 2 + 1
    u = np.linalg.svd(hankel(samples[:rows], samples[rows - 1 :]))[0][:, :count]
    poles = np.linalg.eigvals(np.linalg.lstsq(u[:-1], u[1:])[0])
    return np.sort(np.angle(poles) / (2 * np.pi) % 1.0)


METHODS: dict[str, Callable[[Array, Array, int, int], Array]] = {
    "Hankel completion": _completed,
    "zero-filled FFT": _zero_filled,
    "ESPRIT, all samples": _esprit,
}


def run(cell: Cell) -> Row:
    """One signal, some of its samples, the frequencies that one method finds."""
    length, count, rng = cell["length"], cell["tones"], np.random.default_rng(cell["seed"])
    truth = tones(count, cell["separation"], length, rng)
    weights = rng.uniform(0.5, 1.5, count) * np.exp(2j * np.pi * rng.random(count))
    clean = np.exp(2j * np.pi * np.outer(np.arange(length), truth)) @ weights
    noise = rng.standard_normal(length) + 1j * rng.standard_normal(length)
    signal = clean + cell["noise"] * np.linalg.norm(clean) / np.linalg.norm(noise) * noise
    positions = np.sort(rng.permutation(length)[: round(cell["share"] * length)])
    given = np.arange(length) if cell["method"] == "ESPRIT, all samples" else positions
    found = METHODS[cell["method"]](given, signal[given], length, count)
    row: dict[str, Any] = {"error": length * _distance(found, truth)}
    if cell["seed"] == 0 and (cell["separation"], cell["share"]) == PICTURED:
        filled = np.zeros(length, complex)
        filled[positions] = signal[positions]
        spectrum = abs(np.fft.fft(filled, 8 * length)) / len(positions)
        row |= {"truth": truth.tolist(), "weights": abs(weights).tolist(), "found": found.tolist()}
        row |= {"spectrum": spectrum.round(4).tolist()}
    return row


def _distance(found: Array, truth: Array) -> float:
    """The largest distance of matched frequencies on the circle; one half where some are not found at all."""
    if len(found) < len(truth):
        return 0.5
    gap = abs(found[:, None] - truth)
    gap = np.minimum(gap, 1 - gap)
    return float(gap[linear_sum_assignment(gap)].max())


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Success rates over the seeds, and errors under noise relative to those of all samples."""
    samples = [row for row in rows if row["part"] == "samples"]
    close = [row for row in rows if row["part"] == "separation"]
    noisy = [row for row in rows if row["part"] == "noise"]
    ours, fft = "Hankel completion", "zero-filled FFT"
    shares, counts = ({row[key] for row in samples} for key in ("share", "tones"))
    gaps = sorted({row["separation"] for row in close})
    by = {(row["method"], row["noise"], row["seed"]): row["error"] for row in noisy}
    return {
        "many_samples": [rate(samples, ours, share=s, tones=k) for s in shares for k in counts if s >= 0.6],
        "some_samples": [rate(samples, ours, share=s, tones=2) for s in shares if s == 0.3],
        "over_fft": [
            rate(samples, ours, share=s, tones=k) - rate(samples, fft, share=s, tones=k) for s in shares for k in counts
        ],
        "close": [rate(close, ours, separation=gap) for gap in gaps if gap in (0.5, 1.0)],
        "closest": [rate(close, ours, separation=gap) for gap in gaps if gap < 0.5],
        "fft_close": [rate(close, fft, separation=gap) for gap in gaps if gap <= 0.5],
        "noise_over_esprit": [by[ours, *key[1:]] / by["ESPRIT, all samples", *key[1:]] for key in by if key[0] == ours],
        "noise_over_fft": [by[ours, *key[1:]] / by[fft, *key[1:]] for key in by if key[0] == ours],
    }


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Success rates, and errors under noise."""
    return plots.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Success against samples and separation, errors under noise, and one spectrum."""
    return plots.figures(rows)
