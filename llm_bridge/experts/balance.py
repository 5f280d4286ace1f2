"""Losses beside the experts of a whole model, collected while it runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Adapted, Adapter
from ..inject import adapted
from ..nonlinear import BentByLayer
from ..recipe import Recipe
from .losses import Auxiliary
from .routed import Routed
from .tokens import labels_of, samples, tokens

__all__ = ["Balance", "BalancedLoss", "balanced_loss", "balancing", "beside"]


class Balance:
    """What `balancing` collects: one loss for every call of a layer that routes."""

    def __init__(self):
        self.terms: list[Tensor] = []
        self.trains = False  # whether a layer in training mode has noted one

    def total(self) -> Tensor:
        """Their mean, with gradient.

        Warns where layers in training mode ran without gradient, as in checkpointing with ``use_reentrant=True``: to
        add the mean to a loss would then do nothing.

        Raises
        ------
        ValueError
            Before the model has run.
        """
        if not self.terms:
            raise ValueError("no layer has routed anything yet; run the model inside of `with balancing(model)`")
        if self.trains and torch.is_grad_enabled() and not any(term.requires_grad for term in self.terms):
            warnings.warn(
                "the balance has no gradient, because the layers ran without one; where that is due to checkpointing, "
                "take use_reentrant=False",
                stacklevel=2,
            )
        return torch.stack([term.float() for term in self.terms]).mean()


@contextmanager
def balancing(model: nn.Module) -> Iterator[Balance]:
    """Collect the losses beside the experts of a model, while it runs inside of this context: one for every step.

    By default they say how evenly experts are used (`Shares`); some recipes have others, of which those that need the
    labels of samples want `labelled` around the run. Add ``0.01 * balance.total()`` or the like to the loss. Where
    backward runs layers again, as checkpointing does, it has to be called inside of the context too, and
    checkpointing be not reentrant.

    Raises
    ------
    ValueError
        If no active adapter routes.

    Examples
    --------
    >>> import llm_bridge as lb
    >>> model = lb.adapt(torch.nn.Sequential(torch.nn.Linear(8, 8)), "moe-lora", rank=1)
    >>> with lb.balancing(model) as balance:
    ...     loss = model(torch.ones(2, 8)).square().mean()
    ...     (loss + 0.01 * balance.total()).backward()
    """
    balance = Balance()
    handles = [layer.register_forward_pre_hook(partial(_note, balance)) for layer in _routing(model)]
    try:
        yield balance
    finally:
        for handle in handles:
            handle.remove()


class BalancedLoss:
    """What `balanced_loss` has put on a model: ``remove()`` takes it off again, as does the end of a ``with``.

    Attributes
    ----------
    weight : float
        May change between steps.
    last : Tensor or None
        The balance of the last step, without its weight.
    """

    def __init__(self, model: nn.Module, weight: float):
        self.weight = weight
        self.last: Tensor | None = None
        self._running: Balance | None = None
        self._handles = [layer.register_forward_pre_hook(self._note) for layer in _routing(model)]
        self._handles.append(model.register_forward_pre_hook(self._begin))
        self._handles.append(model.register_forward_hook(self._end, with_kwargs=True))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> BalancedLoss:
        return self

    def __exit__(self, *error: Any) -> None:
        self.remove()

    def _begin(self, model: nn.Module, args: Any) -> None:
        self._running = Balance() if model.training else None

    def _note(self, layer: Any, args: tuple[Any, ...]) -> None:
        # Where backward runs a layer again, what it computes has to be the same, though nobody collects it.
        if layer.training:
            _note(self._running or Balance(), layer, args)

    def _end(self, model: nn.Module, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        balance, self._running = self._running, None
        if balance is None or not balance.terms:
            return outputs
        if not isinstance(outputs, dict):
            raise TypeError(
                f"a balanced loss is for models that return outputs with a loss, as those of transformers do with "
                f"return_dict=True, got {type(outputs).__name__}; elsewhere add the total of balancing(model)"
            )
        if outputs.get("loss") is not None:
            total = balance.total()
            self.last = total.detach()
            outputs["loss"] = outputs["loss"] + self.weight * _share(model, kwargs) * total
        return outputs


def balanced_loss(model: nn.Module, weight: float = 0.01) -> BalancedLoss:
    """Add the balance of the experts to the loss that a model of transformers returns, for loops that take that loss.

    As the unmodified Trainer does; it has to take the model's own loss, without label smoothing. Evaluation, which is
    not in training mode, and outputs without a loss stay as they are. Where gradients are accumulated over batches
    of several sizes, the balance of a batch counts as its tokens do in the loss. Checkpointing must not be reentrant.

    Parameters
    ----------
    model : Module
        Adapted already, and not wrapped or compiled yet.
    weight : float
        Of the balance, as `balancing` collects it.

    Returns
    -------
    BalancedLoss
        With ``remove()``.

    Raises
    ------
    ValueError
        If no active adapter routes, or the weight is negative or not finite.

    Examples
    --------
    >>> import llm_bridge as lb
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = lb.adapt(LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)), "moe-lora", rank=1)
    >>> balanced = lb.balanced_loss(model, 0.01)
    >>> ids = torch.tensor([[1, 2, 3]])
    >>> model.train()(input_ids=ids, labels=ids).loss.backward()
    >>> balanced.remove()
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must be a number that is not negative, got {weight}")
    return BalancedLoss(model, weight)


def _share(model: Any, kwargs: dict[str, Any]) -> Any:
    """The part of the step's tokens with a loss that this batch has, if the loss is divided by all of them."""
    items, labels = kwargs.get("num_items_in_batch"), kwargs.get("labels")
    if items is None or labels is None:
        return 1.0
    causal = getattr(model, "loss_type", None) == "ForCausalLM"
    return kwargs.get("shift_labels", labels[..., 1:] if causal else labels).ne(-100).sum() / items


def beside(made: Recipe) -> tuple[Auxiliary, int] | None:
    """The loss beside the experts of a recipe and their number, where there is no model yet; None if it routes not."""
    form: Any = made.form_for((64, 64), 1) if isinstance(made.form, BentByLayer) else made.form
    return (form.loss, form.count) if isinstance(form, type) and issubclass(form, Routed) else None


def _routing(model: nn.Module) -> list[Adapted]:
    """The layers with an active adapter that routes, or an error."""
    layers = [layer for layer in adapted(model).values() if _routed(layer)]
    if not layers:
        raise ValueError("no active adapter of the model routes among experts; adapt it with such as 'moe-lora'")
    return layers


def _routed(layer: Adapted) -> list[Adapter]:
    """The active adapters that route."""
    adapters = [layer.adapter(name) for name in layer.active]
    return [adapter for adapter in adapters if issubclass(adapter.form, Routed)]


def _note(balance: Balance, layer: Any, args: tuple[Any, ...]) -> None:
    x = tokens(layer.kind, layer.base, layer.kind.rows(layer.base, args[0]))
    balance.trains |= layer.training
    for adapter in _routed(layer):
        labels = labels_of(adapter)
        seen = x if labels is None else samples(x, len(labels))
        term = adapter.point().map(lambda a: a.to(x.dtype)).balance(seen, labels)
        if not _again():
            balance.terms.append(term)


def _again() -> bool:
    """Whether backward runs a layer again: what would be kept of it is what recomputing saves."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
