"""What the rows of the study say: tuned counts, ratios over ranks and shapes, and exponents."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = [
    "best",
    "bound",
    "defect",
    "exponents",
    "measures",
    "medians",
    "pick",
    "sample",
    "sampled_iterations",
    "tables",
    "values",
]

Rows = list[dict[str, Any]]
SAFE = (0.05, 0.3)  # penalties of the claims about landing


def pick(rows: Rows, **where: Any) -> Rows:
    """The rows with these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in where.items())]


def values(rows: Rows, key: str) -> list[Any]:
    """The different values of a key, ascending."""
    return sorted({row[key] for row in rows})


def defect(factor: np.ndarray) -> float:
    """``||Q^T Q - I||_F``."""
    return float(np.linalg.norm(factor.T @ factor - np.eye(factor.shape[1])))


def sampled_iterations(cap: int) -> np.ndarray:
    """The iterations at which curves are stored: dense at the start, then logarithmic."""
    return np.unique(np.round(np.concatenate([[0], np.geomspace(1, cap, 90)])).astype(int))


def sample(curve: np.ndarray, cap: int) -> list[float]:
    """The curve at the sampled iterations that it reaches, and its end."""
    at = sampled_iterations(cap)
    return [float(f"{value:.3g}") for value in curve[at[at < len(curve)]]]


def counts(rows: Rows) -> np.ndarray:
    return np.array([row["count"] for row in rows])


def best(rows: Rows) -> Rows:
    """Of rows at several steps, those of the step with the smallest median count."""
    return pick(rows, step=min(values(rows, "step"), key=lambda step: np.median(counts(pick(rows, step=step)))))


def medians(rows: Rows, key: str, step: float | None = None) -> dict[Any, float]:
    """Median count for each value of a key, with the best step or with a given one."""
    found = {value: pick(rows, **{key: value}) for value in values(rows, key)}
    return {k: float(np.median(counts(pick(v, step=step) if step else best(v)))) for k, v in found.items()}


def bound(r: float, true_rank: float) -> float:
    """The shape of Theorem 7's logarithmic term at a fixed condition number."""
    return r**2 * true_rank / (r - true_rank) ** 4


def exponents(rows: Rows) -> np.ndarray:
    """Exponent of kappa per seed, over the condition numbers at which every seed arrived."""
    found = {k: counts(best(pick(rows, kappa=k))) for k in values(rows, "kappa")}
    kept = {k: c for k, c in found.items() if np.isfinite(c).all()}
    return np.polyfit(np.log(list(kept)), np.log(np.array(list(kept.values()))), 1)[0]


def measures(rows: Rows) -> dict[str, Any]:
    parts = {part: pick(rows, part=part) for part in dict.fromkeys(row["part"] for row in rows)}
    polar = pick(parts["retraction"], method="polar")
    return {
        **_rank(parts["rank"]),
        "kappa_exponent": np.concatenate([exponents(pick(parts["kappa"], r=r)) for r in values(parts["kappa"], "r")]),
        "shape_ratio": _shape(parts["shape"]),
        "scaled_counts": counts(parts["metric"]),
        "core_gap": [row["core_gap"] for row in polar],
        "core_gap_printed": [row["core_gap"] for row in pick(parts["retraction"], method="half core step")],
        "diagonal_ratio": [ratio for _, _, ratio in core_ratios(parts["core"])],
        **_saddle(parts["saddle"]),
        "retraction_defect": [row["largest_defect"] for row in parts["retraction"]],
        **_landing(parts["landing"], polar),
    }


def _rank(rows: Rows) -> dict[str, Any]:
    found: dict[str, list[float]] = {
        key: [] for key in ("successive_ratio", "total_ratio", "late_ratio", "over_bound_beyond", "over_bound_below")
    }
    for kappa in values(rows, "kappa"):
        mine = pick(rows, kappa=kappa)
        true, tuned = mine[0]["true_rank"], medians(mine, "r")
        for curve in (tuned, medians(mine, "r", step=1.0)):
            ranks = list(curve)
            found["successive_ratio"] += [curve[b] / curve[a] for a, b in pairwise(ranks)]
            found["total_ratio"].append(curve[ranks[-1]] / curve[ranks[0]])
            late = min(ranks, key=lambda r: abs(r - 3 * true))
            found["late_ratio"].append(curve[ranks[-1]] / curve[late])
        constant = tuned[2 * true] / bound(2 * true, true)
        for r, count in tuned.items():
            if r > true and r != 2 * true:
                side = "over_bound_beyond" if r > 2 * true else "over_bound_below"
                found[side].append(count / (constant * bound(r, true)))
    return found


