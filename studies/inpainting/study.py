"""Inpainting of photographs: random and structured masks, low-rank completion against smooth continuation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies.inpainting import plots
from studies.inpainting.methods import fill

Cell = Mapping[str, Any]
Row = Mapping[str, Any]

PICTURED = ("astronaut", "brick")
PICTURED_MASKS = ("60 %", "text", "blocks")


@lru_cache(maxsize=8)
def photograph(name: str, side: int) -> np.ndarray:
    """A photograph that ships with scikit-image, grey, in [0, 1], its central square reduced to ``side`` pixels."""
    from skimage import color, data
    from skimage.transform import resize

    image = getattr(data, name)()
    grey = color.rgb2gray(image) if image.ndim == 3 else image / 255.0
    size = min(grey.shape)
    top, left = ((k - size) // 2 for k in grey.shape)
    return resize(grey[top : top + size, left : left + size], (side, side), anti_aliasing=True)


def missing(mask: str, side: int, seed: int) -> np.ndarray:
    """Which pixels (side, side) are unknown: a share of them at random, printed text, scratches or squares."""
    rng = np.random.default_rng(seed)
    if mask.endswith("%"):
        return rng.random((side, side)) < float(mask[:-1]) / 100
    return {"text": _text, "lines": _lines, "blocks": _blocks}[mask](side, rng)


def _text(side: int, rng: np.random.Generator) -> np.ndarray:
    from skimage import data

    page = data.page()
    top, left = rng.integers(0, page.shape[0] - side + 1), rng.integers(100, page.shape[1] - side + 1)
    return page[top : top + side, left : left + side] < 110


def _lines(side: int, rng: np.random.Generator) -> np.ndarray:
    """Eight straight scratches, three pixels wide."""
    y, x = np.mgrid[:side, :side]
    angle, centre = rng.uniform(0, np.pi, (8, 1, 1)), rng.uniform(0.2 * side, 0.8 * side, (2, 8, 1, 1))
    distance = (x - centre[0]) * np.sin(angle) - (y - centre[1]) * np.cos(angle)
    return (abs(distance) < 1.5).any(0)


def _blocks(side: int, rng: np.random.Generator) -> np.ndarray:
    """Twelve squares of a tenth of the side, anywhere but at the border."""
    unknown, width = np.zeros((side, side), bool), side // 10
    for i, j in rng.integers(1, side - width, (12, 2)):
        unknown[i : i + width, j : j + width] = True
    return unknown


def run(cell: Cell) -> Row:
    """One photograph behind one mask, filled in by one method."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    image = photograph(cell["image"], cell["side"])
    unknown = missing(cell["mask"], cell["side"], cell["seed"])
    tick = perf_counter()
    estimate, choice = fill(image, ~unknown, cell["method"], cell)
    row: dict[str, Any] = {
        "seconds": perf_counter() - tick,
        "share": float(unknown.mean()),
        "psnr": float(peak_signal_noise_ratio(image, estimate, data_range=1.0)),
        "ssim": float(structural_similarity(image, estimate, data_range=1.0)),
        "choice": choice,
    }
    if cell["seed"] == 0 and cell["image"] in PICTURED and cell["mask"] in PICTURED_MASKS:
        row["filled"] = np.rint(255 * estimate).astype(int).tolist()
        if cell["method"] == "patches":  # once is enough
            row |= {"truth": np.rint(255 * image).astype(int).tolist(), "unknown": unknown.astype(int).tolist()}
    return row


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Differences in dB and SSIM between methods, on the same photograph behind the same mask."""
    by = {(row["image"], row["mask"], row["seed"], row["method"]): row for row in rows}
    cases = list(dict.fromkeys(key[:3] for key in by))

    def gain(one: str, other: str, masks: Sequence[str], key: str = "psnr") -> list[float]:
        return [by[*c, one][key] - by[*c, other][key] for c in cases if c[1] in masks]

    at_random = [mask for mask in plots.masks(rows) if mask.endswith("%")]
    structured = [mask for mask in plots.masks(rows) if not mask.endswith("%")]
    falls = [
        median(by[c][key] for c in by if c[0] == name and c[1] == low and c[3] == method)
        - median(by[c][key] for c in by if c[0] == name and c[1] == high and c[3] == method)
        for name, method, key in dict.fromkeys((c[0], c[3], "psnr") for c in by)
        for low, high in pairwise(at_random)
    ]
    return {
        "patches_over_low_rank": gain("patches", "low rank", at_random),
        "patches_over_soft_impute": gain("patches", "soft-impute", at_random),
        "patches_over_soft_impute_ssim": gain("patches", "soft-impute", at_random, "ssim"),
        "low_rank_over_soft_impute": gain("low rank", "soft-impute", at_random),
        "patches_over_biharmonic": gain("patches", "biharmonic", at_random),
        "patches_over_biharmonic_60": gain("patches", "biharmonic", ["60 %"]),
        "biharmonic_over_low_rank_structured": gain("biharmonic", "low rank", structured),
        "biharmonic_over_patches_blocks": gain("biharmonic", "patches", ["blocks"]),
        "patches_over_biharmonic_structured": gain("patches", "biharmonic", structured),
        "fewer_pixels": falls,
    }


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """PSNR and SSIM of every method behind every mask, and the gains on every photograph."""
    return plots.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Two photographs as they come out of every method, and PSNR and SSIM against the share of missing pixels."""
    return plots.figures(rows)
