"""The Trainer of transformers with checkpoints of the size of the adapter, and callbacks that write and watch."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerState

from ..distributed import unwrapped
from ..experts.balance import BalancedLoss, balanced_loss
from ..files import write_json, write_tensors
from ..life import trained_adapters
from ..trainer import trained_state, without_gradient

__all__ = ["Finished", "LeanTrainer", "Log", "Watch", "accuracy", "last_checkpoint", "most_likely", "restored_at_end"]

_MARK = "complete.json"


class LeanTrainer(Trainer):
    """A Trainer whose checkpoints hold what trains instead of the whole model.

    Loading is that of transformers, which takes the part that a file holds. ``rise``, where there is one, is a factor
    of the learning rate by step, beside that of the schedule. ``balance`` is the weight of the loss beside experts,
    whose mean over the steps since the last row is the column ``balance``, without the weight.
    """

    rise: Callable[[int], float] | None = None
    balance: float = 0.0
    _balanced: BalancedLoss | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if not self.balance:
            return super().train(*args, **kwargs)
        with balanced_loss(unwrapped(self.model), self.balance) as self._balanced:
            self._seen: list[torch.Tensor] = []
            return super().train(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self._balanced is not None and self._balanced.last is not None:
            self._seen.append(self._balanced.last.clone())
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._balanced is not None and self._seen:
            seen: Any = self.accelerator.gather(torch.stack(self._seen).mean())
            logs["balance"] = seen.mean().item()
            self._seen.clear()
        super().log(logs, start_time)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        schedule: Any = super().create_scheduler(*args, **kwargs)
        if self.rise is not None:
            schedule.lr_lambdas = [partial(_product, self.rise, factor) for factor in schedule.lr_lambdas]
        return schedule

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write ``model.safetensors`` with the adapters and whatever else trains."""
        if self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            write_tensors(folder / "model.safetensors", trained_state(self.model), {})


def _product(first: Callable[[int], float], second: Callable[[int], float], step: int) -> float:
    return first(step) * second(step)


class Finished(TrainerCallback):
    """Marks a checkpoint when the last of its files is written, so that a torn one is never resumed."""

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / _MARK, {"step": state.global_step})


def last_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps, if there is one."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{_MARK}")]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def restored_at_end(trainer: LeanTrainer, checkpoint: str | None) -> bool:
    """Whether a checkpoint is the end of its run; model and log are then as they were there.

    The Trainer would take one more step, wherever the last epoch is not whole.
    """
    if checkpoint is None or trainer.is_fsdp_enabled:
        return False
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    if state.global_step < state.max_steps:
        return False
    trainer._load_from_checkpoint(checkpoint)
    trainer.create_optimizer_and_scheduler(state.max_steps)
    trainer._load_optimizer_and_scheduler(checkpoint)  # what hangs on the optimizer may change the model
    trainer.state = state
    return True


class Log(TrainerCallback):
    """Appends every row that the Trainer logs to a file; a resumed run first puts back the rows of its checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.path.write_text("".join(map(_line, state.log_history)), encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and state.log_history:
            with open(self.path, "a", encoding="utf-8") as rows:
                rows.write(_line(state.log_history[-1]))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True) + "\n"


class Watch(TrainerCallback):
    """Stops a run that cannot work: no adapter has a gradient, or the loss is not finite."""

    def __init__(self):
        self.looked = False

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.looked or model is None:
            return
        self.looked = True
        missing = without_gradient(model)
        if missing and len(missing) == sum(1 for _ in trained_adapters(model)):
            raise ValueError("no adapter has a gradient; with gradient checkpointing call enable_input_require_grads()")
        if missing:
            warnings.warn(f"adapters without a gradient in the first step: {', '.join(missing)}", stacklevel=2)

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} at step {state.global_step}; a smaller --lr may help")


def most_likely(logits: Any, labels: Any) -> Any:
    """The classes that a classifier chooses, which is all that `accuracy` needs to keep."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of right answers, and F1 averaged over the classes that occur."""
    chosen, right = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    f1 = []
    for c in np.union1d(chosen, right):
        hits = np.sum((chosen == c) & (right == c))
        f1.append(2 * hits / (np.sum(chosen == c) + np.sum(right == c)))
    return {"accuracy": float(np.mean(chosen == right)), "macro_f1": float(np.mean(f1))}
