"""Weights of a sum of adapters that come closest to what each of them does to its own data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from ..adapter import Adapted, Adapter
from ..calibrate import run
from ..combination import check_names
from ..experts.tokens import tokens
from ..inject import adapted
from ..life import activate, active, require_unmerged
from ..truncation import nearest

__all__ = ["Matching", "output_matching"]


@dataclass(frozen=True)
class Matching:
    """The quadratic ``w^T H w - 2 b^T w + c`` of every layer; see `output_matching`.

    Attributes
    ----------
    names : tuple of str
        The adapters, in the order of the weights.
    grams : dict
        H by path, (N, N).
    targets : dict
        b by path, (N,).
    sizes : dict
        c by path: what the adapters change in their own data, squared.
    """

    names: tuple[str, ...]
    grams: dict[str, Tensor]
    targets: dict[str, Tensor]
    sizes: dict[str, float]

    def by_layer(self) -> dict[str, list[float]]:
        """The best weights of every layer, for `combine`; zero for adapters that it does not have."""
        return {path: _solved(gram, self.targets[path]) for path, gram in self.grams.items()}

    def overall(self) -> list[float]:
        """The best weights that all layers have in common."""
        return _solved(_total(self.grams.values()), _total(self.targets.values()))

    def error(self, weights: Sequence[float] | Mapping[str, Sequence[float]]) -> float:
        """What these weights, of all layers or by path, leave of the squared changes; 1 for weights of zero."""
        left = 0.0
        for path, gram in self.grams.items():
            given = weights[path] if isinstance(weights, Mapping) else weights
            w = torch.tensor(given, dtype=gram.dtype)
            left += float(w @ gram @ w - 2 * self.targets[path] @ w) + self.sizes[path]
        total = sum(self.sizes.values())
        return max(left / total, 0.0) if total > 0 else 0.0


def _total(parts: Any) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _solved(gram: Tensor, target: Tensor) -> list[float]:
    """The least solution of smallest norm: adapters that are alike share."""
    return (torch.linalg.pinv(gram, rtol=1e-10, hermitian=True) @ target).tolist()


@covers("A14")
@torch.no_grad()
def output_matching(model: nn.Module, data: Mapping[str, Any]) -> Matching:
    """Compare adapters by what they do to the inputs of layers, each in its own data.

    For every layer ``min_w sum_n E_n || sum_j w_j D_j x - D_n x ||^2`` over the inputs x that the layer sees while the
    adapter n acts on its data. That is ``H w = b`` with ``H = sum_n G_n``, ``b_j = (G_n)_jn`` summed over n and
    ``(G_n)_jk = E_n <D_j x, D_k x>``. Of the inputs nothing but rank-sized second moments is kept. With the same
    inputs for all adapters the weights would be ``1 / N``, whatever the adapters do.

    Parameters
    ----------
    model : Module
        In evaluation mode while it runs.
    data : mapping of str to batches or function
        By name of the adapter its calibration data: batches for the model, or a function that runs it.

    Returns
    -------
    Matching
        Its ``by_layer()`` or ``overall()`` are weights for ``combine(model, list(data), ...)``.

    Raises
    ------
    ValueError, TypeError
        If an adapter does not exist or is not additive, adapters are merged, or data are none.

    Notes
    -----
    Source: section VI-E of :cite:`survey2026sp`, with data of its own for every adapter.

    Examples
    --------
    >>> import llm_bridge as lb
    >>> model = nn.Sequential(nn.Linear(8, 6))
    >>> for name in ("law", "medicine"):
    ...     model = lb.adapt(model, "lora", rank=2, name=name)
    >>> found = lb.output_matching(model, {"law": [torch.ones(3, 8)], "medicine": [torch.zeros(3, 8)]})
    >>> report = lb.combine(model, found.names, found.by_layer())
    """
    names = tuple(data)
    check_names(model, names)
    require_unmerged(model)
    layers = {path: layer for path, layer in adapted(model).items() if set(names) & set(layer.names())}
    sides = {path: [_sides(layer, name, path) for name in names] for path, layer in layers.items()}
    moments = {name: _moments(model, name, data[name], layers, sides) for name in names}
    grams, targets, sizes = {}, {}, {}
    for path, own in sides.items():
        parts = [_gram(own, moments[name][path]) for name in names]
        grams[path] = torch.stack(parts).sum(0)
        targets[path] = torch.stack([part[:, n] for n, part in enumerate(parts)]).sum(0)
        sizes[path] = float(sum(part[n, n] for n, part in enumerate(parts)))
    return Matching(names, grams, targets, sizes)


def _sides(layer: Adapted, name: str, path: str) -> tuple[Tensor, Tensor]:
    """Thin factors of what an adapter changes in a layer, without columns where it is not there."""
    if name not in layer.names():
        return tuple(torch.zeros(k, 0, dtype=torch.float64) for k in layer.kind.shape(layer.base))
    adapter: Adapter = layer.adapter(name)
    if adapter.thin:
        left, right = adapter.product()
        return adapter.scale * left.double(), right.double()
    thin = nearest(adapter.update().double(), None, path)
    return thin.left.double(), thin.right.double()


def _moments(
    model: nn.Module, name: str, data: Any, layers: Mapping[str, Adapted], sides: Mapping[str, Any]
) -> dict[str, Tensor]:
    """By path the mean of ``(R^T x)(R^T x)^T`` for the right factors R of all adapters side by side."""
    sums: dict[str, tuple[Tensor, int]] = {}
    before, training = active(model), {m: m.training for m in model.modules()}
    with ExitStack() as stack:
        stack.callback(activate, model, *before)
        for module, mode in training.items():
            stack.callback(setattr, module, "training", mode)
        activate(model, name)
        model.eval()
        for path, layer in layers.items():
            right = torch.cat([pair[1] for pair in sides[path]], 1)
            handle = layer.register_forward_pre_hook(partial(_add, sums, path, right))
            stack.callback(handle.remove)
        run(model, data)
    missing = [path for path in layers if path not in sums]
    if missing:
        raise ValueError(f"the data of {name!r} have not reached {missing[0]}; they have to run the whole model")
    return {path: total / count for path, (total, count) in sums.items()}


def _add(sums: dict[str, tuple[Tensor, int]], path: str, right: Tensor, layer: Any, args: tuple[Any, ...]) -> None:
    x = tokens(layer.kind, layer.base, layer.kind.rows(layer.base, args[0])).flatten(0, -2)
    channels = x.double() @ right.to(x.device)
    total, count = sums.get(path, (0.0, 0))
    sums[path] = total + (channels.mT @ channels).cpu(), count + len(x)


def _gram(sides: Sequence[tuple[Tensor, Tensor]], moment: Tensor) -> Tensor:
    """``E <D_j x, D_k x>`` (N, N) from the moments of all channels and the products of left factors."""
    left = torch.cat([pair[0] for pair in sides], 1).cpu()
    whole = (left.mT @ left) * moment
    place = torch.repeat_interleave(torch.arange(len(sides)), torch.tensor([pair[0].shape[1] for pair in sides]))
    gathered = torch.zeros(len(sides), whole.shape[1], dtype=whole.dtype).index_add(0, place, whole)
    return torch.zeros(len(sides), len(sides), dtype=whole.dtype).index_add(1, place, gathered)
