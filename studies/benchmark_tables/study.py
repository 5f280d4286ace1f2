"""Numbers that the surveys print, against what their text says of them: arithmetic on tables alone."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from studies.benchmark_tables import analysis, plots

Row = Mapping[str, Any]
FOLDER = Path(__file__).parent


def run(cell: dict[str, Any]) -> Any:
    """The rows of one table."""
    return PARTS[cell["part"]]()


def _read(name: str) -> list[dict[str, str]]:
    with open(FOLDER / f"{name}.csv", encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def _glue() -> list[dict[str, Any]]:
    """Scores of RoBERTa-base by method and learning rate, with the printed average."""
    rows = []
    for entry in _read("glue"):
        scores = {task: float(entry[task]) for task in analysis.TASKS}
        rows.append(
            {"method": entry["method"], "rate": float(entry["rate"]), "average": float(entry["average"])} | scores
        )
    return rows


def _high_rank() -> list[dict[str, Any]]:
    """Scores at rank 128 by task, method and learning rate."""
    return [
        {"task": entry["task"], "method": entry["method"], "rate": float(rate), "score": float(score)}
        for entry in _read("high_rank")
        for rate, score in list(entry.items())[2:]
    ]


def _cost() -> list[dict[str, Any]]:
    """Minutes and megabytes of a training run on Llama-3.1-8B."""
    return [
        {
            "method": entry["method"],
            "minutes": 60 * int(entry["hours"]) + int(entry["minutes"]),
            "megabytes": int(entry["megabytes"]),
        }
        for entry in _read("cost")
    ]


def _accuracy() -> list[dict[str, Any]]:
    """Scores and trained parameters of the second survey; NaN-free: a share that is not printed is None."""
    return [
        {
            "table": entry["table"],
            "method": entry["method"],
            "score": float(entry["score"]),
            "millions": float(entry["millions"]),
            "percent": float(entry["percent"]) if entry["percent"] else None,
        }
        for entry in _read("accuracy")
    ]


def _qualities() -> dict[str, Any]:
    """Two tables that compare methods in words and ranges."""
    return _toml("qualities")


def _text() -> dict[str, Any]:
    """Numbers of the text."""
    return _toml("text")


PARTS = {
    "glue": _glue,
    "high_rank": _high_rank,
    "cost": _cost,
    "accuracy": _accuracy,
    "qualities": _qualities,
    "text": _text,
}


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Numbers by name, for the claims."""
    return analysis.measures(rows)


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Peaks of the methods, with and without the task on which nothing is learned."""
    return analysis.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Averages over rates, and peaks."""
    return plots.figures(rows)
