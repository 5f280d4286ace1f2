"""Any adapter that can be merged as a plain LoRA in PEFT's format, which inference servers load."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from .inject import adapted, known, setups
from .interchange.base import transposed
from .interchange.config import common_config, patterned
from .interchange.lowrank import lora_tensors
from .interchange.peft_format import PREFIX, trained_beside, write_folder
from .life import active, require_own_base, require_unmerged
from .paths import without_paths
from .restore import sites_at
from .sites import Site
from .truncation import Thin, TruncationReport, change_of, check_rank, nearest

__all__ = ["export_lora"]


@torch.no_grad()
def export_lora(
    model: nn.Module, path: str | Path, rank: int | None = None, name: str | tuple[str, ...] | None = None
) -> TruncationReport:
    """Write what adapters do to the weights as a plain LoRA: the nearest matrices of a rank.

    Forms with thin factors are reduced exactly and cheaply; of other forms, and of adapters that do more than add
    (DoRA, HiRA), the change ``W' - W`` is formed layer by layer. The scale is in the factors, so that alpha equals
    the rank. The errors are in the header of the file too.

    Parameters
    ----------
    model : Module
    path : str or Path
        A folder, made where it is missing.
    rank : int, optional
        At most this in every layer. By default as large as the change of each layer needs, to single precision.
    name : str or tuple of str, optional
        Of one adapter, or of several that add up; by default those that are active.

    Returns
    -------
    TruncationReport
        Ranks, and relative errors in the Frobenius norm, of all layers.

    Raises
    ------
    ValueError
        If there is no such adapter, none is active, adapters are merged, several do not add up or train the same
        parameters in full, the rank is below 1, or the path is a file.
    """
    check_rank(rank)
    require_unmerged(model)
    names = _names(model, name)
    for n in names:
        require_own_base(model, n)
    parts = _parts(model, names, rank)
    saved, modules = _beside(model, names)
    ranks = {site.name: thin.left.shape[1] for site, thin in parts}
    errors = {site.name: thin.error for site, thin in parts}
    tensors = {
        f"{PREFIX}{site.name}.{key}": tensor
        for site, thin in parts
        for key, tensor in lora_tensors(site, thin.left, thin.right).items()
    }
    common, pattern = patterned(ranks)
    config = common_config(model, "LORA", list(ranks), modules) | {
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "fan_in_fan_out": transposed([site for site, _ in parts]),
    }
    write_folder(path, tensors | saved, config, {"truncation": json.dumps({"ranks": ranks, "errors": errors})})
    return TruncationReport(ranks, errors)


def _parts(model: nn.Module, names: list[str], rank: int | None) -> list[tuple[Site, Thin]]:
    """The nearest product of thin factors for every layer that one of the adapters changes."""
    layers = {p: layer for p, layer in adapted(model).items() if not set(names).isdisjoint(layer.names())}
    parts = []
    for site in without_paths(sites_at(model, layers, "the model")):
        layer = layers[site.name]
        own = [layer.adapter(n) for n in names if n in layer.names()]
        if len(own) > 1 and not all(adapter.combine.additive for adapter in own):
            raise ValueError(f"{site.name}: the adapters {', '.join(names)} do not add up; export them one by one")
        parts.append((site, nearest(change_of(layer, own), rank, site.name)))
    return parts


def _beside(model: nn.Module, names: list[str]) -> tuple[dict[str, Tensor], list[str]]:
    """What the adapters train in full, and its modules."""
    saved, modules = {}, []
    for n in names:
        tensors, more = trained_beside(model, setups(model)[n])
        if not saved.keys().isdisjoint(tensors):
            raise ValueError(
                f"the adapters {', '.join(names)} train the same parameters in full; export them one by one"
            )
        saved, modules = saved | tensors, modules + more
    return saved, modules


def _names(model: nn.Module, name: str | tuple[str, ...] | None) -> list[str]:
    names = list(active(model)) if name is None else [name] if isinstance(name, str) else list(name)
    for n in names:
        known(model, n)
    if not names:
        raise ValueError("no adapter is active; activate one, or pass its name")
    return names
