"""The outcome of a solve: one result type, and statuses whose values are their messages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from . import xp

__all__ = ["Result", "Status", "explained", "join", "uninterrupted"]


class Status(StrEnum):
    """Why a solve ended; the value is the message."""

    CONVERGED = "converged: the relative decrease of the loss and the relative gradient norm are below tol"
    EXACT = "converged: the residual is at rounding level"
    PRECISION = "converged: no lower loss can be found at working precision"
    SETTLED = "converged: the loss hardly falls any more, and noisy data make no use of less"
    MAX_ITER = "stopped: max_iter iterations done before tol was reached"
    STALLED = "stopped: no lower loss was found for many iterations"
    DIVERGED = (
        "diverged: the loss became non-finite or grew beyond bounds; the last finite point is returned. "
        'Try step_size="auto", a smaller step, damping, or a spectral start'
    )
    CALLBACK = "stopped: the callback returned True"
    INTERRUPTED = "stopped: interrupted by the user; continue with solve(problem, result.point, ...)"

    @property
    def success(self) -> bool:
        """Whether a solution was reached to the requested accuracy."""
        return self in (Status.CONVERGED, Status.EXACT, Status.PRECISION, Status.SETTLED)


@dataclass(frozen=True)
class Result:
    """What `lowrank_sp.solve` returns, in the vocabulary of ``scipy.optimize.OptimizeResult``.

    Attributes
    ----------
    point : Factors
        The solution, in the form of the start; for a diverged run its last finite point.
    fun : float or array (...)
        Loss at ``point``, one per batch element.
    nit : int
        Iterations done.
    status : Status
        Why it stopped.
    success : bool
        Whether the status is a converged one.
    message : str
        The status in words.
    history : dict of arrays of equal length
        ``iteration``, ``seconds`` (solver time, without error tracking and callbacks), ``loss``,
        ``gradient_norm`` and, when the truth is known, ``error`` (relative Frobenius error).
    solver : Any
        The solver that ran.
    converged : bool array (...) or bool
        Per batch element, whether it reached the requested accuracy.
    choice : str
        What a one-line entry point chose and why: rank, form, start, solvers in their order. Empty after
        `lowrank_sp.solve`, where every choice was made by the caller.
    """

    point: Any
    fun: Any
    nit: int
    status: Status
    history: dict[str, np.ndarray] = field(repr=False)
    solver: Any
    converged: Any = None
    choice: str = ""

    def __repr__(self) -> str:
        """Line by line as scipy's results, with the shapes of arrays in place of their numbers."""
        parts = zip(self.point.names, self.point.arrays(), strict=True)
        facts = {
            "message": self.message,
            "success": self.success,
            "point": f"{type(self.point).__name__}: {', '.join(f'{name} {tuple(a.shape)}' for name, a in parts)}",
            "fun": np.array2string(xp.to_numpy(self.fun), precision=4, threshold=8),
            "nit": self.nit,
            "solver": self.solver.name,
            "choice": self.choice,
            "history": ", ".join(self.history),
        }
        return "\n".join(f"{key:>7}: {value}" for key, value in facts.items() if value != "")

    @property
    def success(self) -> bool:
        return self.status.success

    @property
    def message(self) -> str:
        return self.status.value

    def iterations_to(self, level: float, key: str = "error") -> float:
        """First iteration at which ``history[key]`` is at most ``level``; infinite if it never is.

        For batched histories, one value per batch element.
        """
        if key not in self.history:
            raise ValueError(f"history has no {key!r}; it holds {', '.join(self.history)}")
        below = np.asarray(self.history[key]) <= level
        first = np.where(below.any(axis=0), self.history["iteration"][below.argmax(axis=0)], np.inf)
        return float(first) if first.ndim == 0 else first


def join(stages: list[Result], choice: str, seconds: float = 0.0) -> Result:
    """The last of several solves of one problem, with the history of all of them and what was chosen.

    ``seconds`` is time spent between the stages; it is counted before the last one.
    """
    histories = [stage.history for stage in stages]
    joined = {key: [histories[0][key]] for key in histories[0] if all(key in h for h in histories)}
    for number, history in enumerate(histories[1:], start=2):
        # A stage without an iteration adds nothing.
        offset = {key: next(p[-1] for p in reversed(joined[key]) if len(p)) for key in ("iteration", "seconds")}
        offset["seconds"] += seconds * (number == len(histories))
        for key, parts in joined.items():
            parts.append(history[key][1:] + offset.get(key, 0))
    history = {key: np.concatenate(parts) for key, parts in joined.items()}
    return replace(stages[-1], history=history, nit=int(history["iteration"][-1]), choice=choice)


def explained(result: Result, *words: str) -> Result:
    """The result with what was chosen before it."""
    return join([result], "; ".join([*words, *[result.choice] * bool(result.choice)]))


def uninterrupted(result: Result) -> Result:
    """The result of an inner solve, unless that was interrupted: then the work around it stops too.

    Raises
    ------
    KeyboardInterrupt
        When the user has interrupted the solve, which `lowrank_sp.solve` itself reports by its status.
    """
    if result.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    return result
