"""Cost of adapters: a training step and its memory, and adapt, start, merge, save and load, ours against PEFT's.

Run ``python benchmarks/adapters.py``; rows go to ``benchmarks/results/adapters-*.json``. On a GPU (``--device
cuda``) the model has the shapes of Llama-3.1-8B in bfloat16, with one sequence of 1024 tokens.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before torch: one thread, and process time, so that ratios hold
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import random
import shlex
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import table, write_rows
from models import LAYERS, clone, llama, tokens
from torch import Tensor, nn

import llm_bridge as lb

COMMAND = "python benchmarks/adapters.py"
Method = Callable[[nn.Module], nn.Module]


def ours(name: str, dropout: float = 0.0, recipe: Any = None) -> Method:
    """One of our recipes; data-driven starts see one batch."""

    def attach(model):
        chosen = lb.recipe(recipe or name)
        batch = [tokens(model)] if chosen.init.needs else None
        return lb.adapt(model, chosen, rank=8, dropout=dropout, calibration=batch)

    return attach


def peft(kind: str, **settings: Any) -> Method:
    """A method of PEFT on the same layers."""

    def attach(model):
        import peft as library

        config = getattr(library, f"{kind}Config")
        return library.get_peft_model(model, config(target_modules=LAYERS, **settings))

    return attach


# our recipe -> PEFT's form of the same method
PEERS: dict[str, Method] = {
    "lora": peft("Lora", r=8, lora_alpha=8),
    "lora dropout 0.1": peft("Lora", r=8, lora_alpha=8, lora_dropout=0.1),
    "rslora": peft("Lora", r=8, lora_alpha=8, use_rslora=True),
    "dora": peft("Lora", r=8, lora_alpha=8, use_dora=True),
    "pissa": peft("Lora", r=8, lora_alpha=8, init_lora_weights="pissa"),
    "olora": peft("Lora", r=8, lora_alpha=8, init_lora_weights="olora"),
    "adalora": peft("AdaLora", init_r=8, target_r=4, lora_alpha=8, total_step=10**6),
    "hira": peft("Hira", r=8),
    "vera": peft("Vera", r=256),
    "loha": peft("LoHa", r=8, alpha=8),
    "lokr": peft("LoKr", r=8, alpha=8),
    "gralora": peft("GraLora", r=8, gralora_k=2),
    "randlora": peft("RandLora", r=32),
}


def methods(names: list[str]) -> dict[str, Method]:
    """The floor, our recipes and PEFT's counterparts of those that have one."""
    extra = {
        "lora dropout 0.1": ours("lora", dropout=0.1),
        "dora recompute": ours("dora recompute", recipe=_recomputing()),
    }
    found: dict[str, Method] = {"frozen": lambda model: model.requires_grad_(False)}
    for name in [*lb.recipes(), *extra]:
        if names and name not in names and name != "lora":
            continue
        found[name] = extra.get(name) or ours(name)
        if name in PEERS:
            found[f"peft {name}"] = PEERS[name]
    return found


def _recomputing() -> lb.Recipe:
    return lb.recipe("dora").but("dora recompute", combine=lb.MagnitudeDirection(recompute=True))


