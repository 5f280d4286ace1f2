"""What acts around every step of an optimizer, and is saved and resumed with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

__all__ = ["Companion"]

_KEY = "companions"
_TAKEN = "_lowrank_companions"


class Companion(ABC):
    """Something that looks at gradients before a step, or changes factors after it: restarts, policies of ranks.

    It hangs on hooks of the optimizer, so that a loop of one's own and an unmodified Trainer of transformers need
    nothing but the optimizer; what it remembers travels in the ``state_dict`` of that. Learning-rate schedulers,
    gradient scaling and accumulation work as ever: what is skipped is not seen. Not for parameters that are sharded.

    Attributes
    ----------
    sees_gradients : bool
        Whether gradients must be there before the step, so that the step must not be given a closure.
    excludes : tuple of str
        Classes of companions that write what this one writes, and cannot share an optimizer with it.
    """

    sees_gradients: ClassVar[bool] = False
    excludes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def before(self) -> None:
        """Called before every step, with the gradients that it takes."""

    @abstractmethod
    def after(self) -> None:
        """Called after every step."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a resumed run needs: tensors, numbers, text, and dictionaries of them."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""

    @abstractmethod
    def parameters(self) -> Iterable[Tensor]:
        """What the optimizer must move, so that the companion has an effect."""

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise what `attach` would, before anything changes."""
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer must be one of torch, such as lb.optimizer(model), got {type(optimizer).__name__}"
            )
        taken: dict[str, Companion] = optimizer.__dict__.get(_TAKEN, {})
        if type(self).__name__ in taken:
            raise ValueError(f"the optimizer has {type(self).__name__} already")
        for name, other in taken.items():
            if name in self.excludes or type(self).__name__ in other.excludes:
                raise ValueError(f"{type(self).__name__} cannot share an optimizer with {name}: both write the same")
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not all(id(p) in moved for p in self.parameters()):
            raise ValueError(
                f"the optimizer does not move all parameters that {type(self).__name__} acts on; make it when they "
                "are there and train, as lb.optimizer(model) does, and then this"
            )

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Act around the steps of an optimizer from now on; returns itself.

        Raises
        ------
        TypeError
            If that is no optimizer of torch.
        ValueError
            If a companion of the same class, or one that excludes it, is there already, or the optimizer does not
            move what it acts on.
        """
        self.check(optimizer)
        key = type(self).__name__
        taken = optimizer.__dict__.setdefault(_TAKEN, {})
        taken[key] = self

        def before(_: Any, args: Any, kwargs: Any) -> None:
            if self.sees_gradients and (*args[1:], *kwargs.values(), None)[0] is not None:
                raise ValueError(
                    f"{key} looks at gradients before the step: call backward and step() without a closure"
                )
            if self.sees_gradients and getattr(optimizer, "grad_scale", None) is not None:
                raise ValueError(
                    f"{key} looks at gradients, which a fused optimizer leaves scaled: call scaler.unscale_(optimizer) "
                    "before scaler.step(optimizer)"
                )
            if not _skipped(optimizer):
                self.before()

        def after(*_: Any) -> None:
            if not _skipped(optimizer):
                self.after()

        def saved(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
            return state_dict | {_KEY: {**state_dict.get(_KEY, {}), key: self.state()}}

        def loaded(_: Any, state_dict: dict[str, Any]) -> None:
            if key not in state_dict.get(_KEY, {}):
                raise ValueError(f"the state of the optimizer was saved without {key}; it belongs to another run")
            self.restore(state_dict[_KEY][key])

        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(after),
            optimizer.register_state_dict_post_hook(saved),
            optimizer.register_load_state_dict_pre_hook(loaded),
        ]
        self._leave = lambda: taken.pop(key)
        return self

    def detach(self) -> None:
        """Act no more: the optimizer and the model let go of this companion, and what it did stays.

        Raises
        ------
        ValueError
            If it is not attached.
        """
        if not self.__dict__.get("_handles"):
            raise ValueError(f"{type(self).__name__} is attached to no optimizer")
        while self._handles:
            self._handles.pop().remove()
        self._leave()


def expect_companions(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Raise where a state holds what companions remember, and the optimizer does not have them."""
    missing = sorted(set(state_dict.get(_KEY, {})) - set(optimizer.__dict__.get(_TAKEN, {})))
    if missing:
        raise ValueError(
            f"the state was saved with {', '.join(missing)}, which this optimizer lacks: make them before loading, or "
            f"leave them behind by state.pop({_KEY!r})"
        )


def refuse_companions(optimizer: torch.optim.Optimizer) -> None:
    """Raise where a copy of an optimizer would lack what acts around its steps."""
    if optimizer.__dict__.get(_TAKEN):
        raise TypeError(
            f"the optimizer has {', '.join(sorted(optimizer.__dict__[_TAKEN]))}, which copies of it would lack: make "
            "another one for the copied model, and load the state_dict of this one"
        )


def _skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a fused optimizer of torch, which judges scaled gradients for itself, skips this step."""
    found: Any = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
