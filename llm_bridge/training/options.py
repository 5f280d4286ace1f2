"""What a fine-tuning run is made of: one frozen record that Python, the command line and a resumed run share."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

from lowrank_sp.parameterizations import DiagonalCore

from ..experts.balance import beside
from ..recipe import Recipe, recipe

__all__ = ["RESTARTS", "TASKS", "FinetuneOptions", "balance_weight"]

TASKS = ("causal-lm", "classification")
RESTARTS = ("relora", "periodic-lora", "chain-of-lora")


def _option(default: Any, text: str, **how: Any) -> Any:
    return field(default=default, metadata={"help": text, **how})


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of `finetune`; ``python -m llm_bridge finetune --help`` lists them with their meaning.

    Raises
    ------
    ValueError
        For an unknown task or recipe, or a number out of range.
    """

    model: str = field(metadata={"help": "folder of a model of transformers, or its name on the hub"})
    data: str = field(metadata={"help": "file to train on: .jsonl, .csv, .txt or .parquet"})
    task: str = field(metadata={"help": "what to learn", "choices": TASKS})
    out: str = field(metadata={"help": "folder for everything that the run writes"})
    recipe: str = _option("lora", "variant of LoRA")
    rank: int = _option(8, "rank of the updates")
    target_rank: int | None = _option(
        None, "rank that is left in the end on average, as AdaLoRA chooses components; for recipes with gates"
    )
    restarts: str | None = _option(
        None, "train in phases: keep what the factors have learned, and start them again", choices=RESTARTS
    )
    restart_every: int | None = _option(None, "steps between restarts (default: a quarter of the run)")
    alpha: float | None = _option(None, "scale of the updates before the recipe divides it (default: twice the rank)")
    targets: str | tuple[str, ...] = _option(
        "all-linear", "layers: all-linear, names, or regular expressions; of lor2c they name blocks", nargs="+"
    )
    dropout: float = _option(0.0, "dropout of the recipe's kind")
    balance: float | None = _option(
        None, "weight of the loss beside experts (default: 0.01 for recipes that route among experts)"
    )
    lr: float = _option(1e-3, "learning rate of the adapters")
    head_lr: float | None = _option(None, "learning rate of what else trains, such as a new head (default: --lr)")
    weight_decay: float = _option(0.0, "decoupled weight decay")
    epochs: float = _option(3.0, "passes over the training data")
    steps: int | None = _option(None, "steps of the optimizer, in place of --epochs")
    batch_size: int = _option(8, "examples a step, a process and an accumulation")
    accumulate: int = _option(1, "batches whose gradients are accumulated for a step")
    clip: float = _option(1.0, "largest norm of the gradient")
    schedule: str = _option("linear", "learning-rate schedule", choices=("linear", "cosine", "constant_with_warmup"))
    warmup: float = _option(0.05, "part of the steps in which the learning rate rises")
    max_length: int = _option(256, "tokens of an example, or of a block of text")
    text_column: str = _option("text", "column with the text")
    label_column: str = _option("label", "column with the class")
    eval_data: str | None = _option(None, "file to evaluate on")
    eval_fraction: float = _option(0.1, "part of the training rows to evaluate on where there is no --eval-data")
    every: int | None = _option(None, "steps between evaluations and between checkpoints (default: ten of each)")
    calibration_batches: int = _option(8, "training batches for recipes whose start looks at data")
    seed: int = _option(0, "of the start, the order of the data, dropout and the split")
    bf16: bool = _option(False, "frozen weights in bfloat16, computation under autocast, factors in single precision")
    gradient_checkpointing: bool = _option(False, "recompute activations in the backward pass instead of keeping them")
    compile: str | None = _option(None, "compile with this backend of torch.compile", nargs="?", const="inductor")
    cpu: bool = _option(False, "stay on the CPU")
    resume: bool = _option(False, "continue from the last whole checkpoint in --out, if there is one")
    progress: bool = _option(True, "show a progress bar")

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        _check_target(recipe(self.recipe), self.rank, self.target_rank)
        _check_restarts(recipe(self.recipe), self)
        _check_balance(recipe(self.recipe), self.balance)
        for name in ("rank", "batch_size", "accumulate", "calibration_batches", "epochs", "lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("steps", "every", "restart_every", "alpha", "head_lr"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2, got {self.max_length}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must lie in [0, 1), got {self.warmup}")
        if self.eval_data is not None and self.eval_data == self.data:
            raise ValueError(f"eval_data is the training file itself: {self.eval_data}")


def _check_target(made: Recipe, rank: int, target: int | None) -> None:
    if target is None:
        return
    if not 1 <= target <= rank:
        raise ValueError(f"target_rank must lie between 1 and rank, {rank}, got {target}")
    if not (isinstance(made.form, type) and issubclass(made.form, DiagonalCore)):
        raise ValueError(f"target_rank needs components with gates, which {made.name!r} does not have; take 'adalora'")


def _check_restarts(made: Recipe, options: FinetuneOptions) -> None:
    if options.restarts is None:
        if options.restart_every is not None:
            raise ValueError(f"restart_every is for runs with restarts; add one of {', '.join(RESTARTS)}")
        return
    if options.restarts not in RESTARTS:
        raise ValueError(f"restarts must be one of {', '.join(RESTARTS)}, got {options.restarts!r}")
    if options.target_rank is not None:
        raise ValueError("restarts and target_rank exclude each other: phases begin with all components")
    if not (made.combine.additive and made.mergeable) or made.shares or made.init.needs is not None:
        raise ValueError(
            f"recipe {made.name!r} cannot begin again: restarts need updates that are added to the weight, are not "
            "shared by layers, and start without data; take one such as 'lora'"
        )


def _check_balance(made: Recipe, weight: float | None) -> None:
    if weight is not None and not 0 <= weight < math.inf:
        raise ValueError(f"balance must be a number that is not negative, got {weight}")
    if not weight:
        return
    if beside(made) is None:
        raise ValueError(
            f"balance is for recipes that route among experts, which {made.name!r} does not; "
            "take one such as 'moe-lora'"
        )
    if _needs_labels(made):
        raise ValueError(f"balance must be 0 for {made.name!r}: {_UNLABELLED}")


_UNLABELLED = (
    "the loss beside its experts needs the domain or the type of every sample, which files of data do not have; in a "
    "loop of your own take lb.balancing inside of lb.labelled(model, labels)"
)


def _needs_labels(made: Recipe) -> bool:
    found = beside(made)
    return found is not None and found[0].kinds(found[1]) is not None


def balance_weight(options: FinetuneOptions) -> float:
    """Of the loss beside the experts; warns where there is one that cannot be computed."""
    made = recipe(options.recipe)
    if options.balance is not None or beside(made) is None:
        return options.balance or 0.0
    if _needs_labels(made):
        warnings.warn(f"{made.name!r} trains without balance: {_UNLABELLED}", stacklevel=2)
        return 0.0
    return 0.01