def _shape(rows: Rows) -> list[float]:
    ratios = []
    for kappa in values(rows, "kappa"):
        for r in values(rows, "r"):
            found = medians(pick(rows, kappa=kappa, r=r), "shape")
            tall = found.pop("60x50")
            ratios += [count / tall for count in found.values()]
    return ratios


def core_ratios(rows: Rows) -> list[tuple[float, int, float]]:
    """Condition number, rank, and median count with a diagonal core over that with a full core."""
    ratios = []
    for kappa in values(rows, "kappa"):
        for r in values(rows, "r"):
            found = medians(pick(rows, kappa=kappa, r=r), "core")
            ratios.append((kappa, r, found["diagonal"] / found["full"]))
    return ratios


def _saddle(rows: Rows) -> dict[str, Any]:
    diagonal = pick(rows, point="mispaired", core="diagonal")
    return {
        "mispaired_smallest": [row["smallest"] for row in diagonal],
        "mispaired_gap": [row["smallest"] - row["predicted"] for row in diagonal],
        "mispaired_full_error": [row["error_after_core_step"] for row in pick(rows, point="mispaired", core="full")],
        "missed_smallest": [row["smallest"] for row in pick(rows, point="missed")],
    }


def _landing(rows: Rows, polar: Rows) -> dict[str, Any]:
    reference = {(row["kappa"], row["seed"]): row["count"] for row in polar}
    safe = [row for row in rows if SAFE[0] <= row["penalty"] <= SAFE[1]]
    extreme = [row for row in rows if row["penalty"] in (0.005, 0.5)]

    def ratios(chosen: Iterable[dict[str, Any]]) -> list[float]:
        return [row["count"] / reference[row["kappa"], row["seed"]] for row in chosen]

    return {
        "landing_ratio": ratios(safe),
        "landing_last": [row["last_defect"] for row in safe],
        "landing_largest": [row["largest_defect"] for row in safe],
        "landing_ratio_extreme": ratios(extreme),
    }


def tables(rows: Rows) -> dict[str, Rows]:
    """Counts by rank, cores, penalties and exponents."""
    rank, core = pick(rows, part="rank"), pick(rows, part="core")
    by_rank = []
    for kappa in values(rank, "kappa"):
        for r in values(rank, "r"):
            chosen = best(pick(rank, kappa=kappa, r=r))
            found = counts(chosen)
            by_rank.append(
                {
                    "kappa": kappa,
                    "r": r,
                    "best step": chosen[0]["step"],
                    "median": float(np.median(found)),
                    "min": float(found.min()),
                    "max": float(found.max()),
                    "median at step 1": float(np.median(counts(pick(rank, kappa=kappa, r=r, step=1.0)))),
                }
            )
    by_core = [
        {
            "kappa": kappa,
            "r": r,
            "core": kind,
            "best step": (chosen := best(mine))[0]["step"],
            "median": float(np.median(counts(chosen))),
            "arrived": f"{np.isfinite(counts(chosen)).sum()} of {len(chosen)}",
        }
        for kappa in values(core, "kappa")
        for r in values(core, "r")
        for kind in ("full", "diagonal")
        for mine in [pick(core, kappa=kappa, r=r, core=kind)]
    ]
    return {"Iterations by rank": by_rank, "Full and diagonal core": by_core, "Landing": _landing_table(rows)}


def _landing_table(rows: Rows) -> Rows:
    landing = pick(rows, part="landing")
    lines = []
    for kappa in values(landing, "kappa"):
        for penalty in values(landing, "penalty"):
            mine = pick(landing, kappa=kappa, penalty=penalty)
            lines.append(
                {
                    "kappa": kappa,
                    "penalty": penalty,
                    "median": float(np.median(counts(mine))),
                    "arrived": f"{np.isfinite(counts(mine)).sum()} of {len(mine)}",
                    "largest defect": max(row["largest_defect"] for row in mine),
                    "last defect": max(row["last_defect"] for row in mine),
                }
            )
    return lines
