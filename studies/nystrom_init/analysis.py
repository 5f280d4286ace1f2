"""What the rows of the study say: tuned counts, exponents of kappa, orders and the closed-form recursion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import lowrank_sp as lr

__all__ = [
    "best",
    "counts",
    "measures",
    "pick",
    "predicted_errors",
    "sampled_iterations",
    "success",
    "tables",
]

Rows = list[dict[str, Any]]


def pick(rows: Rows, **where: Any) -> Rows:
    """The rows with these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in where.items())]


def values(rows: Rows, key: str) -> list[Any]:
    """The different values of a key, ascending."""
    return sorted({row[key] for row in rows})


def sampled_iterations(cap: int) -> np.ndarray:
    """The iterations at which curves are stored: dense at the start, then logarithmic."""
    return np.unique(np.round(np.concatenate([[0], np.geomspace(1, cap, 120)])).astype(int))


def best(rows: Rows, level: int = 7) -> Rows:
    """Of rows at several steps, those of the step with the smallest median count to ``LEVELS[level]``.

    A step that fails on a seed loses against one that never fails.
    """

    def cost(step: float) -> tuple[bool, float]:
        reached = [row["counts"][level] for row in rows if row["step"] == step]
        return bool(np.isinf(reached).any()), float(np.median(reached))

    return pick(rows, step=min(values(rows, "step"), key=cost)) if rows else []


def counts(rows: Rows, solver: str, start: str, level: int = 7) -> dict[float, np.ndarray]:
    """Iterations per seed with the best step, by condition number."""
    found = [row for row in pick(rows, solver=solver, start=start) if row["part"] in ("gd", "altgd", "scaled")]
    kappas = values(found, "kappa")
    return {k: np.array([row["counts"][level] for row in best(pick(found, kappa=k), level)]) for k in kappas}


def slopes(found: dict[float, np.ndarray]) -> np.ndarray:
    """Exponent of kappa per seed, over the condition numbers at which every seed arrived."""
    kept = {k: c for k, c in found.items() if np.isfinite(c).all()}
    return np.polyfit(np.log(list(kept)), np.log(np.array(list(kept.values()))), 1)[0]


def medians(found: dict[float, np.ndarray]) -> np.ndarray:
    return np.array([np.median(c) for c in found.values()])


def predicted_errors(step: float, count: int) -> np.ndarray:
    """``|z_t - 1|`` for t = 0 ... count: z_0 = 0, z_1 = eta, then the scalar recursion."""
    z = [0.0, step]
    while len(z) <= count:
        z.append((1 - step) ** 2 * z[-1] + 2 * step * (1 - step) + step**2 / z[-1])
    return np.abs(np.array(z[: count + 1]) - 1)


def success(rows: Rows, solver: str, scales: tuple[float, float], steps: tuple[float, float]) -> Rows:
    """Success rows with the scale and the step in closed intervals."""
    return [
        row
        for row in pick(rows, part="success", solver=solver)
        if scales[0] <= row["scale"] <= scales[1] and steps[0] <= row["step"] <= steps[1]
    ]


def measures(rows: Rows, levels: Sequence[float]) -> dict[str, Any]:
    return {**_recursion(pick(rows, part="recursion")), **_scaled(rows), **_success(rows), **_gd(rows)}


def _recursion(rows: Rows) -> dict[str, Any]:
    half = pick(rows, step=0.5)
    excess = []
    for seed in values(half, "seed"):
        reached = [row["count"] for row in pick(half, seed=seed)]
        excess.append(max(max(reached) - min(reached) - 2, max(reached) - 14))
    # Above 1e-8 rounding is invisible at every condition number up to 100.
    clean = [row for row in rows if row["kappa"] <= 100]
    other = [row for row in clean if row["step"] not in (0.5, 1.0)]
    gaps = [
        np.abs(np.array(row["errors"]) - predicted_errors(row["step"], len(row["errors"]) - 1)).max() for row in rows
    ]
    return {
        "nystrom_half_excess": excess,
        "order_half": [lr.metrics.convergence_order(row["errors"]) for row in pick(clean, step=0.5)],
        "order_other_steps": [lr.metrics.convergence_order(row["errors"], floor=1e-10) for row in other],
        "rate_gap": [
            lr.metrics.convergence_rate(row["errors"], floor=1e-10) - abs(1 - 2 * row["step"]) for row in other
        ],
        "recursion_gap": gaps,
        "one_step_error": [row["errors"][1] for row in pick(rows, step=1.0)],
    }


