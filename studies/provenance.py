"""Where a number comes from: commit, versions and machine."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["commit", "machine", "versions"]

_PACKAGES = ("numpy", "scipy", "torch")


@cache
def commit() -> str:
    """Short commit, with `-dirty` when tracked files differ from it; `unknown` outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


@cache
def versions() -> dict[str, str]:
    """Versions of Python, of the numerical packages that are installed, and of this project."""
    found = {"python": platform.python_version(), "lowrank-sp": _version("lowrank-sp") or "unknown"}
    return found | {name: text for name in _PACKAGES if (text := _version(name))}


@cache
def machine() -> dict[str, str | int]:
    """Platform, processor name and number of cores."""
    return {"platform": platform.platform(), "cpu": _cpu_name(), "cores": os.cpu_count() or 1}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "unknown"
