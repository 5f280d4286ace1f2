"""Updates of several experts, among which a router chooses for every input."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers
from lowrank_sp.factors import Configured, factorization
from lowrank_sp.parameterizations.kronecker import largest_divisor

from .adapter import Adapted
from .inject import adapted
from .nonlinear import Bent

__all__ = [
    "Balance",
    "Gate",
    "KroneckerExperts",
    "LowRankExperts",
    "Routed",
    "SharedInputExperts",
    "Soft",
    "Top",
    "TopShare",
    "balancing",
]

Array = Any


class Gate(ABC):
    """From the probabilities (..., E) of a router to the weights of the experts."""

    @abstractmethod
    def __call__(self, probabilities: Tensor) -> Tensor:
        """Weights (..., E), zero for experts that do not act."""

    @abstractmethod
    def fits(self, count: int) -> bool:
        """Whether it can choose among so many experts."""


@dataclass(frozen=True)
class Soft(Gate):
    """All experts act, with their probabilities."""

    def __call__(self, probabilities):
        return probabilities

    def fits(self, count):
        return True


@dataclass(frozen=True)
class Top(Gate):
    """The most probable experts act, with their probabilities as they are.

    Parameters
    ----------
    active : int
    """

    active: int = 2

    def __call__(self, probabilities):
        kept = probabilities.topk(self.active, -1).indices
        return probabilities * torch.zeros_like(probabilities).scatter(-1, kept, 1.0)

    def fits(self, count):
        return self.active in range(1, count + 1)


@dataclass(frozen=True)
class TopShare(Gate):
    """The most probable experts act, with probabilities that add up to one again.

    Parameters
    ----------
    active : int
        With one, its weight is one and the router has no gradient.
    """

    active: int = 2

    def __call__(self, probabilities):
        kept = Top(self.active)(probabilities)
        return kept / kept.sum(-1, keepdim=True)

    def fits(self, count):
        return self.active in range(1, count + 1)


class Routed(Bent, Configured):
    """``sum_e w_e(x) F_e(x)`` with the weights of a gate over ``softmax(x R)``.

    The class has the number of experts and the gate as settings; `of` is the form with others.
    """

    router: Array
    count: ClassVar[int] = 8
    gate: ClassVar[Gate] = Top(2)
    reason: ClassVar[str] = "which experts act depends on the activations, so no matrix is equal to it"

    @classmethod
    def of(cls, count: int, gate: Gate) -> Any:
        """The form with ``count`` experts under a gate."""
        if isinstance(count, bool) or int(count) != count or count < 1:
            raise ValueError(f"count must be a positive integer, got {count!r}")
        if not isinstance(gate, Gate):
            raise TypeError(f"gate must be a Gate, such as Soft() or Top(2), got {gate!r}")
        if not gate.fits(count):
            raise ValueError(f"{gate} must let between 1 and all of the {count} experts act")
        active = "".join(str(value) for value in vars(gate).values())
        return cls.configured(f"{cls._base().__name__}{count}{type(gate).__name__}{active}", int(count), gate)

    @classmethod
    def _completed(cls, form):
        form.count, form.gate = form.settings
        return form

    def probabilities(self, x: Tensor) -> Tensor:
        """Of the router, (..., E), in at least single precision, in which fewer of them are equal."""
        scores = x @ self.router
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1)

    def weights(self, x: Tensor) -> Tensor:
        """Of the experts, (..., E)."""
        return type(self).gate(self.probabilities(x)).to(x.dtype)

    def balance(self, x: Tensor) -> Tensor:
        """``E sum_e f_e P_e``: f_e the share of inputs for which e acts, P_e its mean probability.

        At least the number of acting experts, reached where all are chosen equally often; the gradient is that of P.
        Source: equations (125)-(126) of :cite:`he2026unified`.
        """
        probabilities = self.probabilities(x).flatten(0, -2)
        shares = (type(self).gate(probabilities) > 0).to(probabilities.dtype).mean(0)
        return len(shares) * (shares * probabilities.mean(0)).sum()


def _stacked(left: Tensor) -> Tensor:
    """(E, m, r) as (E r, m)."""
    return left.mT.flatten(0, 1)


@covers("E00")
@factorization
class LowRankExperts(Routed):
    """``sum_e w_e(x) B_e A_e x``: a mixture of LoRAs, 8 of which the 2 most probable act.

    Parameters
    ----------
    left : array (E, m, r)
        B_e; they vanish at the start.
    right : array (E, n, r)
        A_e.
    router : array (n, E)
        R.

    Notes
    -----
    All experts are applied as two products with their stacked factors: E r channels cost less than sorting inputs by
    expert. Parameters: ``E r (m + n) + E n``. The kept probabilities are not scaled to one; `TopShare` does that.
    Source: equation (124) of :cite:`he2026unified`.
    """

    left: Array
    right: Array
    router: Array

    ndims = (3, 3, 2)

    @classmethod
    def shapes(cls, shape, rank):
        (m, n), e = shape, cls.count
        return (e, m, rank), (e, n, rank), (n, e)

    def apply(self, x):
        channels = (x @ self.right.transpose(0, 1).flatten(1)).unflatten(-1, (type(self).count, -1))
        return (channels * self.weights(x)[..., None]).flatten(-2) @ _stacked(self.left)


@covers("E07")
@factorization
class SharedInputExperts(Routed):
    """``(sum_e w_e(x) B_e) A x``: HydraLoRA, whose experts share A; all of them act.

    Parameters
    ----------
    left : array (E, m, r)
        B_e; they vanish at the start.
    right : array (n, r)
        A.
    router : array (n, E)
        R.

    Notes
    -----
    Parameters: ``r n + E r m + E n``. Source: :cite:`tian2024hydralora`; equation (133) of :cite:`he2026unified`.
    """

    left: Array
    right: Array
    router: Array

    ndims = (3, 2, 2)
    count = 3
    gate = Soft()

    @classmethod
    def shapes(cls, shape, rank):
        (m, n), e = shape, cls.count
        return (e, m, rank), (n, rank), (n, e)

    def apply(self, x):
        channels = self.weights(x)[..., :, None] * (x @ self.right)[..., None, :]
        return channels.flatten(-2) @ _stacked(self.left)


@covers("P58", "E16")
@factorization
class KroneckerExperts(Routed):
    """``sum_e w_e(x) (X_e (x) Y_e) x``: a mixture of Kronecker products; all of them act.

    Parameters
    ----------
    left : array (E, a, b)
        X_e; they vanish at the start. a and b are the divisors of m and n closest to their roots from below.
    right : array (E, m / a, n / b)
        Y_e.
    router : array (n, E)
        R.

    Notes
    -----
    As large as E Kronecker products whatever the size, of rank up to that of the layer. Parameters:
    ``E (a b + m n / (a b)) + E n``. Source: :cite:`sadeghi2025moka`.
    """

    left: Array
    right: Array
    router: Array

    ndims = (3, 3, 2)
    count = 4
    gate = Soft()

    @property
    def shape(self):
        return self.left.shape[-2] * self.right.shape[-2], self.left.shape[-1] * self.right.shape[-1]

    @property
    def rank(self):
        return min(self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        (m, n), (a, b), e = shape, (largest_divisor(k, k) for k in shape), cls.count
        return (e, a, b), (e, m // a, n // b), (n, e)

    def apply(self, x):
        blocks = x.unflatten(-1, (self.left.shape[-1], -1))  # (..., b, n / b)
        inner = torch.einsum("...bd,ecd->...ebc", blocks, self.right)
        out = torch.einsum("...ebc,eab->...ac", inner * self.weights(x)[..., None, None], self.left)
        return out.flatten(-2)


# balance ----------------------------------------------------------------------------------------------------------
class Balance:
    """What `balancing` collects: one balance loss for every call of a layer that routes."""

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


class _Identity:
    """A point that stands for the unit matrix: applied by a layer, it gives what the layer multiplies."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> _Identity:
        return self

    def arrays(self) -> tuple[Tensor, ...]:
        return ()

    def apply(self, x: Tensor) -> Tensor:
        return x


