"""Adapters from given arrays instead of a start: what files, other formats and combinations have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_sp.factors import Factors

from .adapter import Adapter
from .inject import Setup, base_parameters, install
from .offload import require_present
from .paths import NAME as PATH_NAME
from .sites import Site, find_sites

__all__ = ["check_finite", "expected_shapes", "form_at", "put", "restored", "sites_at"]


def sites_at(model: nn.Module, paths: Iterable[str], source: str) -> list[Site]:
    """The layers with these paths, adapted already or not, in the order of the model.

    Parameters
    ----------
    model : Module
    paths : iterable of str
    source : str
        Whose paths they are, for messages.

    Raises
    ------
    ValueError
        If a path leads to no layer of the model, or to one whose weights are offloaded.
    TypeError
        If a layer is of a type that no adapter can meet.
    """
    wanted = set(paths)
    missing = sorted(wanted - {name for name, _ in model.named_modules()})
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        hint = "it belongs to another model, or to the same one with or without a head"
        if all(path.endswith(f".{PATH_NAME}") for path in missing):
            hint = "open_paths(model, blocks) makes them, as before the adapter was trained"
        raise ValueError(
            f"{source} has adapters for {', '.join(missing[:3])}{more}, which the model does not have; {hint}"
        )
    sites = find_sites(model, lambda name, module: name in wanted)
    require_present(sites)
    return sites


def form_at(site: Site, setup: Setup) -> type[Factors]:
    """The form of the adapter of a site."""
    made = setup.recipe
    return made.form_for(site.shape, setup.ranks[site.name]).for_shape(made.combine.image(site.shape))


def expected_shapes(site: Site, setup: Setup, start: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of all arrays of the adapter of a site, by name; ``start`` says whether one is subtracted."""
    form, made = form_at(site, setup), setup.recipe
    size = made.size(site.shape, setup.ranks[site.name])
    shapes = dict(zip(form.names, form.shapes(made.combine.image(site.shape), size), strict=True))
    starts = {f"start_{name}": shape for name, shape in shapes.items()} if start else {}
    extras = {name: tuple(t.shape) for name, t in made.combine.extras(site.kind.weight(site.layer)).items()}
    return shapes | starts | extras


def restored(site: Site, setup: Setup, arrays: Mapping[str, Tensor], scale: float | None = None) -> Adapter:
    """The adapter of a site with these arrays, on the device of its layer.

    Parameters
    ----------
    site : Site
    setup : Setup
    arrays : mapping of str to tensor
        As in `expected_shapes`.
    scale : float, optional
        s; by default what the recipe says.
    """
    made, rank = setup.recipe, setup.ranks[site.name]
    form = form_at(site, setup)
    device = site.kind.weight(site.layer).device
    arrays = {name: a.to(device) for name, a in arrays.items()}
    point = form(*[arrays.pop(name) for name in form.names])
    first = f"start_{form.names[0]}"
    start = form(*[arrays.pop(f"start_{name}") for name in form.names]) if first in arrays else None
    scale = made.scale(setup.alphas[site.name], rank) if scale is None else scale
    return Adapter(point, scale, made.combine.at(site.name), made.noise(setup.dropout), made.trains, arrays, start)


def put(
    model: nn.Module,
    name: str,
    setup: Setup,
    sites: list[Site],
    adapters: Mapping[str, Adapter],
    tuned: Mapping[str, Tensor] | None = None,
) -> None:
    """Install adapters and give the parameters that train in full the values ``tuned``; nothing here can fail."""
    parameters = base_parameters(model)
    setup.tuned = {path: value.to(parameters[path]).clone() for path, value in (tuned or {}).items()}
    install(model, name, setup, sites, adapters)


@torch.no_grad()
def check_finite(tensors: Mapping[str, Tensor], source: Any) -> None:
    """Raise a ``ValueError`` that names the first tensors with NaN or infinity."""
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        raise ValueError(f"{source} holds NaN or infinity in {', '.join(bad[:3])}; the training that made it diverged")
