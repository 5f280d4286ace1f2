"""Putting adapters into a model and taking them out again."""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from .adapter import Adapted, Adapter, key_of
from .layers import EMBEDDING
from .offload import require_bare, require_present
from .parts import AdaptedPart, Part, close_host, is_host, open_host
from .precision import precise
from .recipe import Recipe, recipe
from .sharing import outline, owners
from .sites import Site, Targets, find_sites, matches, prefixes, warn_tied
from .starts import StartSite

__all__ = ["Setup", "adapt", "adapted", "base_parameters", "drop", "install", "setups", "unload"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_STATE = "_lowrank_setups"


@dataclass
class Setup:
    """How a named adapter came into a model; the mutable part is what trains beside the factors.

    Attributes
    ----------
    recipe : Recipe
    ranks, alphas : dict
        By path of the site.
    dropout : float
    seed : int
    also_train : tuple of str
        Paths of further parameters that train with the adapter.
    originals, tuned : dict
        Their values before training, and, while another adapter is active, after it.
    rebased : str
        Why the weights are no longer those that the adapter was made for; empty where they are.
    """

    recipe: Recipe
    ranks: dict[str, int]
    alphas: dict[str, float]
    dropout: float = 0.0
    seed: int = 0
    also_train: tuple[str, ...] = ()
    originals: dict[str, Tensor] = field(default_factory=dict)
    tuned: dict[str, Tensor] = field(default_factory=dict)
    rebased: str = ""


def setups(model: nn.Module) -> dict[str, Setup]:
    """The named adapters of a model, in the order in which they came.

    Raises
    ------
    ValueError
        If they were put into a part of it, as where the model has been wrapped since.
    """
    found = model.__dict__.setdefault(_STATE, {})
    holder = None if found else next((p for p, module in model.named_modules() if module.__dict__.get(_STATE)), None)
    if holder is not None:
        raise ValueError(f"the adapters are in model.{holder}; pass that, whose paths are those of its files")
    return found


def adapted(model: nn.Module) -> dict[str, Adapted]:
    """The adapted layers of a model by their path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


def base_parameters(model: nn.Module, shared: bool = False) -> dict[str, nn.Parameter]:
    """The parameters of the model without those of adapters, by their path in the model before it was adapted.

    One that several modules share has the path of the first of them, or with ``shared`` all of its paths.
    """
    layers = set(adapted(model))
    found = {}
    for path, parameter in model.named_parameters(remove_duplicate=not shared):
        parts = path.split(".")
        owner = next((k for k in range(1, len(parts)) if ".".join(parts[:k]) in layers), None)
        if owner is None or parts[owner] == "base":
            found[".".join(parts if owner is None else parts[:owner] + parts[owner + 1 :])] = parameter
    return found


@covers("P15", "B10")
def adapt(
    model: nn.Module,
    variant: str | Recipe = "lora",
    rank: int = 8,
    alpha: float | None = None,
    targets: Targets = "all-linear",
    exclude: Targets = (),
    layers: Collection[int] | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    also_train: Iterable[str] = (),
    dropout: float = 0.0,
    name: str = "default",
    calibration: Any = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Put low-rank adapters around the layers of a model, in place, and freeze everything else.

    Parameters
    ----------
    model : Module
        Any module; those of transformers are understood best.
    variant : str or Recipe
        Such as ``"lora"``, ``"polar"`` or ``"reflora"``; `recipes` lists them.
    rank : int
        At least 1 and at most the smaller side of every chosen layer.
    alpha : float, optional
        Positive. The scale is ``alpha / rank`` (or what the recipe says); by default alpha is the rank.
    targets, exclude, layers
        Which layers; see `find_sites`.
    rank_pattern, alpha_pattern : mapping, optional
        Other ranks and alphas for the layers whose path matches a key (a path, its end, or a regex for all of it);
        the first match counts.
    also_train : iterable of str
        Modules or parameters that train in full, such as a new classification head, by path or its end.
    dropout : float
        In [0, 1); of what is the recipe's choice, as a rule of the input of the update.
    name : str
        One of several adapters of a model. The new one becomes the only active one.
    calibration : optional
        Batches, or a function that runs the model, for recipes whose start looks at gradients or activations.
    seed : int
        Together with the path of a layer it determines the start.
    dtype : torch.dtype
        Of the factors. Single precision under half-precision weights is the default and a good choice: the
        product is computed in the type of the activations, the steps are taken in single precision.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError, TypeError
        For a recipe, targets, ranks or names that do not fit. The model is then as it was.

    >>> model = adapt(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)), "dora", rank=2, targets=["0"])
    >>> list(adapted(model)), sum(p.numel() for p in model.parameters() if p.requires_grad)
    (['0'], 24)
    """
    from .life import disable

    made = recipe(variant)
    check_name(model, name)
    _check_start(seed, dtype)
    sites = find_sites(model, targets, exclude, layers)
    require_present(sites)
    warn_tied(model, sites)
    ranks = _by_pattern(sites, rank, rank_pattern, "rank_pattern")
    for site in sites:
        _check_rank(site, ranks[site.name])
    alphas = {site.name: ranks[site.name] if alpha is None else alpha for site in sites}
    alphas |= _by_pattern(sites, None, alpha_pattern, "alpha_pattern")
    alphas = {path: _alpha(path, value) for path, value in alphas.items()}
    made.combine.check([site.name for site in sites])
    trained = _also_train(model, also_train)
    setup = Setup(made, ranks, alphas, dropout, seed, tuple(trained))
    with disable(model):  # starts look at the pretrained weights, whatever another adapter trains in full
        statistics = _calibrate(model, made, sites, calibration, max(ranks.values()))
        adapters = build_all(sites, setup, statistics, dtype)
    install(model, name, setup, sites, adapters)
    return model


def build_all(
    sites: list[Site], setup: Setup, statistics: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, Adapter]:
    """The adapters of all sites by path, with the arrays in common that the recipe shares."""
    owned = owners(sites, setup, {site.name: outline(site, setup) for site in sites})
    adapters = {}
    for site in sites:
        given = frozenset(array for path, array in owned if path == site.name)
        adapters[site.name] = build(site, setup, (statistics or {}).get(site.name), dtype, given)
    for (path, array), owner in owned.items():
        adapters[path].share(array, adapters[owner])
    return adapters


def build(
    site: Site,
    setup: Setup,
    statistic: Any = None,
    dtype: torch.dtype = torch.float32,
    given: frozenset[str] = frozenset(),
) -> Adapter:
    """The adapter of one site; the values of arrays in ``given`` do not matter, because another site has them."""
    made, rank = setup.recipe, setup.ranks[site.name]
    _check_kind(site, setup)
    form = made.form_for(site.shape, rank)
    scale = made.scale(setup.alphas[site.name], rank)
    rng = np.random.default_rng([setup.seed, zlib.crc32(site.name.encode())])
    with torch.no_grad():
        weight = site.kind.weight(site.layer)
        full = precise(weight)
        size = made.size(site.shape, rank)
        seen = None if statistic is None else _typed(statistic, full.dtype)
        point = made.init(StartSite(form, site.shape, size, scale, rng, lambda: full, seen, given))
        point = point.map(lambda a: a.to(weight.device, dtype) if a.is_floating_point() else a.to(weight.device))
        extras = {key: a.to(dtype) for key, a in made.combine.extras(full).items()}
    return Adapter(
        point,
        scale,
        made.combine.at(site.name),
        made.noise(setup.dropout),
        made.trains,
        extras,
        point if made.init.moves else None,
    )


def _typed(statistic: Any, dtype: torch.dtype) -> Any:
    """What was collected, a tensor or thin factors of one, in a type."""
    return statistic.to(dtype) if isinstance(statistic, Tensor) else statistic.map(lambda a: a.to(dtype))


def install(model: nn.Module, name: str, setup: Setup, sites: list[Site], adapters: Mapping[str, Adapter]) -> None:
    """Wrap the layers and make the new adapter the only active one."""
    from .life import activate

    # What trains in full is now as pretrained, whoever was active; and merged adapters refuse before anything changes.
    activate(model)
    for site in sites:
        parent, _, last = site.name.rpartition(".")
        host = model.get_submodule(parent)
        module = host._modules.get(last, site.layer)
        if not isinstance(module, Adapted):
            if is_host(host):
                open_host(host)
            wrapped = AdaptedPart(module, site.kind) if is_host(host) else Adapted(module, site.kind)
            wrapped.train(host.training)
            setattr(host, last, wrapped)
            module = wrapped
        module.adapters[key_of(name)] = adapters[site.name].train(module.training)
    parameters = base_parameters(model)
    setup.originals = {path: parameters[path].detach().clone() for path in setup.also_train}
    setups(model)[name] = setup
    activate(model, name)


def unload(model: nn.Module) -> nn.Module:
    """Take all adapters out and put the original layers back, in place; returns the model.

    Merged updates stay in the weights. What trained in full keeps its values.
    """
    setups(model).clear()
    for path, layer in adapted(model).items():
        _put_back(model, path, layer.base)
    return model


def drop(model: nn.Module, name: str) -> None:
    """Take one adapter out; the first of the others becomes the active one.

    Layers without another one get their original module back, and parameters that it trained in full what they
    held before.
    """
    from .life import activate, require_unmerged

    known(model, name)
    require_unmerged(model)
    others = [other for other in setups(model) if other != name]
    activate(model, *others[:1])
    for path, layer in adapted(model).items():
        if name in layer.names():
            del layer.adapters[key_of(name)]
        if not layer.adapters:
            _put_back(model, path, layer.base)
    del setups(model)[name]


def known(model: nn.Module, name: str) -> Setup:
    """The setup with this name, or an error that lists those that exist."""
    there = setups(model)
    if name not in there:
        raise ValueError(f"the model has no adapter {name!r}; it has {', '.join(map(repr, there)) or 'none'}")
    return there[name]


def acting(model: nn.Module, name: str) -> dict[str, Adapter]:
    """The adapters of this name by path; an error if there are none, or they are not active."""
    known(model, name)
    found = {path: layer.adapter(name) for path, layer in adapted(model).items() if name in layer.active}
    if not found:
        raise ValueError(f"adapter {name!r} is not active; activate(model, {name!r}) first")
    return found


def _put_back(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, last = path.rpartition(".")
    host = model.get_submodule(parent)
    if isinstance(module, Part):
        delattr(host, last)
    else:
        setattr(host, last, module)
    close_host(host)


# checks, all of them before the model changes ----------------------------------------------------------------


def check_name(model: nn.Module, name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"name must be 1 to 64 letters, digits, '-' or '_', the first no sign, got {name!r}")
    if name in setups(model):
        raise ValueError(f"the model has an adapter {name!r} already; choose another name, or drop(model, {name!r})")
    require_bare(model)


def _check_start(seed: Any, dtype: Any) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type of torch, got {dtype!r}")
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a natural number, got {seed!r}")


def _check_rank(site: Site, rank: int) -> None:
    if isinstance(rank, bool) or not isinstance(rank, (int, np.integer)):
        raise TypeError(f"rank must be an integer, got {rank!r} for {site.name}")
    if not 1 <= rank <= min(site.shape):
        raise ValueError(f"rank must lie between 1 and {min(site.shape)} for {site.name} {site.shape}, got {rank}")


def _alpha(path: str, alpha: Any) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, np.number)) or not 0 < alpha < np.inf:
        raise ValueError(f"alpha must be a positive number, got {alpha!r} for {path}")
    return float(alpha)


