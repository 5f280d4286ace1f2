"""Reading and writing folders in PEFT's format, without PEFT."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Adapted, Adapter
from ..checkpoint import made_folder
from ..files import read_json, read_tensors, write_json, write_tensors
from ..inject import Setup, adapted, base_parameters, check_name, known
from ..life import require_own_base, require_unmerged
from ..nonlinear import Bent
from ..paths import without_paths
from ..recipe import Recipe, over_root_rank
from ..restore import check_finite, expected_shapes, put, restored, sites_at
from ..sharing import owners
from ..sites import Site
from .base import Method, Piece
from .config import check_keys, common_config
from .methods import METHODS

__all__ = ["load_peft", "save_peft", "trained_beside", "write_folder"]

TENSORS, CONFIG, PICKLE = "adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"
PREFIX, SHARED_PREFIX = "base_model.model.", "base_model."


# reading -----------------------------------------------------------------------------------------------------


def load_peft(
    model: nn.Module,
    path: str | Path,
    name: str = "default",
    ignore: Collection[str] = (),
    recipe: Recipe | None = None,
) -> nn.Module:
    """Read an adapter that PEFT wrote and put it into a model, where it becomes the only active one.

    Which layers it has, and of which rank, follows from the tensors. Everything is checked before the model changes.

    Parameters
    ----------
    model : Module
        The base model that the adapter belongs to. The format does not say which: only paths and shapes are checked.
    path : str or Path
        A folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
    name : str
        For the adapter in this model.
    ignore : collection of str
        Settings to ignore although they are switched on and not understood.
    recipe : Recipe, optional
        What to go on training by: one with the same form and way of combining. By default the plain recipe of the
        method.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError
        For files that are missing, truncated or corrupt, a method or a setting that is not supported, tensors that
        are missing, unknown or of another shape, layers that do not exist, or a name that is taken. The model is
        then as it was.
    """
    check_name(model, name)
    require_unmerged(model)
    folder = Path(path)
    config = read_json(folder / CONFIG)
    method = _method(config, folder)
    check_keys(config, method.settings, ignore, folder / CONFIG)
    tensors = read_tensors(_tensor_file(folder))
    check_finite(tensors, folder)
    pieces, shared, others = _sorted_out(method, tensors)
    sites = sites_at(model, pieces, str(folder))
    pieces = method.prepared(pieces)
    read = {site.name: method.read(site, pieces[site.name], shared, config) for site in sites}
    read = {path: piece for path, piece in read.items() if piece.rank > 0}
    sites = [site for site in sites if site.name in read]
    tuned = _tuned(model, others, folder)
    made = method.recipe(config, pieces) if recipe is None else recipe
    setup = _setup(made, read, config.get(method.dropout or "") or 0.0, tuple(tuned))
    for site in sites:
        _check_shapes(site, setup, read[site.name])
    adapters = {s.name: restored(s, setup, _ready(read[s.name]), read[s.name].scale) for s in sites}
    for (p, array), owner in owners(sites, setup, adapters).items():
        adapters[p].share(array, adapters[owner])
    put(model, name, setup, sites, adapters, tuned)
    return model


def _method(config: Any, folder: Path) -> Method:
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind not in METHODS:
        raise ValueError(f"{folder / CONFIG} has peft_type={kind!r}; supported: {', '.join(METHODS)}")
    return METHODS[kind]


def _tensor_file(folder: Path) -> Path:
    if not (folder / TENSORS).exists() and (folder / PICKLE).exists():
        raise ValueError(
            f"{folder} holds {PICKLE}, a pickle, which can execute anything and is not read; "
            "let PEFT save it again with safe_serialization=True"
        )
    return folder / TENSORS


def _sorted_out(
    method: Method, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of layers by path and key, shared ones by name, and all others by path."""
    pieces: dict[str, dict[str, Tensor]] = {}
    shared, others = {}, {}
    for full, tensor in tensors.items():
        name = full.removeprefix(PREFIX)
        key = next((key for key in method.keys if name.endswith(f".{key}")), None)
        if full.removeprefix(SHARED_PREFIX) in method.shared:
            shared[full.removeprefix(SHARED_PREFIX)] = tensor
        elif key is not None:
            pieces.setdefault(name.removesuffix(f".{key}"), {})[key] = tensor
        else:
            others[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = tensor
    if not pieces:
        raise ValueError(
            f"there are no tensors of {method.peft_type} in the file; it has {', '.join(list(tensors)[:3])}"
        )
    return pieces, shared, others


def _tuned(model: nn.Module, others: Mapping[str, Tensor], source: Any) -> dict[str, Tensor]:
    """Values of the parameters that were trained in full, by their path; those that did not change are left out."""
    owners = base_parameters(model, shared=True)
    canonical = {id(parameter): path for path, parameter in base_parameters(model).items()}
    tuned = {}
    for path, value in others.items():
        if path not in owners:
            raise ValueError(f"{source} has unknown tensors, such as {path}; the model has no such parameter")
        parameter = owners[path]
        if parameter.shape != value.shape:
            raise ValueError(
                f"{path} in {source} has the shape {tuple(value.shape)}, and in the model {tuple(parameter.shape)}; "
                "if the embedding or the head was resized, resize it before loading"
            )
        if not torch.equal(parameter.detach().cpu(), value.to(parameter.dtype)):
            _check_tied(path, value, [p for p in owners if owners[p] is parameter], others, source)
            tuned[canonical[id(parameter)]] = value
    return tuned


def _check_tied(path: str, value: Tensor, shared: list[str], others: Mapping[str, Tensor], source: Any) -> None:
    """Refuse a value that the other owners of a parameter do not have: PEFT copies what it trains, tied or not."""
    apart = [p for p in shared if p not in others or not torch.equal(others[p], value)]
    if apart:
        raise ValueError(
            f"{path} in {source} was trained apart from {apart[0]}, and this model ties the two; give one of their "
            "modules a parameter of its own first, a copy of the shared one"
        )


def _setup(made: Recipe, read: Mapping[str, Piece], dropout: float, also_train: tuple[str, ...]) -> Setup:
    ranks = {path: piece.rank for path, piece in read.items()}
    root = made.scale is over_root_rank
    alphas = {path: piece.scale * (piece.rank**0.5 if root else piece.rank) for path, piece in read.items()}
    return Setup(made, ranks, alphas, dropout, 0, also_train)


def _ready(piece: Piece) -> dict[str, Tensor]:
    """Whole numbers as they are; no half precision, in which factors do not train well."""
    return {name: a.float() if a.dtype in (torch.float16, torch.bfloat16) else a for name, a in piece.arrays.items()}


def _check_shapes(site: Site, setup: Setup, piece: Piece) -> None:
    expected = expected_shapes(site, setup, "start_left" in piece.arrays)
    if expected.keys() != piece.arrays.keys():
        raise ValueError(
            f"recipe {setup.recipe.name!r} has the arrays {sorted(expected)}, the file {sorted(piece.arrays)}"
        )
    for name, shape in expected.items():
        if tuple(piece.arrays[name].shape) != tuple(shape):
            raise ValueError(
                f"{name} of {site.name} has the shape {tuple(piece.arrays[name].shape)} in the file, and the layer "
                f"needs {tuple(shape)}; it belongs to another model"
            )


# writing -----------------------------------------------------------------------------------------------------


def save_peft(model: nn.Module, path: str | Path, name: str = "default") -> None:
    """Write one adapter of a model in PEFT's format.

    Parameters
    ----------
    model : Module
    path : str or Path
        A folder, made where it is missing.
    name : str
        Of the adapter, active or not.

    Raises
    ------
    ValueError
        If there is no such adapter, adapters are merged, PEFT has no method that computes the same thing, or the path
        is a file.
    """
    setup = known(model, name)
    require_unmerged(model)
    require_own_base(model, name)
    layers = {p: layer.adapter(name) for p, layer in adapted(model).items() if name in layer.names()}
    entries = [(site, layers[site.name]) for site in without_paths(sites_at(model, layers, "the model"))]
    method = _written_by(entries)
    with torch.no_grad():
        tensors, shared, settings = method.write(entries, setup.recipe)
    saved, modules = trained_beside(model, setup)
    named = {f"{PREFIX}{p}.{key}": t for p, parts in tensors.items() for key, t in parts.items()}
    named |= {f"{SHARED_PREFIX}{key}": t for key, t in shared.items()}
    config = common_config(model, method.peft_type, list(tensors), modules) | settings
    write_folder(path, named | saved, config)


def write_folder(
    path: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], header: Mapping[str, str] | None = None
) -> None:
    """Both files of an adapter, each replaced in one step."""
    folder = made_folder(path)
    write_tensors(folder / TENSORS, tensors, header or {})
    write_json(folder / CONFIG, config)


