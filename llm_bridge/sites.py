"""Finding the layers of a model that an adapter should change."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .adapter import Adapted
from .layers import LayerType, layer_type, supported_layers
from .parts import Part, check_host, is_host, kind_of, parts
from .paths import kind_of_path

__all__ = ["Site", "Targets", "find_sites", "layer_index", "matches", "prefixes", "warn_tied"]

Targets = str | Iterable[str] | Callable[[str, nn.Module], bool]

_PLAIN = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class Site:
    """A layer that gets an adapter: its path in the model, the layer and its type."""

    name: str
    layer: nn.Module
    kind: LayerType

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)`` of its matrix."""
        return self.kind.shape(self.layer)


def matches(name: str, pattern: str) -> bool:
    """Whether a module path is the pattern, ends with ``.pattern``, or is matched in full by it as a regex.

    Raises
    ------
    ValueError
        For a pattern that is neither a name nor a regular expression.
    """
    if name == pattern or name.endswith("." + pattern):
        return True
    try:
        return _PLAIN.fullmatch(pattern) is None and re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"{pattern!r} is neither a name nor a regular expression: {error}") from error


def layer_index(model: nn.Module, name: str) -> int | None:
    """Position of a module in the outermost ``ModuleList`` on its path: its block in a transformer."""
    module: Any = model
    for part in name.split("."):
        if isinstance(module, nn.ModuleList):
            return int(part)
        module = getattr(module, part)
    return None


def find_sites(
    model: nn.Module,
    targets: Targets = "all-linear",
    exclude: Targets = (),
    layers: Collection[int] | None = None,
) -> list[Site]:
    """The layers that the targets name, in the order of the model.

    Parameters
    ----------
    targets
        ``"all-linear"``: every linear layer of the body, those inside of ``nn.MultiheadAttention`` included, but
        without output embeddings and, in models of transformers, without what a task puts on top of the base
        model. Or names, each of which stands for a module with that path, a path that ends with it, or a regular
        expression for whole paths; the name of an attention or recurrent module of torch stands for all its
        matrices (`llm_bridge.parts`). Or a function of path and module.
    exclude
        In the same terms, what to leave out, with all that is inside of it.
    layers
        Only blocks with these positions in the outermost ``ModuleList``.

    Returns
    -------
    list of Site
        With ``name`` (the path), ``layer`` and ``shape`` (out, in).

    Raises
    ------
    ValueError
        If a name matches nothing (with the closest names that exist), a block does not exist, or nothing is left.
    TypeError
        If a named module is of a type that no adapter can meet, or an argument is of another type.
    """
    modules = _modules(model)
    _check_free(modules)
    if layers is not None:
        _check_layers(layers, {layer_index(model, name) for name in modules} - {None})
    chosen = _select(model, modules, targets, "targets")
    left_out = set() if _empty(exclude) else set(_select(model, modules, exclude, "exclude"))
    chosen = [n for n in chosen if left_out.isdisjoint(prefixes(n))]
    chosen = [n for n in chosen if layers is None or layer_index(model, n) in layers]
    if not chosen:
        raise ValueError(f"no layer is left: targets={targets!r}, exclude={exclude!r}, layers={layers!r}")
    for host in {name.rpartition(".")[0] for name in chosen} & modules.keys():
        if is_host(modules[host]):
            check_host(modules[host])
    return [_site(name, modules[name]) for name in chosen]


def prefixes(path: str) -> list[str]:
    """The paths of all modules around something, and its own."""
    parts = path.split(".")
    return [".".join(parts[: k + 1]) for k in range(len(parts))]


def warn_tied(model: nn.Module, sites: list[Site]) -> None:
    """Say which chosen layers share their weight with another module: the other one is not adapted."""
    owners: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(path)
    for site in sites:
        own = {f"{site.name}.weight", f"{site.name}.base.weight"}
        others = [p for p in owners.get(id(getattr(site.layer, "weight", None)), []) if p not in own]
        if others:
            warnings.warn(
                f"{site.name} shares its weight with {', '.join(others)}, which stays as it is: "
                "the adapter changes this layer only",
                stacklevel=3,
            )


def _check_free(modules: dict[str, nn.Module]) -> None:
    """Refuse a model with adapters of PEFT: they would be taken for layers."""
    peft = sys.modules.get("peft.tuners.tuners_utils")
    kind = () if peft is None else peft.BaseTunerLayer
    for name, module in modules.items():
        if isinstance(module, kind):
            raise TypeError(
                f"{name} is a layer of PEFT; take its adapters out first, with merge_and_unload() or unload(), or "
                "save them and read them with load_peft"
            )


