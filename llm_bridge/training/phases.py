"""Restarts in a fine-tuning run: their phases, the learning rate in them, and one adapter in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..combination import combine
from ..steps import Phases, Restarts, chain_of_lora, jagged, periodic_lora, relora
from .options import FinetuneOptions

__all__ = ["attached", "joined", "phases", "prepared", "rise"]

_MADE: dict[str, Callable[[int], Phases]] = {
    "relora": relora,
    "periodic-lora": periodic_lora,
    "chain-of-lora": chain_of_lora,
}
_WHOLE = "whole"


def phases(options: FinetuneOptions, steps: int) -> Phases | None:
    """What the options say of a run of so many steps: by default four phases."""
    if options.restarts is None:
        return None
    return _MADE[options.restarts](options.restart_every or max(1, -(-steps // 4)))


def prepared(model: Any, made: Phases | None) -> None:
    """Make the place for earlier phases, into which a checkpoint is loaded before there is an optimizer."""
    if made is not None:
        made.keep.prepare(model, "default")


def attached(options: FinetuneOptions, made: Phases | None, model: Any, optimizer: Any) -> None:
    """Restart as an optimizer steps."""
    if made is not None:
        Restarts(model, optimizer, made, seed=options.seed)


def rise(options: FinetuneOptions, made: Phases | None) -> Callable[[int], float] | None:
    """The factor of the learning rate that rises again after restarts, over ``warmup`` of a phase."""
    return None if made is None else jagged(made.every, int(options.warmup * made.every))


def joined(model: Any, made: Phases | None) -> str:
    """One adapter of all phases, the active one; returns its name."""
    if made is None:
        return "default"
    combine(model, ["default", "default-past"], [1.0, 1.0], _WHOLE)
    return _WHOLE
