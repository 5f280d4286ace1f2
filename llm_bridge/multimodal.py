"""MokA: every modality of a sequence has a down-projection of its own, and all share the way up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers
from lowrank_sp.factors import Configured, factorization

from .combines import Additive, Combine
from .inject import adapted
from .nonlinear import Bent

__all__ = ["CrossModal", "Modal", "modalities"]


@covers("P110", "E14")
@factorization
class Modal(Bent, Configured):
    """``B A_k x`` for tokens of modality k; the first modality is text.

    Parameters
    ----------
    left : array (m, r)
        B, shared; it vanishes at the start.
    right : array (M, n, r)
        A_k.

    Notes
    -----
    Two modalities, or ``Modal.of(count)``. Parameters: ``r (m + M n)``. `apply` takes all tokens for text: which ones
    are not, `modalities` says while a model runs. Source: :cite:`wei2025moka`.
    """

    left: Any
    right: Any

    ndims = (2, 3)
    count: ClassVar[int] = 2
    reason: ClassVar[str] = "what it does to a token depends on its modality and on other tokens, so no matrix is equal"

    @classmethod
    def of(cls, count: int) -> Any:
        """The form with so many modalities."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count must be a positive integer, got {count!r}")
        return cls.configured(f"{cls._base().__name__}{count}", count)

    @classmethod
    def _completed(cls, form):
        (form.count,) = form.settings
        return form

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (cls.count, shape[1], rank)

    def apply(self, x):
        return (x @ self.right[0]) @ self.left.mT

    def channels(self, x: Tensor, kinds: Tensor) -> Tensor:
        """``A_k x`` (batch, time, r) for tokens (batch, time, n) of modalities (batch, time)."""
        every = (x @ self.right.transpose(0, 1).flatten(1)).unflatten(-1, (type(self).count, -1))
        return every.gather(-2, kinds[..., None, None].expand(*kinds.shape, 1, every.shape[-1])).squeeze(-2)


@dataclass(frozen=True)
class Tokens:
    """Of a batch of sequences, the modality of every token and which tokens are attended to, both (batch, time)."""

    kinds: Tensor
    attended: Tensor


@dataclass(frozen=True)
class CrossModal(Combine):
    """``W x + B h`` where tokens that are no text add to ``h = s A_k x`` what they attend to in the text.

    ``h + strength softmax(h H^T / sqrt(N)) H`` with the channels H of the N attended tokens of text in the sample.
    Text, and everything outside of `modalities`, has ``h`` alone. In a sample without attended text nothing is added.

    Parameters
    ----------
    strength : float
    """

    strength: float = 1.0

    def forward(self, kind, layer, x, adapter):
        tokens: Tokens | None = vars(adapter).get("tokens")
        if tokens is None:
            return Additive().forward(kind, layer, x, adapter)
        if x.shape[:-1] != tokens.kinds.shape:
            raise ValueError(
                f"this layer got tokens {tuple(x.shape[:-1])}, but modalities are given for "
                f"{tuple(tokens.kinds.shape)}: "
                "one for every token (batch, time); exclude layers that see other ones, and leave the context to decode"
            )
        seen = adapter.noise.input(x, adapter.training)
        scale = adapter.scale * adapter.noise.gate(adapter.training)
        point = adapter.point().map(lambda a: a.to(x.dtype))
        h = scale * point.channels(seen, tokens.kinds)
        h = h + self.strength * _attended(h, tokens) * (tokens.kinds > 0)[..., None]
        rows = kind.fresh(layer, kind.rows(layer, x))
        return kind.restore(layer, x, rows + (h @ point.left.mT).reshape(rows.shape).to(rows.dtype))

    def meet(self, weight, update, extras):
        raise TypeError("tokens of several modalities meet no single weight")


def _attended(h: Tensor, tokens: Tokens) -> Tensor:
    """For every token, the mean of the attended channels of its sample, weighted by a softmax of their products."""
    there = tokens.attended[:, None, :]  # (batch, 1, time)
    count = tokens.attended.sum(-1).clamp_min(1)[:, None, None]
    scores = (h @ h.mT) / count.to(h.dtype).sqrt()
    shares = scores.masked_fill(~there, float("-inf")).softmax(-1)
    return torch.where(there.any(-1, keepdim=True), shares, 0.0) @ h


@contextmanager
def modalities(model: nn.Module, kinds: Tensor, attended: Tensor | None = None) -> Iterator[nn.Module]:
    """Tell the layers with `Modal` factors the modality of every token, as long as the context lasts.

    Parameters
    ----------
    model : Module
    kinds : integer array (batch, time)
        0 for text, 1, 2, ... for the other modalities.
    attended : bool array (batch, time), optional
        The text that other tokens look at; by default all of it. In the training of causal models, answers must not
        be: name the question alone. Tokens of padding are not, either.

    Raises
    ------
    ValueError, TypeError
        If no active adapter has such factors, or the arrays do not fit.

    Examples
    --------
    >>> import llm_bridge as lb
    >>> model = lb.adapt(torch.nn.Sequential(torch.nn.Linear(8, 8)), "moka-multimodal", rank=1)
    >>> with lb.modalities(model, torch.tensor([[1, 1, 0]])):
    ...     model(torch.ones(1, 3, 8)).shape
    torch.Size([1, 3, 8])
    """
    found: list[Any] = [layer.adapter(name) for layer in adapted(model).values() for name in layer.active]
    found = [adapter for adapter in found if issubclass(adapter.form, Modal)]
    if not found:
        raise ValueError("no active adapter of the model knows modalities; adapt it with 'moka-multimodal'")
    tokens = _checked(kinds, attended, min(adapter.form.count for adapter in found))
    for adapter in found:
        vars(adapter)["tokens"] = tokens
    try:
        yield model
    finally:
        for adapter in found:
            vars(adapter).pop("tokens", None)


def _checked(kinds: Any, attended: Any, count: int) -> Tokens:
    if not isinstance(kinds, Tensor) or kinds.is_floating_point() or kinds.dtype == torch.bool or kinds.ndim != 2:
        raise TypeError("kinds must be an integer tensor (batch, time), 0 for text")
    if kinds.numel() and not 0 <= int(kinds.min()) <= int(kinds.max()) < count:
        raise ValueError(f"kinds must lie between 0 and {count - 1}; Modal.of(count) has more modalities")
    kinds = kinds.long()
    if attended is None:
        return Tokens(kinds, kinds == 0)
    if not isinstance(attended, Tensor) or attended.dtype != torch.bool or attended.shape != kinds.shape:
        raise TypeError(f"attended must be a bool tensor of the shape of kinds, {tuple(kinds.shape)}")
    if bool((attended & (kinds > 0)).any()):
        raise ValueError("attended names tokens that are no text")
    return Tokens(kinds, attended)
