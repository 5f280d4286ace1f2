"""A small network trained on the digits 0 to 4 and adapted to 5 to 9, in full or by block forms."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import llm_bridge as lb
import lowrank_sp as lr

__all__ = ["WIDTH", "Split", "adapted", "forms", "pretrained", "split"]

WIDTH = 64  # inputs of the 8 x 8 digits, and hidden units as in the source
TRAIN, CHECK = 448, 128  # of the 896 digits from 5 to 9; the others test
BATCH = 64


class Split(NamedTuple):
    """Digits 5 to 9 as ``(inputs, labels)``, labels from 0 to 4."""

    train: tuple[Tensor, Tensor]
    check: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def _digits(low: bool) -> tuple[Tensor, Tensor]:
    data = load_digits()
    inputs, labels = (
        torch.as_tensor(data["data"] / 16.0, dtype=torch.float32),
        torch.as_tensor(data["target"]),
    )
    chosen = labels < 5 if low else labels >= 5
    return inputs[chosen], labels[chosen] - (0 if low else 5)


def split(seed: int) -> Split:
    """A random division of the digits 5 to 9."""
    inputs, labels = _digits(low=False)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    parts = order[:TRAIN], order[TRAIN : TRAIN + CHECK], order[TRAIN + CHECK :]
    return Split(*[(inputs[p], labels[p]) for p in parts])


@lru_cache(maxsize=8)
def pretrained(seed: int) -> nn.Sequential:
    """The network after 300 steps on the digits 0 to 4; not to be changed."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 5))
    _train(
        model,
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        _digits(low=True),
        300,
        seed,
    )
    return model


def forms(method: str, blocks: int) -> Any:
    """The form of the update of the first layer."""
    if method == "lora":
        return lr.BurerMonteiro
    return lr.BlockDiagonal.of(blocks) if method == "melora" else lr.BlockGrid.of(blocks, blocks)


def adapted(method: str, blocks: int, size: int, step: float, steps: int, seed: int) -> dict[str, Any]:
    """Train the update (``"full"``: everything) and report counts, validation loss and test accuracy in per cent."""
    model, data = copy.deepcopy(pretrained(seed)), split(seed)
    if method == "full":
        optimizer: Any = torch.optim.AdamW(model.parameters(), lr=step)
    else:
        recipe = lb.recipe("lora").but(method, form=forms(method, blocks))
        lb.adapt(model, recipe, rank=size, targets=["0"], seed=seed)
        optimizer = lb.optimizer(model, lr=step)
    _train(model, optimizer, data.train, steps, seed)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(data.check[0]), data.check[1])
        right = (model(data.test[0]).argmax(1) == data.test[1]).float().mean()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "step": step,
        "parameters": trained,
        "loss": float(loss),
        "accuracy": 100 * float(right),
        "model": model,
    }


def _train(model: nn.Module, optimizer: Any, data: tuple[Tensor, Tensor], steps: int, seed: int) -> None:
    inputs, labels = data
    rng = torch.Generator().manual_seed(seed)
    with _one_thread():
        for _ in range(steps):
            batch = torch.randint(len(inputs), (BATCH,), generator=rng)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads take longer to meet than these products take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
