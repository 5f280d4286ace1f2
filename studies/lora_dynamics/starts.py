"""What the starts of LoRA variants do in the layers of a pretrained encoder.

Matrices are stored as torch stores them, (out, in): the source's A is ``right``, its B is ``left^T``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import llm_bridge as lb
from llm_bridge import starts
from llm_bridge.calibrate import variance_shares
from lowrank_sp import BurerMonteiro
from lowrank_sp.metrics import principal_angles
from studies.lora_dynamics.common import cosine, gap
from studies.lora_dynamics.encoder import as_array, encoder, gradients, loss, of_block, pairs, tokens

__all__ = ["in_encoder", "spectral_gap"]

Cell = Mapping[str, Any]
GAMMA = 0.05
DATA = "numpy"  # whose docstrings are read


def in_encoder(cell: Cell) -> list[dict[str, Any]]:
    """One row for every linear layer of a block."""
    rank, count, found = cell["rank"], cell["pairs"], []
    sites, seen, known = of_block(cell["block"]), tokens(cell["block"], DATA, count), gradients(DATA, count)
    shares = variance_shares(encoder(), sites, [dict(pairs(DATA, count)[0])], progress=False)
    for site in sites:
        layer = Layer(site, rank, known[site.name], *seen[site.name])
        row = {"layer": site.name.removeprefix("encoder.layer."), "outputs": site.shape[0], "inputs": site.shape[1]}
        row |= _first_steps(layer) | _zero(layer, count) | _moments(layer) | _weights(layer) | _context(layer)
        found.append(row | {"variance_sum": float(shares[site.name].sum())})
    return [found[0] | _signs(Layer(sites[0], rank, known[sites[0].name], *seen[sites[0].name]), count), *found[1:]]


class Layer:
    """A layer with its gradient G = U S V^T (out, in), inputs x (tokens, in), and gradients y (tokens, out)."""

    def __init__(self, site: lb.Site, rank: int, gradient: Tensor, x: Tensor, y: Tensor):
        self.site, self.rank, self.gradient, self.x, self.y = site, rank, gradient, x, y
        self.weight = site.kind.weight(site.layer).detach().double()
        self.u, self.s, self.vh = torch.linalg.svd(gradient, full_matrices=False)

    def given(self, statistic: Any = None, rank: int | None = None) -> starts.StartSite:
        """What a start is told."""
        rng = np.random.default_rng(self.rank)
        return starts.StartSite(
            BurerMonteiro, self.site.shape, rank or self.rank, 2.0, rng, lambda: self.weight, statistic
        )


# gradients --------------------------------------------------------------------------------------------------------


def _first_steps(layer: Layer) -> dict[str, Any]:
    """First steps of the weight from the starts of LoRA-GA and GoRA, against the gradient."""
    given, g, r, (m, n) = layer.given(layer.gradient), layer.gradient, layer.rank, layer.site.shape
    tail = float(layer.s[2 * r :].norm())
    split = starts.SplitFrame(gamma=m**0.5)(given)
    same = BurerMonteiro(layer.u[:, :r], layer.vh[:r].mT)
    compressed = starts.Compressed(gamma=GAMMA)(given)
    update = given.scale * compressed.dense()
    frame = torch.linalg.qr(compressed.right).Q
    return {
        "split_excess": float((_step(split, g) - g).norm()) / tail - 1,
        "same_excess": float((_step(same, g) - g).norm()) / tail - 1,
        "tail": tail / float(g.norm()),
        "compressed_gap": gap(update, -GAMMA * (n / r) ** 0.5 * (g @ frame) @ frame.mT),
        "compressed_size": float(update.norm()) / GAMMA / float(g.norm()),
        "compressed_cosine": cosine(update, -g),
        "root_share": (r / n) ** 0.5,
    }


def _step(point: Any, g: Tensor) -> Tensor:
    """``B B^T G + G A^T A``."""
    return point.left @ (point.left.mT @ g) + (g @ point.right) @ point.right.mT


@lru_cache(maxsize=2)
def _zero_start(rank: int, count: int) -> dict[str, tuple[Tensor, ...]]:
    """By path: gradients of both factors of LoRA at its start, the random factor and the scale."""
    model = encoder()
    lb.adapt(model, "lora", rank=rank, alpha=2.0 * rank, exclude="pooler.dense")
    try:
        loss(model, pairs(DATA, count)).backward()
        found = {}
        for path, layer in lb.adapted(model).items():
            adapter: Any = layer.adapter("default")
            parts = (adapter.left.grad, adapter.right.grad, adapter.right)
            found[path] = (*(p.detach().double() for p in parts), torch.tensor(adapter.scale))
    finally:
        lb.unload(model)
    return found


def _zero(layer: Layer, count: int) -> dict[str, Any]:
    """Gradients at the zero start, and where the first step of plain descent puts the factor that was zero."""
    rank, g = layer.rank, layer.gradient
    on_left, on_right, right, scale = _zero_start(rank, count)[layer.site.name]
    frame = torch.linalg.qr(on_left).Q
    angles = principal_angles(as_array(on_left), as_array(layer.u[:, :rank]))
    return {
        "zero_right": float(on_right.abs().max()),
        "zero_left_gap": gap(on_left, scale * g @ right),
        "angle": float(np.degrees(angles[-1])),
        "least_angle": float(np.degrees(angles[0])),
        "kept": float((frame.mT @ g).square().sum() / layer.s[:rank].square().sum()),
    }


def spectral_gap(cell: Cell) -> dict[str, Any]:
    """The first step of LoRA for a gradient with r singular values 1 and all others at the level of the cell."""
    size, r, rng = cell["size"], cell["rank"], np.random.default_rng(cell["seed"])
    u, v = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    values = np.where(np.arange(size) < r, 1.0, cell["level"])
    g = torch.as_tensor((u * values) @ v.T)
    point = starts.Default()(starts.StartSite(BurerMonteiro, (size, size), r, 1.0, rng, lambda: g))
    step = as_array(point.pullback(g).left)
    frame = np.linalg.qr(step)[0]
    return {
        "angle": float(np.degrees(principal_angles(step, u[:, :r])[-1])),
        "kept": float(np.linalg.norm(frame.T @ as_array(g)) ** 2 / r),
    }


def _signs(layer: Layer, count: int) -> dict[str, Any]:
    """The loss after a step along the projected gradient, and against it, less the loss before."""
    model, batches, r, site = encoder(), pairs(DATA, count), layer.rank, layer.site
    step = (layer.u[:, :r] * layer.s[:r]) @ layer.vh[:r] * (1e-3 / layer.s[:r].square().sum())
    step = step.float()
    losses = []
    with torch.no_grad():
        for sign in (0, 1, -1):
            site.layer.weight.add_(sign * step)
            losses.append(float(loss(model, batches)))
            site.layer.weight.sub_(sign * step)
    return {"along": losses[1] - losses[0], "against": losses[2] - losses[0]}


# inputs -----------------------------------------------------------------------------------------------------------


def _moments(layer: Layer) -> dict[str, Any]:
    """Squared first gradients of B with the A of EVA, relative to the best orthonormal A and to random ones.

    ``token``: the mean over single tokens, which the source looks at; ``independent``: the same with Gaussian
    gradients in place of those of the tokens; ``batch``: that of the whole gradient.
    """
    r, n, x = layer.rank, layer.site.shape[1], layer.x
    given = layer.given(x.mT @ x)
    chosen = starts.ExplainedVariance()(given).right
    drawn = torch.linalg.qr(given.normal(n, r)).Q
    eye, values = torch.eye(r, dtype=x.dtype), torch.linalg.eigvalsh(x @ x.mT).clamp_min(0).sqrt()
    scaled = chosen * values[-r:].square()
    row = {
        "frame_gap": float((chosen.mT @ chosen - eye).norm()),
        "printed_frame_gap": float((chosen @ chosen.mT - torch.eye(n, dtype=x.dtype)).norm()),
        "scaled_frame_gap": float((scaled.mT @ scaled - eye).norm()),
        "variance_printed": float(values.square().sum() / (len(x) - 1) / values.sum()),
    }
    gaussian = given.normal(*layer.y.shape)
    for name, rows in (
        ("token", x * layer.y.norm(dim=1, keepdim=True)),
        ("independent", x * gaussian.norm(dim=1, keepdim=True)),
        ("batch", layer.gradient),
    ):
        best = torch.linalg.eigvalsh(rows @ rows.mT)[-r:].sum()
        row[f"{name}_share"] = float((rows @ chosen).square().sum() / best)
        row[f"{name}_random"] = float((rows @ drawn).square().sum() / best)
    return row


def _context(layer: Layer) -> dict[str, Any]:
    """``W`` from all singular triplets of ``W C``, with the exponents of S as printed and corrected.

    Where the layer is square and its inputs determine C well: elsewhere the inverse of the source does not exist.
    """
    (m, n), x, weight = layer.site.shape, layer.x, layer.weight
    c = x.mT @ x / len(x)
    if m != n or len(x) < n or torch.linalg.cond(c) > 1e9:
        return {}
    u, s, vh = torch.linalg.svd(weight @ c, full_matrices=False)
    back = torch.linalg.solve(c, vh.mT).mT
    full = layer.given(c, n)
    return {
        "context_printed": gap((u / s) @ back, weight),
        "context_corrected": gap((u * s) @ back, weight),
        "context_start": gap(full.scale * starts.ContextPrincipal()(full).dense(), weight),
    }


# weights ----------------------------------------------------------------------------------------------------------


def _weights(layer: Layer) -> dict[str, Any]:
    """How far adapted layers are from the pretrained one at the start: as printed, and in the bridge."""
    weight, rank = layer.weight, layer.rank
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    printed = weight + (u[:, :rank] * s[:rank]) @ vh[:rank]
    norms = weight.norm(dim=1, keepdim=True)
    return {
        "sorsa_printed": gap(printed, weight),
        "sorsa": _adapted_gap(weight, "sorsa", rank),
        "dora_printed": gap(norms * weight / weight.norm(), weight),
        "dora": _adapted_gap(weight, "dora", rank),
    }


def _adapted_gap(weight: Tensor, recipe: str, rank: int) -> float:
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(weight)
    lb.adapt(model, recipe, rank=rank, dtype=torch.float64)
    with torch.no_grad():
        return gap(model(torch.eye(weight.shape[1], dtype=weight.dtype)).mT, weight)
