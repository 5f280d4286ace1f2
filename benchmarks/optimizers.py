"""Cost of an optimizer step over the adapters of Llama-3.1-8B (224 sites): ours, fused AdamW, PEFT's, and a loop.

Run ``python benchmarks/optimizers.py``; rows go to ``benchmarks/results/optimizers-step.json``. On a GPU add
``--device cuda``; on a CPU ``--layers`` and ``--shrink`` make it smaller. With ``--count`` nothing is timed: calls,
bytes and products of a step as a GPU takes it are counted, on tensors without values; rows go to
``optimizers-count.json``.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before torch: one thread, and process time, so that ratios hold
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import random
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import table, write_rows
from torch import Tensor, nn

import llm_bridge as lb
from llm_bridge import fused
from studies.overhead.ledger import BANDWIDTH, Ledger
from studies.overhead.models import LAYERS

COMMAND = "python benchmarks/optimizers.py"
RECIPES = (
    "lora",
    "lora+",
    "riemannian",
    "reflora",
    "reflora-s",
    "lora-pro",
    "lora-rite",
    "polar",
    "stella",
    "alternating",
)


def sites(layers: int, shrink: int, device: str) -> nn.Module:
    """Frozen linear layers with the shapes of Llama-3.1-8B; their weights have one number of memory each."""
    width, hidden, key = 4096 // shrink, 14336 // shrink, 1024 // shrink
    shapes = {
        "q_proj": (width, width), "k_proj": (key, width), "v_proj": (key, width), "o_proj": (width, width),
        "gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden),
    }  # fmt: skip
    model = nn.ModuleList()
    for _ in range(layers):
        block = nn.ModuleDict()
        for name, shape in shapes.items():
            block[name] = nn.Linear(shape[1], shape[0], bias=False, device="meta")
            block[name].weight = nn.Parameter(torch.zeros(1, device=device).expand(shape), requires_grad=False)
        model.append(block)
    return model


def fill(parameters: list[Tensor], scale: float) -> None:
    """Gradients, and values away from zero, where a rule has something to do."""
    generator = torch.Generator(parameters[0].device).manual_seed(0)
    for p in parameters:
        p.grad = torch.randn(p.shape, device=p.device, generator=generator) * scale


def ours(name: str) -> Callable[[nn.Module], Callable[[], Any]]:
    """The optimizer of a recipe."""

    def make(model):
        lb.adapt(model, name, rank=8, targets=LAYERS)
        _off_zero(model)
        fill([p for p in model.parameters() if p.requires_grad], 1e-3)
        return lb.optimizer(model, lr=1e-6).step

    return make


def _off_zero(model: nn.Module) -> None:
    """Factors that start at zero make singular Gram matrices; after a few steps they are not zero."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad and not p.any():
                p.copy_(torch.randn(p.shape, device=p.device, generator=generator) * 1e-2)


def adamw(model: nn.Module) -> Callable[[], Any]:
    """Fused AdamW of torch on the factors of LoRA."""
    lb.adapt(model, "lora", rank=8, targets=LAYERS)
    trained = [p for p in model.parameters() if p.requires_grad]
    fill(trained, 1e-3)
    return torch.optim.AdamW(trained, lr=1e-6, fused=True).step


def peft_riemannian(model: nn.Module) -> Callable[[], Any]:
    """PEFT's preconditioned AdamW."""
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_riemannian_optimizer

    wrapped = get_peft_model(model, LoraConfig(r=8, target_modules=LAYERS))
    _off_zero(wrapped)
    fill([p for p in wrapped.parameters() if p.requires_grad], 1e-3)
    return create_riemannian_optimizer(wrapped, torch.optim.AdamW, lr=1e-6).step


