"""What acts around every step of an optimizer, and is saved and resumed with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch

__all__ = ["Companion"]

_KEY = "companions"
_TAKEN = "_lowrank_companions"


class Companion(ABC):
    """Something that looks at gradients before a step, or changes factors after it: restarts, policies of ranks.

    It hangs on hooks of the optimizer, so that a loop of one's own and an unmodified Trainer of transformers need
    nothing but the optimizer; what it remembers travels in the ``state_dict`` of that. Learning-rate schedulers,
    gradient scaling and accumulation work as ever: what is skipped is not seen. Not for parameters that are sharded.

    ``sees_gradients`` says that gradients must be there before the step, so that the step must not be given a closure.
    """

    sees_gradients: ClassVar[bool] = False

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

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise what `attach` would, before anything changes."""
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer must be one of torch, such as lb.optimizer(model), got {type(optimizer).__name__}"
            )
        if type(self).__name__ in optimizer.__dict__.get(_TAKEN, ()):
            raise ValueError(f"the optimizer has {type(self).__name__} already")

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Act around the steps of an optimizer from now on; returns itself.

        Raises
        ------
        TypeError
            If that is no optimizer of torch.
        ValueError
            If a companion of the same class is there already.
        """
        self.check(optimizer)
        key = type(self).__name__
        optimizer.__dict__.setdefault(_TAKEN, set()).add(key)

        def before(_: Any, args: Any, kwargs: Any) -> None:
            if self.sees_gradients and (*args[1:], *kwargs.values(), None)[0] is not None:
                raise ValueError(
                    f"{key} looks at gradients before the step: call backward and step() without a closure"
                )
            self.before()

        def saved(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
            return state_dict | {_KEY: {**state_dict.get(_KEY, {}), key: self.state()}}

        def loaded(_: Any, state_dict: dict[str, Any]) -> None:
            if key not in state_dict.get(_KEY, {}):
                raise ValueError(f"the state of the optimizer was saved without {key}; it belongs to another run")
            self.restore(state_dict[_KEY][key])

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(lambda *_: self.after())
        optimizer.register_state_dict_post_hook(saved)
        optimizer.register_load_state_dict_pre_hook(loaded)
        return self
