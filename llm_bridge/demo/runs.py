"""The runs of the demo: one method and seed each, all with the same data, steps and head to start from."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import llm_bridge as lb

from ..training.report import stable_ranks
from .classifier import Classifier, Part, Probe, accuracy, encode, probe
from .docstrings import PACKAGES, splits

__all__ = ["METHODS", "Budget", "run_all"]

METHODS = ("lora", "polar", "reflora")


@dataclass(frozen=True)
class Budget:
    """What every method gets alike: the task, and all that a method could be favoured by."""

    train: int = 360
    validation: int = 40
    test: int = 100
    steps: int = 200
    batch: int = 16
    rank: int = 8
    alpha: float = 16.0
    max_length: int = 40
    lr: float = 3e-3
    seeds: int = 3
    packages: tuple[str, ...] = PACKAGES


def _prepared(budget: Budget, out: Path) -> tuple[dict[str, Part], Probe]:
    """Tokens of all splits and the probe; the docstrings themselves are kept to read."""
    chosen = splits(budget.train, budget.validation, budget.test, budget.packages)
    for name, examples in chosen.items():
        lines = "".join(json.dumps(asdict(e)) + "\n" for e in examples)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    parts = encode(chosen, budget.packages, budget.max_length)
    return parts, probe(parts, len(budget.packages))


def train(method: str, seed: int, budget: Budget, parts: Mapping[str, Part], start: Probe) -> dict[str, Any]:
    """One row: losses, accuracies before and after, stable ranks and times of one run."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = Classifier(len(budget.packages))
    start.start(model)
    linear = r"encoder\.encoder\.layer\..*(query|key|value|dense)"
    lb.adapt(model, method, rank=budget.rank, alpha=budget.alpha, targets=linear, also_train=["head"], seed=seed)
    opt = lb.optimizer(model, lr=budget.lr, other_lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: min(1.0, (i + 1) / 10) * (1 - i / budget.steps))
    rng, losses, clock, wall = np.random.default_rng(seed), [], time.process_time(), time.perf_counter()
    waiting: list[list[int]] = []
    for _ in range(budget.steps):
        waiting = waiting or _epoch(parts["train"], budget.batch, rng)
        ids, mask, labels = parts["train"].batch(waiting.pop())
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(ids, mask), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        opt.step()
        schedule.step()
        losses.append(loss.item())
    spent = {"cpu_seconds": time.process_time() - clock, "wall_seconds": time.perf_counter() - wall}
    scores = {name: accuracy(model, parts[name]) for name in ("validation", "test")}
    ranks = [asdict(row) for row in stable_ranks(model)]
    return {"method": method, "seed": seed, **scores, **spent, "losses": losses, "sites": ranks}


def _epoch(part: Part, size: int, rng: np.random.Generator) -> list[list[int]]:
    """Random batches of texts of similar length: eight batches are drawn and sorted together."""
    order, batches = rng.permutation(len(part.labels)), []
    for begin in range(0, len(order) - size + 1, 8 * size):
        block = sorted(order[begin : begin + 8 * size].tolist(), key=lambda i: len(part.ids[i]))
        batches += [block[i : i + size] for i in range(0, len(block) - size + 1, size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def run_all(budget: Budget, out: Path, jobs: int, methods: Sequence[str] = METHODS) -> dict[str, Any]:
    """All runs, ``jobs`` at a time; rows that the folder holds already, from the same budget, are not run again."""
    out.mkdir(parents=True, exist_ok=True)
    parts, start = _prepared(budget, out)
    path, header = out / "rows.jsonl", json.dumps({"budget": asdict(budget), "probe": _kept(start)})
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines[1:]] if lines[:1] == [header] else []
    if not rows:
        path.write_text(header + "\n", encoding="utf-8")
    done = {(row["method"], row["seed"]) for row in rows}
    todo = [(m, s) for s in range(budget.seeds) for m in methods if (m, s) not in done]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(train, m, s, budget, parts, start) for m, s in todo]
        for future in as_completed(waiting):
            rows.append(future.result())
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            row = rows[-1]
            print(f"{row['method']:8} seed {row['seed']}: test accuracy {row['test']:.3f}", flush=True)
    return {"budget": asdict(budget), "probe": _kept(start), "rows": rows}


def _kept(start: Probe) -> dict[str, float]:
    return {"strength": start.strength, "validation": start.validation, "test": start.test}
