"""The life of adapters in a model: which of them act, merging, and a summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from lowrank_sp.coverage import covers

from .adapter import Adapted, Adapter
from .inject import Setup, adapted, base_parameters, known, setups
from .precision import precise

__all__ = [
    "MergeReport",
    "activate",
    "disable",
    "merge",
    "require_own_base",
    "require_size",
    "require_unmerged",
    "route",
    "unmerge",
]


def activate(model: nn.Module, *names: str) -> None:
    """Let these adapters act and train, and no others. Several at once only if all of them are additive.

    Parameters
    ----------
    model : Module
    *names : str
        Without any the model is the pretrained one, frozen.

    Raises
    ------
    ValueError
        For a name that does not exist, several adapters one of which is not additive, or merged ones.
    """
    require_unmerged(model)
    for name in names:
        known(model, name)
    layers = adapted(model)
    for path, layer in layers.items():
        own = [layer.adapter(name) for name in names if name in layer.names()]
        if len(own) > 1 and not all(a.combine.additive for a in own):
            raise ValueError(f"{path}: adapters that {', '.join(names)} put there do not add up; activate one of them")
    full = [path for name in dict.fromkeys(names) for path in setups(model)[name].also_train]
    if len(set(full)) < len(full):
        raise ValueError(f"{', '.join(names)} train the same parameters in full; activate one of them, or combine them")
    _swap(model, names)
    model.requires_grad_(False)
    for layer in layers.values():
        layer.active = tuple(name for name in names if name in layer.names())
        for name in layer.active:
            layer.adapter(name).requires_grad_(True)
    parameters = base_parameters(model)
    for name in names:
        for path in setups(model)[name].also_train:
            parameters[path].requires_grad_(True)


def _swap(model: nn.Module, names: Sequence[str]) -> None:
    """Give the parameters that train in full the values that belong to these adapters, or those before training."""
    parameters = base_parameters(model)
    resting = [(setups(model)[n], n) for n in setups(model) if n not in names]
    leaving = [(setup, n, path) for setup, n in resting for path in setup.also_train if path not in setup.tuned]
    for setup, n, path in leaving:
        require_size(parameters[path], setup, n, path)
    with torch.no_grad():
        for setup, _, path in leaving:
            setup.tuned[path] = parameters[path].detach().clone()
            parameters[path].copy_(setup.originals[path])
        for setup in (setups(model)[name] for name in names):
            for path in setup.also_train:
                parameters[path].copy_(setup.tuned.pop(path, parameters[path]))


def active(model: nn.Module) -> tuple[str, ...]:
    """Names of the adapters that act somewhere in the model."""
    there = {name for layer in adapted(model).values() for name in layer.active}
    return tuple(name for name in setups(model) if name in there)


@contextmanager
def disable(model: nn.Module) -> Iterator[nn.Module]:
    """The pretrained model, for as long as the context lasts.

    >>> import llm_bridge as lb
    >>> base, x = nn.Linear(6, 4), torch.ones(1, 6)
    >>> before = base(x)
    >>> model = lb.adapt(nn.Sequential(base), "lora", rank=2)
    >>> with lb.disable(model):
    ...     torch.equal(model(x), before)
    True
    """
    require_unmerged(model)
    names, flags = active(model), [p.requires_grad for p in model.parameters()]
    activate(model)
    try:
        yield model
    finally:
        activate(model, *names)
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)


@covers("P111", "A09")
@contextmanager
def route(model: nn.Module, names: Sequence[str | None]) -> Iterator[nn.Module]:
    """One adapter for every sample of a batch, None for the pretrained model, as long as the context lasts.

    Right for every form and every way of combining: samples of one adapter go through it together. Layers whose
    input does not have the batch as its first axis refuse.

    Parameters
    ----------
    model : Module
    names : sequence of str or None
        One for every sample.

    Raises
    ------
    ValueError
        For a name that does not exist, an adapter that also trains parameters in full, or merged adapters.

    >>> import llm_bridge as lb
    >>> model = lb.adapt(nn.Sequential(nn.Linear(6, 4)), "lora", rank=2, name="french")
    >>> with lb.route(model, ["french", None]):
    ...     tuple(model(torch.ones(2, 6)).shape)
    (2, 4)
    """
    require_unmerged(model)
    for name in set(names) - {None}:
        if known(model, str(name)).also_train:
            raise ValueError(f"adapter {name!r} also trains parameters of the model, which samples cannot have each")
    groups: dict[str | None, list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(name, []).append(i)
    device = next(model.parameters()).device
    routes = [(name, torch.tensor(index, device=device)) for name, index in groups.items()]
    layers = adapted(model).values()
    for layer in layers:
        layer.routes = routes
    try:
        yield model
    finally:
        for layer in layers:
            layer.routes = None


@dataclass(frozen=True)
class MergeReport:
    """What merging did to the weights.

    Attributes
    ----------
    errors : dict
        By path: norm of the rounding error of the merged weight over the norm of the update.
    """

    errors: dict[str, float]

    @property
    def worst(self) -> float:
        """Largest of the errors."""
        return max(self.errors.values(), default=0.0)

    def __str__(self) -> str:
        return f"merged {len(self.errors)} layers; rounding lost at most {self.worst:.2g} of an update"


def require_unmerged(model: nn.Module) -> None:
    """Raise where the updates are in the weights and an operation needs them beside."""
    if any(layer.merged for layer in adapted(model).values()):
        raise ValueError("the adapters are merged into the weights; unmerge(model) first")


def require_own_base(model: nn.Module, name: str) -> None:
    """Raise where the weights have changed under an adapter, so that a file of it would belong to no model."""
    reason = known(model, name).rebased
    if reason:
        raise ValueError(
            f"adapter {name!r} cannot be saved on its own: {reason}. merge(model), unload(model) and save the model "
            "itself (save_pretrained, or its state_dict)"
        )


def require_size(parameter: torch.Tensor, setup: Setup, name: str, path: str) -> None:
    """Raise where a parameter that trains in full was replaced by one of another shape."""
    then, now = ("x".join(map(str, t.shape)) for t in (setup.originals[path], parameter))
    if then != now:
        raise ValueError(
            f"{path} was {then} when {name!r} came and is {now} now, so that its pretrained values are not known; "
            "resize models before adapt. save and load work all the same, and unload keeps the values as they are"
        )


@covers("A07")
@torch.no_grad()
def merge(model: nn.Module, safe: bool = True) -> MergeReport:
    """Put the updates of the active adapters into the weights, so that they cost nothing.

    The original weights are kept beside: `unmerge` brings back exactly these. To let go of them, `unload`.

    Parameters
    ----------
    model : Module
    safe : bool
        Refuse, before anything changes, if a merged weight would not be finite.

    Returns
    -------
    MergeReport
        With the rounding error of every layer, which matters in half precision.

    Raises
    ------
    ValueError
        If a merged weight is not finite, no adapter is active, or adapters are merged already.

    >>> import llm_bridge as lb
    >>> model, x = lb.adapt(nn.Sequential(nn.Linear(6, 4)), "pissa", rank=2), torch.ones(3, 6)
    >>> before = model(x)
    >>> report = lb.merge(model)
    >>> torch.allclose(model(x), before), max(report.errors.values()) < 1e-5
    (True, True)
    """
    require_unmerged(model)
    layers = {path: layer for path, layer in adapted(model).items() if layer.active}
    if not layers:
        raise ValueError("no adapter is active; activate one, or adapt the model first")
    merged, errors = {}, {}
    for path, layer in layers.items():
        weight = layer.kind.weight(layer.base)
        # In at least single precision, rounded once.
        exact = combined(layer, precise(weight))
        total = exact.to(weight.dtype)
        if safe and not _finite(total):
            raise ValueError(f"the merged weight of {path} is not finite; nothing was changed")
        errors[path] = _rounding(weight, exact, total)
        merged[path] = layer.kind.stored(layer.base, total)
    for path, layer in layers.items():
        layer.original = layer.kind.replace(layer.base, merged[path])
        layer.merged = layer.active
    return MergeReport(errors)


def _finite(matrix: torch.Tensor) -> bool:
    """Whether all entries are: one pass over them, as a sum of finite entries hardly ever overflows."""
    return bool(torch.isfinite(matrix.sum())) or bool(torch.isfinite(matrix).all())


def _rounding(weight: torch.Tensor, exact: torch.Tensor, total: torch.Tensor) -> float:
    """Norm of the rounding error of a merged weight over that of its change."""
    if total.dtype == exact.dtype:
        return 0.0
    change = (exact - weight).norm()
    return float((total.to(exact.dtype) - exact).norm() / change) if change > 0 else 0.0


def combined(layer: Adapted, weight: torch.Tensor) -> torch.Tensor:
    """The weight (out, in) with the updates of all active adapters."""
    for name in layer.active:
        weight = layer.adapter(name).combine.weight(weight, layer.adapter(name))
    return weight


def unmerge(model: nn.Module) -> None:
    """Bring back exactly the weights from before `merge`.

    Raises
    ------
    ValueError
        If no adapter is merged.
    """
    layers = [layer for layer in adapted(model).values() if layer.merged]
    if not layers:
        raise ValueError("no adapter is merged into the weights")
    for layer in layers:
        layer.kind.replace(layer.base, layer.original)
        layer.original, layer.merged = None, ()


def trained_adapters(model: nn.Module) -> Iterator[tuple[str, str, Adapter]]:
    """Path, name and adapter of everything that acts."""
    for path, layer in adapted(model).items():
        for name in layer.active:
            yield path, name, layer.adapter(name)
