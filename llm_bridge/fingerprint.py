"""Recognizing a base model: what its parameters are called, their shapes, and some values of the adapted layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .inject import base_parameters
from .sites import Site

__all__ = ["check_base", "describe_tensor", "fingerprint"]

SAMPLES = 16


def fingerprint(model: nn.Module, sites: Iterable[Site], changed: Iterable[str] = ()) -> dict[str, Any]:
    """What to know a base model by; JSON. Cheap: it reads a few numbers of each layer.

    Parameters
    ----------
    model : Module
        With or without adapters, none of them merged.
    sites : iterable of Site
        Layers whose values are sampled.
    changed : iterable of str
        Paths of parameters that training has changed, which say nothing about the base.

    Returns
    -------
    dict
        ``parameters``: type and shape by path; ``samples``: type and values of every site by path.
    """
    parameters = {path: describe_tensor(p) for path, p in base_parameters(model).items()}
    left_out = set(changed)
    kept = [site for site in sites if f"{site.name}.weight" not in left_out]
    return {"parameters": parameters, "samples": {site.name: sampled(site) for site in kept}}


def describe_tensor(tensor: Tensor) -> str:
    """Such as ``"float32 8x4"``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))}"


@torch.no_grad()
def sampled(site: Site) -> dict[str, Any]:
    """The type of a layer's matrix and some of its entries, spread evenly."""
    weight = site.kind.weight(site.layer)
    index = torch.linspace(0, weight.numel() - 1, min(SAMPLES, weight.numel()), dtype=torch.float64).long()
    rows, cols = index // weight.shape[1], index % weight.shape[1]
    values = weight[rows.to(weight.device), cols.to(weight.device)].double()
    return {"dtype": str(weight.dtype).removeprefix("torch."), "values": values.tolist()}


def check_base(model: nn.Module, sites: list[Site], saved: Mapping[str, Any]) -> None:
    """Compare a model with the fingerprint of the one that an adapter was trained on.

    Raises
    ------
    ValueError
        If parameters are missing, new or of other shapes, or sampled values differ by more than a change of
        precision explains. The message says which. Another precision alone is a warning.
    """
    here = fingerprint(model, sites)
    there = saved["parameters"]
    problems = [*_names(here["parameters"], there), *_shapes(here["parameters"], there)]
    if not problems:
        problems = _values(here["samples"], saved["samples"])
    if problems:
        raise ValueError(
            f"the adapter was trained on another base model: {'; '.join(problems)}. "
            "Load that model, or pass strict_base=False to use this one all the same"
        )
    retyped = [path for path, what in here["parameters"].items() if what != there[path]]
    if retyped:
        path = retyped[0]
        warnings.warn(
            f"the adapter was trained on this model in another precision: {len(retyped)} parameters differ, such as "
            f"{path} ({there[path].split()[0]} there, {here['parameters'][path].split()[0]} here)",
            stacklevel=4,
        )


def _names(here: Mapping[str, str], there: Mapping[str, str]) -> Iterable[str]:
    for what, paths in (
        ("this model lacks", there.keys() - here.keys()),
        ("that one lacked", here.keys() - there.keys()),
    ):
        if paths:
            yield f"{what} {len(paths)} parameters, such as {min(paths)}"


def _shapes(here: Mapping[str, str], there: Mapping[str, str]) -> Iterable[str]:
    for path in sorted(here.keys() & there.keys()):
        shape, other = here[path].split()[1:], there[path].split()[1:]
        if shape != other:
            yield f"{path} is {_size(shape)} here and was {_size(other)}"


def _size(shape: list[str]) -> str:
    return shape[0] if shape else "a number"


def _values(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    different = [path for path in sorted(here.keys() & there.keys()) if _differ(here[path], there[path])]
    return [f"{len(different)} adapted layers hold other values, such as {different[0]}"] if different else []


def _differ(here: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    """Whether samples differ by more than rounding to the coarser of two types, where the types differ."""
    a, b = (torch.tensor(side["values"], dtype=torch.float64) for side in (here, there))
    types = [getattr(torch, side["dtype"]) for side in (here, there)]
    rounding = 0.0 if types[0] == types[1] else max(torch.finfo(t).eps for t in types)
    return bool(((a - b).abs() > rounding * b.abs()).any())
