"""Saving an adapter to a folder and loading it into a fresh copy of its base model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowrank_sp

from .adapter import Adapter
from .files import checksum, read_header, read_json, read_tensors, write_json, write_tensors
from .fingerprint import check_base, describe_tensor, fingerprint
from .inject import Setup, adapted, base_parameters, check_name, known
from .life import require_own_base, require_unmerged
from .recipe import RECIPES, Recipe
from .restore import check_finite, expected_shapes, form_at, put, restored, sites_at
from .sharing import owners
from .sites import Site

__all__ = ["describe", "load", "save"]

TENSORS, DOCUMENT = "adapter.safetensors", "adapter.json"
FORMAT, VERSION = "lowrank-sp adapter", 1
KEYS = ("name", "recipe", "dropout", "seed", "sites", "also_train", "base", "metadata", "tensors", "checksum")


def save(model: nn.Module, path: str | Path, name: str = "default", metadata: Mapping[str, Any] | None = None) -> None:
    """Write one adapter of a model to a folder: ``adapter.safetensors`` and ``adapter.json``.

    The tensors are the factors, what else the recipe trains, the starts that are subtracted, and the parameters of
    the model that train in full. The description travels in the header of the tensors' file, so that the two cannot
    part; ``adapter.json`` is the same to read. Nothing in them is executable. Files are replaced in one
    step each: whenever the process dies, a file that was there before is whole, old or new.

    Parameters
    ----------
    model : Module
    path : str or Path
        A folder, made where it is missing.
    name : str
        Of the adapter, active or not.
    metadata : mapping, optional
        About the training: anything that JSON can hold.

    Raises
    ------
    ValueError
        If there is no such adapter, adapters are merged, the path is a file, or the metadata are no JSON.

    >>> import copy, tempfile, llm_bridge as lb
    >>> base = torch.nn.Sequential(torch.nn.Linear(6, 4))
    >>> folder = tempfile.mkdtemp()
    >>> lb.save(lb.adapt(copy.deepcopy(base), "polar", rank=2), folder)
    >>> lb.describe(folder)["recipe"]["name"], list(lb.adapted(lb.load(base, folder)))
    ('polar', ['0'])
    """
    setup = known(model, name)
    require_unmerged(model)
    require_own_base(model, name)
    layers = {p: layer.adapter(name) for p, layer in adapted(model).items() if name in layer.names()}
    sites = sites_at(model, layers, "the model")
    shared = owners(sites, setup, layers)
    tensors = _tensors(model, setup, layers, shared)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "recipe": _about(setup.recipe),
        "dropout": setup.dropout,
        "seed": setup.seed,
        "sites": {site.name: _site(site, setup, layers[site.name], shared) for site in sites},
        "also_train": list(setup.also_train),
        "base": fingerprint(model, sites, setup.also_train),
        "versions": {
            "lowrank-sp": lowrank_sp.__version__,
            "torch": torch.__version__,
        },
        "metadata": dict(metadata or {}),
        "tensors": {key: describe_tensor(t) for key, t in tensors.items()},
        "checksum": checksum(tensors),
    }
    text = _json(document)
    folder = made_folder(path)
    write_tensors(folder / TENSORS, tensors, {"description": text})
    write_json(folder / DOCUMENT, document)


def _tensors(
    model: nn.Module, setup: Setup, layers: Mapping[str, Adapter], shared: Mapping[tuple[str, str], str]
) -> dict[str, Tensor]:
    """Everything that one adapter holds, by the name in the file; what layers share only with its owner."""
    parameters = base_parameters(model)
    arrays = {
        _key(p, n): t
        for p, adapter in layers.items()
        for n, t in adapter.state_dict().items()
        if (p, n.removeprefix("start_")) not in shared
    }
    return arrays | {f"parameter:{p}": setup.tuned.get(p, parameters[p]).detach() for p in setup.also_train}


def _key(path: str, array: str) -> str:
    return f"site:{path}:{array}"


def _about(made: Recipe) -> dict[str, str]:
    """What a recipe of the same name must agree on. Forms are told apart layer by layer."""
    return {"name": made.name, "combine": type(made.combine).__name__, "noise": made.noise.__name__}


def _site(site: Site, setup: Setup, adapter: Adapter, shared: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    return {
        "form": adapter.form.__name__,
        "shape": list(site.shape),
        "rank": int(setup.ranks[site.name]),
        "alpha": float(setup.alphas[site.name]),
        "scale": float(adapter.scale),
        "trains": list(adapter.trains),
        "start": adapter.shifted,
        "owners": {array: owner for (path, array), owner in shared.items() if path == site.name},
    }


def _json(document: Mapping[str, Any]) -> str:
    try:
        return json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be what JSON can hold, finite numbers and text: {error}") from error


def made_folder(path: str | Path) -> Path:
    """The folder, which exists now."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"path must be a folder, and {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def describe(path: str | Path) -> dict[str, Any]:
    """What `save` wrote beside the tensors: recipe, sites, base model, versions, metadata.

    Raises
    ------
    ValueError
        If the folder has no such file, or it is truncated, corrupt or from a newer version.
    """
    file = Path(path) / TENSORS
    header = read_header(file)
    if "description" not in header:
        hint = (
            "; it looks like a file of PEFT: load_peft reads that"
            if (Path(path) / "adapter_config.json").exists()
            else ""
        )
        raise ValueError(f"{file} was not written by save: it has no description{hint}")
    document = _parsed(header["description"], file)
    if document.get("format") != FORMAT or document.get("version", 0) > VERSION:
        raise ValueError(
            f"{file} has the format {document.get('format')!r}, version {document.get('version')}; "
            f"this version of the library reads {FORMAT!r} up to version {VERSION}"
        )
    missing = [key for key in KEYS if key not in document]
    if missing:
        raise ValueError(f"the description in {file} lacks {', '.join(missing)}; it was not written by save")
    beside = Path(path) / DOCUMENT
    if beside.exists() and read_json(beside) != document:
        warnings.warn(
            f"{beside} differs from the description inside {TENSORS}, which counts: it was edited, or the last save "
            "was interrupted",
            stacklevel=2,
        )
    return document


def _parsed(text: str, file: Path) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the description in {file} is corrupt ({error})") from error
    if not isinstance(document, dict):
        raise ValueError(f"the description in {file} is no JSON object")
    return document


def load(
    model: nn.Module,
    path: str | Path,
    name: str | None = None,
    recipe: Recipe | None = None,
    strict_base: bool = True,
) -> nn.Module:
    """Read an adapter that `save` wrote and put it into a model, where it becomes the only active one.

    Everything is checked before the model changes.

    Parameters
    ----------
    model : Module
        The base model, with or without other adapters.
    path : str or Path
        The folder.
    name : str, optional
        For the adapter in this model; by default the name that it was saved under.
    recipe : Recipe, optional
        The recipe it was trained with, where that is not among `recipes`.
    strict_base : bool
        Refuse a model that is not the one the adapter was trained on.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError
        For files that are missing, truncated, corrupt or from a newer version, an unknown recipe, another base model,
        arrays that are missing, unknown or of another shape or type, layers that do not exist, or a name that is
        taken. The model is then as it was.
    """
    document = describe(path)
    name = document["name"] if name is None else name
    check_name(model, name)
    require_unmerged(model)
    made = _recipe(document["recipe"], recipe)
    saved = document["sites"]
    sites = sites_at(model, saved, str(path))
    setup = Setup(
        made,
        {p: about["rank"] for p, about in saved.items()},
        {p: about["alpha"] for p, about in saved.items()},
        document["dropout"],
        document["seed"],
        tuple(document["also_train"]),
    )
    for site in sites:
        _check_site(site, setup, saved[site.name])
    if strict_base:
        check_base(model, sites, document["base"])
    tensors = read_tensors(Path(path) / TENSORS)
    expected = _expected(model, sites, setup, saved)
    parameters = base_parameters(model)
    in_file = {_key(p, n): s for p, shapes in expected.items() for n, s in shapes.items() if not _owned(saved[p], n)}
    in_file |= {f"parameter:{p}": tuple(parameters[p].shape) for p in setup.also_train}
    _check_tensors(tensors, in_file, document, path)
    adapters = {
        p: restored(site, setup, _arrays(tensors, expected[p], p, saved[p]), saved[p]["scale"])
        for p, site in ((site.name, site) for site in sites)
    }
    for p, about in saved.items():
        for array, owner in about["owners"].items():
            adapters[p].share(array, adapters[owner])
    put(model, name, setup, sites, adapters, {p: tensors[f"parameter:{p}"] for p in setup.also_train})
    return model


def _owned(about: Mapping[str, Any], array: str) -> bool:
    """Whether the adapter of another layer owns an array."""
    return array.removeprefix("start_") in about["owners"]


def _arrays(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: str, about: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The arrays of one adapter; of those that another one owns, the leading part."""
    found = {}
    for name, shape in shapes.items():
        owner = about["owners"].get(name.removeprefix("start_"))
        whole = tensors[_key(path if owner is None else owner, name)]
        found[name] = whole[tuple(slice(k) for k in shape)]
    return found


def _recipe(about: Mapping[str, str], given: Recipe | None) -> Recipe:
    """The recipe of a file, if what is registered or given under its name is the same."""
    made = given or RECIPES.get(about["name"])
    if made is None:
        raise ValueError(
            f"the adapter was trained with the recipe {about['name']!r}, which this version does not have; "
            "pass recipe= if it is your own, or use the version that wrote the file"
        )
    here = _about(made)
    different = [
        f"{what} {about[what]} there, {here[what]} here" for what in ("combine", "noise") if here[what] != about[what]
    ]
    if different:
        raise ValueError(
            f"recipe {made.name!r} is not the one that the adapter was trained with: {', '.join(different)}"
        )
    return made


def _check_site(site: Site, setup: Setup, about: Mapping[str, Any]) -> None:
    if list(site.shape) != about["shape"]:
        raise ValueError(
            f"{site.name} has the shape {site.shape}, and the adapter is for {tuple(about['shape'])}; if the embedding "
            "or the head was resized, resize it before loading"
        )
    form = form_at(site, setup)
    if form.__name__ != about["form"]:
        raise ValueError(
            f"the adapter of {site.name} has the form {about['form']}, and recipe {setup.recipe.name!r} makes "
            f"{form.__name__}; pass recipe= with the one it was trained with"
        )


def _expected(
    model: nn.Module, sites: list[Site], setup: Setup, saved: Mapping[str, Any]
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of all arrays by path and name."""
    parameters = base_parameters(model)
    missing = [path for path in setup.also_train if path not in parameters]
    if missing:
        raise ValueError(f"the adapter comes with a trained {missing[0]}, which the model does not have")
    return {site.name: expected_shapes(site, setup, saved[site.name]["start"]) for site in sites}


def _check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], document: Mapping[str, Any], source: Any
) -> None:
    for what, keys in (("lacks", expected.keys() - tensors.keys()), ("has unknown", tensors.keys() - expected.keys())):
        if keys:
            raise ValueError(f"{source} {what} {', '.join(sorted(keys)[:3])}{' and more' * (len(keys) > 3)}")
    for key, shape in expected.items():
        if tuple(tensors[key].shape) != tuple(shape):
            raise ValueError(f"{key} in {source} has the shape {tuple(tensors[key].shape)}, expected {tuple(shape)}")
        if describe_tensor(tensors[key]) != document["tensors"].get(key):
            raise ValueError(
                f"{key} in {source} is {describe_tensor(tensors[key])}, and {document['tensors'].get(key)} was saved"
            )
    if checksum(tensors) != document["checksum"]:
        raise ValueError(f"{source} is corrupt: its tensors are not those that were saved")
    check_finite(tensors, source)
