"""What the sensing study measures on its rows: slopes, transitions, medians of best counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["axis", "best_counts", "measures", "needed", "pick", "polar_needs", "rate", "root_mean_square", "tables"]

Row = Mapping[str, Any]


def pick(rows: Iterable[Row], part: str, **settings: Any) -> list[Row]:
    """Rows of a part with the given values."""
    return [r for r in rows if r["part"] == part and all(r[k] == v for k, v in settings.items())]


def axis(rows: Iterable[Row], key: str) -> list[Any]:
    """The different values of a key, in order of appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


def rate(rows: Sequence[Row]) -> float:
    """Share of the rows that recovered the truth."""
    return float(np.mean([row["recovered"] for row in rows]))


def needed(rows: Sequence[Row], level: float) -> float:
    """Least ratio of measurements to degrees of freedom with a success rate of at least `level`."""
    ratios = sorted(axis(rows, "ratio"))
    return next((x for x in ratios if rate([r for r in rows if r["ratio"] == x]) >= level), np.inf)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def root_mean_square(rows: Sequence[Row], over: str, key: str) -> tuple[list[float], list[float]]:
    """The values of `over` in order, and the root mean square of `key` at each."""
    values = sorted(axis(rows, over))
    return values, [float(np.sqrt(np.mean([r[key] ** 2 for r in rows if r[over] == v]))) for v in values]


def best_counts(rows: Sequence[Row], solver: str) -> dict[float, list[float]]:
    """Counts of all seeds at each condition number, with the step of the least median (then mean) count."""
    found = {}
    for kappa in axis(pick(rows, "condition"), "kappa"):
        chosen = pick(rows, "condition", solver=solver, kappa=kappa)
        by_step = [[r["count"] for r in chosen if r["step"] == step] for step in axis(chosen, "step")]
        found[kappa] = min(by_step, key=lambda counts: (np.median(counts), np.max(counts)))
    return found


def polar_needs(rows: Sequence[Row]) -> dict[int, float]:
    """Measurements over degrees of freedom of the truth for 80 % success, with the best steps of each rank."""
    chosen = pick(rows, "overparametrized")
    return {
        factor: min(
            needed([r for r in chosen if r["factor"] == factor and r["steps"] == steps], 0.8)
            for steps in axis(chosen, "steps")
        )
        for factor in axis(chosen, "factor")
    }


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that a claim names."""
    return {
        **_population(rows),
        **_transition(rows),
        **_noise(rows),
        **_condition(rows),
        **_landscape(rows),
        **_overparametrized(rows),
    }


def _population(rows: Sequence[Row]) -> dict[str, Any]:
    chosen, tuned = pick(rows, "population"), pick(rows, "finetune")
    return {
        "gradient_slope": slope(*root_mean_square(chosen, "measurements", "gradient_gap")),
        "loss_slope": slope(*root_mean_square(chosen, "measurements", "loss_gap")),
        "population_error": [r["error"] for r in chosen if r["per_unknown"] >= 10],
        "finetune_gap": [r[key] for r in tuned for key in ("loss_gap", "gradient_gap")],
    }


def _transition(rows: Sequence[Row]) -> dict[str, Any]:
    chosen, ensembles = pick(rows, "transition"), pick(rows, "ensembles")
    groups = [
        [r for r in chosen if r["solver"] == solver and r["rank"] == rank]
        for solver in axis(chosen, "solver")
        for rank in axis(chosen, "rank")
    ]
    half = [needed(pick(ensembles, "ensembles", ensemble=e), 0.5) for e in axis(ensembles, "ensemble")]
    return {
        "rate_below_dof": [rate([r for r in group if r["ratio"] < 1]) for group in groups],
        "rate_at_three": [rate([r for r in group if r["ratio"] == 3]) for group in groups],
        "half_point": [needed(group, 0.5) for group in groups],
        "ensemble_spread": max(half) / min(half) if np.isfinite(min(half)) else np.inf,
        "ensemble_rates": [
            rate([r for r in ensembles if r["ensemble"] == e and r["ratio"] == 3]) for e in axis(ensembles, "ensemble")
        ],
    }


def _noise(rows: Sequence[Row]) -> dict[str, Any]:
    chosen = pick(rows, "noise")
    seeds = axis(chosen, "seed")
    curves = [sorted((r["level"], r["error"]) for r in chosen if r["seed"] == seed) for seed in seeds]
    return {
        "noise_slope": [slope(*zip(*curve, strict=True)) for curve in curves],
        "noise_over_predicted": [r["error"] / r["predicted"] for r in chosen],
    }


def _condition(rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for solver in axis(pick(rows, "condition"), "solver"):
        counts = {kappa: float(np.median(c)) for kappa, c in best_counts(rows, solver).items()}
        kappas = sorted(counts)
        found[f"growth_{solver}"] = counts[kappas[-1]] / counts[kappas[0]]
        found[f"growth_{solver}_100"] = counts.get(100, np.nan) / counts[kappas[0]]
    return found


def _landscape(rows: Sequence[Row]) -> dict[str, Any]:
    curved = pick(rows, "saddle")
    wrong = [r for r in curved if r["point"] != "minimum"]
    return {
        "excess": [r["excess"] for r in pick(rows, "starts")],
        "critical_gradient": [r["gradient"] for r in curved],
        "saddle_eigenvalue": [r["eigenvalue"] for r in wrong],
        "saddle_formula": [abs(r["eigenvalue"] - r["predicted"]) for r in curved],
    }


def _overparametrized(rows: Sequence[Row]) -> dict[str, Any]:
    needs, chosen = polar_needs(rows), pick(rows, "overparametrized")
    factors, most = sorted(needs), max(axis(chosen, "ratio"))
    counts = {
        f: min(
            float(np.median([r["count"] for r in chosen if (r["factor"], r["ratio"], r["steps"]) == (f, most, steps)]))
            for steps in axis(chosen, "steps")
        )
        for f in factors
    }
    finite = np.isfinite([needs[f] for f in factors]).all()
    return {
        "needs_slope": slope(factors, [needs[f] for f in factors]) if finite else np.inf,
        "needs_growth": needs[factors[-1]] / needs[factors[0]],
        "needs": [needs[f] for f in factors],
        "speed_up": counts[factors[-1]] / counts[factors[0]],
    }


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Counts with the best steps over condition numbers, and success rates of the over-parametrized runs."""
    chosen = pick(rows, "overparametrized")
    return {
        "Iterations with the best step, median over seeds": [
            {"solver": solver, **{f"kappa {k:g}": float(np.median(c)) for k, c in best_counts(rows, solver).items()}}
            for solver in axis(pick(rows, "condition"), "solver")
        ],
        "Success rate of PoLAR by measurements over degrees of freedom": [
            {
                "rank": f"{factor} x rank of the truth",
                "steps": steps,
                **{
                    f"{x:g}": round(
                        rate([r for r in chosen if (r["factor"], r["steps"], r["ratio"]) == (factor, steps, x)]), 3
                    )
                    for x in sorted(axis(chosen, "ratio"))
                },
            }
            for factor in axis(chosen, "factor")
            for steps in axis(chosen, "steps")
        ],
    }
