"""Adapters that are good at every rank up to their own: in each step only the leading components act."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers
from lowrank_sp.parameterizations import BurerMonteiro

from ..adapter import Adapter
from ..distributed import unwrapped
from ..inject import acting, adapted, check_name, install, known
from ..life import require_unmerged
from ..noise import Noise
from ..restore import sites_at
from ..steps import Companion

__all__ = ["NestedRanks", "Truncated", "with_leading_ranks"]


@dataclass(frozen=True)
class Truncated(Noise):
    """Only the first ``rank`` components act in training, with the scale that an adapter of that rank would have.

    Parameters
    ----------
    rank : int
    factor : float
        Scale of that rank over the scale of the adapter.
    """

    rank: int = 1
    factor: float = 1.0

    def components(self, rank, like, training):
        if not training:
            return None
        return (torch.arange(rank, device=like.device) < self.rank).to(like.dtype) * self.factor


@dataclass(frozen=True)
class _Untruncated:
    """Gives adapters all of their components back, when a policy is detached."""

    adapters: dict[str, Adapter]

    def remove(self) -> None:
        for adapter in self.adapters.values():
            adapter.noise = Noise()


@covers("O45", "R22", "R24")
class NestedRanks(Companion):
    """DyLoRA: every step trains the first b components of all layers, with b drawn uniformly.

    Afterwards `with_leading_ranks` makes an adapter of any rank without more training.

    Parameters
    ----------
    model : Module
        With an active adapter of LoRA's form, made without dropout.
    optimizer : Optimizer
    least, most : int, optional
        Range of b; by default 1 and the smallest rank of a layer.
    only_last : bool
        Move the b-th component alone, so that those before it stay good at their own ranks.
    seed : int
    name : str
        Of the adapter.

    Raises
    ------
    ValueError, TypeError
        If there is no such adapter or it is of another form, or a number is out of range.

    Notes
    -----
    With the scale ``alpha / r``, b components act with ``alpha / b``, at which they are also deployed. Under
    ``torch.compile`` every b is a graph. Source: :cite:`valipour2023dylora`, :cite:`survey2026sp`.
    """

    sees_gradients = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        least: int = 1,
        most: int | None = None,
        only_last: bool = False,
        seed: int = 0,
        name: str = "default",
    ):
        model = unwrapped(model)
        setup = known(model, name)
        self.adapters = acting(model, name)
        _check_plain(self.adapters, setup.recipe.name, setup.dropout)
        smallest = min(setup.ranks[path] for path in self.adapters)
        most = smallest if most is None else most
        if not 1 <= least <= most <= smallest:
            raise ValueError(f"needs 1 <= least <= most <= {smallest}, the smallest rank, got {least} and {most}")
        self.setup, self.least, self.most, self.only_last = setup, least, most, only_last
        self.random = torch.Generator().manual_seed(seed)
        self.steps = 0
        self._old: list[Tensor] = []
        self.attach(optimizer)
        self._handles.append(_Untruncated(self.adapters))
        self._draw()

    def parameters(self):
        return self._arrays()

    def _draw(self) -> None:
        self.rank = int(torch.randint(self.least, self.most + 1, (), generator=self.random))
        self._show()

    def _show(self) -> None:
        for path, adapter in self.adapters.items():
            scale = self.setup.recipe.scale(self.setup.alphas[path], self.rank)
            adapter.noise = Truncated(rank=self.rank, factor=scale / adapter.scale)

    def _arrays(self) -> list[Tensor]:
        return [array for adapter in self.adapters.values() for array in (adapter.left, adapter.right)]

    def _off(self, array: Tensor) -> Tensor:
        """Which components (r,) stay as they are in this step."""
        index = torch.arange(array.shape[1], device=array.device)
        return index != self.rank - 1 if self.only_last else index >= self.rank

    @torch.no_grad()
    def before(self):
        for array in self._arrays():
            if array.grad is not None:
                array.grad.masked_fill_(self._off(array), 0.0)
        self._old = [array.clone() for array in self._arrays()]

    @torch.no_grad()
    def after(self):
        for array, old in zip(self._arrays(), self._old, strict=True):  # momentum and decay would move what did not act
            array.copy_(torch.where(self._off(array), old, array))
        self.steps += 1
        self._draw()

    def state(self):
        return {"steps": self.steps, "rank": self.rank, "random": self.random.get_state()}

    def restore(self, state):
        self.steps, self.rank = int(state["steps"]), int(state["rank"])
        self.random.set_state(state["random"].cpu())
        self._show()


def with_leading_ranks(model: nn.Module, rank: int, name: str = "default", new: str | None = None) -> str:
    """Add an adapter with the first components of another one, which becomes the only active one; returns its name.

    Parameters
    ----------
    model : Module
    rank : int
        At most that of every layer. The scale is the recipe's for this rank.
    name : str
        Of an adapter of LoRA's form.
    new : str, optional
        Of the new one; by default ``<name>-rank<rank>``.

    Raises
    ------
    ValueError, TypeError
        If there is no such adapter, it is of another form, the rank is out of range or the name is taken.
    """
    setup, new = known(model, name), f"{name}-rank{rank}" if new is None else new
    check_name(model, new)
    require_unmerged(model)
    found = {path: layer.adapter(name) for path, layer in adapted(model).items() if name in layer.names()}
    _check_plain(found, setup.recipe.name, 0.0)
    least = min(setup.ranks[path] for path in found)
    if not 1 <= rank <= least:
        raise ValueError(f"rank must lie between 1 and {least}, the smallest rank of a layer, got {rank}")
    made = replace(setup, ranks=dict.fromkeys(found, rank), dropout=0.0, also_train=(), originals={}, tuned={})
    adapters = {}
    for path, adapter in found.items():
        point = BurerMonteiro(adapter.left[:, :rank], adapter.right[:, :rank])
        scale = setup.recipe.scale(setup.alphas[path], rank)
        adapters[path] = Adapter(point, scale, adapter.combine, Noise(), adapter.trains)
    install(model, new, made, sites_at(model, found, "the model"), adapters)
    return new


def _check_plain(adapters: dict[str, Adapter], recipe: str, dropout: float) -> None:
    if any(adapter.form is not BurerMonteiro or adapter.shifted or adapter.extras for adapter in adapters.values()):
        raise TypeError(f"nested ranks need the components of plain LoRA, got recipe {recipe!r}; take 'lora'")
    if dropout:
        raise ValueError(f"nested ranks drop components themselves; adapt with dropout=0, got {dropout}")
