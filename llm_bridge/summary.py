"""What trains in an adapted model, layer by layer, and how far it has moved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lowrank_sp.metrics import stable_rank

from .adapter import Adapted, Adapter
from .inject import adapted, setups
from .life import trained_adapters
from .nonlinear import Bent

__all__ = ["SiteSummary", "Summary", "summary"]


@dataclass(frozen=True)
class SiteSummary:
    """One adapter of one layer.

    Attributes
    ----------
    path, adapter, recipe : str
    shape : tuple of int
        ``(out, in)``.
    rank, trainable : int
    norm : float
        Frobenius norm of the update; 0 says that the adapter did not move from its start.
    stable_rank : float
        ``||F||_F^2 / ||F||_2^2`` of the update; NaN where it is zero.
    """

    path: str
    adapter: str
    recipe: str
    shape: tuple[int, int]
    rank: int
    trainable: int
    norm: float
    stable_rank: float


@dataclass(frozen=True)
class Summary:
    """Counts of a model, and a line for every active adapter; prints as a table."""

    trainable: int
    total: int
    sites: tuple[SiteSummary, ...]

    @property
    def unmoved(self) -> tuple[str, ...]:
        """Layers whose update is zero: before training all of them, after it those that did not learn."""
        return tuple(site.path for site in self.sites if site.norm == 0)

    def __str__(self) -> str:
        head = f"{self.trainable:,} of {self.total:,} parameters train ({self.trainable / max(self.total, 1):.3%})"
        width = max((len(site.path) for site in self.sites), default=0)
        columns = f"{'recipe':12} {'out x in':>13} {'rank':>4} {'trained':>9} {'|update|':>9} {'st.rank':>7}"
        lines = [f"{'layer':{width}}  {columns}"]
        for s in self.sites:
            size, rank = f"{s.shape[0]} x {s.shape[1]}", "-" if s.norm == 0 else f"{s.stable_rank:.2f}"
            lines.append(
                f"{s.path:{width}}  {s.recipe:12} {size:>13} {s.rank:>4} {s.trainable:>9,} {s.norm:>9.3g} {rank:>7}"
            )
        tail = f"\n{len(self.unmoved)} of {len(self.sites)} adapters have not moved" if self.unmoved else ""
        return "\n".join([head, *lines]) + tail


@torch.no_grad()
def summary(model: nn.Module) -> Summary:
    """Trainable and total parameters, and for every active adapter its size, norm and stable rank.

    >>> import llm_bridge as lb
    >>> found = lb.summary(lb.adapt(torch.nn.Sequential(torch.nn.Linear(6, 4)), "lora", rank=2))
    >>> found.trainable, found.total, found.sites[0].path
    (20, 48, '0')
    """
    sites, layers = [], adapted(model)
    for path, name, adapter in trained_adapters(model):
        setup, layer = setups(model)[name], layers[path]
        norm, stable = _size(layer, adapter)
        count = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
        shape = layer.kind.shape(layer.base)
        sites.append(SiteSummary(path, name, setup.recipe.name, shape, setup.ranks[path], count, norm, stable))
    seen = {id(p): p for p in model.parameters()}.values()
    trainable = sum(p.numel() for p in seen if p.requires_grad)
    return Summary(trainable, sum(p.numel() for p in seen), tuple(sites))


def _size(layer: Adapted, adapter: Adapter) -> tuple[float, float]:
    """Norm and stable rank of the change of the weight, from thin factors where there are some."""
    if adapter.combine.additive and adapter.thin:
        left, right = (a.double() for a in adapter.product())
        values = torch.linalg.svdvals(torch.linalg.qr(left).R @ torch.linalg.qr(right).R.mT)
        norm = float(values.square().sum().sqrt()) * adapter.scale
        return norm, float(values.square().sum() / values[0] ** 2) if norm > 0 else float("nan")
    change = _change(layer, adapter).double()
    norm = float(change.norm())
    return norm, float(stable_rank(change)) if norm > 0 else float("nan")


def _change(layer: Adapted, adapter: Adapter) -> torch.Tensor:
    """What the adapter does to the weight; where it has no matrix, what it answers to unit vectors."""
    weight = layer.kind.weight(layer.base)
    weight = weight.float() if weight.dtype != torch.float64 else weight
    if not isinstance(adapter.point(), Bent):
        return adapter.combine.weight(weight, adapter) - weight
    eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    parts = [sign * point.map(lambda a: a.to(eye.dtype)).apply(eye) for sign, point in adapter.terms()]
    return adapter.scale * torch.stack(parts).sum(0).mT
