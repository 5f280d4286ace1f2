"""Where the updates of finished phases go: beside the weights as thin factors, or into the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_sp.parameterizations import BurerMonteiro

from ..adapter import Adapter, key_of
from ..combines import Additive
from ..inject import Setup, adapted, check_name, install, setups
from ..life import activate, active
from ..noise import Noise
from ..parts import Part
from ..precision import precise
from ..recipe import RECIPES
from ..restore import sites_at
from ..sites import Site
from ..truncation import reduced

__all__ = ["Beside", "InWeights", "Keep", "layer_at", "set_past", "vanishes"]


class Keep(ABC):
    """A place for what an adapter has learned in earlier phases."""

    @abstractmethod
    def prepare(self, model: nn.Module, name: str) -> None:
        """Make the place ready for an adapter; again for a model that has it already."""

    @abstractmethod
    def absorb(self, model: nn.Module, name: str, path: str, left: Tensor, right: Tensor) -> float:
        """Add ``left right^T`` to what is kept of a layer; returns the relative error of rounding."""

    @abstractmethod
    def weight(self, model: nn.Module, name: str, site: Site) -> Tensor:
        """The weight (out, in) of a layer with everything that is kept, in single precision or better."""

    @abstractmethod
    def ranks(self, model: nn.Module, name: str) -> dict[str, int]:
        """Rank by path of what is kept beside the weights."""


@dataclass(frozen=True)
class Beside(Keep):
    """As a second adapter ``<name>-past``, a plain LoRA that does not train and whose rank grows.

    The weights stay as they are, quantized ones too, and nothing is lost but rounding of single precision. Both
    adapters act together: ``lb.export_lora(model)`` writes their sum, ``lb.save`` each of them, ``lb.combine`` makes
    one of both, ``lb.merge`` puts both into the weights. A pass costs what an adapter of the sum of ranks costs.

    Parameters
    ----------
    tolerance : float
        Singular values below this share of the largest are rounding, and left out.
    """

    tolerance: float = 1e-7

    def prepare(self, model, name):
        past = f"{name}-past"
        if past not in setups(model):
            check_name(model, past)
            _install_past(model, name, past)
        for path, layer in adapted(model).items():
            if past in layer.names():
                layer.adapters[key_of(past)] = _frozen(layer.adapter(past), setups(model)[past], path)

    def absorb(self, model, name, path, left, right):
        past, setup = layer_at(model, path).adapter(f"{name}-past"), setups(model)[f"{name}-past"]
        if vanishes(left, right):
            return 0.0
        whole = torch.cat((past.left.double(), left), 1), torch.cat((past.right.double(), right), 1)
        kept = reduced(*whole, tolerance=self.tolerance)
        _set(past, setup, path, *(a.to(past.left.dtype) for a in kept))
        lost = reduced(torch.cat((whole[0], -past.left.double()), 1), torch.cat((whole[1], past.right.double()), 1))
        return float(_size(*lost) / _size(left, right))

    def weight(self, model, name, site):
        past = layer_at(model, site.name).adapter(f"{name}-past")
        return precise(site.kind.weight(site.layer)) + past.update()

    def ranks(self, model, name):
        return dict(setups(model)[f"{name}-past"].ranks)


@dataclass(frozen=True)
class InWeights(Keep):
    """In the weights, as the methods are published: a pass costs no more in later phases, and nothing can be undone.

    The adapter then belongs to weights that exist nowhere else, and `save` and its kin refuse it. What was learned
    leaves as a whole model: ``lb.merge(model)``, ``lb.unload(model)``, and save that. Weights in half precision
    round every update; the report of a restart says how much is lost. A weight that a layer shares with another module
    becomes its own, as the other one is not adapted.
    """

    def prepare(self, model, name):
        paths = [path for path, layer in adapted(model).items() if name in layer.names()]
        sites = sites_at(model, paths, "the model")
        for site in sites:
            site.kind.stored(site.layer, site.kind.weight(site.layer))  # quantized weights refuse
            if isinstance(site.layer, Part):
                raise ValueError(
                    f"{site.name} is a part of a parameter of its module, which checkpoints of adapters do not hold; "
                    "keep what was learned Beside the weights, or exclude it"
                )
        _untie(model, sites)
        for other in {other for path in paths for other in layer_at(model, path).names()}:
            setups(model)[other].rebased = f"earlier phases of training {name!r} are in the weights of the model"

    def absorb(self, model, name, path, left, right):
        layer = layer_at(model, path)
        weight = layer.kind.weight(layer.base)
        if vanishes(left, right):
            return 0.0
        change = (left @ right.mT).to(torch.promote_types(weight.dtype, torch.float32))
        total = (weight.to(change.dtype) + change).to(weight.dtype)
        error = (total.double() - weight.double() - left @ right.mT).norm() / change.double().norm()
        layer.kind.replace(layer.base, layer.kind.stored(layer.base, total))
        return float(error)

    def weight(self, model, name, site):
        return precise(site.kind.weight(site.layer))

    def ranks(self, model, name):
        return {}


def layer_at(model: nn.Module, path: str) -> Any:
    """The adapted layer at a path, without a walk through the whole model."""
    return model.get_submodule(path)


def set_past(model: nn.Module, name: str, path: str, left: Tensor, right: Tensor) -> None:
    """Make ``left right^T`` what is kept `Beside` a layer."""
    past = layer_at(model, path).adapter(f"{name}-past")
    _set(past, setups(model)[f"{name}-past"], path, left.to(past.left.dtype), right.to(past.right.dtype))


# what is kept beside --------------------------------------------------------------------------------------------


def _install_past(model: nn.Module, name: str, past: str) -> None:
    """An adapter of rank one and zero, which acts together with those that act now."""
    names, flags = active(model), {id(p): p.requires_grad for p in model.parameters()}
    paths = [path for path, layer in adapted(model).items() if name in layer.names()]
    ones = dict.fromkeys(paths, 1)
    setup = Setup(RECIPES["lora"], ones, dict.fromkeys(paths, 1.0))
    adapters = {}
    for site in sites_at(model, paths, "the model"):
        like = next(layer_at(model, site.name).adapter(name).parameters()).detach()
        m, n = site.shape
        zero = BurerMonteiro(like.new_zeros(m, 1), like.new_zeros(n, 1))
        adapters[site.name] = Adapter(zero, 1.0, Additive(), Noise(), trains=())
    install(model, past, setup, sites_at(model, paths, "the model"), adapters)
    activate(model, *names, past)
    for parameter in model.parameters():
        parameter.requires_grad_(flags.get(id(parameter), False))


def _frozen(adapter: Adapter, setup: Setup, path: str) -> Adapter:
    """The same update in an adapter whose factors do not train, and take the rank of what is loaded into them."""
    left, right = adapter.product()
    made = Adapter(BurerMonteiro(left * adapter.scale, right), 1.0, Additive(), Noise(), trains=())
    made.register_load_state_dict_pre_hook(_Resized(setup, path))
    _set(made, setup, path, made.left, made.right)
    return made.train(adapter.training)


@dataclass(frozen=True, eq=False)
class _Resized:
    """Lets a module load factors of another rank than it has."""

    setup: Setup
    path: str

    def __call__(self, module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        loaded = [state.get(f"{prefix}{name}") for name in ("left", "right")]
        if all(a is not None for a in loaded):
            _set(module, self.setup, self.path, *(a.to(module.left) for a in loaded if a is not None))


def _set(adapter: Any, setup: Setup, path: str, left: Tensor, right: Tensor) -> None:
    adapter.left, adapter.right = left.clone(), right.clone()
    setup.ranks[path], setup.alphas[path] = left.shape[1], float(left.shape[1])


def _size(left: Tensor, right: Tensor) -> Tensor:
    """Frobenius norm of ``left right^T``."""
    return (torch.linalg.qr(left).R @ torch.linalg.qr(right).R.mT).norm()


def _untie(model: nn.Module, sites: list[Site]) -> None:
    """Give layers a copy of a weight that others use too, into which checkpoints could not be loaded apart."""
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for site in sites:
        if uses[id(site.layer.weight)] > 1:
            copy = site.kind.stored(site.layer, site.kind.weight(site.layer).detach().clone())
            site.kind.replace(site.layer, copy)


def vanishes(left: Tensor, right: Tensor) -> bool:
    """Whether ``left right^T`` is zero but for rounding, as where a start is subtracted and nothing has moved."""
    return bool(_size(left, right) <= 1e-12 * left.norm() * right.norm())
