"""Experts that whole samples choose, that labels choose, or that take a limited number of tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_sp.coverage import covers
from lowrank_sp.factors import Configured, factorization

from ..combines import Combine
from ..inject import adapted
from ..noise import Noise
from ..nonlinear import Bent
from .forms import mixed_pairs
from .routed import Gated, Routed, check_count
from .tokens import labels_of, samples, tokens

if TYPE_CHECKING:
    from ..adapter import Adapter

__all__ = ["BySample", "ByTask", "Dispatch", "ExpertDropout", "Limited", "TaskExperts", "labelled"]


# experts for given weights --------------------------------------------------------------------------------------
class _Weighed:
    """A mixture with weights (samples, E) that are given, each for all tokens of a sample, in place of its own."""

    form: ClassVar[Any]

    def __init__(self, weights: Tensor, *arrays: Tensor):
        self.given, self.rest = weights, arrays

    def arrays(self) -> tuple[Tensor, ...]:
        return self.given, *self.rest

    def map(self, fn: Any) -> _Weighed:
        return type(self)(*map(fn, self.arrays()))

    def apply(self, x: Tensor) -> Tensor:
        count = x.shape[:-1].numel() // len(self.given)
        weights = self.given[:, None].expand(-1, count, -1).reshape(*x.shape[:-1], -1)
        return self.form(*self.rest).mixed(x, weights)


@cache
def _weighed(form: type) -> type[_Weighed]:
    return type(f"Weighed{form.__name__}", (_Weighed,), {"form": form})


class Dispatch(Combine):
    """``W x + s sum_e w_e F_e(x)`` with weights that the whole batch, labels or chance have a part in.

    ``needs`` says whose experts it can weigh.
    """

    needs: ClassVar[type] = Gated

    @abstractmethod
    def weights(self, point: Any, x: Tensor, batch: int, adapter: Adapter) -> Tensor:
        """Weights (samples, E) of the experts for tokens (..., n), of a batch with so many samples."""

    def kinds(self, form: Any) -> int | None:
        """How many labels it tells apart; None if it looks at none."""
        return None

    def forward(self, kind, layer, x, adapter):
        if not issubclass(adapter.form, self.needs):
            raise TypeError(f"{self} weighs the experts of {self.needs.__name__}, not of {adapter.form.__name__}")
        seen = adapter.noise.input(x, adapter.training)
        rows = kind.rows(layer, seen)
        inputs = tokens(kind, layer, rows)
        out = kind.fresh(layer, rows if seen is x else kind.rows(layer, x))
        for sign, point in adapter.terms():
            cast = point.map(lambda a: a.to(inputs.dtype))
            weights = self.weights(cast, inputs, len(x), adapter)
            scale = sign * adapter.scale * adapter.noise.gate(adapter.training)
            out = kind.accumulate(layer, rows, out, _weighed(adapter.form)(weights, *point.arrays()), scale)
        return kind.restore(layer, x, out)

    def meet(self, weight, update, extras):
        raise TypeError("weights that depend on activations or labels meet no single weight")


def _one_hot(labels: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """(samples, count), a row of zeros for labels that are none; the function of torch waits for some devices."""
    return (labels[:, None] == torch.arange(count, device=labels.device)).to(dtype)


@covers("E03")
@dataclass(frozen=True)
class BySample(Dispatch):
    """All tokens of a sample have the same experts: those of its mean input, or the one that `labelled` names.

    The mean is over all tokens that the layer sees: padding too, and in a causal model tokens that are still to come.
    Where a text is written token by token, every token would choose anew: name the domain with `labelled`.
    Source: :cite:`feng2024mixture`.
    """

    def kinds(self, form):
        return form.count

    def weights(self, point, x, batch, adapter):
        labels = labels_of(adapter)
        if labels is None:
            return point.weights(samples(x, batch).mean(1))
        samples(x, len(labels))
        return _one_hot(labels, point.count, x.dtype)


@covers("E10")
@dataclass(frozen=True)
class ExpertDropout(Noise):
    """Zeros among the scores of the router, other scores scaled up: for mixtures that `Limited` weighs."""

    def scores(self, scores: Tensor, training: bool) -> Tensor:
        """What the gate sees in place of the scores (..., E)."""
        return F.dropout(scores, self.rate, training) if self.rate > 0 else scores


@covers("E10")
@dataclass(frozen=True)
class Limited(Dispatch):
    """In training an expert takes no more tokens than ``capacity`` times the mean over all experts, rounded up: SiRA.

    Tokens beyond that, the last ones of the batch, do without it. Otherwise there is no limit, so that no output
    depends on its neighbours. With the noise `ExpertDropout` scores drop out before the choice.
    Source: :cite:`zhu2023sira`.

    Parameters
    ----------
    capacity : float
    """

    capacity: float = 1.25

    def __post_init__(self):
        if self.capacity <= 0:
            raise ValueError(f"capacity must be positive, got {self.capacity}")

    def weights(self, point, x, batch, adapter):
        scores = point.scores(x.flatten(0, -2))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if isinstance(adapter.noise, ExpertDropout):
            scores = adapter.noise.scores(scores, adapter.training)
        weights = type(point).gate(scores.softmax(-1)).to(x.dtype)
        if not adapter.training:
            return weights
        acting = (weights > 0).to(torch.float32)
        return weights * (acting.cumsum(0) <= (self.capacity * acting.sum() / point.count).ceil())


# tasks ------------------------------------------------------------------------------------------------------------
@covers("E11")
@factorization
class TaskExperts(Bent, Configured):
    """``B_0 A_0 x + B_t A_t x`` for samples of task t: one pair for all tasks, and one for each of them (MTLoRA).

    Parameters
    ----------
    left : array (1 + T, m, r)
        B_t; they vanish at the start.
    right : array (1 + T, n, r)
        A_t.

    Notes
    -----
    Two tasks, or ``TaskExperts.of(count)``. Which task a sample has, `labelled` says; without it only the common pair
    acts. In the source most layers of a hierarchical vision transformer have the common module alone and the last of a
    stage both, with outputs for every task at once; here all adapted layers have both.
    Parameters: ``(1 + T) r (m + n)``. Source: :cite:`agiza2024mtlora`.
    """

    left: Any
    right: Any

    ndims = (3, 3)
    count: ClassVar[int] = 2
    reason: ClassVar[str] = "it depends on the task of every sample, so no matrix is equal to it"

    @classmethod
    def of(cls, count: int) -> Any:
        """The form with so many tasks."""
        return cls.configured(f"{cls._base().__name__}{check_count(count)}", int(count))

    @classmethod
    def _completed(cls, form):
        (form.count,) = form.settings
        return form

    @classmethod
    def shapes(cls, shape, rank):
        (m, n), t = shape, cls.count
        return (1 + t, m, rank), (1 + t, n, rank)

    def apply(self, x):
        return (x @ self.right[0]) @ self.left[0].mT

    def mixed(self, x: Tensor, weights: Tensor) -> Tensor:
        """``sum_t w_t B_t A_t x`` for weights (..., 1 + T)."""
        return mixed_pairs(x, self.left, self.right, weights)


@covers("E11")
@dataclass(frozen=True)
class ByTask(Dispatch):
    """The common pair of `TaskExperts` for all samples, and that of the task for those with a label."""

    needs = TaskExperts

    def kinds(self, form):
        return form.count

    def weights(self, point, x, batch, adapter):
        labels = labels_of(adapter)
        if labels is None:
            labels = torch.full((batch,), -1, device=x.device)
        samples(x, len(labels))
        own = _one_hot(labels, point.count, x.dtype)
        return torch.cat([torch.ones_like(own[:, :1]), own], 1)


# labels -----------------------------------------------------------------------------------------------------------
def _kinds(adapter: Any) -> int | None:
    """The least number of labels that the parts of an adapter tell apart; None if none looks at labels."""
    combine, form = adapter.combine, adapter.form
    found = [combine.kinds(form)] if isinstance(combine, Dispatch) else []
    found += [form.loss.kinds(form.count)] if issubclass(form, Routed) else []
    return min((k for k in found if k is not None), default=None)


@contextmanager
def labelled(model: nn.Module, labels: Tensor) -> Iterator[nn.Module]:
    """Tell mixtures the domain, the type or the task of every sample of a batch, as long as the context lasts.

    `BySample` then takes the expert of the domain and `ByTask` that of the task; the losses `Supervised` and `Typed`,
    which `balancing` collects, need labels.

    Parameters
    ----------
    model : Module
    labels : integer array (samples,)
        0, 1, ...

    Raises
    ------
    ValueError, TypeError
        If no active adapter looks at labels, or these do not fit.

    Examples
    --------
    >>> import llm_bridge as lb
    >>> model = lb.adapt(torch.nn.Sequential(torch.nn.Linear(8, 8)), "moa", rank=1)
    >>> with lb.labelled(model, torch.tensor([0, 3])), lb.balancing(model) as balance:
    ...     loss = model(torch.ones(2, 5, 8)).square().mean()
    ...     (loss + 0.1 * balance.total()).backward()
    """
    found: list[Any] = [layer.adapter(name) for layer in adapted(model).values() for name in layer.active]
    kinds = {adapter: count for adapter in found if (count := _kinds(adapter)) is not None}
    if not kinds:
        raise ValueError("no active adapter of the model looks at labels; adapt it with 'moa', 'mtlora' or 'loramoe'")
    labels = _checked(labels, min(kinds.values())).to(next(model.parameters()).device)
    for adapter in kinds:
        vars(adapter)["labels"] = labels
    try:
        yield model
    finally:
        for adapter in kinds:
            vars(adapter).pop("labels", None)


def _checked(labels: Any, count: int) -> Tensor:
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim != 1:
        raise TypeError("labels must be an integer tensor (samples,)")
    if not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < count:
        raise ValueError(f"labels must lie between 0 and {count - 1}, one for every sample")
    return labels.long()
