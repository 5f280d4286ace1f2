"""What the rows of the gauge study say: exponents of kappa, ratios, equivariance gaps and vertical shares."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["DIRECTIONS", "METRICS", "SOLVERS", "conditions", "counts", "measures", "pick", "tables"]

Rows = list[dict[str, Any]]
SOLVERS = ("GD", "RefLoRA", "RefLoRAScalar", "ScaledGD", "LoRAPro", "RiemannianGD")
DIRECTIONS = ("GD", "LoRAPro", "ScaledGD", "RefLoRA")
METRICS = ("Euclidean", "ScaledGD's", "RefLoRA's")


def pick(rows: Rows, part: str, **where: Any) -> Rows:
    """The rows of a part with the given values."""
    return [r for r in rows if r["part"] == part and all(r[key] == value for key, value in where.items())]


def conditions(rows: Rows, part: str) -> list[float]:
    """The condition numbers of a part."""
    return sorted({r["condition_number"] for r in rows if r["part"] == part})


def counts(rows: Rows, part: str, name: str) -> np.ndarray:
    """Iteration counts of a solver, (condition numbers, seeds)."""
    kappas = conditions(rows, part)
    return np.array([[r["count"] for r in pick(rows, part, solver=name, condition_number=k)] for k in kappas])


def slope(rows: Rows, name: str) -> float:
    """Exponent of the condition number in the median count."""
    medians = np.median(counts(rows, "balanced", name), axis=1)
    kappas = conditions(rows, "balanced")
    return float(np.polyfit(np.log(kappas), np.log(medians), 1)[0]) if np.isfinite(medians).all() else np.inf


def ratios(rows: Rows, name: str, other: str, part: str = "balanced") -> np.ndarray:
    """Median counts of a solver over those of another, per condition number."""
    above, below = (np.median(counts(rows, part, solver), axis=1) for solver in (name, other))
    return _divide(above, below)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Their ratio; NaN, which no claim accepts, where neither median is finite."""
    with np.errstate(invalid="ignore"):
        return above / below


def skew_ratios(rows: Rows, name: str) -> np.ndarray:
    """Median counts from skewed starts over those from balanced ones, per condition number."""
    shared = [conditions(rows, "balanced").index(k) for k in conditions(rows, "skewed")]
    balanced = np.median(counts(rows, "balanced", name), axis=1)[shared]
    return _divide(np.median(counts(rows, "skewed", name), axis=1), balanced)


def gaps(rows: Rows, *names: str, least: float = 1.0, rounding: bool = False) -> list[float]:
    """Equivariance gaps of rules from a condition number of the gauge on, as such or in eps cond(Q)^2."""
    chosen = [r for name in names for r in pick(rows, "equivariance", rule=name)]
    units = [np.finfo(float).eps * r["gauge_condition"] ** 2 if rounding else 1.0 for r in chosen]
    return [r["gap"] / unit for r, unit in zip(chosen, units) if r["gauge_condition"] >= least]


def measures(rows: Rows) -> dict[str, Any]:
    vertical = [r["vertical"] for r in pick(rows, "horizontal")]
    cost = pick(rows, "cost")
    sizes = np.log([r["size"] for r in cost])
    drift = {r["step"]: [] for r in pick(rows, "conserved")}
    for r in pick(rows, "conserved"):
        drift[r["step"]].append(np.log(r["change"]))
    order = {name: [r["order"] for r in pick(rows, "order", rule=name)] for name in ("GD", "LoRAPro")}
    left = {name: [r["imbalance"][-1] for r in pick(rows, "sharpness", optimizer=name)] for name in ("GD", "SAM")}
    equivariant = ("ScaledGD", "RefLoRA", "RiemannianGD")
    return {
        **{f"slope_{name}": slope(rows, name) for name in SOLVERS},
        "slope_projected": [slope(rows, name) for name in ("LoRAPro", "RiemannianGD")],
        "scaledgd_over_gd": ratios(rows, "ScaledGD", "GD"),
        "reflora_over_scaledgd": ratios(rows, "RefLoRA", "ScaledGD"),
        "reflora_over_gd_balanced": ratios(rows, "RefLoRA", "GD"),
        "reflora_over_gd_skewed": ratios(rows, "RefLoRA", "GD", "skewed"),
        "lorapro_over_scaledgd": ratios(rows, "LoRAPro", "ScaledGD"),
        "skew_ratio_GD": skew_ratios(rows, "GD"),
        "skew_ratio_equivariant": np.concatenate([skew_ratios(rows, name) for name in equivariant]),
        "gap_equivariant": gaps(rows, "ScaledGD", "RefLoRA"),
        "gap_momentum": gaps(rows, "ScaledGD + momentum", "RefLoRA + momentum", rounding=True),
        "gap_adam": gaps(rows, "GD + Adam", "ScaledGD + Adam", "RefLoRA + Adam"),
        "gap_gd": gaps(rows, "GD", "RefLoRAScalar", least=10),
        **{f"order_{name}": values for name, values in order.items()},
        "vertical_ScaledGD_own": [v["ScaledGD"]["ScaledGD's"] for v in vertical],
        "vertical_RefLoRA_own": [v["RefLoRA"]["RefLoRA's"] for v in vertical],
        "vertical_Euclidean_preconditioned": [v[n]["Euclidean"] for v in vertical for n in DIRECTIONS[2:]],
        "vertical_Euclidean_horizontal": [v[n]["Euclidean"] for v in vertical for n in DIRECTIONS[:2]],
        "closed_projection_gap": [max(r["left"], r["change"]) for r in pick(rows, "horizontal")],
        "memory_slope_thin": np.polyfit(sizes, np.log([r["thin"] for r in cost]), 1)[0],
        "memory_slope_published": np.polyfit(sizes, np.log([r["published"] for r in cost]), 1)[0],
        "published_gap": [r["gap"] for r in cost],
        "conserved_slope": np.polyfit(np.log(list(drift)), np.array(list(drift.values())), 1)[0],
        **{f"imbalance_left_{name}": values for name, values in left.items()},
    }


def tables(rows: Rows) -> dict[str, Any]:
    table = []
    for part in ("balanced", "skewed"):
        for name in SOLVERS:
            for kappa in conditions(rows, part):
                entries = pick(rows, part, solver=name, condition_number=kappa)
                values = [r["count"] for r in entries]
                spread = {"median": float(np.median(values)), "least": min(values), "most": max(values)}
                table.append({"start": part, "solver": name, "kappa": kappa, "step": entries[0]["step"], **spread})
    return {"Iterations to a relative error of 1e-8 at tuned steps": table}
