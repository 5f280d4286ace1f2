"""Places for low-rank paths beside whole blocks of a model: LoR2C."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from .adapter import Adapted
from .layers import LayerType, _Dense, layer_type

if TYPE_CHECKING:
    from .sites import Site

__all__ = ["PATH", "ResidualPath", "close_paths", "kind_of_path", "open_paths", "without_paths"]

NAME = "residual_path"


class ResidualPath(nn.Module):
    """A path beside a block that adds nothing, until an adapter gives it an update; it has no parameters."""

    def __init__(self, width: int, like: Tensor | None = None):
        super().__init__()
        self.width = width
        zero = torch.zeros(()) if like is None else like.new_zeros(())
        self.register_buffer("zero", zero, persistent=False)  # where the block is, and in which type

    @property
    def weight(self) -> Tensor:
        """Its matrix (width, width), one zero seen many times."""
        return self.zero.expand(self.width, self.width)

    @property
    def bias(self) -> None:
        return None

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def extra_repr(self) -> str:
        return f"width={self.width}"


class _Path(_Dense):
    """A matrix that is zero and stays zero."""

    def shape(self, layer):
        return layer.width, layer.width

    def weight(self, layer):
        return layer.weight

    def run(self, layer, x, weight, bias=True):
        return F.linear(x, weight.to(x.dtype))

    def stored(self, layer, weight):
        raise ValueError(
            "a path beside a block cannot be merged, because no weight of the model does what it does; keep the "
            "adapter (save)"
        )


PATH: LayerType = _Path()


def kind_of_path(module: nn.Module) -> LayerType | None:
    """The type of a path, None for any other module."""
    return PATH if isinstance(module, ResidualPath) else None


def without_paths(sites: list[Site]) -> list[Site]:
    """The sites, for files in the format of others.

    Raises
    ------
    ValueError
        If one is a path: such files are about layers of the model.
    """
    for site in sites:
        if isinstance(site.layer, ResidualPath):
            raise ValueError(f"{site.name} is a path beside a block, for which PEFT has no format; use lb.save")
    return sites


@covers("P56")
def open_paths(
    model: nn.Module, blocks: str | Iterable[str] | Callable[[str, nn.Module], bool], width: int | None = None
) -> list[str]:
    """Open a path from the input of every block to its output, in place: ``block(x) + 0``.

    Adapters then find the paths by name, as they find layers: ``adapt(model, "lor2c", targets=open_paths(model,
    ...))`` gives ``block(x) + s B A x``. Before a file with such adapters is loaded, the paths have to be open. The
    names of the model's parameters stay what they are, and layers inside of the blocks can have adapters too.

    Parameters
    ----------
    model : Module
    blocks : str, iterable of str, or callable
        Paths of modules, their ends, or regular expressions for whole paths; or a function of path and module. Such a
        module takes activations (..., width) as its first argument and returns others of that shape, or a tuple
        with them in front.
    width : int, optional
        By default the hidden size of a model of transformers.

    Returns
    -------
    list of str
        Paths of what adapters see, for ``targets``.

    Raises
    ------
    ValueError
        If blocks match nothing, what is never called, or a single layer, or the width is neither given nor known.

    Notes
    -----
    ``2 r width`` parameters for every block. Source: :cite:`zhao2025lor2c`.

    Examples
    --------
    >>> import llm_bridge as lb
    >>> model = nn.ModuleDict({"block": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))})
    >>> lb.open_paths(model, "block", width=4)
    ['block.residual_path']
    >>> _ = lb.adapt(model, "lor2c", rank=2, targets="residual_path")
    """
    width = _width(model, width)
    names = _chosen(model, blocks)
    for name in names:
        block = model.get_submodule(name)
        if NAME not in block._modules:
            like = next((p for p in block.parameters() if p.is_floating_point()), None)
            block.add_module(NAME, ResidualPath(width, like))
        if _add_path not in block._forward_hooks.values():
            block.register_forward_hook(_add_path, with_kwargs=True)
    return [f"{name}.{NAME}" for name in names]


def close_paths(model: nn.Module) -> nn.Module:
    """Take all paths out, in place; returns the model.

    Raises
    ------
    ValueError
        If a path has an adapter.
    """
    hosts = {name: module for name, module in model.named_modules() if NAME in module._modules}
    busy = [name for name, module in hosts.items() if isinstance(module._modules[NAME], Adapted)]
    if busy:
        raise ValueError(f"the path of {busy[0]} has an adapter; drop or unload it first")
    for module in hosts.values():
        delattr(module, NAME)
        for key in [key for key, hook in module._forward_hooks.items() if hook is _add_path]:
            del module._forward_hooks[key], module._forward_hooks_with_kwargs[key]
    return model


def _add_path(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """The forward hook of a block."""
    path: Any = block._modules[NAME]
    x = next(iter((*args, *kwargs.values())), None)
    first = out[0] if isinstance(out, tuple) else out
    width = path.width
    if not (isinstance(x, Tensor) and isinstance(first, Tensor)):
        raise TypeError(
            f"a path needs a block whose first argument is a tensor and whose output is one or begins with one, got "
            f"{type(x).__name__} and {type(first).__name__} at a {type(block).__name__}"
        )
    if x.shape != first.shape or x.shape[-1] != width:
        raise ValueError(
            f"a path of width {width} needs a block whose first argument and output have that many channels and one "
            f"shape, got {tuple(x.shape)} and {tuple(first.shape)} at a {type(block).__name__}"
        )
    first = first + path(x).to(first.dtype)
    return (first, *out[1:]) if isinstance(out, tuple) else first


def _width(model: nn.Module, width: Any) -> int:
    if width is None:
        width = getattr(getattr(model, "config", None), "hidden_size", None)
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"width must be the number of channels of the blocks, a positive integer, got {width!r}")
    return width


def _chosen(model: nn.Module, blocks: Any) -> list[str]:
    from .sites import matches

    names = [name for name, module in model.named_modules() if name and not name.endswith(NAME)]
    if callable(blocks):
        found = {name for name in names if blocks(name, model.get_submodule(name))}
    else:
        found = set()
        for pattern in [blocks] if isinstance(blocks, str) else blocks:
            hits = {name for name in names if matches(name, pattern)}
            if not hits:
                close = difflib.get_close_matches(pattern, names, n=3)
                hint = f"did you mean {', '.join(close)}?" if close else "name modules as named_modules() does"
                raise ValueError(f"blocks holds {pattern!r}, which matches no module; {hint}")
            found |= hits
    if not found:
        raise ValueError(f"no block is chosen by {blocks!r}")
    for name in found:
        _check_block(name, model.get_submodule(name))
    return [name for name in names if name in found]


def _check_block(name: str, block: nn.Module) -> None:
    if type(block).forward is nn.Module.forward:
        raise ValueError(f"{name} only holds modules and is never called; name those that it holds")
    if isinstance(block, Adapted) or layer_type(block) is not None:
        raise ValueError(f"{name} is a single layer, beside which a path is its own adapter; name whole blocks")
