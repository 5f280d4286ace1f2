"""A model of transformers for a task, its tokenizer, and what in it has to train beside the adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..paths import open_paths

__all__ = ["load_model", "load_tokenizer", "new_parameters", "open_blocks"]


def load_tokenizer(model: str) -> Any:
    """The tokenizer that lies with a model; one without a padding token pads with the end of text.

    Raises
    ------
    ValueError
        If there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{_missing(model)}: its tokenizer could not be read ({_first_line(error)})") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"the tokenizer of {model} has neither a padding token nor an end of text to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    model: str, task: str, classes: Sequence[str] | None, dtype: torch.dtype, pad: int
) -> tuple[Any, set[str]]:
    """``(model, newly initialized parameters)`` for causal language modelling or for so many classes.

    Raises
    ------
    ValueError
        If there is no such model, here or (where there is a network) on the hub, or it does not do the task.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    labels: dict[str, Any] = {}
    if classes is not None:
        names = dict(enumerate(classes))
        labels = {"id2label": names, "label2id": {c: i for i, c in names.items()}, "ignore_mismatched_sizes": True}
    kind: Any = AutoModelForCausalLM if classes is None else AutoModelForSequenceClassification
    try:
        loaded, info = kind.from_pretrained(model, dtype=dtype, output_loading_info=True, **labels)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{_missing(model)}: it could not be loaded for {task} ({_first_line(error)})") from error
    loaded.config.pad_token_id = pad
    fresh = {*info["missing_keys"], *(key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"])}
    return loaded, fresh


def new_parameters(model: Any, fresh: set[str]) -> list[str]:
    """Paths of parameters that have to train in full: new ones, and whatever the task puts on top of the body.

    The output embeddings of a language model are not new, and stay as they are.
    """
    prefix = getattr(model, "base_model_prefix", "")
    body = f"{prefix}." if prefix and hasattr(model, prefix) else ""
    output = model.get_output_embeddings()
    kept = {id(p) for p in output.parameters()} if isinstance(output, torch.nn.Module) else set()
    return [
        name
        for name, p in model.named_parameters()
        if name in fresh or (body and not name.startswith(body) and id(p) not in kept)
    ]


def open_blocks(model: Any, targets: str | Sequence[str]) -> list[str]:
    """Open paths beside the blocks that targets name, or beside all blocks of the model; returns those paths.

    Raises
    ------
    ValueError
        If targets name no blocks, or the model has none.
    """
    if targets != "all-linear":
        return open_paths(model, targets)
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not any(name.startswith(f"{block}.") for block in found):
            found += [f"{name}.{place}" for place, _ in module.named_children()]
    if not found:
        raise ValueError("the model has no list of blocks to open paths beside; name blocks as targets")
    return open_paths(model, found)


def _missing(model: str) -> str:
    if Path(model).is_dir():
        return f"the folder {model} does not hold what is needed"
    return (
        f"there is no model {model!r}: it is no folder here, and not in the local cache of the hub. Without a network, "
        f"put its files (config.json, model.safetensors, tokenizer.json) into a folder and pass that as --model"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