def _check_kind(site: Site, setup: Setup) -> None:
    """Refuse what needs activations where a layer hands out its matrix alone."""
    made = setup.recipe
    if site.kind.single and made.noise.on_input and setup.dropout > 0:
        raise ValueError(
            f"{site.name} lies in a module that takes one weight for all tokens, so that dropout on the input is "
            "not possible there; use dropout=0, exclude it, or a recipe with noise on the rank components"
        )
    if not made.mergeable and (site.kind.single or site.kind is EMBEDDING):
        raise ValueError(
            f"{site.name} hands out rows or the whole of its matrix, and recipe {made.name!r} has none, because it "
            "depends on the activations; exclude it, or take another recipe"
        )


def _by_pattern(sites: list[Site], default: Any, patterns: Mapping[str, Any] | None, argument: str) -> dict[str, Any]:
    patterns = patterns or {}
    for pattern in patterns:
        if not any(matches(site.name, pattern) for site in sites):
            raise ValueError(
                f"{argument} holds {pattern!r}, which matches none of the chosen layers, such as {sites[0].name}"
            )
    found = {s.name: next((v for p, v in patterns.items() if matches(s.name, p)), default) for s in sites}
    return {path: value for path, value in found.items() if value is not None}


def _also_train(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Paths of parameters that are, or lie in, something that a pattern names."""
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    paths = base_parameters(model, shared=True)
    found = set()
    for pattern in patterns:
        hits = {id(p) for path, p in paths.items() if any(matches(prefix, pattern) for prefix in prefixes(path))}
        if not hits:
            raise ValueError(f"also_train holds {pattern!r}, which names no module or parameter of the model")
        found |= hits
    return [path for path, p in base_parameters(model).items() if id(p) in found]


def _calibrate(model: nn.Module, made: Recipe, sites: list[Site], calibration: Any, rank: int) -> dict[str, Any]:
    if made.init.needs is None:
        return {}
    if calibration is None:
        raise ValueError(
            f"recipe {made.name!r} starts from {made.init.needs} of the layers: pass calibration=, "
            "batches for the model or a function that runs it"
        )
    from .calibrate import collect

    return collect(model, sites, made.init, calibration, rank)
