"""What starts want to know of data: gradients of the weights, or second moments of the inputs, layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from .accumulate import Gradient, GradientSketch, Moments, MomentsSketch
from .inject import setups
from .life import disable
from .sites import Site, Targets, find_sites
from .starts import Start

__all__ = ["collect", "importance", "most_important", "variance_shares"]

# Gradients of all layers together are held as they are up to this many bytes, and as sketches beyond.
BUDGET = 2 << 30
# Second moments of up to this many inputs are held as a matrix, of more by their leading directions.
WIDTH = 2048


@covers("O49")
def collect(
    model: nn.Module, sites: list[Site], start: Start, calibration: Any, rank: int = 64, progress: bool = True
) -> dict[str, Any]:
    """Statistics of every site for a start, in one pass over the data.

    The model runs in evaluation mode without its adapters. Modes, gradients, and what requires them, are
    afterwards as before, even after an error.

    Parameters
    ----------
    model : Module
    sites : list of Site
    start : Start
        Its ``needs`` is ``"gradients"`` or ``"inputs"``.
    calibration
        Batches for the model: mappings are its keyword arguments, tuples and lists its arguments, tensors its one
        argument. Gradients take the loss from the output (its ``loss``, so that batches for transformers hold
        labels, or a scalar output itself). Or a function without arguments that runs the model, and for gradients
        calls ``backward``, or returns a loss or an iterable of them.
    rank : int
        The largest rank that will be asked for: how much a sketch keeps.
    progress : bool
        Show it, from some seconds on.

    Returns
    -------
    dict
        By path of the site. Gradients are averaged over the backward passes, second moments ``X^T X`` over
        rows, without those that an ``attention_mask`` of the batch excludes. What would be too large is a product
        of thin factors (`lowrank_sp.BurerMonteiro`).

    Raises
    ------
    ValueError
        For no batches, no loss or one without gradient, a layer that saw no data, or NaN and infinity.
    TypeError
        For a batch or a layer of a type that does not serve.
    """
    return _collect(model, sites, str(start.needs), calibration, rank, progress)


def variance_shares(
    model: nn.Module, sites: list[Site], calibration: Any, rank: int = 64, progress: bool = True
) -> dict[str, Tensor]:
    """By path of the site, the shares of the variance of its inputs by direction, the largest first.

    Of layers with many inputs there are the leading directions alone; arguments are those of `collect`.
    """
    sums, shares = _accumulated(model, sites, "inputs", calibration, rank, progress), {}
    for site in sites:
        total = sums.pop(site.name)
        _finite(site.name, "inputs", total.finished())
        shares[site.name] = total.shares()
    return shares


@covers("P07", "R25")
def importance(
    model: nn.Module, calibration: Any, targets: Targets = "all-linear", exclude: Targets = (), progress: bool = True
) -> dict[str, float]:
    """``mean |W o G|`` of layers, with the gradient ``G`` of the calibration loss: how much training would change.

    Parameters
    ----------
    model, calibration, progress
        As in `collect`.
    targets, exclude
        As in `find_sites`.

    Notes
    -----
    The importance of GoRA. Source: :cite:`he2025gora`; equation (51) of :cite:`he2026unified`.
    """
    sites = find_sites(model, targets, exclude)
    gradients = _collect(model, sites, "gradients", calibration, 64, progress)
    scores = {}
    for site in sites:
        gradient = gradients.pop(site.name)
        gradient = gradient if isinstance(gradient, Tensor) else gradient.dense()
        scores[site.name] = float((site.kind.weight(site.layer).detach().float() * gradient).abs().mean())
    return scores


def gradients_of(
    model: nn.Module, sites: list[Site], calibration: Any, progress: bool = True
) -> Iterator[tuple[str, Any, tuple[int, int]]]:
    """Path, gradient and shape of every site in turn; arguments are those of `collect`."""
    gradients = _collect(model, sites, "gradients", calibration, 64, progress)
    for site in sites:
        yield site.name, gradients.pop(site.name), site.shape


def most_important(model: nn.Module, calibration: Any, count: int, **options: Any) -> list[str]:
    """Paths of the ``count`` layers of largest `importance`, in the order of the model: targets for `adapt`.

    Raises
    ------
    ValueError
        If there are fewer layers.
    """
    scores = importance(model, calibration, **options)
    if not 1 <= count <= len(scores):
        raise ValueError(f"count must lie between 1 and {len(scores)}, the number of layers, got {count}")
    chosen = sorted(scores, key=lambda name: -scores[name])[:count]
    return [name for name in scores if name in chosen]


def _collect(
    model: nn.Module, sites: list[Site], what: str, calibration: Any, rank: int, progress: bool
) -> dict[str, Any]:
    sums = _accumulated(model, sites, what, calibration, rank, progress)
    return {name: _finite(name, what, sums.pop(name).finished()) for name in list(sums)}


def _accumulated(
    model: nn.Module, sites: list[Site], what: str, calibration: Any, rank: int, progress: bool
) -> dict[str, Any]:
    """By path, what has added up the statistics of a site over the data."""
    watchers = {"gradients": _watch_gradients, "inputs": _watch_inputs}
    if what not in watchers:
        raise ValueError(f"a start can need {' or '.join(watchers)}, got {what!r}")
    with undisturbed(model), ExitStack() as hooks:
        batch: dict[str, Any] = {}
        sums = watchers[what](sites, rank, batch, hooks)
        _run(model, calibration, what == "gradients", batch, progress)
    unseen = [name for name, total in sums.items() if not total.count]
    if unseen:
        more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        raise ValueError(
            f"no {what} reached {', '.join(unseen[:3])}{more} during calibration: exclude what the model does not "
            "use, or check that the calibration runs it (and, for gradients, calls backward)"
        )
    return sums


def _finite(name: str, what: str, statistic: Any) -> Any:
    arrays = (statistic,) if isinstance(statistic, Tensor) else statistic.arrays()
    if not all(bool(torch.isfinite(a).all()) for a in arrays):
        raise ValueError(f"the {what} of {name} hold NaN or infinity; look at the calibration data and the loss")
    return statistic


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The pretrained model in evaluation mode and without gradients, for a while; then everything as it was."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    with ExitStack() as stack:
        if setups(model):
            stack.enter_context(disable(model))
        try:
            model.eval()
            for p, _, _ in flags:
                p.grad = None
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for p, flag, grad in flags:
                p.requires_grad_(flag)
                p.grad = grad


# gradients --------------------------------------------------------------------------------------------------


def _watch_gradients(sites: list[Site], rank: int, batch: dict[str, Any], hooks: ExitStack) -> dict[str, Any]:
    """Add up the gradient of every weight and let go of it, as soon as backward has computed it."""
    tests: dict[Any, Tensor] = {}
    fits = sum(4 * site.shape[0] * site.shape[1] for site in sites) <= BUDGET
    sums: dict[str, Any] = {}
    for site in sites:
        sketch = GradientSketch(site.shape, rank, tests)
        sums[site.name] = Gradient() if fits or sketch.size > site.shape[0] * site.shape[1] else sketch
    owners: dict[nn.Parameter, list[Site]] = {}
    for site in sites:
        owners.setdefault(_weight(site), []).append(site)
    for parameter, shared in owners.items():
        parameter.requires_grad_(True)
        handle = parameter.register_post_accumulate_grad_hook(partial(_take, shared, sums))
        hooks.callback(handle.remove)
    return sums


def _weight(site: Site) -> nn.Parameter:
    weight = site.layer.weight
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        raise TypeError(
            f"{site.name} ({type(site.layer).__name__}) has no floating-point weight to take a gradient of; "
            "exclude it, or take a recipe that does not start from gradients"
        )
    return weight


def _take(shared: list[Site], sums: dict[str, Any], parameter: Tensor) -> None:
    gradient, parameter.grad = parameter.grad, None
    if gradient is None:
        return
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    for site in shared:
        sums[site.name].add(site.kind.weight(_Stored(site.layer, gradient)).float())


class _Stored:
    """A layer with another weight, so that a gradient can be read as the layer reads its weight."""

    def __init__(self, layer: nn.Module, weight: Tensor):
        self.layer, self.weight = layer, weight

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)


# inputs -------------------------------------------------------------------------------------------------------


def _watch_inputs(sites: list[Site], rank: int, batch: dict[str, Any], hooks: ExitStack) -> dict[str, Any]:
    """Add up the second moments of what every layer is given."""
    sums = {}
    for site in sites:
        n = site.shape[1]
        sums[site.name] = Moments(n) if n <= WIDTH else MomentsSketch(n, 4 * rank + 64)
        hook = partial(_see, site, sums[site.name], batch)
        handle = site.layer.register_forward_pre_hook(hook, with_kwargs=True)
        hooks.callback(handle.remove)
    # The model is frozen now, but a function that runs it may call backward, as one for gradients does: let it.
    for parameter in sites[0].layer.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return sums


def _see(site: Site, total: Any, batch: dict[str, Any], layer: nn.Module, args: Any, kwargs: Any) -> None:
    x = args[0] if args else next(iter(kwargs.values()))
    if not x.is_floating_point():
        raise TypeError(f"{site.name} ({type(layer).__name__}) has no inputs but indices; exclude it")
    with torch.no_grad():
        total.add(_rows(site, x, batch.get("attention_mask")).float())


def _rows(site: Site, x: Tensor, mask: Any) -> Tensor:
    """What the matrix of the layer multiplies: (k, in), without tokens that the mask excludes."""
    if isinstance(mask, Tensor) and x.ndim == 3 and x.shape[:2] == mask.shape:
        x = x[mask.bool()]
    rows = site.kind.rows(site.layer, x)
    n = site.shape[1]
    if rows.ndim == 2 and rows.shape[1] == n:
        return rows
    patches = site.kind.run(site.layer, x, torch.eye(n, device=x.device, dtype=x.dtype), bias=False)
    return patches.flatten(2).mT.reshape(-1, n)


# running ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def run(model: nn.Module, data: Any) -> None:
    """Run the model as it is over batches, or call the function that does, without gradients."""
    if callable(data):
        data()
    else:
        _run(model, data, False, {}, False)


def _run(model: nn.Module, calibration: Any, backward: bool, batch: dict[str, Any], progress: bool) -> None:
    """Run the model over all data; ``batch`` holds what hooks want to know of the current one."""
    if callable(calibration):
        with torch.set_grad_enabled(True):
            result = calibration()
            if backward:
                for loss in _losses(result):
                    _backward(loss)
        return
    if not isinstance(calibration, Iterable) or isinstance(calibration, (str, Mapping, Tensor)):
        raise TypeError(
            f"calibration must be batches for the model, or a function that runs it, got {type(calibration).__name__}; "
            "put a single batch into a list"
        )
    device = next(model.parameters()).device
    empty = True
    for data in _shown(calibration, progress):
        empty = False
        data = _moved(data, device)
        batch.clear()
        batch.update(data if isinstance(data, Mapping) else {})
        with torch.set_grad_enabled(backward):
            output = _call(model, data)
            if backward:
                _backward(_loss(output))
    if empty:
        raise ValueError("calibration has no batches (an iterator that was used up already?)")


def _losses(result: Any) -> Iterable[Any]:
    if result is None:
        return ()
    return (result,) if isinstance(result, Tensor) else result


def _loss(output: Any) -> Any:
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", output)
    if loss is None:
        raise ValueError("the output of the model has no loss: put labels into the batches, or pass a function")
    return loss


def _backward(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"calibration for gradients needs a scalar loss, got {shape}: batches must lead to an output with "
            "a loss; or pass a function that computes one"
        )
    if not loss.requires_grad:
        raise ValueError("the calibration loss has no gradient with respect to the chosen layers")
    loss.backward()


def _call(model: nn.Module, data: Any) -> Any:
    if isinstance(data, Mapping):
        return model(**data)
    if isinstance(data, (tuple, list)):
        return model(*data)
    if isinstance(data, Tensor):
        return model(data)
    raise TypeError(f"a batch must be a mapping, a tuple or a tensor, got {type(data).__name__}")


def _moved(data: Any, device: torch.device) -> Any:
    if isinstance(data, Tensor):
        return data.to(device)
    if isinstance(data, Mapping):
        return {key: _moved(value, device) for key, value in data.items()}
    if isinstance(data, (tuple, list)):
        return type(data)(_moved(value, device) for value in data)
    return torch.as_tensor(data, device=device) if isinstance(data, np.ndarray) else data


def _shown(batches: Iterable[Any], progress: bool) -> Iterable[Any]:
    """With a bar that appears when it takes long, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return batches
    total = len(batches) if isinstance(batches, Collection) else None
    return tqdm(batches, "calibration", total=total, delay=5, leave=False, disable=not progress)