@contextmanager
def balancing(model: nn.Module) -> Iterator[Balance]:
    """Collect how evenly the experts of a model are used, while it runs inside of this context: one for every step.

    Add ``0.01 * balance.total()`` or the like to the loss; see `Routed.balance`. Where backward runs layers again, as
    checkpointing does, it has to be called inside of the context too, and checkpointing be not reentrant.

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
    layers = [layer for layer in adapted(model).values() if _routed(layer)]
    if not layers:
        raise ValueError("no active adapter of the model routes among experts; adapt it with such as 'moe-lora'")
    balance = Balance()
    handles = [layer.register_forward_pre_hook(partial(_note, balance)) for layer in layers]
    try:
        yield balance
    finally:
        for handle in handles:
            handle.remove()


def _routed(layer: Adapted) -> list[Any]:
    """The points of the active adapters that route."""
    adapters = [layer.adapter(name) for name in layer.active]
    return [adapter.point() for adapter in adapters if issubclass(adapter.form, Routed)]


def _note(balance: Balance, layer: Any, args: tuple[Any, ...]) -> None:
    x = layer.kind.apply(layer.base, layer.kind.rows(layer.base, args[0]), _Identity())
    x = x if x.ndim == 2 else x.movedim(1, -1)  # patches of a convolution come as channels
    balance.trains |= layer.training
    for point in _routed(layer):
        balance.terms.append(point.map(lambda a: a.to(x.dtype)).balance(x))
