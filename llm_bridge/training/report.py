"""What a finished run shows: loss and accuracy over steps, and the stable rank of every layer before and after."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_sp.parameterizations import DiagonalCore

from ..adapter import Adapter
from ..inject import adapted, setups
from ..life import combined
from ..summary import summary

__all__ = ["SiteRanks", "curves", "draw_curves", "draw_ranks", "stable_ranks", "write_ranks"]


@dataclass(frozen=True)
class SiteRanks:
    """Stable ranks ``||.||_F^2 / ||.||_2^2`` of one adapted layer.

    Attributes
    ----------
    path : str
    out, inputs, rank : int
        Of the layer, and of its adapter: of components with gates, as many as a policy has left.
    before, after : float
        Of the pretrained weight, and of the weight with its update; NaN where the update is no matrix, and of the zero
        beside a block.
    update : float
        Of the update itself; NaN where it is zero.
    norm : float
        Frobenius norm of the update over that of the weight; infinite beside a block.
    """

    path: str
    out: int
    inputs: int
    rank: int
    before: float
    after: float
    update: float
    norm: float


@torch.no_grad()
def stable_ranks(model: nn.Module) -> list[SiteRanks]:
    """Stable ranks of all adapted layers, as in figure 4 of :cite:`survey2026sp`.

    The largest singular value of a weight comes from a power iteration with a few vectors, to about three digits.
    """
    layers, sites, found = adapted(model), summary(model).sites, []
    for site in sites:
        rank = _rank(layers[site.path].adapter(site.adapter), site.rank) if any(s.norm for s in sites) else site.rank
        layer = layers[site.path]
        weight = layer.kind.weight(layer.base).detach().float()
        merges = all(setups(model)[name].recipe.mergeable for name in layer.active)
        before, after = _stable_rank(weight), _stable_rank(combined(layer, weight)) if merges else float("nan")
        found.append(
            SiteRanks(
                site.path,
                *site.shape,
                rank,
                before,
                after,
                site.stable_rank,
                site.norm / norm if (norm := float(weight.norm())) else float("inf"),
            )
        )
    return found


def _rank(adapter: Adapter, given: int) -> int:
    """The components whose gate is open; all of them where there are no gates."""
    point = adapter.point()
    return int(point.values.count_nonzero()) if isinstance(point, DiagonalCore) else given


def _stable_rank(weight: Tensor) -> float:
    with torch.random.fork_rng(devices=[weight.device] if weight.device.type == "cuda" else []):
        torch.manual_seed(0)
        largest = torch.svd_lowrank(weight, q=min(8, *weight.shape), niter=8)[1][0]
    return float(weight.square().sum() / largest.square())


def write_ranks(path: Path, ranks: Sequence[SiteRanks]) -> None:
    """The stable ranks as a table in CSV."""
    from studies.store import write_atomic

    text = io.StringIO()
    table = csv.DictWriter(text, [f.name for f in fields(SiteRanks)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in ranks)
    write_atomic(path, text.getvalue())


def curves(history: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every quantity that the log holds."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in history:
        for name, value in row.items():
            if name not in ("step", "epoch") and isinstance(value, (int, float)):
                steps, values = found.setdefault(name, ([], []))
                steps.append(int(row["step"]))
                values.append(float(value))
    return found


def draw_curves(folder: Path, history: Sequence[Mapping[str, Any]], heading: str) -> None:
    """``loss.png`` and ``loss.svg``: loss in training and evaluation, and accuracy where there is one."""
    from studies import style

    found = curves(history)
    with_accuracy = "eval_accuracy" in found
    fig, axes = style.figure(heading, 1, 1 + with_accuracy, squeeze=False)
    with style.context():
        for name, label, colour, dash in (("loss", "training", 0, "-"), ("eval_loss", "evaluation", 1, "--")):
            if name in found:
                axes[0, 0].plot(*found[name], label=label, color=style.PALETTE[colour], linestyle=dash)
        axes[0, 0].set(xlabel="step", ylabel="cross-entropy (nats)")
        axes[0, 0].legend()
        if with_accuracy:
            axes[0, 1].plot(*found["eval_accuracy"], color=style.PALETTE[1], marker="o")
            axes[0, 1].set(xlabel="step", ylabel="accuracy in evaluation")
            axes[0, 1].set_ylim(top=min(axes[0, 1].get_ylim()[1], 1.02))
    style.save(fig, folder, "loss")


def draw_ranks(folder: Path, ranks: Sequence[SiteRanks], heading: str) -> None:
    """``stable_rank.png`` and ``.svg``: of every update, and of every weight before and after."""
    from matplotlib.ticker import LogFormatter

    from studies import style

    fig, axes = style.figure(heading, 2, 1, width=8.0, height=3.0, sharex=True)
    place = range(len(ranks))
    with style.context():
        axes[0].plot(place, [r.update for r in ranks], "o-", color=style.PALETTE[0], label="update")
        axes[0].plot(place, [r.rank for r in ranks], ":", color=style.PALETTE[9], label="rank of the adapter")
        axes[1].plot(place, [r.before for r in ranks], "o-", color=style.PALETTE[9], label="weight before")
        axes[1].plot(place, [r.after for r in ranks], "s--", color=style.PALETTE[1], label="weight after")
        for ax in axes:
            ax.set(ylabel="stable rank", yscale="log")
            ax.yaxis.set_major_formatter(LogFormatter())  # 20 rather than 2 x 10^1
            ax.yaxis.set_minor_formatter(LogFormatter())
            ax.legend()
        axes[1].set(xlabel=f"adapted layer, from {ranks[0].path} to {ranks[-1].path}")
    style.save(fig, folder, "stable_rank")