def _scaled(rows: Rows) -> dict[str, Any]:
    nystrom = pick(rows, part="scaled", start="nystrom", step=0.5, kappa=10)
    gaussian = [
        row
        for k in values(pick(rows, part="scaled"), "kappa")
        for row in best(pick(rows, part="scaled", start="gaussian 0.1", kappa=k))
    ]
    printed = [float(row["defined"]) for row in pick(rows, part="printed")]
    return {
        "squaring_cost": [c[j] - c[i] for row in nystrom for c in [row["counts"]] for i, j in ((2, 5), (5, 11))],
        "gaussian_decade_ratio": [(c[11] - c[7]) / (c[7] - c[3]) for c in (row["counts"] for row in gaussian)],
        "gaussian_kappa_ratio": _kappa_ratios(pick(rows, part="scaled", start="gaussian 0.1")),
        "printed_defined": printed,
    }


def _kappa_ratios(rows: Rows) -> list[float]:
    """Largest over smallest median count among the condition numbers, for each step that never fails."""
    ratios = []
    for step in values(rows, "step"):
        mine = pick(rows, step=step)
        found = [np.median([row["counts"][7] for row in pick(mine, kappa=k)]) for k in values(mine, "kappa")]
        if np.isfinite([row["counts"][7] for row in mine]).all():
            ratios.append(max(found) / min(found))
    return ratios


def _success(rows: Rows) -> dict[str, Any]:
    tiny = success(rows, "ScaledGD", (0, 1e-3), (0, 1))
    return {
        "success_tiny": [max(row["rate"] for row in pick(tiny, scale=s)) for s in values(tiny, "scale")],
        "success_moderate": [row["rate"] for row in success(rows, "ScaledGD", (0.1, 0.1), (0, 0.3))],
        "success_alternating": [row["rate"] for row in success(rows, "AltScaledGD", (0, 1), (0.1, 0.5))],
        "success_damped": [row["rate"] for row in success(rows, "ScaledGD damped", (0, 0.1), (0.1, 0.5))],
    }


def _gd(rows: Rows) -> dict[str, Any]:
    nystrom, tiny, small = (counts(rows, "GD", start) for start in ("nystrom", "gaussian 0.001", "gaussian 0.1"))
    half, half_large = (counts(rows, "AltGD", start) for start in ("half-nystrom 0.001", "half-nystrom 0.1"))
    return {
        "slope_gd_gaussian": np.concatenate([slopes(tiny), slopes(small)]),
        "slope_gd_nystrom": slopes(nystrom),
        "slope_gd_tuned": np.concatenate([slopes(tiny), slopes(nystrom)]),
        "slope_gap": slopes(tiny) - slopes(nystrom),
        "gd_speedup": np.concatenate([medians(tiny) / medians(nystrom), medians(small) / medians(nystrom)]),
        "slope_altgd": np.concatenate([slopes(half), slopes(half_large)]),
        "altgd_ratio": medians(half) / medians(nystrom),
    }


def tables(rows: Rows, levels: Sequence[float]) -> dict[str, Rows]:
    """Exponents, tuned steps and success rates."""
    tuned, exponents = [], []
    swept = [row for row in rows if row["part"] in ("gd", "altgd", "scaled")]
    for solver, start in dict.fromkeys((row["solver"], row["start"]) for row in swept):
        found, mine = counts(rows, solver, start), pick(swept, solver=solver, start=start)
        reached = [k for k, c in found.items() if np.isfinite(c).all()]
        line = {"solver": solver, "start": start, "reached up to kappa": max(reached)}
        exponent = slopes(found)
        exponents.append(
            line
            | {
                "exponent (median)": round(float(np.median(exponent)), 3),
                "exponent (min, max)": f"{exponent.min():.3f}, {exponent.max():.3f}",
            }
        )
        for kappa in found:
            chosen = best(pick(mine, kappa=kappa))
            tuned.append(
                {
                    "solver": solver,
                    "start": start,
                    "kappa": kappa,
                    "best step": chosen[0]["step"],
                    "iterations to 1e-8 (median)": float(np.median(found[kappa])),
                    "seeds that arrived": f"{np.isfinite(found[kappa]).sum()} of {len(chosen)}",
                }
            )
    return {"Exponent of the condition number": exponents, "Tuned steps and iterations": tuned}
