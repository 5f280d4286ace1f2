"""What the rows of the overhead study say, beside what the survey prints."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from studies.overhead.models import SIZES
from studies.overhead.variants import VARIANTS, Variant

__all__ = ["by_variant", "measures", "slug", "tables"]

Row = Mapping[str, Any]

COMPARED = [name for name in VARIANTS if name != "LoRA"]


def slug(name: str) -> str:
    """The name of a variant as part of the name of a measure."""
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def by_variant(rows: Sequence[Row], part: str) -> dict[str, list[Row]]:
    """Rows of a part of the grid, of all repetitions."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["part"] == part:
            found.setdefault(row["variant"], []).append(row)
    return found


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Ratios by variant on the CPU; elsewhere ratios over the survey's, or over our limits, of all variants."""
    cpu, long, counted, gpu = (by_variant(rows, part) for part in ("cpu", "long", "counted", "gpu"))
    found: dict[str, Any] = {}
    for name in COMPARED:
        for quantity in ("time", "memory", "bytes"):
            found[f"{slug(name)}_{quantity}"] = _distinct(cpu.get(name, []), quantity)
    found |= _against(long, "long", "cpu_time", "cpu_bytes", "bytes")
    found |= _against(counted, "counted", "time", "memory", "memory")
    found |= _against(gpu, "gpu", "time", "memory", "memory")
    found["counted_own_memory"] = [_over_own(row, counted["frozen model"][0]) for row in counted.get("LoRA", [])]
    for part, there in (("cpu", cpu), ("gpu", gpu)):
        found[f"{part}_floor"] = [1 / row["time"] for row in there.get("frozen model", [])]
    return found


def _over_own(lora: Row, floor: Row) -> float:
    """LoRA's peak over the frozen model's and what LoRA cannot do without.

    Its parameters and states, their gradients, and the inputs of the layers: those of attention, of its output, of the
    inner layer and of its output, which the frozen layers let go, in two bytes an entry.
    """
    size = SIZES[lora["model"]]
    entries = lora["sequences"] * lora["length"] * (3 * size["hidden_size"] + size["intermediate_size"])
    inputs = 2 * entries * size["num_hidden_layers"]
    own = lora["held_bytes"] - floor["held_bytes"] + lora["gradient_bytes"]
    return lora["peak_bytes"] / (floor["peak_bytes"] + own + inputs)


def _distinct(rows: Sequence[Row], quantity: str) -> list[float]:
    """One value for every repetition; those that repetitions cannot change, once."""
    values = [row[quantity] for row in rows]
    return values if quantity == "time" else sorted(set(values))


def _against(
    there: Mapping[str, Sequence[Row]], part: str, time_limit: str, other_limit: str, other: str
) -> dict[str, list[float]]:
    """Medians of the variants over the printed ratios and over our limits; at most one is good."""

    def over(quantity: str, limit: str) -> list[float]:
        chosen = {name: getattr(VARIANTS[name], limit) for name in COMPARED if name in there}
        return [_median(there[name], quantity) / bound for name, bound in chosen.items() if bound is not None]

    return {
        f"{part}_time_over_source": over("time", "source_time"),
        f"{part}_memory_over_source": over("memory", "source_memory"),
        f"{part}_time_over_limit": over("time", time_limit),
        f"{part}_{other}_over_limit": over(other, other_limit),
    }


def _median(rows: Sequence[Row], quantity: str) -> float:
    return statistics.median(row[quantity] for row in rows)


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Printed ratios beside ours, one table for every part."""
    titles = {
        "cpu": "Small Llama, 512 tokens, CPU; relative to LoRA",
        "long": "Small Llama, 2048 tokens, CPU; relative to LoRA",
        "gpu": "Llama-3.1-8B shapes, 1024 tokens, GPU; relative to LoRA",
    }
    lines = dict.fromkeys(titles, _measured)
    titles["counted"] = "Llama-3.1-8B shapes, 1024 tokens, counted; relative to LoRA"
    lines["counted"] = _counted
    found = {}
    for part, title in titles.items():
        there = by_variant(rows, part)
        if there:
            found[title] = [_printed(name) | lines[part](there[name]) for name in there]
    return found


def _printed(name: str) -> dict[str, Any]:
    line: dict[str, Any] = {"variant": name}
    variant: Variant | None = VARIANTS.get(name)
    if variant is not None:
        line |= {"survey: time": round(variant.source_time, 2), "survey: memory": round(variant.source_memory, 2)}
    return line


def _measured(rows: Sequence[Row]) -> dict[str, Any]:
    least, most = min(row["least"] for row in rows), max(row["most"] for row in rows)
    return {
        "trainable": rows[0]["trainable"],
        "time": round(_median(rows, "time"), 2),
        "single rounds": f"{least:.2f} to {most:.2f}",
        "bytes kept for backward": round(_median(rows, "bytes"), 2),
        "memory": round(_median(rows, "memory"), 3),
    }


def _counted(rows: Sequence[Row]) -> dict[str, Any]:
    row = rows[0]
    return {
        "trainable": row["trainable"],
        "least time": round(row["time"], 2),
        "TFLOP": round(row["operations"] / 1e12, 1),
        "GB moved": round(row["moved_bytes"] / 1e9),
        "kernels": row["kernels"],
        "bytes kept for backward": round(row["bytes"], 2),
        "memory": round(row["memory"], 3),
        "peak, GiB": round(row["peak_bytes"] / 2**30, 1),
    }
