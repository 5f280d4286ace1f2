"""The findings of the demo in words, as a table and as one figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["draw", "findings"]


def _by_method(found: Mapping[str, Any]) -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = {}
    for row in found["rows"]:
        grouped.setdefault(row["method"], []).append(row)
    return grouped


def _updates(rows: list[Any]) -> np.ndarray:
    """Stable ranks of the updates (seeds, sites)."""
    return np.array([[site["update"] for site in row["sites"]] for row in rows])


def findings(found: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy with its spread and mean stable rank of every method, and what they say against the probe."""
    table, frozen = {}, found["probe"]["test"]
    for method, rows in _by_method(found).items():
        scores = np.array([row["test"] for row in rows])
        table[method] = {
            "test_mean": float(scores.mean()),
            "test_std": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
            "test_worst": float(scores.min()),
            "gain": float(scores.mean() - frozen),
            "stable_rank": float(np.nanmean(_updates(rows))),
            "cpu_seconds": float(np.mean([row["cpu_seconds"] for row in rows])),
        }
    verdict = {f"{name}: every seed beats the probe": line["test_worst"] > frozen for name, line in table.items()}
    if {"lora", "polar"} <= table.keys():
        verdict["PoLAR's updates have a higher stable rank than LoRA's"] = bool(
            table["polar"]["stable_rank"] > table["lora"]["stable_rank"]
        )
    return {"probe": frozen, "methods": table, "verdict": verdict}


def draw(folder: Path, found: Mapping[str, Any]) -> None:
    """``finetune-demo.png`` and ``.svg``: loss, accuracy on held-out modules, stable rank of every update."""
    from studies import style

    grouped = _by_method(found)
    lines = style.lines(grouped)
    fig, (loss, score, rank) = style.figure("Docstrings by package: held-out modules", 1, 3, width=4.6, height=3.4)
    with style.context():
        for place, (method, rows) in enumerate(grouped.items()):
            losses = np.array([_smooth(row["losses"]) for row in rows])
            style.band(loss, range(1, losses.shape[1] + 1), losses, method, lines[method])
            scores = [row["test"] for row in rows]
            score.plot([place] * len(scores), scores, lines[method].marker, color=lines[method].color, alpha=0.6)
            score.plot([place - 0.25, place + 0.25], [np.mean(scores)] * 2, color=lines[method].color)
            style.band(rank, range(_updates(rows).shape[1]), _updates(rows), method, lines[method])
        score.axhline(found["probe"]["test"], color="#22262c", linestyle=":", label="linear probe, frozen features")
        score.set(ylabel="test accuracy", xticks=range(len(grouped)), xticklabels=list(grouped))
        loss.set(xlabel="step", ylabel="training loss, averaged (nats)")
        rank.set(xlabel="adapted layer, from the first block to the last", ylabel="stable rank of the update")
        for axes in (loss, score, rank):
            axes.legend()
    style.save(fig, folder, "finetune-demo")


def _smooth(losses: list[float], width: int = 15) -> np.ndarray:
    """Running mean over so many steps, over fewer at the start."""
    total = np.cumsum([0.0, *losses])
    ends = np.arange(1, len(losses) + 1)
    begins = np.maximum(ends - width, 0)
    return (total[ends] - total[begins]) / (ends - begins)
