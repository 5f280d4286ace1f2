"""Which outputs of layers nothing keeps for backward, so that an adapter which kept one would add to the memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .calibrate import undisturbed
from .sites import Targets, find_sites

__all__ = ["unkept"]


def unkept(
    model: nn.Module, run: Callable[[], Any], targets: Targets = "all-linear", exclude: Targets = ()
) -> tuple[str, ...]:
    """Paths of the layers whose output no other operation keeps, for ``MagnitudeDirection(recompute=...)``.

    DoRA's magnitudes need the outputs of their layers in backward. Where the next operation keeps an output anyway,
    as a product or an attention does, that costs no memory; where it is added to something or rotated, it does, and
    computing it again saves this memory.

    Parameters
    ----------
    model : Module
        Runs in evaluation mode, frozen and without its adapters; afterwards it is as before.
    run : callable ``() -> object``
        Runs the model once, on few data, as training does, in transformers ``lambda: model(**batch, use_cache=False)``.
        No gradient is computed.
    targets, exclude
        Which layers; see `find_sites`. The inputs of these layers count as kept, because their adapters need them.

    Raises
    ------
    ValueError
        If ``run`` calls none of the layers.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.Tanh())
    >>> unkept(model, lambda: model(torch.ones(2, 4)))  # GELU keeps what it is given, tanh what it returns
    ('2',)
    """
    watch = _Watch()
    with undisturbed(model), ExitStack() as stack:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for site in find_sites(model, targets, exclude):
            handle = site.layer.register_forward_hook(partial(watch.note, site.name))
            stack.callback(handle.remove)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(watch.keep, _same))
        run()
    if not watch.outputs:
        raise ValueError("run called none of the layers; it has to run the model, as in lambda: model(**batch)")
    return tuple(name for name, outputs in watch.outputs.items() if not watch.kept.issuperset(map(_place, outputs)))


class _Watch:
    """The outputs of layers, which stay in memory so that no other tensor takes their place, and what is kept."""

    def __init__(self):
        self.outputs: dict[str, list[Tensor]] = {}
        self.there: set[int] = set()
        self.kept: set[int] = set()

    def note(self, name: str, layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        """An output, asking for a gradient as if an adapter had made it."""
        self.keep(args[0])
        self.outputs.setdefault(name, []).append(out)
        self.there.add(_place(out))
        return out if out.requires_grad else out.detach().requires_grad_()

    def keep(self, tensor: Tensor) -> Tensor:
        """Note that autograd keeps it."""
        if not tensor.is_sparse and _place(tensor) in self.there:
            self.kept.add(_place(tensor))
        return tensor


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _same(tensor: Tensor) -> Tensor:
    return tensor
