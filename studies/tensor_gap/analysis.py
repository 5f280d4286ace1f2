"""Thresholds from shares of success, and how they grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["FOUND", "STARTS", "exponent", "ratios", "shares", "threshold", "thresholds", "worse_fit"]

Row = Mapping[str, Any]

STARTS = ("truth", "unfolding", "restarts", "random")
FOUND = 0.5  # an overlap that counts as finding the spike
VISIBLE = 3.0  # a strength above what noise alone fits


def shares(rows: Sequence[Row], size: int, start: str) -> tuple[list[float], list[float]]:
    """Strengths, and the share of trials that find the spike at each."""
    here = sorted((row for row in rows if row["size"] == size), key=lambda row: row["strength"])
    found = [float(np.mean(np.asarray(row[f"overlap_{start}"]) >= FOUND)) for row in here]
    return [row["strength"] for row in here], found


def threshold(strengths: Sequence[float], found: Sequence[float]) -> float:
    """The geometric mean of the strengths at which single trials turn to success (Spearman and Karber).

    The area above the curve of shares against the logarithm of the strength; the shares should begin near 0 and
    end near 1. Half of the trials succeed there if the curve is symmetric.
    """
    x, failed = np.log(strengths), 1 - np.asarray(found)
    return float(np.exp(x[0] + np.sum((failed[1:] + failed[:-1]) / 2 * np.diff(x))))


def thresholds(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """Start to size to threshold, of the starts in the rows."""
    sizes = sorted({row["size"] for row in rows})
    return {
        start: {n: threshold(*shares(rows, n, start)) for n in sizes if f"overlap_{start}" in rows[0]}
        for start in STARTS
    }


def exponent(found: Mapping[int, float]) -> Any:
    """The slope of log threshold against log size."""
    if len(found) < 2:
        return []
    return float(np.polyfit(np.log(list(found)), np.log(list(found.values())), 1)[0])


def ratios(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """At the sizes that both have."""
    return [one[n] / other[n] for n in one if n in other]


def worse_fit(rows: Sequence[Row]) -> Any:
    """Of the visible trials where a run misses a spike that the run from the truth keeps: share with a worse fit."""
    worse = [
        fit < best
        for row in rows
        if row["strength"] >= VISIBLE
        for start in ("unfolding", "random")
        for overlap, fit, kept, best in zip(
            row[f"overlap_{start}"], row[f"fit_{start}"], row["overlap_truth"], row["fit_truth"], strict=True
        )
        if overlap < FOUND <= kept
    ]
    return float(np.mean(worse)) if worse else []
