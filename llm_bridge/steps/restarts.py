"""Training in phases: what a low-rank adapter has learned is kept, and its factors start again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers

from ..adapter import Adapter
from ..distributed import placements, unwrapped
from ..inject import acting, known
from ..optimizer import LowRankOptimizer
from ..restore import sites_at
from ..sites import Site, layer_index
from ..starts import Start, StartSite
from ..truncation import reduced, thin_sum
from .companion import Companion
from .forget import forget
from .keep import Beside, Keep, layer_at, vanishes

__all__ = [
    "Phases",
    "RestartReport",
    "Restarts",
    "chain_of_lora",
    "jagged",
    "periodic_lora",
    "relora",
    "xgblora",
]


@dataclass(frozen=True)
class Phases:
    """What restarts do; the published methods are settings.

    Parameters
    ----------
    every : int
        Steps of a phase.
    forget : float
        In (0, 1]: the share of the optimizer's state that is forgotten at a restart, see `forget`.
    momentum : float
        mu in [0, 1): with the update ``D`` that a phase has learned, what is kept moves by
        ``V = mu V + (1 - mu) D``, and by D itself at 0. Else the model changes at a restart.
    layers : int, optional
        Only so many blocks of the model, drawn anew for every phase, train. By default all.
    start : Start, optional
        Of the factors at a restart; by default that of the recipe, at the weight as it then is.
    keep : Keep
        Where the updates go: `Beside` the weights, or `InWeights`.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    every: int
    forget: float = 1.0
    momentum: float = 0.0
    layers: int | None = None
    start: Start | None = None
    keep: Keep = field(default_factory=Beside)

    def __post_init__(self):
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every must be a positive number of steps, got {self.every!r}")
        if not 0 < self.forget <= 1:
            raise ValueError(f"forget must lie in (0, 1], got {self.forget}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if self.layers is not None and self.layers < 1:
            raise ValueError(f"layers must be positive, got {self.layers}")


@covers("P40", "R20")
def relora(every: int, forget: float = 0.99, keep: Keep | None = None) -> Phases:
    """ReLoRA: factors start again, and all but the largest entries of the optimizer's state are forgotten.

    To be used with the schedule of `jagged`.

    Parameters
    ----------
    every, forget, keep
        As for `Phases`.

    Notes
    -----
    Source: :cite:`lialin2024relora`; equations (12)-(13) of :cite:`he2026unified`.
    """
    return Phases(every, forget, keep=keep or Beside())


@covers("P41", "R21")
def periodic_lora(every: int, momentum: float = 0.1, keep: Keep | None = None) -> Phases:
    """PeriodicLoRA: updates are kept with momentum.

    Parameters
    ----------
    every, momentum, keep
        As for `Phases`.

    Notes
    -----
    The survey names the momentum without a formula; that of `Phases` is reconstructed from the published idea, and
    its default is chosen here. Source: :cite:`meng2024periodiclora`; :cite:`he2026unified`.
    """
    return Phases(every, momentum=momentum, keep=keep or Beside())


@covers("P42", "R21")
def chain_of_lora(every: int, keep: Keep | None = None) -> Phases:
    """Chain of LoRA: residual after residual, every one with an optimizer that knows nothing of those before.

    Source: :cite:`xia2024cola`; :cite:`he2026unified`.

    Parameters
    ----------
    every, keep
        As for `Phases`.
    """
    return Phases(every, keep=keep or Beside())


@covers("P43", "R21")
def xgblora(every: int, layers: int = 2, keep: Keep | None = None) -> Phases:
    """XGBLoRA: gradient boosting, each phase in a few blocks that are drawn at random; meant for adapters of rank 1.

    Source: :cite:`zhang2024xgblora`; :cite:`he2026unified`.

    Parameters
    ----------
    every, layers, keep
        As for `Phases`.
    """
    return Phases(every, layers=layers, keep=keep or Beside())


@covers("O46")
def jagged(every: int, warmup: int = 10, first: int = 0, steps: int | None = None, floor: float = 0.1) -> Any:
    """A factor of the learning rate that rises from zero again after every restart, for ``LambdaLR``.

    Parameters
    ----------
    every, warmup : int
        Steps of a phase, and those in which it rises again, linearly.
    first : int
        The same at the beginning of training.
    steps : int, optional
        Of the whole run: over them the factor also falls to ``floor``, as half a cosine. By default it stays.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    Source: :cite:`lialin2024relora`; section II-B1 of :cite:`he2026unified`.
    """
    if every < 1 or not 0 <= warmup < every or first < 0 or not 0 <= floor <= 1:
        raise ValueError(
            f"needs 0 <= warmup < every, first >= 0 and 0 <= floor <= 1, got {warmup=}, {every=}, {first=}, {floor=}"
        )

    def factor(step: int) -> float:
        rise, done = (first, step) if step < every else (warmup, step % every)
        fall = 1.0 if steps is None else 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
        return (floor + (1 - floor) * fall) * (min(1.0, done / rise) if rise else 1.0)

    return factor


@dataclass(frozen=True)
class RestartReport:
    """What a restart did.

    Attributes
    ----------
    phase : int
        The phase that begins.
    errors : dict
        By path, what rounding lost of the update, relative to it, in layers that had learned something.
    ranks : dict
        By path, the rank of what is kept beside the weights; empty where the weights hold it.
    trains : tuple of str
        Paths of the layers that train in the new phase.
    """

    phase: int
    errors: dict[str, float]
    ranks: dict[str, int]
    trains: tuple[str, ...]

    def __str__(self) -> str:
        kept = f", rank {max(self.ranks.values())} beside the weights" if self.ranks else ", in the weights"
        lost = max(self.errors.values(), default=0.0)
        return f"phase {self.phase}: kept {len(self.errors)} updates{kept}; rounding lost at most {lost:.2g} of one"


class Restarts(Companion):
    """Restarts of an adapter every so many steps of an optimizer; resumes with the ``state_dict`` of that.

    Parameters
    ----------
    model : Module
        With an active adapter, of a recipe that adds a matrix to each weight and shares nothing between layers.
    optimizer : Optimizer
    phases : Phases
        Such as ``relora(every=1000)``.
    name : str
        Of the adapter.
    seed : int
        Together with the phase and the path of a layer it determines the starts.

    Attributes
    ----------
    steps : int
    reports : list of RestartReport
        One for every restart of this process.

    Raises
    ------
    ValueError, TypeError
        If there is no such adapter, it is not active, or its recipe cannot restart, saying what would work.

    Notes
    -----
    ``model.load_state_dict`` and then ``optimizer.load_state_dict``, in an equally prepared model, go on with a run
    exactly. With ``layers`` the set of trained parameters changes, which DistributedDataParallel does not
    allow unless it looks for unused ones.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, phases: Phases, name: str = "default", seed: int = 0
    ):
        model = unwrapped(model)
        self.model, self.phases, self.name, self.seed = model, phases, name, seed
        self.setup = known(model, name)
        self.paths = tuple(acting(model, name))
        self.start = phases.start or self.setup.recipe.init
        _check(self)
        self.check(optimizer)
        _check_moments(self, optimizer)
        phases.keep.prepare(model, name)
        self.optimizer = optimizer
        self.steps = 0
        self.velocity: dict[str, tuple[Tensor, Tensor]] = {}
        self.reports: list[RestartReport] = []
        self.attach(optimizer)
        self._choose()

    # what the optimizer calls --------------------------------------------------------------------------------
    def parameters(self):
        return [p for path in self.paths for p in self.adapter(path).parameters()]

    def before(self):
        pass

    def after(self):
        self.steps += 1
        if self.steps % self.phases.every == 0:
            self.reports.append(self._restart())

    def state(self):
        pairs = {path: {"left": left, "right": right} for path, (left, right) in self.velocity.items()}
        return {"steps": self.steps, "velocity": pairs}

    def restore(self, state):
        self.steps = int(state["steps"])
        # Saved states are often read to the CPU, and these are no state of a parameter, which torch would move.
        devices = {path: self.adapter(path).product()[0].device for path in self.paths}
        self.velocity = {p: (v["left"].to(devices[p]), v["right"].to(devices[p])) for p, v in state["velocity"].items()}
        self._choose()

    # a restart -----------------------------------------------------------------------------------------------
    @property
    def phase(self) -> int:
        """Number of the present phase, from 0."""
        return self.steps // self.phases.every

    def adapter(self, path: str) -> Adapter:
        """The adapter of a layer."""
        return layer_at(self.model, path).adapter(self.name)

    @torch.no_grad()
    def _restart(self) -> RestartReport:
        sites = sites_at(self.model, self.paths, "the model")
        learned = {path: self._learned(path) for path in self.paths}
        for path, pair in learned.items():
            if not all(torch.isfinite(a).all() for a in pair):
                raise ValueError(f"the update of {path} is not finite at a restart; a smaller learning rate may help")
        errors = {path: self.phases.keep.absorb(self.model, self.name, path, *pair) for path, pair in learned.items()}
        for site in sites:
            self._begin(site)
        forget(self.optimizer, [self.adapter(path) for path in self.paths], self.phases.forget)
        trains = self._choose()
        errors = {path: error for path, error in errors.items() if not vanishes(*learned[path])}
        return RestartReport(self.phase, errors, self.phases.keep.ranks(self.model, self.name), trains)

    def _learned(self, path: str) -> tuple[Tensor, Tensor]:
        """Thin factors of what is to be kept of this phase."""
        left, right = thin_sum([self.adapter(path)], [1.0])
        mu = self.phases.momentum
        if mu == 0:
            return left, right
        old = self.velocity.get(path, (left[:, :0], right[:, :0]))
        left, right = torch.cat((mu * old[0], (1 - mu) * left), 1), torch.cat((old[1], right), 1)
        self.velocity[path] = reduced(left, right)
        return self.velocity[path]

    def _begin(self, site: Site) -> None:
        """The factors of a layer at a fresh start, in place."""
        adapter = self.adapter(site.name)
        rank = self.setup.ranks[site.name]
        size = self.setup.recipe.size(site.shape, rank)
        rng = np.random.default_rng([self.seed, self.phase, *site.name.encode()])
        weight = self.phases.keep.weight(self.model, self.name, site)
        point = self.start(StartSite(adapter.form, site.shape, size, adapter.scale, rng, lambda: weight))
        for name, array in zip(point.names, point.arrays(), strict=True):
            getattr(adapter, name).copy_(array)
            if adapter.shifted:
                getattr(adapter, f"start_{name}").copy_(array)

    def _choose(self) -> tuple[str, ...]:
        """Let the layers of this phase train, and no others; returns their paths."""
        if self.phases.layers is None:
            return self.paths
        blocks = _blocks(self.model, self.paths)
        rng = np.random.default_rng([self.seed, self.phase])
        drawn = {list(blocks)[i] for i in rng.choice(len(blocks), self.phases.layers, replace=False)}
        chosen = tuple(path for block, paths in blocks.items() if block in drawn for path in paths)
        for path in self.paths:
            for array in self.adapter(path).parameters():
                array.requires_grad_(path in chosen)
                array.grad = None
        return chosen


def _blocks(model: nn.Module, paths: tuple[str, ...]) -> dict[Any, list[str]]:
    """Paths by the block of the model that they lie in; layers outside of blocks are each their own."""
    blocks: dict[Any, list[str]] = {}
    for path in paths:
        index = layer_index(model, path)
        blocks.setdefault(path if index is None else index, []).append(path)
    return blocks


def _check(restarts: Restarts) -> None:
    """Whether the adapter of these restarts can begin again."""
    made, model = restarts.setup.recipe, restarts.model
    if not made.combine.additive or not made.mergeable:
        raise ValueError(
            f"recipe {made.name!r} does not add a matrix to the weight, so that its updates cannot be kept "
            "from phase to phase; take one that does, such as 'lora'"
        )
    if not all(restarts.adapter(path).thin for path in restarts.paths):
        raise ValueError(f"recipe {made.name!r} has no thin factors to keep from phase to phase; take 'lora'")
    if made.shares:
        raise ValueError(f"recipe {made.name!r} shares arrays between layers, which cannot start again one by one")
    if restarts.start.needs is not None:
        raise ValueError(
            f"the start of recipe {made.name!r} looks at {restarts.start.needs}, which a restart does not have; "
            "give Phases a start that needs none, such as start=lb.Default()"
        )
    if type(restarts.start).moves and not restarts.adapter(restarts.paths[0]).shifted:
        raise ValueError(
            "this start does not begin at zero, and the adapter was made by one that does; adapt the model with a "
            "recipe that has it"
        )
    if any(placements(array) is not None for path in restarts.paths for array in restarts.adapter(path).parameters()):
        raise ValueError("the factors are sharded; restarts work on whole ones, so do not shard the adapters")
    count = len(_blocks(model, restarts.paths))
    if restarts.phases.layers is not None and restarts.phases.layers > count:
        raise ValueError(f"layers must be at most {count}, the number of adapted blocks, got {restarts.phases.layers}")


def _check_moments(restarts: Restarts, optimizer: torch.optim.Optimizer) -> None:
    """Refuse factors in float16 where the optimizer keeps second moments in their type, as those of torch do.

    The gradients after a restart are so small that their squares are zero in float16. A first moment that is not is
    then divided by Adam's epsilon alone, and a step is larger by orders of magnitude.
    """
    buckets = optimizer.buckets if isinstance(optimizer, LowRankOptimizer) else []
    precise = {id(adapter) for bucket in buckets for adapter in bucket.adapters}
    for path in restarts.paths:
        adapter = restarts.adapter(path)
        if id(adapter) not in precise and any(p.dtype == torch.float16 for p in adapter.parameters()):
            raise ValueError(
                f"the factors of {path} are in float16, in which the second moments of AdamW vanish after a restart; "
                "adapt the model with dtype=torch.float32 (the default) or torch.bfloat16"
            )
