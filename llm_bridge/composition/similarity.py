"""How alike layers are: linear CKA of what they return, and of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from ..calibrate import run

__all__ = ["layer_similarity", "linear_cka", "weight_similarity"]


@covers("A34")
def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """``||Y^T X||^2 / (||X^T X|| ||Y^T Y||)`` in Frobenius norms, of features without their means: linear CKA.

    Between 0 and 1; the same for rotated, moved and scaled features.

    Parameters
    ----------
    x, y : Tensor (k, n_1) and (k, n_2)
        Features of the same k examples.

    Returns
    -------
    Tensor
        A number; zero where features do not vary.

    Raises
    ------
    ValueError
        If these are not two matrices with as many rows, at least two.

    Notes
    -----
    Computed from the smaller of the matrices (k, k) and (n_1, n_2). Source: :cite:`kornblith2019cka`.

    Examples
    --------
    >>> x = torch.eye(4, 3)
    >>> round(float(linear_cka(x, 2 * x.flip(1) + 1)), 6)
    1.0
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
        raise ValueError(f"x and y must be (k, n) of the same k > 1 examples, got {tuple(x.shape)}, {tuple(y.shape)}")
    x, y = (a.double() - a.double().mean(0) for a in (x, y))
    if len(x) < max(x.shape[1], y.shape[1]):
        gram, other = x @ x.mT, y @ y.mT
        cross, sizes = (gram * other).sum(), gram.norm() * other.norm()
    else:
        cross, sizes = (y.mT @ x).square().sum(), (x.mT @ x).norm() * (y.mT @ y).norm()
    return torch.where(sizes > 0, cross / sizes.clamp_min(torch.finfo(sizes.dtype).tiny), 0.0)


@covers("A34")
@torch.no_grad()
def layer_similarity(model: nn.Module, paths: Sequence[str], data: Any, tokens: int = 2000) -> Tensor:
    """Linear CKA between what modules return, (L, L), as in figure 6 of :cite:`survey2026sp`.

    Parameters
    ----------
    model : Module
        Runs in the mode in which it is, with its adapters.
    paths : sequence of str
        Modules, such as the blocks of a transformer; of a tuple the first entry counts.
    data
        Batches for the model, or a function that runs it.
    tokens : int
        At most this many of the first tokens are compared.

    Raises
    ------
    ValueError
        If there is no such module, or it was not called.
    """
    modules = dict(model.named_modules())
    unknown = [path for path in paths if path not in modules]
    if unknown or not paths or tokens < 2:
        raise ValueError(
            f"paths must be modules of the model and tokens at least 2, got {unknown or list(paths)}, {tokens}"
        )
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}
    with ExitStack() as stack:
        for path in paths:
            handle = modules[path].register_forward_hook(partial(_keep, seen[path], tokens))
            stack.callback(handle.remove)
        run(model, data)
    idle = [path for path, parts in seen.items() if not parts]
    if idle:
        raise ValueError(f"{idle[0]} was not called; data have to run the whole model")
    return _pairwise([torch.cat(parts) for parts in seen.values()])


def _keep(parts: list[Tensor], tokens: int, module: nn.Module, args: Any, out: Any) -> None:
    there = sum(map(len, parts))
    if there < tokens:
        first = out[0] if isinstance(out, tuple) else out
        parts.append(first.detach().flatten(0, -2)[: tokens - there].cpu())


@covers("A34")
@torch.no_grad()
def weight_similarity(weights: Sequence[Tensor]) -> Tensor:
    """Linear CKA between weights (out, in) with as many inputs, which count as examples: (L, L).

    Raises
    ------
    ValueError
        If they do not have the same number of inputs.
    """
    return _pairwise([weight.mT for weight in weights])


def _pairwise(features: Sequence[Tensor]) -> Tensor:
    rows = [
        [linear_cka(x, y) if j <= i else torch.zeros(()) for j, y in enumerate(features)]
        for i, x in enumerate(features)
    ]
    lower = torch.stack([torch.stack([entry.double() for entry in row]) for row in rows])
    return lower + lower.tril(-1).mT
