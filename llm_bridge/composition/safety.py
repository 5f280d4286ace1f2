"""Adapters kept to the directions in which a model was aligned: Safe LoRA."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from ..combination import check_names
from ..inject import Setup, adapted, check_name, known
from ..layers import layer_type
from ..life import require_unmerged
from ..recipe import RECIPES
from ..restore import put, restored, sites_at
from ..truncation import additive_change, nearest

__all__ = ["Leading", "Normalized", "Projector", "SafetyReport", "safe_projection"]


class Projector(ABC):
    """From what alignment has changed in a weight to a matrix that changes of adapters are multiplied by."""

    @abstractmethod
    def __call__(self, change: Tensor, path: str) -> Tensor:
        """(out, out), for a change (out, in)."""


@covers("T56")
@dataclass(frozen=True)
class Leading(Projector):
    """``U U^T`` with the leading left singular vectors U that hold the share ``energy`` of the squared change.

    Parameters
    ----------
    energy : float
        In (0, 1]. With 1 it is the projector ``V (V^T V)^-1 V^T`` of the survey, where that exists.

    Raises
    ------
    ValueError
        If these are all directions, as with 1 for every change of full row rank: the projector is then the unit
        matrix and nothing would be projected.
    """

    energy: float = 0.9

    def __post_init__(self):
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy must lie in (0, 1], got {self.energy}")

    def __call__(self, change, path):
        u, s, _ = torch.linalg.svd(change, full_matrices=False)
        shares = s.square().cumsum(0) / s.square().sum()
        full = int((s > s[0] * max(change.shape) * torch.finfo(s.dtype).eps).sum())
        count = min(int((shares < self.energy).sum()) + 1, full) if self.energy < 1 else full
        if count == len(change):
            raise ValueError(
                f"{path}: alignment has changed all {count} directions of the output, so that the projector is the "
                f"unit matrix; take Leading(energy) with less than {self.energy}, or Normalized()"
            )
        return u[:, :count] @ u[:, :count].mT


@dataclass(frozen=True)
class Normalized(Projector):
    """``V V^T / ||V||``, with the Frobenius norm: no projector, but what the published code multiplies by."""

    def __call__(self, change, path):
        return change @ change.mT / change.norm()


@dataclass(frozen=True)
class SafetyReport:
    """What a projection has done.

    Attributes
    ----------
    cosines : dict
        By path, of the angle between the change of the adapter and its projection.
    projected : tuple of str
        The layers where the projection took its place.
    """

    cosines: dict[str, float]
    projected: tuple[str, ...]

    def __str__(self) -> str:
        width = max((len(path) for path in self.cosines), default=5)
        lines = [f"{'layer':{width}}  cosine"]
        lines += [f"{p:{width}}  {c:.3f}{'  projected' * (p in self.projected)}" for p, c in self.cosines.items()]
        return "\n".join([*lines, f"{len(self.projected)} of {len(self.cosines)} layers projected"])


@covers("A22")
@torch.no_grad()
def safe_projection(
    model: nn.Module,
    unaligned: nn.Module | Mapping[str, Tensor],
    name: str = "default",
    threshold: float = 0.5,
    projector: Projector | None = None,
    into: str = "safe",
) -> SafetyReport:
    """Put an adapter whose changes lie where alignment has changed the model beside one that may undo it: Safe LoRA.

    With ``V = W - W_unaligned`` of a layer, the change D of the adapter becomes ``C D`` where the cosine of the angle
    between both is at most the threshold. The new adapter is a plain LoRA and the only active one.

    Parameters
    ----------
    model : Module
        The aligned model with the adapter.
    unaligned : Module, or mapping of str to Tensor
        The model before alignment, of the same architecture, or its weights (out, in) by path of the layer.
    name : str
        Of the adapter, which is additive.
    threshold : float
        In [-1, 1]; 1 projects everywhere.
    projector : Projector, optional
        By default ``Leading(0.9)``.
    into : str
        The name of the new adapter.

    Returns
    -------
    SafetyReport

    Raises
    ------
    ValueError
        If the adapter does not exist or is not additive, a weight is missing or of another shape, nothing was aligned
        in a layer, the projector is the unit matrix, or a name is taken. The model is then as it was.

    Notes
    -----
    The survey's projector (equation (25)) exists only where V has at least as many rows as columns and full column
    rank, and is the unit matrix for a square V, so that nothing would be projected. Threshold and energy are chosen
    here. Source: :cite:`hsu2024safelora`; section VI-F of :cite:`survey2026sp`.
    """
    check_name(model, into)
    require_unmerged(model)
    check_names(model, [name])
    if not isfinite(threshold) or not -1 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [-1, 1], got {threshold}")
    projector = Leading() if projector is None else projector
    layers = {path: layer for path, layer in adapted(model).items() if name in layer.names()}
    cosines, parts = {}, {}
    for path, layer in layers.items():
        weight = layer.kind.weight(layer.base).double()
        change = weight - _weight(unaligned, path, weight)
        if not change.any():
            raise ValueError(f"{path}: the weight is that of the unaligned model, so there is no direction to keep to")
        update = layer.adapter(name).update().double()
        kept = projector(change, path) @ update
        size = update.norm() * kept.norm()
        cosines[path] = float((update * kept).sum() / size) if size > 0 else 0.0
        own = additive_change([layer.adapter(name)], [1.0])
        parts[path] = nearest(kept if cosines[path] <= threshold else own, None, path)
    ranks = {path: thin.left.shape[1] for path, thin in parts.items()}
    old = known(model, name)
    setup = Setup(RECIPES["lora"], ranks, {path: float(r) for path, r in ranks.items()}, also_train=old.also_train)
    sites = sites_at(model, parts, "the model")
    new = {s.name: restored(s, setup, {"left": parts[s.name].left, "right": parts[s.name].right}) for s in sites}
    put(model, into, setup, sites, new)
    return SafetyReport(cosines, tuple(path for path, cosine in cosines.items() if cosine <= threshold))


def _weight(unaligned: nn.Module | Mapping[str, Tensor], path: str, like: Tensor) -> Tensor:
    """The weight (out, in) of the unaligned model, where the aligned one has ``like``."""
    if isinstance(unaligned, nn.Module):
        layer = dict(unaligned.named_modules()).get(path)
        kind = None if layer is None else layer_type(layer)
        found = None if kind is None else kind.weight(layer)
    else:
        found = unaligned.get(path)
    if found is None:
        raise ValueError(
            f"the unaligned model has no weight of {path}; pass a mapping from paths to matrices (out, in)"
        )
    if found.shape != like.shape:
        raise ValueError(f"{path} is {tuple(like.shape)} here and {tuple(found.shape)} in the unaligned model")
    return found.to(like)
