"""The command line of the bridge: ``python -m llm_bridge finetune``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, get_args, get_type_hints

from .finetune import finetune
from .recipe import recipes
from .training.options import FinetuneOptions

__all__ = ["main", "parser"]


_UNSAID = ("step", "total_flos")


def parser() -> argparse.ArgumentParser:
    """The arguments: those of `FinetuneOptions`, with dashes."""
    whole = argparse.ArgumentParser(prog="python -m llm_bridge", description="Low-rank fine-tuning of transformers.")
    commands = whole.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "finetune",
        help="train an adapter on a file",
        description=f"Train an adapter on a file. Recipes: {', '.join(recipes())}.",
        epilog="On several GPUs or machines: torchrun --nproc-per-node N -m llm_bridge finetune ..., "
        "or accelerate launch -m llm_bridge finetune ...",
    )
    hints = get_type_hints(FinetuneOptions)
    for option in fields(FinetuneOptions):
        _add(one, option, hints[option.name])
    return whole


def _add(command: argparse.ArgumentParser, option: Field[Any], hint: Any) -> None:
    """One argument. What can be several words or None is read as its first type."""
    flag, how = f"--{option.name.replace('_', '-')}", dict(option.metadata)
    if hint is bool:
        how["action"] = argparse.BooleanOptionalAction if option.default else "store_true"
    else:
        how["type"] = next((kind for kind in (get_args(hint) or (hint,)) if kind in (int, float, str)), str)
    if option.default is MISSING:
        how["required"] = True
    else:
        how["default"] = option.default
        if "default" not in how["help"] and option.default not in (None, False, True):
            how["help"] += f" (default: {option.default})"
    command.add_argument(flag, **how)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 2 for input that does not fit, 130 for an interruption."""
    given = vars(parser().parse_args(arguments))
    del given["command"]
    if isinstance(given["targets"], list):
        given["targets"] = given["targets"][0] if len(given["targets"]) == 1 else tuple(given["targets"])
    try:
        result = finetune(FinetuneOptions(**given))
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume continues from the last checkpoint", file=sys.stderr)
        return 130
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items() if name not in _UNSAID)
    print(f"{numbers}\nadapter in {result.adapter}; figures and rows in {result.adapter.parent}")
    return 0


def _together() -> int:
    """`main`; processes that were launched together also take leave together, so that none is left waiting."""
    status = main()
    distributed = sys.modules.get("torch.distributed")
    if status == 0 and distributed is not None and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
    return status


if __name__ == "__main__":
    sys.exit(_together())