def _written_by(entries: list[tuple[Site, Adapter]]) -> Method:
    """The first method that accepts all layers."""
    for method in METHODS.values():
        if all(method.accepts(adapter) for _, adapter in entries):
            return method
    forms = sorted({f"{a.form.__name__} with {type(a.combine).__name__}" for _, a in entries})
    bent = any(issubclass(a.form, Bent) for _, a in entries)
    instead = "save keeps it" if bent else "export_lora writes it as plain LoRA, with the error of every layer"
    raise ValueError(f"PEFT has no method for {', '.join(forms)}; {instead}")


def trained_beside(model: nn.Module, setup: Setup) -> tuple[dict[str, Tensor], list[str]]:
    """What trains in full, as tensors by name and the modules that own it: PEFT keeps whole modules.

    A parameter that several modules share is written for each of them.
    """
    parameters = base_parameters(model)
    values: dict[int, Tensor] = {id(parameters[p]): setup.tuned.get(p, parameters[p]) for p in setup.also_train}
    owners = {path: p for path, p in base_parameters(model, shared=True).items() if id(p) in values}
    modules = sorted({path.rpartition(".")[0] for path in owners})
    wrapped = [module for module in modules if module in adapted(model)]
    if "" in modules:
        raise ValueError("PEFT cannot save parameters that belong to no module, such as " + min(owners))
    tensors = {}
    for module in modules:
        layer = model.get_submodule(module)
        base, inner = (layer.base, ".base_layer") if isinstance(layer, Adapted) else (layer, "")
        held: dict[str, Tensor] = base.state_dict(keep_vars=True)
        for key, t in held.items():
            if not inner or id(t) in values:
                tensors[f"{PREFIX}{module}{inner}.{key}"] = values.get(id(t), t).detach()
    return tensors, [module for module in modules if module not in wrapped]