class Step:
    """A training step of one model: forward, backward and AdamW, timed and weighed."""

    def __init__(self, model: nn.Module, batch: dict[str, Tensor]):
        self.model, self.batch = model.train(), batch
        trained = [p for p in model.parameters() if p.requires_grad]
        self.trainable = sum(p.numel() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None
        self.cuda = next(model.parameters()).is_cuda

    def __call__(self) -> None:
        self.loss().backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def loss(self) -> Tensor:
        """Of the next token, through input embeddings that ask for a gradient, so that the floor has a backward."""
        embedded = self.model.get_input_embeddings()(self.batch["input_ids"]).detach().requires_grad_()
        labels, mask = self.batch["input_ids"], self.batch["attention_mask"]
        return self.model(inputs_embeds=embedded, attention_mask=mask, labels=labels, use_cache=False).loss

    def seconds(self) -> float:
        """Of one step: process time on a CPU, elapsed time between events on a GPU."""
        if not self.cuda:
            begin = time.process_time()
            self()
            return time.process_time() - begin
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def saved(self) -> int:
        """Bytes of the distinct storages that autograd keeps for backward, without parameters and buffers."""
        own = {t.untyped_storage().data_ptr() for t in (*self.model.parameters(), *self.model.buffers())}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()
        total = sum(kept.values())
        loss.backward()
        self.model.zero_grad(set_to_none=True)
        return total

    def peak(self) -> int | None:
        """Most bytes allocated on the GPU in a step; None on a CPU."""
        if not self.cuda:
            return None
        torch.cuda.reset_peak_memory_stats()
        self()
        return torch.cuda.max_memory_allocated()


def step_cost(device: str, rounds: int, names: list[str]) -> list[dict[str, Any]]:
    """Time and kept bytes of a training step of every method, relative to our LoRA, PEFT's LoRA and the floor."""
    base = llama(device)
    steps, attach = {}, {}
    for name, method in methods(names).items():
        begin = time.process_time()
        model = method(clone(base))
        attach[name] = time.process_time() - begin
        steps[name] = Step(model, tokens(model))
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for round_ in range(rounds + 1):
        random.Random(round_).shuffle(order)
        for name in order:
            seconds = steps[name].seconds()
            if round_:
                times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    saved = {name: step.saved() for name, step in steps.items()}
    extra = {name: saved[name] - saved["frozen"] for name in steps}
    return [
        {
            "method": name, "trainable": step.trainable, "attach_s": attach[name], "step_ms": 1e3 * median[name],
            "T": median[name] / median["lora"], "T_peft_lora": median[name] / median["peft lora"],
            "T_floor": median[name] / median["frozen"],
            "T_peft_same": _ratio(median, name), "saved_MiB": saved[name] / 2**20,
            "B": extra[name] / extra["lora"], "B_peft_same": _ratio(extra, name), "peak_bytes": step.peak(),
            "rounds": rounds, "device": device,
        }
        for name, step in steps.items()
    ]  # fmt: skip


def _ratio(values: dict[str, Any], name: str) -> float | None:
    """Ours over PEFT's same method, where there is one."""
    other = values.get(f"peft {name}")
    return values[name] / other if other else None


# adapt, start, merge, save, load ---------------------------------------------------------------------------------


def life_cost(device: str, rounds: int, names: list[str]) -> list[dict[str, Any]]:
    """Seconds of the other moments in the life of an adapter, ours and PEFT's."""
    base = llama(device)
    rows = []
    for name in [n for n in ("lora", "pissa", "dora", "olora") if n in lb.recipes() and (not names or n in names)]:
        samples: dict[str, list[float]] = {}
        for _ in range(rounds):
            for who, values in (("ours", _life_ours(base, name)), ("peft", _life_peft(base, name))):
                for moment, seconds in values.items():
                    samples.setdefault(f"{who} {moment}", []).append(seconds)
        median = {key: statistics.median(values) for key, values in samples.items()}
        for moment in ("adapt", "merge", "save", "load"):
            mine, theirs = median[f"ours {moment}"], median[f"peft {moment}"]
            rows.append({
                "recipe": name, "moment": moment, "ours_s": mine, "peft_s": theirs, "peft_over_ours": theirs / mine,
                "device": device,
            })  # fmt: skip
    return rows


def _timed(function: Callable[[], Any], into: dict[str, float], moment: str) -> Any:
    cuda = torch.cuda.is_available()
    begin = time.perf_counter() if cuda else time.process_time()
    result = function()
    if cuda:
        torch.cuda.synchronize()
    into[moment] = (time.perf_counter() if cuda else time.process_time()) - begin
    return result


def _life_ours(base: nn.Module, name: str) -> dict[str, float]:
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        model, other = clone(base), clone(base)
        _timed(lambda: lb.adapt(model, name, rank=8, targets=LAYERS), seconds, "adapt")
        _timed(lambda: lb.save(model, folder), seconds, "save")
        _timed(lambda: lb.merge(model), seconds, "merge")
        _timed(lambda: lb.load(other, folder), seconds, "load")
    return seconds


def _life_peft(base: nn.Module, name: str) -> dict[str, float]:
    from peft import PeftModel

    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        start, other = clone(base), clone(base)
        model = _timed(lambda: PEERS[name](start), seconds, "adapt")
        _timed(lambda: model.save_pretrained(folder), seconds, "save")
        _timed(lambda: model.merge_adapter(safe_merge=True), seconds, "merge")
        _timed(lambda: PeftModel.from_pretrained(other, folder), seconds, "load")
    return seconds


def main() -> None:
    """Run the parts asked for, print their tables and store their rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["step", "life"], help="step, life")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of every method, in random order")
    parser.add_argument("--methods", nargs="*", default=[], help="recipes to compare; by default all")
    parser.add_argument("--quick", action="store_true", help="three rounds; prints and stores nothing")
    args = parser.parse_args()
    jobs = {"step": step_cost, "life": life_cost}
    unknown = sorted(set(args.parts) - set(jobs))
    if unknown:
        parser.error(f"unknown parts {unknown}; there are {', '.join(jobs)}")
    torch.set_num_threads(1)
    for part in args.parts:
        rows = jobs[part](args.device, 3 if args.quick else args.rounds, args.methods)
        print(f"\n{part}\n{table(rows, [k for k in rows[0] if k not in ('device', 'rounds')])}\n", flush=True)
        if not args.quick:
            suffix = "" if args.device == "cpu" else f"-{args.device}"
            chosen = f" --methods {' '.join(map(shlex.quote, args.methods))}" if args.methods else ""
            command = f"{COMMAND} {part} --device {args.device} --rounds {args.rounds}{chosen}"
            print(write_rows(f"adapters-{part}{suffix}", rows, command).name)


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)
    main()
