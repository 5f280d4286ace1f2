"""What the algebra allows: the least that forms can cost beside LoRA, counted, with what was measured.

Run ``python benchmarks/floors.py``; rows go to ``benchmarks/results/floors.json``. It counts and times nothing; the
time of the frozen model comes from the stored rows of ``benchmarks/adapters.py step``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from common import RESULTS, table, write_rows

from studies.overhead.ledger import BANDWIDTH, RATES
from studies.overhead.models import SIZES
from studies.overhead.schedules import FORMS, Work, frozen_work, least, sites_of

COMMAND = "python benchmarks/floors.py"
CPU, GPU = ("small", 2, 256), ("Llama-3.1-8B", 1, 1024)  # sizes, sequences and tokens of benchmarks/adapters.py
RANK = 8


@dataclass(frozen=True)
class Method:
    """A row of the step benchmark, its form, and the targets: time and bytes beside LoRA on a CPU, time on a GPU.

    ``size`` is that of the form here, ``size_gpu`` on a GPU; ``half`` is the form that loses nothing in half precision,
    where that is another one.
    """

    name: str
    form: str
    size: int
    time: float | None = None
    kept: float | None = None
    size_gpu: int | None = None
    time_gpu: float | None = None
    half: str | None = None


METHODS = (
    Method("lora", "lora", RANK, size_gpu=RANK),
    Method("dora", "dora", RANK, size_gpu=RANK, time_gpu=1.2),
    Method("rasa", "lora", RANK - 1 + 32, 1.1, 1.2, RANK - 1 + 32, 1.25),
    Method("oft", "rotated", RANK, 1.1, 1.4),
    Method("oft r32", "rotated", 32, 1.1, 1.4),
    Method("hira", "formed", RANK, 1.4, 1.1, RANK, 1.5, "formed beside"),
    Method("sine", "formed", RANK, size_gpu=RANK, half="formed beside"),
    Method("loran", "formed", RANK, size_gpu=RANK, time_gpu=1.25, half="formed beside"),
    Method("vera r256", "fixed right", 256, 1.3, 2.0),
    Method("randlora", "random bases", 512, 2.0, 1.3, 1024, 2.2),
    Method("randlora r32", "random bases", 512, 2.0, 1.3),
)


def rows(stored: dict[str, Any]) -> list[dict[str, Any]]:
    """One for every method; ``stored`` are the rows of the step benchmark by name."""
    size, batch, length = SIZES[CPU[0]], *CPU[1:]
    sites, k, blocks = sites_of(size), batch * length, size["num_hidden_layers"]
    frozen = sum(work.flops for work in frozen_work(size, batch, length))
    reference = least(FORMS["lora"], sites, k, RANK)
    assert reference is not None
    found = []
    for method in METHODS:
        best = least(FORMS[method.form], sites, k, method.size)
        most = None if method.kept is None else method.kept * reference.kept
        lean = least(FORMS[method.form], sites, k, method.size, most)
        assert best is not None
        found.append({
            "method": method.name,
            "flops": (frozen + blocks * best.flops) / (frozen + blocks * reference.flops),
            "T_least": _time(stored, frozen, blocks * best.flops), "B_least_T": best.kept / reference.kept,
            "B_target": method.kept,
            "T_within": None if lean is None else _time(stored, frozen, blocks * lean.flops),
            "T_target": method.time, "T": stored.get(method.name, {}).get("T"),
            "B": stored.get(method.name, {}).get("B"),
            "T_gpu": _roofline_ratio(method, method.form),
            "T_gpu_half": _roofline_ratio(method, method.half or method.form), "T_gpu_target": method.time_gpu,
        })  # fmt: skip
    return found


def _time(stored: dict[str, Any], frozen: int, extra: int) -> float | None:
    """Beside LoRA's: that of the frozen model, and the products at the rate that the frozen model as a whole has."""
    floor = stored.get("frozen", {}).get("T")
    return None if floor is None else floor * (1 + extra / frozen)


def _roofline_ratio(method: Method, form: str) -> float | None:
    """Time of products beside LoRA's where every one takes no longer than its flops or its bytes do."""
    if method.size_gpu is None:
        return None
    size, batch, length = SIZES[GPU[0]], *GPU[1:]
    sites, k, blocks = sites_of(size), batch * length, size["num_hidden_layers"]
    own, reference = least(FORMS[form], sites, k, method.size_gpu), least(FORMS["lora"], sites, k, RANK)
    assert own is not None
    assert reference is not None
    frozen = _seconds(frozen_work(size, batch, length))
    return (frozen + blocks * _seconds(own.works)) / (frozen + blocks * _seconds(reference.works))


def _seconds(works: Iterable[Work]) -> float:
    """On an H200 in bfloat16."""
    return sum(max(work.flops / RATES[torch.bfloat16], 2 * work.numbers / BANDWIDTH) for work in works)


def main() -> None:
    """Count, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="prints and stores nothing")
    args = parser.parse_args()
    path = RESULTS / "adapters-step.json"
    stored = {row["method"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    found = rows(stored)
    print(table(found, list(found[0])))
    if not args.quick:
        print(write_rows("floors", found, COMMAND).name)


if __name__ == "__main__":
    main()
