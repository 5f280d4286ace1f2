"""What applying a form to activations costs: counted operations, bytes kept for backward, and time, against LoRA's."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from lowrank_sp.parameterizations import BurerMonteiro

__all__ = ["apply_cost", "count"]

# views, which move nothing
_FREE = (
    "view",
    "_unsafe_view",
    "reshape",
    "transpose",
    "permute",
    "expand",
    "t",
    "unsqueeze",
    "squeeze",
    "select",
    "slice",
    "split",
    "unbind",
    "diagonal",
    "detach",
    "alias",
    "lift_fresh",
    "_conj",
    "view_as_real",
    "view_as_complex",
)


def apply_cost(
    form: Any, shape: tuple[int, int], rank: int, tokens: int, repetitions: int = 15, seed: int = 0
) -> list[dict[str, Any]]:
    """Operations, bytes and seconds of ``apply`` and its gradient, for the form and for LoRA of the same rank.

    Single precision. Bytes are those that automatic differentiation keeps, without the arrays of the point
    and without the input; seconds are the fewest of interleaved repetitions in this process.
    """
    import torch

    rng = np.random.default_rng(seed)
    x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(seed), requires_grad=True)
    points = {
        "this form": _tensors(form.random(shape, rank, rng)),
        "LoRA": _tensors(BurerMonteiro.random(shape, rank, rng)),
    }
    rows = {name: {"": name, **count(point, x)} for name, point in points.items()}
    for name, seconds in _times(points, x, repetitions).items():
        rows[name]["milliseconds"] = 1e3 * seconds
    ratio = {"": "ratio"}
    for key in ("operations", "bytes kept", "milliseconds"):
        ratio[key] = rows["this form"][key] / max(rows["LoRA"][key], 1e-12)
    return [*rows.values(), ratio]


def _tensors(point: Any) -> Any:
    import torch

    def leaf(array: np.ndarray) -> Any:
        return torch.as_tensor(array) if array.dtype.kind == "i" else torch.as_tensor(array).float().requires_grad_()

    return point.map(leaf)


def count(point: Any, x: Any) -> dict[str, float]:
    """Multiplications and additions of forward and backward, those in matrix products, and bytes kept between."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    products, others, kept = [0], [0.0], {}
    own = {a.untyped_storage().data_ptr() for a in point.arrays()} | {x.untyped_storage().data_ptr()}

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            of_product = _product(func, args, out)
            products[0] += of_product
            others[0] += 0 if of_product else _written(func, args, out)
            return out

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with Counter(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = point.apply(x)
    inputs, seed = [x, *(a for a in point.arrays() if a.requires_grad)], torch.ones_like(out)
    with Counter():
        torch.autograd.grad(out, inputs, seed, allow_unused=True)
    return {
        "operations": products[0] + others[0],
        "of them in products": float(products[0]),
        "bytes kept": float(sum(size for size, _ in kept.values())),
    }


def _product(func: Any, args: Any, out: Any) -> int:
    """Two for every multiply-add of a matrix product; zero for what is none."""
    name = func.overloadpacket.__name__
    if name in ("mm", "bmm"):
        return 2 * out.numel() * args[0].shape[-1]
    if name in ("addmm", "baddbmm", "addmm_", "baddbmm_"):
        return 2 * out.numel() * args[1].shape[-1]
    return 0


def _written(func: Any, args: Any, out: Any) -> float:
    """One for every entry that is written; ``5 log2(k)`` for those of Fourier transforms of length k."""
    import torch

    name = func.overloadpacket.__name__
    if name in _FREE or not isinstance(out, torch.Tensor):
        return 0.0
    if name.startswith("_fft"):
        return 5 * out.numel() * sum(math.log2(args[0].shape[axis]) for axis in args[1])
    return float(out.numel())


def _times(points: dict[str, Any], x: Any, repetitions: int) -> dict[str, float]:
    """Fewest seconds of forward and backward, the forms taking turns: what else the machine does only adds."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in points}
    for repetition in range(repetitions + 2):
        for name, point in points.items():
            inputs = [x, *(a for a in point.arrays() if a.requires_grad)]
            begin = time.perf_counter()
            out = point.apply(x)
            torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)
            if repetition >= 2:
                seconds[name].append(time.perf_counter() - begin)
    return {name: min(values) for name, values in seconds.items()}
