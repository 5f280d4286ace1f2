"""A variant of LoRA as a recipe: plain LoRA is the default of every field, a variant states its difference."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

from lowrank_sp.factors import MatrixFactors
from lowrank_sp.parameterizations import BurerMonteiro
from lowrank_sp.rules import Adam, Rule, retract

from .combines import Additive, Combine
from .noise import InputDropout, Noise
from .nonlinear import Bent, BentByLayer
from .sites import Site
from .starts import Default, Start

__all__ = [
    "RECIPES",
    "Recipe",
    "by_block",
    "by_shape",
    "by_type",
    "everywhere",
    "own_rank",
    "over_rank",
    "over_root_rank",
    "recipe",
    "recipes",
    "register",
    "unscaled",
]


def over_rank(alpha: float, rank: int) -> float:
    """``alpha / r``, the scale of LoRA."""
    return alpha / rank


def over_root_rank(alpha: float, rank: int) -> float:
    """``alpha / sqrt(r)``, which keeps activations of the same size as the rank grows: rsLoRA."""
    return alpha / rank**0.5


def unscaled(alpha: float, rank: int) -> float:
    """``alpha`` itself."""
    return alpha


def own_rank(shape: tuple[int, int], rank: int) -> int:
    """The rank itself: the size of forms that count columns."""
    return rank


def everywhere(site: Site) -> Hashable:
    """Shared by all layers."""
    return "everywhere"


def by_type(site: Site) -> Hashable:
    """Shared by layers with the same name in their blocks and the same shape, such as all ``q_proj``."""
    return (site.name.rsplit(".", 1)[-1], site.shape)


def by_shape(site: Site) -> Hashable:
    """Shared by layers of the same shape."""
    return site.shape


def by_block(site: Site) -> Hashable:
    """Shared by the layers of one block: those whose paths have the same first number."""
    return next((part for part in site.name.split(".") if part.isdigit()), "")


@dataclass(frozen=True)
class Recipe:
    """What a variant is made of.

    Parameters
    ----------
    name : str
        As `adapt` knows it.
    cite : str
        Key of the source in docs/bibliography.bib.
    covers : tuple of str
        The entries of docs/inventory.toml that it implements.
    form : type of MatrixFactors, or callable ``(shape, rank) -> type``
        The algebra of the update; a callable where settings depend on the layer, such as a grid of blocks.
    size : callable ``(shape, rank) -> int``
        The size that the form takes in a layer (out, in), where it counts something else than ranks, such as the
        values of a sparse matrix.
    init : Start
        Where the factors start.
    combine : Combine
        How the update meets the weight.
    scale : callable ``(alpha, rank) -> float``
        The factor in front of the update.
    rule : Rule
        The update rule of the factors; `Adam` means AdamW of torch itself.
    move : callable ``(point, direction, lr) -> point``
        How a step is taken: `retract` or `translate` of ``lowrank_sp.rules``.
    trains : tuple of str, optional
        Names of the arrays that train; by default all.
    blocks : tuple of tuples of str, optional
        Groups of arrays that take turns (alternating descent); by default all move at once.
    shares : tuple of (str, callable)
        Arrays that several layers share, each with the function of a `Site` whose value they have in common.
        Arrays that train need one shape; of fixed ones smaller layers use the leading part.
    noise : type of Noise
        What ``dropout`` means.
    note : str
        What a user should know: deviations from the source, what was reconstructed.
    """

    name: str
    cite: str = "hu2022lora"
    covers: tuple[str, ...] = ()
    form: type[MatrixFactors] | Callable[[tuple[int, int], int], type[MatrixFactors]] = BurerMonteiro
    size: Callable[[tuple[int, int], int], int] = own_rank
    init: Start = field(default_factory=Default)
    combine: Combine = field(default_factory=Additive)
    scale: Callable[[float, int], float] = over_rank
    rule: Rule = field(default_factory=Adam)
    move: Callable[..., Any] = retract
    trains: tuple[str, ...] | None = None
    blocks: tuple[tuple[str, ...], ...] | None = None
    shares: tuple[tuple[str, Callable[[Site], Hashable]], ...] = ()
    noise: type[Noise] = InputDropout
    note: str = ""

    def but(self, name: str, **changes: Any) -> Recipe:
        """Another recipe that differs in what is named. IDs and notes are its own."""
        return replace(self, **{"covers": (), "note": "", **changes, "name": name})

    @property
    def mergeable(self) -> bool:
        """Whether the adapted layer has a matrix: not where the form bends activations."""
        return not (issubclass(self.form, Bent) if isinstance(self.form, type) else isinstance(self.form, BentByLayer))

    def form_for(self, shape: tuple[int, int], rank: int) -> type[MatrixFactors]:
        """The form of a layer (out, in)."""
        return self.form if isinstance(self.form, type) else self.form(shape, rank)


RECIPES: dict[str, Recipe] = {}


def register(made: Recipe) -> Recipe:
    """Put a recipe where `adapt` finds it by name.

    Raises
    ------
    ValueError
        If the name is taken.
    """
    if made.name in RECIPES:
        raise ValueError(f"there is a recipe {made.name!r} already; choose another name")
    RECIPES[made.name] = made
    return made


def recipe(name: str | Recipe) -> Recipe:
    """The recipe with a name; a recipe is returned as it is.

    Raises
    ------
    ValueError
        For an unknown name, with those that come close.
    TypeError
        For anything else.
    """
    if isinstance(name, Recipe):
        return name
    if not isinstance(name, str):
        raise TypeError(f"a variant is a recipe or the name of one, got {name!r}")
    if name not in RECIPES:
        close = difflib.get_close_matches(name.lower(), RECIPES, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(sorted(RECIPES))}"
        raise ValueError(f"there is no recipe {name!r}; {hint}")
    return RECIPES[name]


def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    return dict(RECIPES)