def eigh_loop(model: nn.Module) -> Callable[[], Any]:
    """RefLoRA layer by layer with eigendecompositions, as research code has it, then fused AdamW."""
    lb.adapt(model, "lora", rank=8, targets=LAYERS)
    _off_zero(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    fill(trained, 1e-3)
    return eigh_steps(model, torch.optim.AdamW(trained, lr=1e-6, fused=True).step)


def eigh_steps(model: nn.Module, after: Callable[[], Any]) -> Callable[[], Any]:
    """Steps that change the gradients of every layer and then call ``after``."""
    adapters = [layer.adapter("default") for layer in lb.adapted(model).values()]
    pairs = [(a.left, a.right) for a in adapters]

    def step():
        with torch.no_grad():
            for left, right in pairs:
                root, inverse = _roots(left.mT @ left)
                middle, _ = _roots(root @ (right.mT @ right) @ root)
                s = inverse @ middle @ inverse
                left.grad = left.grad @ torch.linalg.inv(s)
                right.grad = right.grad @ s
        after()

    return step


def _roots(p: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and inverse square root of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(p)
    root = values.clamp_min(1e-12).sqrt()
    return (vectors * root) @ vectors.mT, (vectors / root) @ vectors.mT


def seconds(step: Callable[[], Any], device: str) -> float:
    """Of one step: process time on a CPU, elapsed time on a GPU."""
    if device == "cpu":
        begin = time.process_time()
        step()
        return time.process_time() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def step_cost(device: str, layers: int, shrink: int, rounds: int) -> list[dict[str, Any]]:
    """Median time of a step of every optimizer, in random order, relative to fused AdamW and to the loop."""
    makers: dict[str, Callable[[nn.Module], Callable[[], Any]]] = {
        "fused AdamW": adamw,
        "peft riemannian": peft_riemannian,
        "eigh loop": eigh_loop,
        **{f"ours {name}": ours(name) for name in RECIPES if name in lb.recipes()},
    }
    steps = {name: make(sites(layers, shrink, device)) for name, make in makers.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for round_ in range(rounds + 2):
        random.Random(round_).shuffle(order)
        for name in order:
            spent = seconds(steps[name], device)
            if round_ >= 2:
                times[name].append(spent)
    median = {name: statistics.median(values) for name, values in times.items()}
    return [
        {
            "optimizer": name, "step_ms": 1e3 * value, "over_fused_adamw": value / median["fused AdamW"],
            "eigh_loop_over_this": median["eigh loop"] / value,
            "peft_riemannian_over_this": median["peft riemannian"] / value,
            "sites": 7 * layers, "shrink": shrink, "rounds": rounds, "device": device,
        }
        for name, value in median.items()
    ]  # fmt: skip


# what a step needs, counted ----------------------------------------------------------------------------------------
class Counted(Ledger):
    """Counts what fused steps write too, and memory that is seen twice, as in a Gram matrix, once."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if not func._schema.returns and not func._schema.name.endswith("copy_"):  # its target is counted as if read
            lists = [a for a, about in zip(args, func._schema.arguments, strict=False) if _written(about)]
            self._move(sum(t.nbytes for group in lists for t in group))
        if func._schema.name == "aten::zeros_like":
            self._move(-args[0].nbytes)  # whose values it does not read
        return out

    def _enter(self, operations: int, read: list[Tensor], made: list[Tensor]) -> None:
        super()._enter(operations, list({_place(t): t for t in read}.values()), made)

    def _move(self, size: int) -> None:
        self.moved += size
        self.least += size / BANDWIDTH


def _written(argument: Any) -> bool:
    """Gradients are said to be, for the sake of scaled ones, which fused steps divide."""
    return argument.alias_info is not None and argument.alias_info.is_write and argument.name != "grads"


def _place(t: Tensor) -> tuple[int, int, int]:
    return t.untyped_storage()._cdata, t.storage_offset(), t.numel()


def count(name: str, layers: int, shrink: int) -> dict[str, Any]:
    """Of a step of an optimizer, when its states exist, on a device that is not the processor and computes nothing."""
    model = sites(layers, shrink, "meta")
    reference, loop = name == "fused AdamW", name == "eigh loop"
    lb.adapt(model, "lora" if reference or loop else name, rank=8, targets=LAYERS)
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.empty_like(p)
    if reference:
        step = fused_step(trained)
    elif loop:
        step = eigh_steps(model, fused_step(trained))
    else:
        step = lb.optimizer(model, lr=1e-6).step
    step()
    step()
    with Counted(trained) as ledger:
        factors = ledger.alive
        step()
    return {
        "optimizer": name if reference or loop else f"ours {name}", "calls": ledger.kernels,
        "passes": ledger.moved / factors, "gflop": ledger.operations / 1e9, "least_ms": 1e3 * ledger.least,
        "sites": 7 * layers, "shrink": shrink,
    }  # fmt: skip


def fused_step(trained: list[Tensor]) -> Callable[[], Any]:
    """What fused AdamW of torch calls; the optimizer itself refuses tensors that hold nothing."""
    moments = [[torch.empty_like(p) for p in trained] for _ in range(2)]
    counters = [torch.zeros((), device=trained[0].device) for _ in trained]

    def step():
        with torch.no_grad():
            torch._foreach_add_(counters, 1)
            torch._fused_adamw_(
                trained, [p.grad for p in trained], *moments, [], counters, lr=1e-6, beta1=0.9, beta2=0.999,
                weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip

    return step


def counts(layers: int, shrink: int) -> list[dict[str, Any]]:
    """All rows, with the least time beside that of fused AdamW."""
    fused.DEVICES.add("meta")  # it has the kernel, but of the optimizers of torch only ours takes it there
    try:
        names = ["fused AdamW", "eigh loop", *(name for name in RECIPES if name != "lora")]
        rows = [count(name, layers, shrink) for name in names]
    finally:
        fused.DEVICES.remove("meta")
    return [row | {"least_over_fused_adamw": row["least_ms"] / rows[0]["least_ms"]} for row in rows]


def main() -> None:
    """Print the table and store its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--layers", type=int, default=32, help="blocks of seven sites")
    parser.add_argument("--shrink", type=int, default=1, help="divides all widths")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of every optimizer, in random order")
    parser.add_argument("--count", action="store_true", help="count calls, bytes and products instead of timing")
    parser.add_argument("--quick", action="store_true", help="small, three rounds; stores nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    layers, shrink, rounds = (4, 8, 3) if args.quick else (args.layers, args.shrink, args.rounds)
    if args.count:
        rows = counts(layers, shrink)
        print(table(rows, list(rows[0])))
        if not args.quick:
            print(write_rows("optimizers-count", rows, f"{COMMAND} --count --layers {layers} --shrink {shrink}").name)
        return
    rows = step_cost(args.device, layers, shrink, rounds)
    print(table(rows, [k for k in rows[0] if k not in ("rounds", "device")]))
    if not args.quick:
        suffix = "" if args.device == "cpu" else f"-{args.device}"
        command = f"{COMMAND} --device {args.device} --layers {layers} --shrink {shrink}"
        print(write_rows(f"optimizers-step{suffix}", rows, command).name)


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)
    main()
