"""The JSON half of PEFT's format: what its keys mean, which of them matter, and how layers are named in it."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from ..adapter import Adapted

__all__ = ["check_keys", "common_config", "patterned", "target_modules", "value_at"]

# Keys that say where a file comes from, how training began, or what the names of the tensors say already.
HARMLESS = frozenset(
    [
        *("task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
        *("inference_mode", "runtime_config", "megatron_config", "megatron_core", "ensure_weight_tying"),
        *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"),
        *("fan_in_fan_out", "bias", "init_lora_weights", "init_weights", "loftq_config", "eva_config"),
        *("corda_config", "lora_ga_config", "velora_config", "qalora_group_size"),
    ]
)


def check_keys(config: Mapping[str, Any], known: Collection[str], ignore: Collection[str], source: Any) -> None:
    """Refuse settings that change what an adapter computes and that nothing here understands.

    Parameters
    ----------
    config : mapping
    known : collection of str
        Keys that the method reads.
    ignore : collection of str
        Keys that the user wants ignored.
    source : Any
        For messages.

    Raises
    ------
    ValueError
        For another key that is switched on. One that is off (None, false, 0, empty) changes nothing and passes.
    """
    for key, value in config.items():
        if key in HARMLESS or key in known or not value or value == "none":
            continue
        if key not in ignore:
            raise ValueError(
                f"{source} sets {key}={value!r}, which may change what the adapter computes and is not supported; "
                f"pass ignore=[{key!r}] to load it all the same"
            )
        warnings.warn(f"{key}={value!r} in {source} is ignored", stacklevel=4)


def value_at(config: Mapping[str, Any], pattern_key: str, path: str, default: Any) -> Any:
    """The value for a layer: that of the first pattern that matches its path or the end of it, else the default."""
    for pattern, value in (config.get(pattern_key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def patterned(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The commonest value and, as patterns, the exceptions from it."""
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {f"^{re.escape(path)}": value for path, value in values.items() if value != common}


def target_modules(model: nn.Module, paths: Sequence[str]) -> list[str] | str:
    """Names that select exactly these layers: last parts if that is enough, else whole paths, else a regex."""
    inside = {f"{path}." for path, module in model.named_modules() if isinstance(module, Adapted)}
    names = [name for name, _ in model.named_modules() if not any(name.startswith(prefix) for prefix in inside)]
    for chosen in (sorted({path.rpartition(".")[2] for path in paths}), sorted(paths)):
        hit = {name for name in names if any(name == c or name.endswith(f".{c}") for c in chosen)}
        if hit == set(paths):
            return chosen
    return "|".join(re.escape(path) for path in sorted(paths))


def common_config(model: nn.Module, peft_type: str, paths: Sequence[str], saved: Sequence[str]) -> dict[str, Any]:
    """Keys that every method has."""
    return {
        "peft_type": peft_type,
        "task_type": None,
        "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
        "inference_mode": True,
        "target_modules": target_modules(model, paths),
        "modules_to_save": list(saved) or None,
    }
