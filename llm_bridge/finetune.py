"""Fine-tuning from a data file to an adapter: one call that trains, evaluates, can be resumed, and reports."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowrank_sp.coverage import covers

from .checkpoint import save
from .data import Tokens, classes_of, classification, language, read_rows, split_rows
from .files import write_json
from .inject import adapt
from .optimizer import LowRankOptimizer, optimizer
from .policies import Budget, adalora
from .recipe import recipe
from .recipes.nonlinear import LOR2C
from .training.models import load_model, load_tokenizer, new_parameters, open_blocks
from .training.options import FinetuneOptions, balance_weight
from .training.report import SiteRanks, draw_curves, draw_ranks, stable_ranks, write_ranks

if TYPE_CHECKING:
    from .training.loop import LeanTrainer

__all__ = ["FinetuneResult", "finetune"]

# What may differ between a run and its continuation.
_FREE = ("resume", "progress", "out", "cpu", "compile")


@dataclass(frozen=True)
class FinetuneResult:
    """A finished run.

    Attributes
    ----------
    model, tokenizer
        Those of transformers, adapted and trained.
    adapter : Path
        The folder that ``lb.load`` reads.
    metrics : dict
        Of the last evaluation, or of training where nothing was held out.
    history : list of dict
        The rows of ``metrics.jsonl``.
    ranks : list of SiteRanks
        Stable ranks before and after, layer by layer.
    """

    model: Any
    tokenizer: Any
    adapter: Path
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    ranks: list[SiteRanks]


@covers("O53")
def finetune(options: FinetuneOptions) -> FinetuneResult:
    """Fine-tune a model of transformers on a file and write everything about it to ``options.out``.

    ``adapter/`` (for ``lb.load``), ``run.json`` (options, versions, results), ``metrics.jsonl``, ``tensorboard/``
    (where tensorboard is installed), ``loss.png``, ``stable_rank.csv`` and ``.png``, ``checkpoints/``. An
    interrupted run continues with ``resume``, to the bit on the same machine.

    Parameters
    ----------
    options : FinetuneOptions

    Returns
    -------
    FinetuneResult
        The trained model, the folder of the adapter, and the metrics.

    Raises
    ------
    ValueError
        If a file, a model, a label or a number does not fit, the folder holds another run, or the loss is not finite.

    Notes
    -----
    On several GPUs or machines the same command runs under a launcher, in data parallel:
    ``torchrun --nproc-per-node N -m llm_bridge finetune ...`` or ``accelerate launch -m llm_bridge finetune ...``.
    ``batch_size`` is that of one process. For a loop of one's own see `optimizer_factory`.
    """
    from .training.loop import restored_at_end
    from .training.phases import phases, prepared

    out = Path(options.out)
    _claim(out, options)
    train, held, classes = _rows(options)
    tokenizer = load_tokenizer(options.model)
    data, held_out = (_tokens(options, rows, classes, tokenizer) if rows else None for rows in (train, held))
    assert data is not None
    model = _adapted_model(options, classes, tokenizer.pad_token_id, data)
    prepared(model, phases(options, _total_steps(options, len(data))))
    trainer = _trainer(options, model, data, held_out)
    if trainer.is_world_process_zero():
        write_json(out / "run.json", _about(options, data, held_out, classes))
    last = _resumed(options)
    if not restored_at_end(trainer, last):
        trainer.train(resume_from_checkpoint=last)
    return _finished(options, trainer, model, tokenizer, classes)


# before training ------------------------------------------------------------------------------------------------


def _claim(out: Path, options: FinetuneOptions) -> None:
    """Refuse a folder with another run; with ``resume`` it must be the same one."""
    if int(os.environ.get("RANK", "0")):
        return
    run = out / "run.json"
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, and {out} is a file")
    if run.exists() and not options.resume:
        raise ValueError(f"{out} holds a run already; continue it with --resume, or choose another --out")
    if run.exists():
        then, now = json.loads(run.read_text(encoding="utf-8"))["options"], _plain(options)
        other = [f"{k}={then.get(k)!r}" for k in now if k not in _FREE and then.get(k) != now[k]]
        if other:
            raise ValueError(f"{out} holds a run with {', '.join(other)}; resume with the same options")
    out.mkdir(parents=True, exist_ok=True)


def _plain(options: FinetuneOptions) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(asdict(options)))


def _rows(options: FinetuneOptions) -> tuple[list[Any], list[Any], list[str] | None]:
    """Rows to train and to evaluate on, and the classes where there are some."""
    rows = read_rows(options.data)
    if options.task == "classification" and Path(options.data).suffix == ".txt":
        raise ValueError(f"{options.data}: a .txt file has no labels; classification needs .jsonl, .csv or .parquet")
    if options.eval_data is not None:
        train, held = rows, read_rows(options.eval_data)
    else:
        train, held = split_rows(rows, options.eval_fraction, options.seed)
    return train, held, classes_of(rows, options.label_column) if options.task == "classification" else None


def _tokens(options: FinetuneOptions, rows: list[Any], classes: list[str] | None, tokenizer: Any) -> Tokens:
    if classes is None:
        return language(rows, tokenizer, options.text_column, options.max_length)
    return classification(rows, tokenizer, classes, options.text_column, options.label_column, options.max_length)


def _adapted_model(options: FinetuneOptions, classes: list[str] | None, pad: int, data: Tokens) -> Any:
    """The model with a fresh adapter; new parameters train in single precision."""
    torch.manual_seed(options.seed)
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    model, fresh = load_model(options.model, options.task, classes, dtype, pad)
    extra = new_parameters(model, fresh)
    for name, parameter in model.named_parameters():
        if name in extra:
            parameter.data = parameter.data.float()
    return adapt(
        model,
        options.recipe,
        rank=options.rank,
        alpha=2.0 * options.rank if options.alpha is None else options.alpha,
        targets=open_blocks(model, options.targets) if recipe(options.recipe) == LOR2C else options.targets,
        also_train=extra,
        dropout=options.dropout,
        calibration=_calibration(options, data) if recipe(options.recipe).init.needs else None,
        seed=options.seed,
    )


def _calibration(options: FinetuneOptions, data: Tokens) -> list[dict[str, torch.Tensor]]:
    """The first batches of the training data, for starts that look at gradients or activations."""
    size = options.batch_size
    starts = range(0, min(len(data), options.calibration_batches * size), size)
    return [data.collate(data.examples[i : i + size]) for i in starts]


# training -------------------------------------------------------------------------------------------------------


def _total_steps(options: FinetuneOptions, examples: int) -> int:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = options.batch_size * options.accumulate * processes
    return options.steps or max(1, math.ceil(options.epochs * examples / batch))


def _trainer(options: FinetuneOptions, model: Any, data: Tokens, held_out: Tokens | None) -> LeanTrainer:
    from .training.loop import Finished, LeanTrainer, Log, Watch, accuracy, most_likely
    from .training.phases import phases, rise

    classify, out = options.task == "classification", Path(options.out)
    trainer = LeanTrainer(
        model,
        _arguments(options, len(data), held_out is not None),
        train_dataset=data,
        eval_dataset=held_out,
        data_collator=data.collate,
        compute_metrics=accuracy if classify else None,
        preprocess_logits_for_metrics=most_likely if classify else None,
        optimizer_cls_and_kwargs=(
            lambda: partial(_optimizer, options, _total_steps(options, len(data))),
            {"lr": options.lr, "other_lr": options.head_lr, "weight_decay": options.weight_decay},
        ),
        callbacks=[Watch(), Finished(), Log(out / "metrics.jsonl")],
    )
    trainer.rise = rise(options, phases(options, _total_steps(options, len(data))))
    trainer.balance = balance_weight(options)
    if classify:  # heads return the mean over a batch, whatever arguments their forward takes
        trainer.model_accepts_loss_kwargs = False
    board = _board(out) if trainer.is_world_process_zero() else None
    if board is not None:
        trainer.add_callback(board)
    return trainer


def _optimizer(options: FinetuneOptions, steps: int, model: Any, **rates: Any) -> LowRankOptimizer:
    """The optimizer, where asked for with restarts or AdaLoRA's policy: ranks fall from a tenth to the last quarter."""
    from .training.phases import attached, phases

    made = optimizer(model, **rates)
    attached(options, phases(options, steps), model, made)
    if options.target_rank is not None:
        adalora(model, made, Budget(options.target_rank, steps, first=steps // 10, last=steps // 4))
    return made


def _arguments(options: FinetuneOptions, examples: int, evaluates: bool) -> Any:
    from transformers import TrainingArguments

    steps = _total_steps(options, examples)
    every = options.every or max(1, math.ceil(steps / 10))
    return TrainingArguments(
        output_dir=str(Path(options.out) / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=2 * options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.lr,
        max_grad_norm=options.clip,
        lr_scheduler_type=options.schedule,
        warmup_steps=int(options.warmup * steps),
        eval_strategy="steps" if evaluates else "no",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,
        seed=options.seed,
        bf16=options.bf16,
        torch_compile=options.compile is not None,
        torch_compile_backend=options.compile,
        use_cpu=options.cpu,
        dataloader_pin_memory=torch.cuda.is_available() and not options.cpu,
        report_to=[],
        disable_tqdm=not options.progress,
        prediction_loss_only=options.task != "classification",
        label_names=["labels"],
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        **_checkpointing(options),
    )


def _checkpointing(options: FinetuneOptions) -> dict[str, Any]:
    """The setting was renamed in version 5.20 of transformers."""
    from transformers import TrainingArguments

    new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    return {"activation_checkpointing" if new else "gradient_checkpointing": options.gradient_checkpointing}


def _board(out: Path) -> Any:
    """A callback that writes for TensorBoard, where that is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(out / "tensorboard")))


def _resumed(options: FinetuneOptions) -> str | None:
    from .training.loop import last_checkpoint

    last = last_checkpoint(Path(options.out) / "checkpoints") if options.resume else None
    return None if last is None else str(last)


# after training -------------------------------------------------------------------------------------------------


def _finished(
    options: FinetuneOptions, trainer: LeanTrainer, model: Any, tokenizer: Any, classes: list[str] | None
) -> FinetuneResult:
    """Evaluate once more, and write adapter, figures and results."""
    from .training.phases import joined, phases

    out, history = Path(options.out), trainer.state.log_history
    metrics = {k: v for k, v in _last_evaluation(history).items() if not k.endswith(("runtime", "per_second"))}
    if options.task == "causal-lm" and "eval_loss" in metrics:
        metrics["eval_perplexity"] = math.exp(min(metrics["eval_loss"], 700.0))
    name = joined(model, phases(options, trainer.state.max_steps))
    ranks = stable_ranks(model)
    if trainer.is_world_process_zero():
        about = {"task": options.task, "classes": classes, "options": _plain(options), "metrics": metrics}
        save(model, out / "adapter", name, metadata=about)
        heading = f"{options.recipe}, rank {options.rank}"
        write_ranks(out / "stable_rank.csv", ranks)
        draw_curves(out, history, heading)
        draw_ranks(out, ranks, heading)
        run = json.loads((out / "run.json").read_text(encoding="utf-8"))
        write_json(out / "run.json", run | {"finished": True, "metrics": metrics})
    return FinetuneResult(model, tokenizer, out / "adapter", metrics, history, ranks)


def _last_evaluation(history: list[dict[str, Any]]) -> Mapping[str, float]:
    """The last row with an evaluation; without one, the last row that training left."""
    evaluated = [row for row in history if "eval_loss" in row]
    return evaluated[-1] if evaluated else history[-1]


def _about(options: FinetuneOptions, data: Tokens, held_out: Tokens | None, classes: list[str] | None) -> Any:
    return {
        "options": _plain(options),
        "examples": len(data),
        "examples_held_out": 0 if held_out is None else len(held_out),
        "classes": classes,
        "versions": {name: _version(name) for name in ("lowrank-sp", "torch", "transformers", "accelerate")},
        "finished": False,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
