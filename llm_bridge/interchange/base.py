"""What a method of PEFT's table has to say: names of tensors, settings, and how they become factors and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, ClassVar

from torch import Tensor

from ..adapter import Adapter
from ..layers import CONV1D
from ..noise import InputDropout
from ..recipe import RECIPES, Recipe
from ..sites import Site
from .config import patterned

__all__ = [
    "Config",
    "Entries",
    "Method",
    "Piece",
    "Tensors",
    "Written",
    "input_dropout",
    "low_rank_config",
    "named_recipe",
    "sites_of",
    "taken",
    "transposed",
]

Config = Mapping[str, Any]
Entries = Sequence[tuple[Site, Adapter]]
Tensors = Mapping[str, Tensor]
Written = tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True)
class Piece:
    """The adapter of one layer as a method has it: size, s, and arrays by their names in `Adapter`."""

    rank: int
    scale: float
    arrays: dict[str, Tensor] = field(default_factory=dict)


class Method(ABC):
    """One ``peft_type``.

    ``keys`` are the ends of its tensors' names behind the path of a layer, ``shared`` the names of tensors that
    all layers share, ``settings`` the keys of the configuration that `read` looks at.
    """

    peft_type: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]
    shared: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[str, ...]] = ()
    dropout: ClassVar[str | None] = None

    def prepared(self, pieces: Mapping[str, Tensors]) -> Mapping[str, Tensors]:
        """The tensors of all layers, by path, in a form in which each can be read by itself."""
        return pieces

    @abstractmethod
    def recipe(self, config: Config, pieces: Mapping[str, Tensors]) -> Recipe:
        """What a loaded adapter trains by."""

    @abstractmethod
    def read(self, site: Site, tensors: Tensors, shared: Tensors, config: Config) -> Piece:
        """One layer from its tensors, by their `keys`."""

    @abstractmethod
    def accepts(self, adapter: Adapter) -> bool:
        """Whether the method can say what an adapter of ours computes."""

    @abstractmethod
    def write(self, entries: Entries, made: Recipe) -> Written:
        """Tensors by path and key, shared tensors by name, and settings, for all layers of one adapter."""


def named_recipe(name: str, fallback: Recipe) -> Recipe:
    """The registered recipe of that name if it makes the same thing, else the other one."""
    made = RECIPES.get(name, fallback)
    same = made.form == fallback.form and made.combine == fallback.combine
    return made if same else fallback


def taken(tensors: Mapping[str, Tensor], key: str, site: Site) -> Tensor:
    """A tensor that must be there."""
    if key not in tensors:
        raise ValueError(f"the adapter of {site.name} has no {key}; it has {', '.join(sorted(tensors))}")
    return tensors[key]


def low_rank_config(entries: Entries, ranks: Mapping[str, int], root: bool = False) -> dict[str, Any]:
    """``r``, ``lora_alpha`` and their patterns, so that ``alpha / r`` (or over its root) is every layer's scale."""
    alphas = {
        site.name: _rounded(a.scale * (sqrt(ranks[site.name]) if root else ranks[site.name])) for site, a in entries
    }
    (rank, rank_pattern), (alpha, alpha_pattern) = patterned(ranks), patterned(alphas)
    return {"r": rank, "lora_alpha": alpha, "rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}


def _rounded(number: float) -> float:
    """An integer where only rounding keeps a number from being one."""
    nearest = round(number)
    return nearest if abs(number - nearest) <= 1e-9 * abs(number) else number


def sites_of(entries: Entries) -> list[Site]:
    """The layers alone."""
    return [site for site, _ in entries]


def transposed(sites: Sequence[Site]) -> bool:
    """``fan_in_fan_out``: whether the layers store their weight as (in, out)."""
    return all(site.kind is CONV1D for site in sites)


def input_dropout(entries: Entries) -> float:
    """The rate of a dropout on the input, which is the only kind that PEFT has for these methods."""
    noise = entries[0][1].noise
    return noise.rate if isinstance(noise, InputDropout) else 0.0
