"""What is added to the loss beside a mixture: even use, experts of their own kind, domains that routers tell apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lowrank_sp.coverage import covers

if TYPE_CHECKING:
    from .routed import Routed

__all__ = ["Auxiliary", "Contrastive", "Even", "Shares", "Supervised", "Typed"]


class Auxiliary(ABC):
    """A loss of the experts of one layer for one batch."""

    @abstractmethod
    def __call__(self, point: Routed, x: Tensor, labels: Tensor | None) -> Tensor:
        """A number, for inputs (..., n), or (samples, tokens, n) where there are labels (samples,)."""

    def kinds(self, count: int) -> int | None:
        """How many labels it tells apart with so many experts; None if it needs none."""
        return None


def known(labels: Tensor | None) -> Tensor:
    """The labels, or an error that says how to give them."""
    if labels is None:
        raise ValueError("this mixture needs the label of every sample: run it inside of labelled(model, labels)")
    return labels


@dataclass(frozen=True)
class Shares(Auxiliary):
    """``E sum_e f_e P_e``: f_e the share of inputs for which e acts, P_e its mean probability.

    At least the number of acting experts, reached where all are chosen equally often; the gradient is that of P.
    Source: equations (125)-(126) of :cite:`he2026unified`.
    """

    def __call__(self, point, x, labels):
        probabilities = point.probabilities(x).flatten(0, -2)
        shares = (point.weights(x) > 0).flatten(0, -2).to(probabilities.dtype).mean(0)
        return len(shares) * (shares * probabilities.mean(0)).sum()


@dataclass(frozen=True)
class Even(Auxiliary):
    """``-mean_e log(E P_e)`` with the mean probabilities P_e: zero where all are equal, for mixtures where all act.

    Source: the balance of gates in :cite:`wu2024mole`, up to a constant.
    """

    def __call__(self, point, x, labels):
        mean = point.probabilities(x).flatten(0, -2).mean(0)
        return -(mean * len(mean)).log().mean()


@covers("E01")
@dataclass(frozen=True)
class Contrastive(Auxiliary):
    """The mean of ``-log(exp(q.k+ / t) / (exp(q.k+ / t) + sum_k- exp(q.k- / t)))`` over outputs q of acting experts.

    Positives k+ are outputs of the same expert for other inputs, negatives k- those of other experts.

    Parameters
    ----------
    temperature : float
        t. Chosen here, as the sources give none.
    tokens : int
        At most so many inputs are compared, at equal distances in the batch: pairs of all would not fit in memory.

    Notes
    -----
    Outputs are scaled to length one, which the source leaves open: else longer outputs alone would lower the loss.
    Source: equation (127) of :cite:`he2026unified`; :cite:`luo2024moelora`.
    """

    temperature: float = 0.1
    tokens: int = 64

    def __post_init__(self):
        if self.temperature <= 0 or self.tokens < 2:
            raise ValueError(
                f"temperature must be positive and tokens at least 2, got {self.temperature} and {self.tokens}"
            )

    def __call__(self, point, x, labels):
        x = x.flatten(0, -2)
        x = x[:: -(-len(x) // self.tokens)]
        acting = (point.weights(x) > 0).flatten()
        outputs = F.normalize(point.outputs(x).flatten(0, 1).float(), dim=-1, eps=1e-6)
        near = outputs @ outputs.mT / self.temperature
        expert = torch.arange(len(near), device=x.device) % point.count
        same = expert[:, None] == expert
        pairs = acting[:, None] & acting & ~torch.eye(len(near), dtype=torch.bool, device=x.device)
        others = near.masked_fill(~pairs | same, -1e30).logsumexp(1, keepdim=True)
        positive = (pairs & same).to(near.dtype)
        return (F.softplus(others - near) * positive).sum() / positive.sum().clamp_min(1)


@covers("E02", "T54")
@dataclass(frozen=True)
class Typed(Auxiliary):
    """``var(Z) / mean(Z)`` with ``Z = I o Q``: the weight Q that experts (E,) have in samples, evened out by types.

    Experts are of as many types as samples, in equal blocks: of two types, the first half of the experts is for
    samples with the label 0 (world knowledge in the source) and the second for those with 1 (the task).

    Parameters
    ----------
    delta : float
        Chosen here, as the sources give none.
    types : int

    Notes
    -----
    ``I = 1 - delta`` where the types of expert and sample agree and ``1 + delta`` elsewhere: the least loss, where Z is
    constant, then has more weight on experts of the type of the sample. The source has the signs the other way round
    and minimizes too, which at equal weights moves them to experts of the wrong type.
    Source: equations (128)-(129) of :cite:`he2026unified`; :cite:`dou2024loramoe`.
    """

    delta: float = 0.1
    types: int = 2

    def __post_init__(self):
        if not 0 < self.delta < 1 or self.types < 1:
            raise ValueError(f"delta must lie in (0, 1) and types be positive, got {self.delta} and {self.types}")

    def kinds(self, count):
        return self.types

    def __call__(self, point, x, labels):
        labels = known(labels)
        mass = point.weights(x).flatten(1, -2).sum(1).float()
        own = torch.arange(point.count, device=x.device) * self.types // point.count
        tilt = torch.where(own == labels[:, None], -self.delta, self.delta)
        evened = (1 + tilt) * mass
        return evened.var(correction=0) / evened.mean()


@covers("E03")
@dataclass(frozen=True)
class Supervised(Auxiliary):
    """Cross entropy of the router's choice for a whole sample and the label of its domain, one expert for each.

    Source: :cite:`feng2024mixture`, which equations of :cite:`he2026unified` leave out.
    """

    def kinds(self, count):
        return count

    def __call__(self, point, x, labels):
        scores = point.scores(x.flatten(1, -2).mean(1)).float()
        return F.cross_entropy(scores, known(labels))


def said(value: Any) -> str:
    """A short name of a frozen dataclass with its settings."""
    return "_".join([type(value).__name__, *map(str, vars(value).values())])
