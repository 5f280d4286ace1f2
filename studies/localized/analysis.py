"""What the claims about block forms compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["BUDGETS", "drops", "measures", "tables"]

Row = Mapping[str, Any]
NAMES = ("lora", "melora", "localized")
BUDGETS = (256, 512, 1024, 2048, 4096)


def _of(rows: Sequence[Row], part: str) -> list[Row]:
    return [row for row in rows if row["part"] == part]


def drops(rows: Sequence[Row]) -> dict[str, dict[int, list[float]]]:
    """Accuracy below full fine-tuning by method and budget, one value a seed.

    At every budget the configuration with the least validation loss counts, as in the source.
    """
    transfer = _of(rows, "transfer")
    full = {row["seed"]: row["accuracy"] for row in transfer if row["method"] == "full"}
    found: dict[str, dict[int, list[float]]] = {name: {} for name in NAMES}
    for name in NAMES:
        for budget in BUDGETS:
            here = [row for row in transfer if row["method"] == name and row["parameters"] == budget]
            for seed in sorted({row["seed"] for row in here} & set(full)):
                best = min(
                    (row for row in here if row["seed"] == seed),
                    key=lambda row: row["loss"],
                )
                found[name].setdefault(budget, []).append(full[seed] - best["accuracy"])
    return found


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Numbers by name: one value an image, a budget or a seed."""
    found = _transfer(rows)
    for row in _of(rows, "images"):
        found |= _images(row)
    for row in _of(rows, "counts"):
        found["example"] = [
            row["lora"] - 8192,
            row["melora"] - 2048,
            row["localized"] - 2048,
        ]
    for row in _of(rows, "sweep"):
        found["full_count"] = [row["full"]]
        found["uneven_grids"] = [row["uneven_grids"]]
        found["smallest_share"] = [row["smallest_grid"] / row["smallest_lora"]]
    freedom = {row["form"]: row for row in _of(rows, "freedom")}
    if set(freedom) == set(NAMES):
        found["numbers"] = [row["numbers"] for row in freedom.values()]
        found["dimension_gap"] = [freedom["melora"]["dimension"] - freedom["lora"]["dimension"]]
        found["dimension_grid"] = [freedom["localized"]["dimension"] - freedom["lora"]["dimension"]]
    return found


def _images(row: Row) -> dict[str, Any]:
    source = row["source"]
    if not row["found"]:
        return {f"{source}_{name}": [] for name in (*NAMES, "rank", "localized_over_lora", "melora_over_lora")}
    lora = np.array(row["lora"])
    return {
        **{f"{source}_{name}": row[name] for name in NAMES},
        f"{source}_rank": row["ranks"],
        f"{source}_localized_over_lora": list(np.array(row["localized"]) - lora),
        f"{source}_melora_over_lora": list(np.array(row["melora"]) - lora),
    }


def _transfer(rows: Sequence[Row]) -> dict[str, Any]:
    by = drops(rows)
    means = {name: {b: float(np.mean(v)) for b, v in budgets.items()} for name, budgets in by.items()}

    def gaps(other: str, factor: int = 1) -> list[float]:
        """Mean drop of Localized LoRA at each budget less that of another form at ``factor`` times the budget."""
        here = [b for b in means["localized"] if factor * b in means[other]]
        return [means["localized"][b] - means[other][factor * b] for b in here]

    found: dict[str, Any] = {
        "localized_over_lora": gaps("lora"),
        "localized_over_melora": gaps("melora"),
        "localized_over_double_melora": gaps("melora", 2),
        "localized_over_double_lora": gaps("lora", 2),
        "least_drop": [min(v.values()) for v in means.values() if v],
        "full_accuracy": [row["accuracy"] for row in _of(rows, "transfer") if row["method"] == "full"],
    }
    low = [b for b in means["localized"] if b in means["lora"]][:1]
    found["low_localized_over_lora"] = [means["localized"][b] - means["lora"][b] for b in low]
    return found


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Errors on images, and accuracy drops by budget."""
    pictures = [
        {
            "images": row["source"],
            "number": len(row["lora"]),
            **{name: round(float(np.median(row[name])), 4) for name in NAMES},
            "share where localized is nearer than lora": round(_share(row), 3),
        }
        for row in _of(rows, "images")
        if row["found"]
    ]
    by = drops(rows)
    transfer = [
        {
            "parameters": budget,
            **{
                name: f"{np.mean(by[name][budget]):.2f} [{min(by[name][budget]):.2f}, {max(by[name][budget]):.2f}]"
                for name in NAMES
                if budget in by[name]
            },
        }
        for budget in BUDGETS
        if any(budget in by[name] for name in NAMES)
    ]
    found = {
        "Median relative errors on images": pictures,
        "Accuracy below full fine-tuning, per cent": transfer,
    }
    return {name: table for name, table in found.items() if table}


def _share(row: Row) -> float:
    return float(np.mean(np.array(row["localized"]) < np.array(row["lora"])))
