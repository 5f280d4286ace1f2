"""Cost of an optimizer step over the adapters of Llama-3.1-8B (224 sites): ours, fused AdamW, PEFT's, and a loop.

Run ``python benchmarks/optimizers.py``; rows go to ``benchmarks/results/optimizers-step.json``. On a GPU add
``--device cuda``; on a CPU ``--layers`` and ``--shrink`` make it smaller.
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
    adapters = [layer.adapter("default") for layer in lb.adapted(model).values()]
    pairs = [(a.left, a.right) for a in adapters]
    trained = [p for pair in pairs for p in pair]
    fill(trained, 1e-3)
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def step():
        with torch.no_grad():
            for left, right in pairs:
                root, inverse = _roots(left.mT @ left)
                middle, _ = _roots(root @ (right.mT @ right) @ root)
                s = inverse @ middle @ inverse
                left.grad = left.grad @ torch.linalg.inv(s)
                right.grad = right.grad @ s
        optimizer.step()

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


def main() -> None:
    """Print the table and store its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--layers", type=int, default=32, help="blocks of seven sites")
    parser.add_argument("--shrink", type=int, default=1, help="divides all widths")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of every optimizer, in random order")
    parser.add_argument("--quick", action="store_true", help="small, three rounds; stores nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    layers, shrink, rounds = (4, 8, 3) if args.quick else (args.layers, args.shrink, args.rounds)
    rows = step_cost(args.device, layers, shrink, rounds)
    print(table(rows, [k for k in rows[0] if k not in ("rounds", "device")]))
    if not args.quick:
        suffix = "" if args.device == "cpu" else f"-{args.device}"
        command = f"{COMMAND} --device {args.device} --layers {layers} --shrink {shrink}"
        print(write_rows(f"optimizers-step{suffix}", rows, command).name)


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)
    main()
