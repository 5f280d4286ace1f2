"""A solve kept in one file after every iteration, so that an interrupted one continues to the identical result."""

from __future__ import annotations

import json
import os
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np

from . import xp
from .result import Status

__all__ = ["Keeper", "write_atomically"]

FORMAT = "lowrank_sp checkpoint 2"
FACTS = {
    "solver",
    "tol",
    "form",
    "history",
    "best",
    "quiet",
    "first_gradient",
    "loss",
    "gradient_norm",
    "memory",
    "ended",
}


def write_atomically(path: Path, write: Any) -> None:
    """Call ``write(file)`` on a file beside ``path`` that then takes its place: a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class Keeper:
    """Saves and restores the state of one run of `solve`; with no path it does neither.

    Parameters
    ----------
    path : path or None
        The checkpoint, a ``.npz`` file that holds numbers and text only.
    solver : Solver
        One whose memory is plain numbers, as that of `ALS`.
    """

    def __init__(self, path: Any, solver: Any):
        self.path, self.solver = None if path is None else Path(path), solver

    def restore(self, run: Any, state: Any) -> tuple[Any, Status | None]:
        """The state and status to continue with: those of the file if there is one, else ``state`` of a new run.

        Raises
        ------
        TypeError
            For a solver that remembers more than numbers, or a batch.
        FileNotFoundError
            When there is no folder for the file.
        ValueError
            When the file is damaged, or belongs to another problem, start or solver.
        """
        if self.path is None:
            return state, None
        if run.batched:
            raise TypeError("checkpoint keeps single solves; this start has leading batch axes")
        _encode(state.memory, self.solver)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"checkpoint {self.path} needs the folder {self.path.parent}, which does not exist")
        if not self.path.exists():
            return state, None
        saved, arrays = self._read()
        self._compare(saved, arrays, run, state)
        run.history = saved["history"]
        run.loss, run.seconds = run.history["loss"][-1], run.history["seconds"][-1]
        run.best, run.quiet, run.first_gradient = saved["best"], saved["quiet"], saved["first_gradient"]
        parts = zip(arrays, state.point.arrays(), strict=True)
        point = type(state.point)(*[xp.asarray_like(a, b) for a, b in parts])
        residual = run.problem.residual(point)
        like = state.point.arrays()[0].real
        loss, gradient_norm, memory = (_decode(saved[key], like) for key in ("loss", "gradient_norm", "memory"))
        # What has converged to one tolerance has not to another.
        ended = Status[saved["ended"]] if saved["ended"] and saved["tol"] == run.tol else None
        return type(state)(point, residual, loss, gradient_norm, memory), ended

    def save(self, run: Any, state: Any, ended: Status | None) -> None:
        """Replace the file by the state after an iteration."""
        if self.path is None:
            return
        history = {key: [float(v) for v in values] for key, values in run.history.items()}
        history["iteration"] = [int(v) for v in history["iteration"]]
        facts = {
            "format": FORMAT,
            "solver": repr(self.solver),
            "tol": run.tol,
            "form": type(state.point).__name__,
            "history": history,
            "best": float(run.best),
            "quiet": run.quiet,
            "first_gradient": float(run.first_gradient),
            "loss": _encode(state.loss, self.solver),
            "gradient_norm": _encode(state.gradient_norm, self.solver),
            "memory": _encode(state.memory, self.solver),
            "ended": None if ended is None else ended.name,
        }
        arrays = {f"array{k}": xp.to_numpy(a) for k, a in enumerate(state.point.arrays())}
        text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
        write_atomically(self.path, lambda file: np.savez(file, facts=text, **arrays))

    def _read(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        from zipfile import BadZipFile

        try:
            with open(self.path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                saved = json.loads(file["facts"].tobytes())
                arrays = [file[f"array{k}"] for k in range(len(file.files) - 1)]
            if saved["format"] != FORMAT or not saved.keys() >= FACTS:
                raise KeyError(saved["format"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise ValueError(
                f"checkpoint {self.path} is damaged or no checkpoint ({type(error).__name__}); delete it to start anew"
            ) from error
        return saved, arrays

    def _compare(self, saved: dict[str, Any], arrays: list[np.ndarray], run: Any, state: Any) -> None:
        """Refuse the file of another run: solver, sizes and, up to rounding, first loss must be those of this one."""
        mine = {
            "solver": repr(self.solver),
            "form": type(state.point).__name__,
            "sizes": [tuple(a.shape) for a in state.point.arrays()],
            "first loss": float(run.loss),
        }
        theirs = {
            "solver": saved["solver"],
            "form": saved["form"],
            "sizes": [a.shape for a in arrays],
            "first loss": saved["history"]["loss"][0],
        }
        for key, value in mine.items():
            # Another machine may round the start otherwise.
            if value != theirs[key] and not (
                key == "first loss" and isclose(value, theirs[key], rel_tol=run.precision**0.5)
            ):
                raise ValueError(
                    f"checkpoint {self.path} belongs to another run: its {key} is {theirs[key]}, here it is {value}; "
                    "delete it, or give another path"
                )


def _encode(value: Any, solver: Any) -> Any:
    """Nested tuples of numbers as JSON; floats are kept to the last digit, those of arrays with their type."""
    if value is None or type(value) in (int, float):
        return value
    if isinstance(value, tuple):
        return [_encode(v, solver) for v in value]
    if xp.is_torch(value) and value.ndim == 0:
        return {"dtype": "torch", "value": value.item()}
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return {"dtype": str(value.dtype), "value": value.item()}
    raise TypeError(f"checkpoint needs a solver that remembers numbers only, such as lr.ALS(), not {solver.name}")


def _decode(value: Any, like: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v, like) for v in value)
    if isinstance(value, dict) and value["dtype"] == "torch":
        return xp.asarray_like(value["value"], like)
    return np.dtype(value["dtype"]).type(value["value"]) if isinstance(value, dict) else value
