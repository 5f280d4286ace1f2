"""``python -m llm_bridge.demo``: run the demo, show what was found, and keep rows and figure."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..files import write_json
from .runs import METHODS, Budget, run_all
from .show import draw, findings

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 if every method beats the probe with every seed, 1 if one does not, 2 if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m llm_bridge.demo", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("results/finetune-demo"), help="default: results/finetune-demo"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each (default: 2)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=f"recipes (default: {' '.join(METHODS)})")
    for name in ("steps", "seeds", "batch", "train", "validation", "test"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Budget, name), help="default: %(default)s")
    given = vars(parser.parse_args(arguments))
    out, jobs, methods = given.pop("out"), given.pop("jobs"), given.pop("methods")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        found = run_all(Budget(**given), out, jobs, methods)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    shown = findings(found)
    write_json(out / "findings.json", {**_origin(), "budget": found["budget"], **shown})
    draw(out, found)
    print(json.dumps(shown, indent=1))
    return 0 if all(line["test_worst"] > shown["probe"] for line in shown["methods"].values()) else 1


def _origin() -> dict[str, object]:
    from studies.provenance import commit, machine, versions

    return {"command": "make finetune-demo", "commit": commit(), "machine": machine(), "versions": versions()}


if __name__ == "__main__":
    sys.exit(main())
