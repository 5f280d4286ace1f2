"""What the claims about parameter counts compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["measures", "tables"]

Row = Mapping[str, Any]
MISPRINTED = ("VeRA", "NoLA")
RANDLORA, START = "RandLoRA", "AdaLoRA, at its start"


def _of(rows: Sequence[Row], part: str) -> list[Row]:
    return [row for row in rows if row["part"] == part]


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Numbers by name: one value an instance."""
    return _formulas(_of(rows, "formulas")) | _benchmark(rows) | _layer(_of(rows, "layer")) | _models(rows)


def _formulas(rows: Sequence[Row]) -> dict[str, Any]:
    def gaps(names: Sequence[str] = (), printed: str = "printed") -> list[int]:
        return [row[printed] - row["counted"] for row in rows if row["method"] in names]

    # HiRA and DoRA are forms of their own only with the pretrained weight: the bridge has their counts.
    clean = {row["method"] for row in rows} - {*MISPRINTED, "DoRA"}
    nola = [row for row in rows if row["method"] == "NoLA"]
    vera = [row for row in rows if row["method"] == "VeRA"]
    return {
        "formula_gaps": gaps(sorted(clean)),
        "dora_gaps": [row["printed"] - row["trained"] for row in rows if row["method"] == "DoRA" and "trained" in row],
        "vera_gaps": gaps(["VeRA"]),
        "vera_corrected": [row["counted"] - (n + r) * k for row in vera for _, n, k, r, *_ in [row["case"]]],
        "vera_columns": [row["wrong_columns"] for row in vera],
        "nola_gaps": gaps(["NoLA"]),
        "nola_trained": [row["counted"] - 2 * row["case"][5] * row["case"][2] for row in nola],
        "nola_stored": [row["printed"] - row["counted"] - _dictionary(row["case"]) for row in nola],
        "kronecker_sides": [row["wrong_sides"] for row in rows if "wrong_sides" in row],
        "bridge_gaps": [
            row["trained"] - row["counted"] for row in rows if "trained" in row and row["method"] != "DoRA"
        ],
    }


def _dictionary(case: Sequence[int]) -> int:
    """Numbers in the fixed matrices of NoLA."""
    m, n, _, rank, _, terms = case
    return terms * (m + n) * rank


def _benchmark(rows: Sequence[Row]) -> dict[str, Any]:
    by = {row["method"]: row for row in _of(rows, "benchmark")}
    found: dict[str, Any] = {
        "benchmark_gaps": [row["gap"] for name, row in by.items() if name not in (RANDLORA, START)],
        "lokr_gap": [row["gap"] for row in _of(rows, "lokr")],
        "grouped_factor": [row["factor"] / row["heads"] for row in _of(rows, "heads")],
        "grouped_corrected": [row["factor"] - (row["heads"] + 1) / 2 for row in _of(rows, "heads")],
    }
    if RANDLORA in by:
        found |= {"randlora_gap": [by[RANDLORA]["gap"]], "randlora_full": [by[RANDLORA]["counted"]]}
    if START in by:
        found["adalora_start"] = [by[START]["counted"]]
    if "DoRA" in by and "LoRA" in by:
        found["dora_extra"] = [by["DoRA"]["counted"] - by["LoRA"]["counted"]]
    return found


def _layer(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "layer_gaps": [row["gap"] for row in rows],
        "layer_ratio_gaps": [abs(row["reduction"] / row["printed_ratio"] - 1) for row in rows],
        "layer_reductions": [row["reduction"] for row in rows],
        "layer_reduction_8": [row["reduction"] for row in rows if row["rank"] == 8],
    }


def _models(rows: Sequence[Row]) -> dict[str, Any]:
    by = {(row["model"], row["rank"]): row for row in _of(rows, "models")}
    found: dict[str, Any] = {}
    for (model, rank), row in by.items():
        key = model.lower().replace("-", "").replace("/", "")
        found[f"{key}_query_value_{rank}"] = [row["query_value"]]
        found[f"{key}_share_{rank}"] = [100 * row["query_value"] / row["total"]]
        found[f"{key}_total"] = [row["total"]]
        found[f"{key}_usual_gap_{rank}"] = [min(abs(v - row["printed"]) for v in row["usual"].values())]
        found[f"{key}_any_gap_{rank}"] = [min(abs(v - row["printed"]) for v in row["sets"].values())]
    return found


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Printed numbers beside counted ones."""
    formulas = [
        {
            "method": row["method"],
            "inputs, outputs, layers, rank": "{}, {}, {}, {}".format(*row["case"][:4]),
            "printed formula": row["printed"],
            "numbers in the form": row["counted"],
            "trained by llm_bridge": row.get("trained", ""),
        }
        for row in _of(rows, "formulas")
    ]
    benchmark = [
        {"method": row["method"], "printed, millions": row["printed"], "counted, millions": round(row["counted"], 4)}
        for row in _of(rows, "benchmark")
    ]
    benchmark += [
        {
            "method": f"LoKr, nearest usual setting: {row['setting']}",
            "printed, millions": row["printed"],
            "gap": row["gap"],
        }
        for row in _of(rows, "lokr")
    ]
    models = [
        {
            "model": row["model"],
            "rank": row["rank"],
            "printed, millions": row["printed"],
            **{name: round(value, 3) for name, value in row["usual"].items()},
        }
        for row in _of(rows, "models")
    ]
    found = {"Formulas": formulas, "Llama-3.1-8B": benchmark, "LoRA in models, by targets": models}
    return {name: table for name, table in found.items() if table}
