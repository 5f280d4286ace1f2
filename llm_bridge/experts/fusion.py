"""Trained adapters as frozen experts, between which gates learn to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers
from lowrank_sp.factors import factorization

from ..adapter import Adapted
from ..inject import Setup, adapted, check_name, known
from ..life import require_unmerged
from ..recipe import Recipe, recipe
from ..restore import expected_shapes, put, restored, sites_at
from ..sites import Site
from .forms import LowRankExperts, mixed_pairs
from .gates import Soft
from .losses import Even
from .routed import Routed

__all__ = ["OutputExperts", "fuse", "gated_fusion", "mole"]


@covers("E18")
@factorization
class OutputExperts(Routed):
    """``sum_e w_e(x) B_e A_e x`` with weights from what the experts return: MoLE.

    ``w = softmax(sum_e o_e^T R_e)`` with the outputs ``o_e = B_e A_e x`` scaled to length one.

    Parameters
    ----------
    left : array (E, m, r)
        B_e.
    right : array (E, n, r)
        A_e.
    router : array (E, m, E)
        R_e.

    Notes
    -----
    The source flattens the outputs for a whole sequence of fixed length and has one choice a layer; here every token
    has its own, so that lengths are free. Its temperature is part of R. No output of an expert is formed: scores and
    lengths come from Gram matrices of size r. Parameters: ``E^2 m`` that train. Source: :cite:`wu2024mole`.
    """

    left: Any
    right: Any
    router: Any

    ndims = (3, 3, 3)
    loss = Even()

    @classmethod
    def shapes(cls, shape, rank):
        (m, n), e = shape, cls.count
        return (e, m, rank), (e, n, rank), (e, m, e)

    def scores(self, x):
        channels = torch.einsum("...n,enr->...er", x, self.right)
        squares = torch.einsum("...er,ers,...es->...e", channels, self.left.mT @ self.left, channels)
        lengths = squares.clamp_min(torch.finfo(x.dtype).tiny).sqrt()
        return torch.einsum("...er,erk,...e->...k", channels, self.left.mT @ self.router, 1 / lengths)

    def weights(self, x):
        return self.probabilities(x).to(x.dtype)

    def mixed(self, x, weights):
        return mixed_pairs(x, self.left, self.right, weights)


@covers("E17")
def gated_fusion(count: int) -> Recipe:
    """The recipe of so many frozen adapters with weights ``softmax(x R)``, for `fuse`; only R trains."""
    form = LowRankExperts.of(count, Soft(), Even())
    return recipe("lora").but(f"gated-fusion-{count}", cite="shunfoundation", form=form, trains=("router",))


@covers("E18")
def mole(count: int) -> Recipe:
    """The recipe of so many frozen adapters weighed by what they return, for `fuse`; only the router trains."""
    form = OutputExperts.of(count)
    return recipe("lora").but(f"mole-{count}", cite="wu2024mole", form=form, trains=("router",))


@covers("E17", "E18")
@torch.no_grad()
def fuse(model: nn.Module, names: Sequence[str], made: Recipe | None = None, name: str = "fused") -> nn.Module:
    """Make adapters the frozen experts of a new adapter, whose router trains and which becomes the only active one.

    At the start all experts have equal weights. The adapters themselves stay as they are; the new one holds copies.
    To `load` a saved one takes ``recipe=gated_fusion(count)`` or ``mole(count)``.

    Parameters
    ----------
    model : Module
    names : sequence of str
        Additive adapters with thin factors; they need not have the same layers, nor the same ranks.
    made : Recipe, optional
        ``gated_fusion(count)``, the default, or ``mole(count)``, for as many adapters.
    name : str
        Of the new adapter.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError, TypeError
        If an adapter does not exist, is not additive or thin, or trains parameters of the model in full, the recipe
        is for another number, or the name is taken. The model is then as it was.

    Examples
    --------
    >>> import llm_bridge as lb
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6))
    >>> for domain in ("law", "medicine"):
    ...     model = lb.adapt(model, "lora", rank=2, name=domain)
    >>> model = lb.fuse(model, ["law", "medicine"])
    >>> lb.summary(model).trainable
    16
    """
    check_name(model, name)
    require_unmerged(model)
    _check(model, names)
    made = gated_fusion(len(names)) if made is None else made
    if not isinstance(made.form, type) or not issubclass(made.form, Routed) or made.form.count != len(names):
        raise ValueError(f"recipe {made.name!r} is not for {len(names)} adapters; take gated_fusion or mole of so many")
    layers = {path: layer for path, layer in adapted(model).items() if set(names) & set(layer.names())}
    sites = sites_at(model, layers, "the model")
    pairs = {path: _pairs(layer, names) for path, layer in layers.items()}
    ranks = {path: max(left.shape[1] for left, _ in own.values()) for path, own in pairs.items()}
    setup = Setup(made, ranks, {path: float(rank) for path, rank in ranks.items()})
    new = {site.name: restored(site, setup, _arrays(site, setup, pairs[site.name])) for site in sites}
    put(model, name, setup, sites, new)
    return model


def _pairs(layer: Adapted, names: Sequence[str]) -> dict[int, tuple[Tensor, Tensor]]:
    """By number of the adapter its thin factors in a layer, with the scale in the left one."""
    own = {i: layer.adapter(name) for i, name in enumerate(names) if name in layer.names()}
    products = {i: adapter.product() for i, adapter in own.items()}
    return {i: (own[i].scale * left, right) for i, (left, right) in products.items()}


def _arrays(site: Site, setup: Setup, pairs: Mapping[int, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The arrays of a bank: factors filled up with zeros, and a router of zeros."""
    arrays = {key: torch.zeros(shape) for key, shape in expected_shapes(site, setup, False).items()}
    for i, (left, right) in pairs.items():
        arrays["left"][i, :, : left.shape[1]] = left
        arrays["right"][i, :, : right.shape[1]] = right
    return arrays


def _check(model: nn.Module, names: Sequence[str]) -> None:
    if isinstance(names, str) or not names or len(set(names)) != len(names):
        raise ValueError(f"names must be a list of different adapters, got {names!r}")
    for name in names:
        setup = known(model, name)
        if setup.also_train:
            raise ValueError(f"adapter {name!r} also trains parameters of the model, of which there is only one set")
        own = [layer.adapter(name) for layer in adapted(model).values() if name in layer.names()]
        if not all(adapter.combine.additive and adapter.thin for adapter in own):
            raise TypeError(f"adapter {name!r} ({setup.recipe.name}) adds no thin product; export_lora makes one of it")
