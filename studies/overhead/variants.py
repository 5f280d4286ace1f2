"""The variants in the survey's table of costs: what it measured, and how we make each of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

import llm_bridge as lb
import lowrank_sp as lr
from llm_bridge.experts import LowRankExperts, Top
from llm_bridge.recipes.shared import rasa_of
from studies.overhead.models import LAYERS

__all__ = ["VARIANTS", "Variant"]


def fixed(rank: int) -> Callable[[int], int]:
    """The same at every width."""
    return lambda width: rank


eight = fixed(8)


def growing(rank: int) -> Callable[[int], int]:
    """A rank in proportion to the width, which is `rank` at the 4096 of the survey."""
    return lambda width: max(1, rank * width // 4096)


@dataclass(frozen=True)
class Variant:
    """A row of the table.

    Parameters
    ----------
    hours, megabytes : float
        Printed.
    recipe : callable
        From a model to a recipe.
    rank : callable
        Width of the model to rank; at 4096 that of the survey.
    time, memory : float, optional
        Our own limits, relative to LoRA, on a GPU.
    cpu_time, cpu_bytes : float, optional
        Our own limits, relative to LoRA, on a CPU; bytes are those kept for backward beyond the frozen model.
    checkpointed : bool
        Activations of a block are computed again in backward.
    """

    hours: float
    megabytes: float
    recipe: Callable[[nn.Module], lb.Recipe]
    rank: Callable[[int], int] = eight
    time: float | None = None
    memory: float | None = None
    cpu_time: float | None = None
    cpu_bytes: float | None = None
    checkpointed: bool = False

    @property
    def source_time(self) -> float:
        """Printed time over LoRA's."""
        return self.hours / VARIANTS["LoRA"].hours

    @property
    def source_memory(self) -> float:
        """Printed memory over LoRA's."""
        return self.megabytes / VARIANTS["LoRA"].megabytes

    def attach(self, model: nn.Module) -> nn.Module:
        """Adapt a model, in place, as the row says."""
        if self.checkpointed:
            _checkpoint(model)
        rank = self.rank(model.get_input_embeddings().weight.shape[1])
        return lb.adapt(model, self.recipe(model), rank=rank, targets=LAYERS)


def _checkpoint(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # a new name for the same, which older transformers lack
        model.gradient_checkpointing_enable({"use_reentrant": False})


def named(name: str, **changes: Any) -> Callable[[nn.Module], lb.Recipe]:
    """A registered recipe, whatever the model."""
    return lambda model: lb.recipe(name).but(name, **changes) if changes else lb.recipe(name)


def experts(count: int) -> Callable[[nn.Module], lb.Recipe]:
    """A mixture of which two act."""
    return named("moe-lora", form=LowRankExperts.of(count, Top(2)))


def bounded_randlora(model: nn.Module) -> lb.Recipe:
    """RandLoRA with bases for a quarter of the width: U = 1024 at the survey's 4096."""
    width = model.get_input_embeddings().weight.shape[1]
    return lb.recipe("randlora").but("randlora-bounded", form=lr.RandLoRA.of(max(width // 4, 1)))


VARIANTS: dict[str, Variant] = {
    "LoRA": Variant(4.7, 30067, named("lora")),
    "LoRA, checkpointing": Variant(6 + 22 / 60, 20873, named("lora"), checkpointed=True),
    "DoRA": Variant(9 + 19 / 60, 52847, named("dora"), time=1.2, memory=1.1, cpu_time=1.15, cpu_bytes=1.8),
    "DoRA, checkpointing": Variant(12 + 17 / 60, 21729, named("dora"), checkpointed=True),
    "DeLoRA": Variant(9 + 16 / 60, 39343, named("delora"), time=1.25, memory=1.05, cpu_time=1.1, cpu_bytes=1.2),
    "AdaLoRA": Variant(12 + 10 / 60, 30447, named("adalora")),
    "HiRA": Variant(8 + 10 / 60, 39669, named("hira"), time=1.5, memory=1.05, cpu_time=1.4, cpu_bytes=1.1),
    "RaSA": Variant(6 + 14 / 60, 30381, rasa_of, time=1.25, memory=1.05, cpu_time=1.1, cpu_bytes=1.2),
    "DenseLoRA": Variant(
        7 + 16 / 60, 37751, named("denselora"), growing(192), time=1.4, memory=1.1, cpu_time=1.3, cpu_bytes=2.0
    ),
    "RandLoRA": Variant(
        39 + 31 / 60, 81645, named("randlora"), fixed(32), time=2.2, memory=1.2, cpu_time=2.0, cpu_bytes=1.3
    ),
    "RandLoRA, U = 1024": Variant(
        13 + 24 / 60, 41187, bounded_randlora, fixed(32), time=2.2, memory=1.2, cpu_time=2.0, cpu_bytes=1.3
    ),
    "MELoRA": Variant(6 + 49 / 60, 30847, named("melora"), time=1.25, memory=1.05, cpu_time=1.1, cpu_bytes=1.2),
    "LoRAMoE, 8 experts": Variant(36 + 31 / 60, 46425, experts(8), fixed(1)),
    "LoRAMoE, 6 experts": Variant(27 + 57 / 60, 45937, experts(6), fixed(1)),
    "MoSLoRA": Variant(5 + 50 / 60, 30085, named("moslora"), time=1.25, memory=1.05, cpu_time=1.05, cpu_bytes=1.05),
    "AURORA": Variant(12 + 32 / 60, 30549, named("aurora"), time=1.25, memory=1.05),
    "LoHa": Variant(35 + 28 / 60, 92851, named("loha"), fixed(4), time=1.25, memory=1.05, cpu_time=1.2, cpu_bytes=1.3),
    "LoKr": Variant(35 + 53 / 60, 56151, named("lokr"), time=1.25, memory=1.05, cpu_time=1.25, cpu_bytes=1.5),
    "LoRAN": Variant(6 + 28 / 60, 45747, named("loran"), time=1.25, memory=1.05),
}
