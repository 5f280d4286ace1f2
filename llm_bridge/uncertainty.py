"""How sure an adapted model is: a Gaussian posterior around trained factors, and what it says about outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import log10
from typing import Any, NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from lowrank_sp.coverage import covers
from lowrank_sp.parameterizations import BurerMonteiro

from .combines import Additive
from .experts.tokens import samples
from .inject import acting, adapted
from .layers import CONV1D, LINEAR
from .life import require_unmerged

__all__ = ["Categorical", "Gaussian", "Likelihood", "Posterior", "laplace"]


class Likelihood(ABC):
    """How outputs (samples, C) of a model give probabilities of targets."""

    @abstractmethod
    def directions(self, outputs: Tensor) -> Tensor:
        """Vectors d_k, (K, samples, C): the Hessian of ``-log p`` in the outputs is ``sum_k d_k d_k^T``."""


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Outputs are logits of classes."""

    def directions(self, outputs):
        p = outputs.softmax(-1)
        unit = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
        return p.mT[..., None].sqrt() * (unit[:, None] - p)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Outputs are means of targets with this standard deviation."""

    deviation: float = 1.0

    def __post_init__(self):
        if self.deviation <= 0:
            raise ValueError(f"deviation must be positive, got {self.deviation}")

    def directions(self, outputs):
        unit = torch.eye(outputs.shape[-1], dtype=outputs.dtype, device=outputs.device)
        return unit[:, None].expand(-1, *outputs.shape) / self.deviation


# curvature ----------------------------------------------------------------------------------------------------------
class Kronecker(NamedTuple):
    """The curvature ``(U s^2 U^T) (x) (V t^2 V^T)`` of a matrix, with orthonormal U (n, p) and V (r, q)."""

    u: Tensor
    s: Tensor
    v: Tensor
    t: Tensor

    def values(self) -> Tensor:
        """Eigenvalues that need not vanish, (p, q)."""
        return self.s[:, None].square() * self.t.square()


class _Sum:
    """The leading part of ``sum a a^T`` over vectors that come in batches, as a thin factor (n, k)."""

    def __init__(self, rank: int | None):
        self.rank = rank
        self.basis: tuple[Tensor, Tensor] | None = None

    def add(self, rows: Tensor) -> None:
        columns = rows.flatten(0, -2).mT
        whole = columns if self.basis is None else torch.cat([self.basis[0] * self.basis[1], columns], 1)
        u, s, _ = torch.linalg.svd(whole, full_matrices=False)
        self.basis = u[:, : self.rank], s[: self.rank]


class _Seen(NamedTuple):
    """Of a layer in one pass: inputs (samples, tokens, n), the output, the factors and their scale."""

    x: Tensor
    out: Tensor
    left: Tensor
    right: Tensor
    scale: float

    def inputs(self) -> dict[str, Tensor]:
        """What every factor multiplies, (samples, tokens, k)."""
        return {"left": self.scale * (self.x @ self.right), "right": self.x}

    def gradients(self, grad: Tensor) -> dict[str, Tensor]:
        """For a gradient of the output those of the products with every factor, (samples, tokens, k)."""
        g = samples(grad, len(self.x)).double()
        return {"left": g, "right": self.scale * (g @ self.left)}


@contextmanager
def _watching(model: nn.Module, name: str) -> Iterator[dict[str, _Seen]]:
    """What passes through the layers of an adapter while the model runs in evaluation mode with gradients."""
    seen: dict[str, _Seen] = {}
    layers, modes = adapted(model), [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        for module, mode in modes:
            stack.callback(setattr, module, "training", mode)
        model.eval()
        for path in acting(model, name):
            handle = layers[path].register_forward_hook(partial(_note, seen, path, name))
            stack.callback(handle.remove)
        stack.enter_context(torch.enable_grad())
        yield seen


def _note(seen: dict[str, _Seen], path: str, name: str, layer: Any, args: tuple[Any, ...], out: Tensor) -> None:
    if path in seen:
        raise ValueError(f"{path} was called twice for one batch, which this curvature does not know")
    adapter: Any = layer.adapter(name)
    factors = adapter.left.detach().double(), adapter.right.detach().double()
    seen[path] = _Seen(args[0].detach().double(), out, *factors, adapter.scale)


def _run(seen: dict[str, _Seen], outputs: Callable[[Any], Tensor], batch: Any) -> tuple[Tensor, dict[str, _Seen]]:
    """The outputs (samples, C) for a batch, and what layers have seen, sample by sample."""
    seen.clear()
    out = outputs(batch)
    if not isinstance(out, Tensor) or out.ndim != 2 or not out.requires_grad:
        raise ValueError(
            "outputs must return a tensor (samples, C) that depends on the factors, such as "
            f"lambda batch: model(**batch).logits; got {tuple(out.shape) if isinstance(out, Tensor) else type(out)}"
        )
    return out, {path: s._replace(x=samples(s.x, len(out))) for path, s in seen.items()}


# posterior ----------------------------------------------------------------------------------------------------------
@covers("A19")
@dataclass(frozen=True)
class Posterior:
    """``N(factors, (curvature + precision)^-1)``, factor by factor and layer by layer; made by `laplace`.

    Attributes
    ----------
    model : Module
    name : str
        Of the adapter.
    blocks : dict
        By path and factor its `Kronecker` curvature.
    precision : float
        Of the Gaussian prior around zero, for every entry of the factors.
    outputs : callable ``batch -> Tensor (samples, C)``
    """

    model: nn.Module
    name: str
    blocks: dict[tuple[str, str], Kronecker]
    precision: float
    outputs: Callable[[Any], Tensor]

    def predict(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Means (samples, C) and covariances (samples, C, C) of the outputs, as if linear in the factors.

        Costs a backward pass for each of the C outputs.
        """
        with _watching(self.model, self.name) as seen:
            mean, passed = _run(seen, self.outputs, batch)
            outs = [s.out for s in passed.values()]
            grads = [torch.autograd.grad(column.sum(), outs, retain_graph=True) for column in mean.unbind(1)]
        total = torch.zeros(*mean.shape, mean.shape[1], dtype=torch.float64, device=mean.device)
        for i, (path, s) in enumerate(passed.items()):
            inputs, gradients = s.inputs(), [s.gradients(grad[i]) for grad in grads]
            for factor in ("left", "right"):
                jacobians = [torch.einsum("stn,str->snr", *_sides(factor, inputs, g)) for g in gradients]
                total += self._variance(self.blocks[path, factor], torch.stack(jacobians, 1))
        return mean.detach(), total

    def _variance(self, block: Kronecker, jacobian: Tensor) -> Tensor:
        """``J S J^T`` (samples, C, C) for Jacobians (samples, C, n, r) of one factor with covariance S."""
        flat = jacobian.flatten(2)
        inside = (block.u.mT @ jacobian @ block.v).flatten(2)
        change = (1 / (self.precision + block.values()) - 1 / self.precision).flatten()
        return flat @ flat.mT / self.precision + (inside * change) @ inside.mT

    def probabilities(self, batch: Any, draws: int = 1000, seed: int = 0) -> Tensor:
        """Probabilities of classes (samples, C): the mean softmax over draws of the outputs."""
        mean, covariance = (t.double().cpu() for t in self.predict(batch))
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp_min(0).sqrt()[:, None]
        noise = torch.randn(draws, *mean.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return (mean + (root @ noise[..., None])[..., 0]).softmax(-1).mean(0)

    def evidence(self, precision: float) -> float:
        """The logarithm of the marginal likelihood of the data with another precision, up to a constant."""
        arrays = [array for adapter in acting(self.model, self.name).values() for array in adapter.parameters()]
        square = sum(float(array.detach().double().square().sum()) for array in arrays)
        gains = sum(float((block.values() / precision).log1p().sum()) for block in self.blocks.values())
        return -(precision * square + gains) / 2

    def tuned(self, low: float = 1e-4, high: float = 1e6) -> Posterior:
        """The same with the precision of largest evidence between two bounds."""
        if not 0 < low < high:
            raise ValueError(f"low and high must be positive and in this order, got {low} and {high}")
        found: Any = minimize_scalar(
            lambda t: -self.evidence(10.0**t), bounds=(log10(low), log10(high)), method="bounded"
        )
        return replace(self, precision=float(10.0**found.x))


def _sides(factor: str, inputs: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What meets the rows of a factor and what its columns: left (m, r) maps to its rows, right (n, r) from them."""
    pair = gradients[factor], inputs[factor]
    return pair if factor == "left" else pair[::-1]


@covers("A19")
def laplace(
    model: nn.Module,
    data: Iterable[Any],
    outputs: Callable[[Any], Tensor],
    likelihood: Likelihood | None = None,
    name: str = "default",
    precision: float = 1.0,
    rank: int | None = 64,
) -> Posterior:
    """Laplace's approximation around the trained factors of an adapter: Laplace-LoRA.

    The curvature of the loss is that of Gauss and Newton, for every factor of every layer as a Kronecker product of
    the moments of what it multiplies and of the gradients of the product (KFAC), both with their leading parts only.
    Factors count as independent of each other.

    Parameters
    ----------
    model : Module
        In evaluation mode while it runs, so without dropout.
    data : iterable of batches
        The training data.
    outputs : callable ``batch -> Tensor (samples, C)``
        Runs the model, such as ``lambda batch: model(**batch).logits``; of a causal model the logits of the answers at
        the last token.
    likelihood : Likelihood, optional
        By default `Categorical`; for regression `Gaussian`.
    name : str
        Of an active adapter that adds products of two factors that train to linear layers.
    precision : float
        Of the prior, as weight decay of the summed loss; ``laplace(...).tuned()`` chooses it by the evidence.
    rank : int, optional
        Of moments at most so many directions are kept, None keeps all; variances are then rather too large.

    Returns
    -------
    Posterior

    Raises
    ------
    ValueError, TypeError
        If the adapter is not active or of another kind, there are no data, outputs are no matrices, or a number is
        not positive.

    Notes
    -----
    Tokens of a sample count as samples of their own in the moments. Reconstructed from the description of the
    published method. Source: :cite:`yang2024laplace`.
    """
    require_unmerged(model)
    _check(model, name, precision, rank)
    likelihood, count = Categorical() if likelihood is None else likelihood, 0
    sums: dict[tuple[str, str], tuple[_Sum, _Sum]] = {}
    with _watching(model, name) as seen:
        for batch in data:
            out, passed = _run(seen, outputs, batch)
            count += max((s.x.shape[:-1].numel() for s in passed.values()), default=0)
            for path, s in passed.items():
                for factor, x in s.inputs().items():
                    sums.setdefault((path, factor), (_Sum(rank), _Sum(rank)))[0].add(x)
            outs = [s.out for s in passed.values()]
            for direction in likelihood.directions(out.detach()):
                grads = torch.autograd.grad(out, outs, direction.to(out.dtype), retain_graph=True)
                for (path, s), grad in zip(passed.items(), grads, strict=True):
                    for factor, g in s.gradients(grad).items():
                        sums[path, factor][1].add(g)
    if not sums:
        raise ValueError("data have no batches, or outputs does not run the layers of the adapter")
    return Posterior(model, name, {key: _block(key[1], *pair, count) for key, pair in sums.items()}, precision, outputs)


def _block(factor: str, inputs: _Sum, gradients: _Sum, count: int) -> Kronecker:
    """The curvature of a factor from sums over so many tokens."""
    rows, columns = (gradients, inputs) if factor == "left" else (inputs, gradients)
    assert rows.basis is not None
    assert columns.basis is not None
    return Kronecker(rows.basis[0], rows.basis[1] / count**0.5, *columns.basis)


def _check(model: nn.Module, name: str, precision: float, rank: int | None) -> None:
    if precision <= 0 or (rank is not None and rank < 1):
        raise ValueError(f"precision and rank must be positive, got {precision} and {rank}")
    layers = adapted(model)
    for path, adapter in acting(model, name).items():
        plain = adapter.form is BurerMonteiro and isinstance(adapter.combine, Additive)
        if not plain or set(adapter.trains) != {"left", "right"} or layers[path].kind not in (LINEAR, CONV1D):
            raise TypeError(
                f"{path}: the curvature is known for linear layers to which two factors that train are added, such as "
                f"'lora'; this is {adapter.form.__name__} on {type(layers[path].base).__name__}"
            )
