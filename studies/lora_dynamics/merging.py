"""Updates of several tasks in the layers of a pretrained encoder: weights of a merged one, projections, storage."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import llm_bridge as lb
from llm_bridge import starts
from llm_bridge.demo.classifier import encoder_folder
from lowrank_sp import BurerMonteiro
from studies.lora_dynamics.common import cosine, gap
from studies.lora_dynamics.encoder import as_array, encoder, of_block, tokens

__all__ = ["merged", "safety", "storage"]

Cell = Mapping[str, Any]
TASKS = ("numpy", "scipy", "matplotlib")  # packages whose docstrings are the data of a task


def _data(site: lb.Site, cell: Cell) -> list[tuple[Tensor, Tensor]]:
    """For every task the inputs (tokens, in) of a layer and the gradient (out, in) of its weight."""
    found = [tokens(cell["block"], task, cell["pairs"])[site.name] for task in TASKS]
    return [(x, y.mT @ x) for x, y in found]


def _update(gradient: Tensor, rank: int) -> Tensor:
    """The best descent step of the rank (out, in), up to its length: the start of LoRA-One."""
    given = starts.StartSite(
        BurerMonteiro, tuple(gradient.shape), rank, 1.0, np.random.default_rng(0), lambda: gradient, gradient
    )
    return starts.GradientSpectrum()(given).dense()


# merging -----------------------------------------------------------------------------------------------------------


def merged(cell: Cell) -> list[dict[str, Any]]:
    """Weights that match the outputs of all adapters best, on data that they share and on the data of each."""
    rows, equal = [], np.full(len(TASKS), 1 / len(TASKS))
    for site in of_block(cell["block"]):
        data = _data(site, cell)
        updates, least = [_update(g, cell["rank"]) for _, g in data], min(len(x) for x, _ in data)
        own = [x[:least] for x, _ in data]
        row: dict[str, Any] = {"layer": site.name.removeprefix("encoder.layer.")}
        for name, used in {"shared": [torch.cat(own)] * len(TASKS), "own": own}.items():
            weights = _weights(updates, used)
            row |= {f"{name}_weights": weights, f"{name}_gap": float(abs(weights - equal).max())}
        row["gain"] = _discrepancy(updates, own, row["own_weights"]) / _discrepancy(updates, own, equal)
        rows.append(row)
    return rows


def _weights(updates: list[Tensor], inputs: list[Tensor]) -> np.ndarray:
    """Least squares over all outputs at once: of ``sum_k w_k U_k x`` to ``U_n x`` for the inputs x of every n."""
    columns = torch.stack([torch.cat([(x @ u.mT).flatten() for x in inputs]) for u in updates], 1)
    targets = torch.cat([(x @ u.mT).flatten() for x, u in zip(inputs, updates, strict=True)])
    return as_array(torch.linalg.lstsq(columns, targets[:, None]).solution[:, 0])


def _discrepancy(updates: list[Tensor], inputs: list[Tensor], weights: np.ndarray) -> float:
    mixed = torch.stack([w * u for w, u in zip(weights, updates, strict=True)]).sum(0)
    return sum(float((x @ (mixed - u).mT).square().sum()) for x, u in zip(inputs, updates, strict=True))


# safety --------------------------------------------------------------------------------------------------------------


def safety(cell: Cell) -> list[dict[str, Any]]:
    """The projector of Safe LoRA on the range of V, for V the full step of one task and the update that of another.

    The source's V is m x n with m the side that the update's X has, so (out, in) here.
    """
    rows = []
    for site in of_block(cell["block"]):
        (_, v), (_, other), *_ = _data(site, cell)
        update = _update(other, cell["rank"])
        u, s, _ = torch.linalg.svd(v, full_matrices=False)
        full = int((s > 1e-6 * s[0]).sum())
        projected = u[:, :full] @ (u[:, :full].mT @ update)
        truncated = u[:, : cell["rank"]] @ (u[:, : cell["rank"]].mT @ update)
        rows.append(
            {
                "layer": site.name.removeprefix("encoder.layer."),
                "outputs": site.shape[0],
                "inputs": site.shape[1],
                "rank_of_v": full,
                "rank_missing": site.shape[1] - full,  # of V^T V, which (25) inverts
                "removed": gap(projected, update),
                "cosine": cosine(projected, update),
                "truncated_removed": gap(truncated, update),
            }
        )
    return rows


def trivial(cell: Cell) -> dict[str, Any]:
    """The projector as printed, for random V of a shape: its distance to the identity, and its rank."""
    m, n = cell["shape"]
    v = np.random.default_rng(cell["seed"]).standard_normal((m, n))
    projector = v @ np.linalg.inv(v.T @ v) @ v.T if n <= m else v @ np.linalg.pinv(v.T @ v) @ v.T
    return {
        "identity_gap": gap(projector, np.eye(m)),
        "rank_gap": int(np.linalg.matrix_rank(projector)) - min(m, n),
        "singular": n - int(np.linalg.matrix_rank(v.T @ v)),
    }


# storage -------------------------------------------------------------------------------------------------------------


def storage(cell: Cell) -> dict[str, Any]:
    """Bytes of the files of a base model and of N saved adapters, against ``N S_a + S_b`` read in both ways."""
    model: nn.Module = encoder()
    names = [f"domain{k}" for k in range(cell["adapters"])]
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                lb.adapt(model, "lora", rank=cell["rank"], name=name, exclude="pooler.dense")
                lb.save(model, Path(folder) / name, name)
            sizes = [_bytes(Path(folder) / name) for name in names]
    finally:
        lb.unload(model)
    base, n = (Path(encoder_folder()) / "model.safetensors").stat().st_size, len(names)
    total = base + sum(sizes)
    return {
        "adapter_share": sizes[0] / base,
        "printed": (n * base + sizes[0]) / total,
        "corrected": (n * sizes[0] + base) / total,
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
