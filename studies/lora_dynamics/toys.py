"""Widths to infinity: one scalar output ``x^T a b``, and which increments stay of order one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import lowrank_sp as lr
from lowrank_sp.rules import PerFactor, Rule, Scaled, chain, translate

__all__ = ["width"]

Cell = Mapping[str, Any]
QUANTITIES = ("delta1", "delta2", "delta3", "output", "b", "ax")
LABEL = 1.0


def width(cell: Cell) -> dict[str, Any]:
    """Medians over seeds for one rule at every width and step, and their exponents in the width, from step 2 on."""
    runs = [[_run(cell, m, seed) for seed in range(cell["seeds"])] for m in cell["widths"]]
    medians = np.median([[values for values, _ in some] for some in runs], axis=1)  # (widths, steps, quantities)
    logs = np.log(medians[:, 1:]).reshape(len(medians), -1)
    slopes = np.polyfit(np.log(cell["widths"]), logs, 1)[0].reshape(-1, len(QUANTITIES))
    return {
        "medians": {name: medians[:, :, k] for k, name in enumerate(QUANTITIES)},
        "slopes": {name: slopes[:, k] for k, name in enumerate(QUANTITIES)},
        "gap": max(gap for some in runs for _, gap in some),
    }


def _run(cell: Cell, m: int, seed: int) -> tuple[np.ndarray, float]:
    """Absolute values after every step from a random start, and how far the formula is off at any step."""
    rng = np.random.default_rng([seed, m])
    x = rng.standard_normal(m)
    if cell["input"] == "of norm one":
        x /= np.linalg.norm(x)
    problem = lr.MatrixSensing(x[None, :, None], np.array([LABEL]), (m, 1))
    b = rng.standard_normal((1, 1)) if cell["start"] == "normal" else np.zeros((1, 1))
    point: Any = lr.BurerMonteiro(rng.standard_normal((m, 1)) / m**0.5, b)
    rates = [cell["constant"] * m**c for c in cell["exponents"]]
    rule, gap, rows = RULES[cell["rule"]](*rates), 0.0, []
    for _ in range(cell["steps"]):
        before = _output(x, point)
        terms = TERMS[cell["rule"]](x, point, before - LABEL, *rates)
        direction, _ = rule.update(problem.gradient(point), rule.init(point), point)
        point = translate(point, direction, 1.0)
        after = _output(x, point)
        gap = max(gap, abs(after - before - terms @ (-1, -1, 1)) / (abs(terms).sum() + abs(before)))
        rows.append((*terms, after, point.right.item(), x @ point.left[:, 0]))
    return abs(np.array(rows)), float(gap)


def _output(x: np.ndarray, point: Any) -> float:
    return float(x @ point.left[:, 0] * point.right.item())


def _plain_terms(x: np.ndarray, point: Any, e: float, on_a: float, on_b: float) -> np.ndarray:
    """Equation (63), with a rate for each of the two factors."""
    a, b = point.left[:, 0], point.right.item()
    return np.array([on_a * b**2 * e * x @ x, on_b * (a @ x) ** 2 * e, on_a * on_b * e**2 * b * (a @ x) * (x @ x)])


def _scaled_terms(x: np.ndarray, point: Any, e: float, on_a: float, on_b: float) -> np.ndarray:
    """The terms of equation (66)."""
    a, b = point.left[:, 0], point.right.item()
    third = on_a * on_b * e**2 * (a @ x) * (x @ x) / (b * (a @ a))
    return np.array([on_a * e * x @ x, on_b * (a @ x) ** 2 * e / (a @ a), third])


def _scaled(on_a: float, on_b: float) -> Rule:
    return chain(Scaled(), PerFactor((on_a, on_b)))


def _unscaled(on_a: float, on_b: float) -> Rule:
    return PerFactor((on_a, on_b))


RULES = {"plain": _unscaled, "preconditioned": _scaled}
TERMS = {"plain": _plain_terms, "preconditioned": _scaled_terms}
