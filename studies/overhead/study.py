"""Time and memory of a training step with each variant in the survey's table of costs, relative to LoRA's."""

from __future__ import annotations

import statistics
import warnings
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

    On a device that the machine does not have, nothing. The device "counted" is none: tensors without numbers, whose
    bytes and operations are those of the survey's setting.
    """
    import torch

    if cell["device"] == "cuda" and not torch.cuda.is_available():
        return []
    if cell["device"] == "counted":
        return _counted(cell)
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
    from studies.overhead.step import take_turns
    from studies.overhead.variants import VARIANTS

    base = llama(cell["device"], cell["model"])
    names = [FLOOR, *VARIANTS]
    memory = {name: _memory(base, name, cell) for name in names}
    steps = {name: _step(base, name, cell) for name in names}
    seconds, ratios = take_turns(steps, "LoRA", cell["rounds"], cell["repeat"])
    floor, lora = memory[FLOOR], memory["LoRA"]
    return [
        {
            "variant": name,
            "trainable": memory[name]["trainable"],
            "milliseconds": 1e3 * statistics.median(seconds[name]),
            **_spread(ratios[name]),
            "kept_bytes": memory[name]["kept"],
            "bytes": _ratio(memory[name]["kept"] - floor["kept"], lora["kept"] - floor["kept"]),
            "memory": _ratio(memory[name]["total"], lora["total"]),
        }
        for name in names
    ]


def _counted(cell: Cell, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All variants, or some; the frozen model and LoRA must be among them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from studies.overhead.models import llama
    from studies.overhead.variants import VARIANTS

    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer")  # forms look whether a fixed array has changed
        base = llama(cell["device"], cell["model"])
        found = {name: _ledger(base, name, cell) for name in names or [FLOOR, *VARIANTS]}
    floor, lora = found[FLOOR], found["LoRA"]
    return [
        {
            "variant": name,
            **counts,
            **_spread([counts["milliseconds"] / lora["milliseconds"]]),
            "bytes": _ratio(counts["kept_bytes"] - floor["kept_bytes"], lora["kept_bytes"] - floor["kept_bytes"]),
            "memory": _ratio(counts["peak_bytes"], lora["peak_bytes"]),
        }
        for name, counts in found.items()
    ]


def _ledger(base: Any, name: str, cell: Cell) -> dict[str, Any]:
    """Counts of the second step with a variant, when states exist; kernels and work without those of the optimizer."""
    from studies.overhead.ledger import Ledger

    step = _step(base, name, cell)
    step()
    kept = step.saved()
    with Ledger(step.held()) as ledger:
        step.loss().backward()
        counts = {
            "milliseconds": 1e3 * ledger.least,
            "kernels": ledger.kernels,
            "operations": ledger.operations,
            "moved_bytes": ledger.moved,
        }
        step.update()
    weights = {"held_bytes": step.resident() - step.gradients(), "gradient_bytes": step.gradients()}
    return {"trainable": step.trainable, "kept_bytes": kept, "peak_bytes": ledger.peak, **weights, **counts}


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


def _spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median, least and largest ratio of a round."""
    return {"time": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


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
