"""A pretrained encoder on real texts: weights, gradients, and inputs of its layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import llm_bridge as lb
from llm_bridge.demo.classifier import encoder_folder
from llm_bridge.demo.docstrings import docstrings
from llm_bridge.starts import SplitFrame

__all__ = ["Batch", "encoder", "gradients", "loss", "as_array", "of_block", "pairs", "similarities", "tokens"]

Batch = dict[str, Tensor]
WORDS = 16  # of a text; its two halves are a pair
TEMPERATURE = 0.05


@lru_cache(maxsize=1)
def encoder() -> nn.Module:
    """The encoder in evaluation mode, in single precision as it comes."""
    from transformers import AutoModel

    with _silence():
        model: Any = AutoModel.from_pretrained(encoder_folder())
    return model.eval().requires_grad_(False)


@contextmanager
def _silence() -> Iterator[None]:
    """No bars while files are read."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@lru_cache(maxsize=4)
def pairs(package: str, count: int) -> tuple[Batch, Batch]:
    """First and second halves of sentences from the docstrings of a package, which make positive pairs."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(encoder_folder())
    texts = [e.text.split() for e in docstrings(package, least=WORDS, modules=25)]
    chosen = [" ".join(words[:WORDS]) for words in texts][:count]
    if len(chosen) < count:
        raise ValueError(f"{package} has {len(chosen)} docstrings of {WORDS} words, fewer than {count}")
    halves = ([t.split()[: WORDS // 2] for t in chosen], [t.split()[WORDS // 2 :] for t in chosen])
    made = [tokenizer([" ".join(w) for w in half], padding=True, return_tensors="pt") for half in halves]
    return dict(made[0]), dict(made[1])


def _embedded(model: nn.Module, batch: Batch) -> Tensor:
    hidden = model(**batch).last_hidden_state
    weight = batch["attention_mask"][..., None].to(hidden.dtype)
    return nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


def loss(model: nn.Module, batches: tuple[Batch, Batch]) -> Tensor:
    """The contrastive loss that the encoder was trained with: every first half looks for its second half."""
    scores = _embedded(model, batches[0]) @ _embedded(model, batches[1]).mT / TEMPERATURE
    return nn.functional.cross_entropy(scores, torch.arange(len(scores)))


def similarities(path: str, package: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every pair, the gradient of its similarity in the weight of a layer (pairs, out, in), and the similarity."""
    model, batches = encoder(), pairs(package, count)
    weight: Any = model.get_submodule(path).weight
    weight.requires_grad_(True)
    try:
        values = (_embedded(model, batches[0]) * _embedded(model, batches[1])).sum(1)
        gradients = [torch.autograd.grad(value, weight, retain_graph=True)[0] for value in values]
    finally:
        weight.requires_grad_(False)
    return as_array(torch.stack(gradients).double()), as_array(values.double())


def of_block(block: int) -> list[lb.Site]:
    """The six linear layers of a block."""
    return [site for site in _sites() if site.name.startswith(f"encoder.layer.{block}.")]


def _sites() -> list[lb.Site]:
    return lb.find_sites(encoder(), exclude="pooler.dense")


@lru_cache(maxsize=4)
def gradients(package: str, count: int) -> dict[str, Tensor]:
    """Gradients (out, in) of the weights of all layers, by path."""
    model, batches = encoder(), pairs(package, count)
    found = lb.collect(model, _sites(), SplitFrame(), lambda: loss(model, batches), progress=False)
    return {path: gradient.double() for path, gradient in found.items()}


@lru_cache(maxsize=6)
def tokens(block: int, package: str, count: int) -> dict[str, tuple[Tensor, Tensor]]:
    """By path, inputs (tokens, in) and gradients (tokens, out) of the loss in the outputs, without padding."""
    batches = pairs(package, count)
    masks = [batch["attention_mask"].bool() for batch in batches]
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {site.name: [] for site in of_block(block)}

    def note(path: str, module: Any, args: Any, output: Tensor) -> Tensor:
        output = output if output.requires_grad else output.detach().requires_grad_()
        output.retain_grad()
        seen[path].append((args[0].detach(), output))
        return output

    handles = [site.layer.register_forward_hook(partial(note, site.name)) for site in of_block(block)]
    try:
        loss(encoder(), batches).backward()
    finally:
        for handle in handles:
            handle.remove()
    return {path: _rows(calls, masks) for path, calls in seen.items()}


def _rows(calls: list[tuple[Tensor, Tensor]], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    kept = [(x[mask], y.grad[mask]) for (x, y), mask in zip(calls, masks, strict=True) if y.grad is not None]
    return torch.cat([x for x, _ in kept]).double(), torch.cat([g for _, g in kept]).double()


def as_array(tensor: Tensor) -> np.ndarray:
    """A detached copy."""
    return tensor.detach().cpu().numpy().copy()
