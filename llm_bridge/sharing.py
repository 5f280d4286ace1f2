"""Which layer owns the arrays that several layers share."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from .sites import Site

if TYPE_CHECKING:
    from .inject import Setup

__all__ = ["outline", "owners"]


def outline(site: Site, setup: Setup) -> SimpleNamespace:
    """The arrays that layers share, with their shapes alone, as this site would have them."""
    made = setup.recipe
    if not made.shares:
        return SimpleNamespace()
    form = made.form_for(site.shape, setup.ranks[site.name]).for_shape(made.combine.image(site.shape))
    shapes = form.shapes(made.combine.image(site.shape), made.size(site.shape, setup.ranks[site.name]))
    names = {array for array, _ in made.shares}
    pairs = zip(form.names, shapes, strict=True)
    return SimpleNamespace(**{name: torch.empty(shape, device="meta") for name, shape in pairs if name in names})


def owners(sites: list[Site], setup: Setup, adapters: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """For every path and array that another site's adapter owns, the path of that one: the largest of its group."""
    found = {}
    for array, key in setup.recipe.shares:
        groups: dict[Any, list[str]] = {}
        for site in sites:
            groups.setdefault(key(site), []).append(site.name)
        for group in groups.values():
            owner = max(group, key=lambda path: getattr(adapters[path], array).numel())
            found |= {(path, array): owner for path in group if path != owner}
    return found