def _check_layers(layers: Collection[int], there: Collection[Any]) -> None:
    if isinstance(layers, str) or not isinstance(layers, Collection):
        raise TypeError(f"layers must be positions of blocks, such as [0, 1] or range(4), got {layers!r}")
    if not there:
        raise ValueError("layers chooses blocks of a ModuleList, and the model has none; use targets and exclude")
    strange = [index for index in layers if index not in there]
    if strange:
        raise ValueError(f"layers holds {strange[0]!r}, and the blocks of the model are 0 to {max(there)}")


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Everything that a target can name, as it was before adapters: modules, and the matrices inside of hosts."""
    found = {}
    for name, module in model.named_modules():
        if not name or _inside(model, name):
            continue
        found[name] = _inner(module)
        if is_host(module):
            found |= {f"{name}.{part}": inner for part, inner in parts(module).items()}
    return found


def _kind(module: nn.Module) -> LayerType | None:
    return kind_of(module) or kind_of_path(module) or layer_type(module)


def _empty(targets: Targets) -> bool:
    return isinstance(targets, (list, tuple, set, frozenset)) and not targets


def _inner(module: nn.Module) -> nn.Module:
    return module.base if isinstance(module, Adapted) else module


def _inside(model: nn.Module, name: str) -> bool:
    """Whether a path leads into an adapted layer."""
    module: Any = model
    for part in name.split(".")[:-1]:
        module = getattr(module, part)
        if isinstance(module, Adapted) or is_host(module):
            return True
    return False


def _select(model: nn.Module, modules: dict[str, nn.Module], targets: Targets, argument: str) -> list[str]:
    if isinstance(targets, str) and targets == "all-linear":
        return _all_linear(model, modules)
    if callable(targets):
        return [name for name, module in modules.items() if targets(name, module)]
    if not isinstance(targets, Iterable):
        raise TypeError(f"{argument} must be 'all-linear', names or a function, got {targets!r}")
    patterns = [targets] if isinstance(targets, str) else list(targets)
    found: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} holds {pattern!r}; names and regular expressions are strings")
        hits = [name for name in modules if matches(name, pattern)]
        hits += [f"{host}.{part}" for host in hits if is_host(modules[host]) for part in parts(modules[host])]
        if not hits:
            raise ValueError(f"{argument} holds {pattern!r}, which matches no module; {_hint(modules, pattern)}")
        found.update(hits)
    return [name for name in modules if name in found and not is_host(modules[name])]


def _hint(modules: dict[str, nn.Module], pattern: str) -> str:
    """The names that come closest, or all that there are; for a regular expression a path."""
    layers = [name for name, module in modules.items() if _kind(module) is not None]
    if layers and _PLAIN.fullmatch(pattern) is None:
        return f"a regular expression must match a whole path, such as {layers[0]}"
    endings = sorted({name.rsplit(".", 1)[-1] for name in layers})
    close = difflib.get_close_matches(pattern.rsplit(".", 1)[-1], endings, n=3)
    return f"did you mean {', '.join(close)}?" if close else f"layers of this model end with {', '.join(endings)}"


def _all_linear(model: nn.Module, modules: dict[str, nn.Module]) -> list[str]:
    heads = _heads(model)
    return [name for name, module in modules.items() if _linear(module) and id(module) not in heads]


def _linear(module: nn.Module) -> bool:
    """Whether a module maps rows of activations by a matrix, and an adapter can meet it."""
    if isinstance(module, Part):
        return isinstance(module.host, nn.MultiheadAttention)
    named = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    return named and _kind(module) is not None


def _heads(model: nn.Module) -> set[int]:
    """What is put on top of the body: output embeddings, and in transformers everything outside the base model."""
    heads = set()
    output = model.get_output_embeddings() if callable(getattr(model, "get_output_embeddings", None)) else None
    if output is not None:
        heads.add(id(_inner(output)))
    base = getattr(model, "base_model", model)
    if isinstance(base, nn.Module) and base is not model:
        body = {id(_inner(m)) for m in base.modules()}
        heads.update(id(_inner(m)) for m in model.modules() if id(_inner(m)) not in body)
    return heads


def _site(name: str, module: nn.Module) -> Site:
    kind = _kind(module)
    if kind is None:
        kinds = supported_layers()
        raise TypeError(f"{name} is a {type(module).__name__}, which no adapter can meet; supported: {kinds}")
    return Site(name, module, kind)
