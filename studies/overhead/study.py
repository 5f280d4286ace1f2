"""Time and memory of a training step with each variant in the survey's table of costs, relative to LoRA's."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from matplotlib.figure import Figure

from studies.overhead import analysis, plots

Cell = Mapping[str, Any]
Row = Mapping[str, Any]

FLOOR = "frozen model"


def run(cell: Cell) -> list[dict[str, Any]]:
    """All variants in one process: memory one after the other, then time, in random order round by round.

    On a device that the machine does not have, nothing.
    """
    import torch

    if cell["device"] == "cuda" and not torch.cuda.is_available():
        return []
    with _one_thread():
        return _measured(cell)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Ratios of process times hold with one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measured(cell: Cell) -> list[dict[str, Any]]:
    from studies.overhead.models import llama
    from studies.overhead.variants import VARIANTS

    base = llama(cell["device"], cell["model"])
    names = [FLOOR, *VARIANTS]
    memory = {name: _memory(base, name, cell) for name in names}
    times = _times(base, names, cell)
    floor, lora = memory[FLOOR], memory["LoRA"]
    return [
        {
            "variant": name,
            "trainable": memory[name]["trainable"],
            "milliseconds": 1e3 * statistics.median(times[name]),
            **_spread(times[name], times["LoRA"]),
            "kept_bytes": memory[name]["kept"],
            "bytes": _ratio(memory[name]["kept"] - floor["kept"], lora["kept"] - floor["kept"]),
            "memory": _ratio(memory[name]["total"], lora["total"]),
        }
        for name in names
    ]


def _step(base: Any, name: str, cell: Cell) -> Any:
    """A step of a copy of the model, which shares its weights, with a variant."""
    from studies.overhead.models import clone, tokens
    from studies.overhead.step import Step
    from studies.overhead.variants import VARIANTS

    model = clone(base).requires_grad_(False)
    if name != FLOOR:
        VARIANTS[name].attach(model)
    return Step(model, tokens(model, (cell["sequences"], cell["length"])))


def _memory(base: Any, name: str, cell: Cell) -> dict[str, int]:
    """Bytes kept for backward, and bytes in all: the peak on a GPU, weights, states and kept ones on a CPU."""
    step = _step(base, name, cell)
    step()
    kept = step.saved()
    return {"kept": kept, "total": step.peak() or kept + step.resident(), "trainable": step.trainable}


def _times(base: Any, names: Sequence[str], cell: Cell) -> dict[str, list[float]]:
    """Seconds of every round but the first, which warms up."""
    steps = {name: _step(base, name, cell) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    order, shuffle = list(names), random.Random(cell["repeat"]).shuffle
    for round_ in range(cell["rounds"] + 1):
        shuffle(order)
        for name in order:
            elapsed = steps[name].seconds()
            if round_:
                seconds[name].append(elapsed)
    return seconds


def _spread(times: Sequence[float], lora: Sequence[float]) -> dict[str, float]:
    """Ratio of the medians, and the least and the largest ratio of a round."""
    ratios = [a / b for a, b in zip(times, lora, strict=True)]
    return {"time": statistics.median(times) / statistics.median(lora), "least": min(ratios), "most": max(ratios)}


def _ratio(value: float, of: float) -> float | None:
    return value / of if of else None


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Numbers by name, for the claims."""
    return analysis.measures(rows)


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Printed ratios beside ours."""
    return analysis.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Printed ratios and ours, on a logarithmic axis."""
    return plots.figures(rows)
