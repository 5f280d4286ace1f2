"""What every benchmark shares: machine facts, fair timing, and rows written atomically."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lowrank_sp as lr

__all__ = ["best_of", "common_start", "machine", "table", "write_rows"]

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    names = ("numpy", "scipy", "torch", "pymanopt", "lowrank-sp")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OPENBLAS_NUM_THREADS", "default"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def common_start(problem: Any, form: Any, rank: int) -> Any:
    """The start of every solver, ours and the peers': spectral, or random where spectral is the solution."""
    if isinstance(problem, lr.MatrixFactorization):
        return lr.inits.gaussian(problem, lr.BurerMonteiro, rank=rank, seed=1).to(form)
    return lr.inits.spectral(problem, form, rank=rank)


def best_of(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Least wall time in seconds of each function; the functions take turns, so drift hits all alike."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def write_rows(name: str, rows: list[dict[str, Any]], command: str) -> Path:
    """Store rows with the machine and the command as ``benchmarks/results/<name>.json``, atomically."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = json.dumps({"command": command, "machine": machine(), "rows": rows}, indent=1) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=RESULTS, delete=False, suffix=".tmp") as file:
        file.write(content)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
    return path


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Aligned text columns; numbers with four significant digits."""
    cells = [[_text(row.get(c)) for c in columns] for row in rows]
    widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True))]
    lines += ["  ".join(v.rjust(w) for v, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
