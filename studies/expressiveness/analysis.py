"""What the claims about approximation errors compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["FORMS", "OWN", "measures", "medians", "tables", "targets"]

Row = Mapping[str, Any]
FORMS = (
    "LoRA",
    "core",
    "Localized 2 x 2",
    "MELoRA",
    "Kronecker",
    "Hadamard",
    "low rank + sparse",
    "HiRA",
)
OWN = {
    "low rank": "LoRA",
    "blocks": "Localized 2 x 2",
    "diagonal blocks": "MELoRA",
    "Kronecker": "Kronecker",
    "Hadamard": "Hadamard",
    "low rank + sparse": "low rank + sparse",
}


def targets(rows: Sequence[Row]) -> list[str]:
    """In the order of the grid; those that were there."""
    return list(dict.fromkeys(row["target"] for row in rows if row["found"]))


def _errors(rows: Sequence[Row], target: str, form: str) -> list[float]:
    return [row["errors"][form] for row in rows if row["found"] and row["target"] == target and form in row["errors"]]


def medians(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Median errors by target and form."""
    found = {t: {f: _errors(rows, t, f) for f in FORMS} for t in targets(rows)}
    return {t: {f: float(np.median(v)) for f, v in by.items() if v} for t, by in found.items()}


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Numbers by name: one value a target and seed."""
    seen = [row for row in rows if row["found"]]
    of = {target: [row for row in rows if row["target"] == target and row["found"]] for target in _all(rows)}

    def over(target: str, form: str, other: str = "LoRA") -> list[float]:
        return [row["errors"][form] - row["errors"][other] for row in of.get(target, [])]

    def alone(target: str, form: str) -> list[float]:
        return _errors(rows, target, form)

    middle = medians(rows)
    return {
        "budget_gaps": [
            count - row["counts"]["LoRA"] for row in seen for form, count in row["counts"].items() if form != "core"
        ],
        "core_over_lora": [row["errors"]["core"] - row["errors"]["LoRA"] for row in seen],
        "hadamard_half": alone("half that rank", "Hadamard"),
        "hadamard_low": alone("low rank", "Hadamard"),
        "hadamard_own": alone("Hadamard", "Hadamard"),
        "hadamard_own_over_lora": over("Hadamard", "Hadamard"),
        "hadamard_rank": [row["rank"] - (row["unit"] // 2) ** 2 for row in of.get("Hadamard", [])],
        "kronecker_own": alone("Kronecker", "Kronecker"),
        "kronecker_low": alone("low rank", "Kronecker"),
        "sparse_half": alone("half that rank", "low rank + sparse"),
        "sparse_own": alone("low rank + sparse", "low rank + sparse"),
        "sparse_rank": [row["side"] - row["ranks"]["low rank + sparse"] for row in of.get("Gaussian", [])],
        "own_lead": [_lead(row) for row in seen if row["target"] in OWN],
        "winners": [len({min(by, key=by.__getitem__) for by in middle.values()})] if middle else [],
        "grid_over_lora": [row["errors"]["Localized 2 x 2"] - row["errors"]["LoRA"] for row in seen],
        **{
            f"{form}_{key}_over_lora": over(target, name)
            for target, key in (
                ("photographs", "photos"),
                ("fine-tuned", "tuned"),
                ("layers", "layers"),
            )
            for form, name in (
                ("grid", "Localized 2 x 2"),
                ("hadamard", "Hadamard"),
                ("sparse", "low rank + sparse"),
            )
        },
        "hira_tuned_over_lora": over("fine-tuned", "HiRA"),
        "hira_layers_over_lora": over("layers", "HiRA"),
        "hira_rank": [row["ranks"]["HiRA"] - row["unit"] for row in seen if "HiRA" in row["ranks"]],
    }


def _all(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["target"] for row in rows))


def _nearest(errors: Mapping[str, float]) -> list[str]:
    """The form with the least error, unless another one ties."""
    first, second = sorted(errors, key=errors.__getitem__)[:2]
    return [first] if errors[first] < errors[second] - 1e-9 else []


def _lead(row: Row) -> float:
    """Error of the form with the structure of the target, less the least of the others."""
    own = OWN[row["target"]]
    return row["errors"][own] - min(value for form, value in row["errors"].items() if form != own)


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Median errors, and the ranks of the nearest matrices."""
    middle = medians(rows)
    errors = [{"target": t, **{f: round(by[f], 4) for f in FORMS if f in by}} for t, by in middle.items()]
    ranks = []
    for target in targets(rows):
        here = [row for row in rows if row["target"] == target and row["found"]]
        forms = [form for form in FORMS if form in here[0]["ranks"]]
        ranks.append(
            {
                "target": target,
                **{f: int(np.median([row["ranks"][f] for row in here])) for f in forms},
            }
        )
    return {"Median relative errors": errors, "Median ranks of the fits": ranks} if errors else {}
