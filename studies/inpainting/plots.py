"""Figures and tables of the inpainting of photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies import style

__all__ = ["figures", "masks", "tables"]

Row = Mapping[str, Any]

METHODS = ("patches", "low rank", "soft-impute", "biharmonic")
LINES = {
    "patches": style.Line("#0072b2", "-", "o"),
    "low rank": style.Line("#d55e00", "-", "s"),
    "soft-impute": style.Line("#222222", ":", "x"),
    "biharmonic": style.Line("#009e73", "--", "^"),
}


def masks(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["mask"] for row in rows))


def _values(rows: Sequence[Row], key: str, **where: Any) -> list[float]:
    return [row[key] for row in rows if all(row[name] == value for name, value in where.items())]


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Medians over the photographs, the best method on each of them, and times."""
    quality = []
    for mask in masks(rows):
        line: dict[str, Any] = {"mask": mask, "missing": round(float(np.mean(_values(rows, "share", mask=mask))), 2)}
        for key, digits in (("psnr", 1), ("ssim", 3)):
            for method in METHODS:
                line[f"{key} {method}"] = round(median(_values(rows, key, mask=mask, method=method)), digits)
        quality.append(line)
    costs = [{"method": m, "seconds": float(f"{median(_values(rows, 'seconds', method=m)):.2g}")} for m in METHODS]
    by_image = [
        {"photograph": name, **{f"{mask}": _best(rows, name, mask) for mask in masks(rows)}}
        for name in dict.fromkeys(row["image"] for row in rows)
    ]
    return {
        "PSNR (dB) and SSIM, medians over the photographs": quality,
        "The method of the highest PSNR, and its lead in dB": by_image,
        "Time of one picture, validation included": costs,
    }


def _best(rows: Sequence[Row], name: str, mask: str) -> str:
    values = {method: median(_values(rows, "psnr", image=name, mask=mask, method=method)) for method in METHODS}
    first, second = sorted(values, key=lambda method: -values[method])[:2]
    return f"{first} (+{values[first] - values[second]:.1f})"


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """PSNR and SSIM against the missing share and behind structures, and one photograph by all methods."""
    found = {"quality": _quality(rows)}
    pictured = list(dict.fromkeys(row["image"] for row in rows if "filled" in row))
    for name in pictured:
        found[name] = _pictures(rows, name)
    return found


def _quality(rows: Sequence[Row]) -> Figure:
    fig, axes = style.figure(
        "Quality of the filled-in photographs (median and range over the photographs)", 2, 2, width=4.6, height=3,
        gridspec_kw={"width_ratios": (1.2, 1)}, squeeze=False,
    )  # fmt: skip
    at_random = [mask for mask in masks(rows) if mask.endswith("%")]
    structured = [mask for mask in masks(rows) if not mask.endswith("%")]
    for (left, right), key, label in zip(axes, ("psnr", "ssim"), ("PSNR (dB)", "SSIM"), strict=True):
        for number, method in enumerate(METHODS):
            entry = LINES[method]
            percents = [float(mask[:-1]) for mask in at_random]
            values = [_values(rows, key, mask=mask, method=method) for mask in at_random]
            left.plot(percents, [median(v) for v in values], label=method, **entry.kwargs)
            for percent, several in zip(percents, values, strict=True):
                _bar(left, percent + 0.8 * (number - 1.5), several, entry, marker="")
            for place, mask in enumerate(structured):
                _bar(right, place + 0.16 * (number - 1.5), _values(rows, key, mask=mask, method=method), entry)
        left.set(xlabel="pixels missing at random (%)", ylabel=label)
        left.set_xticks([float(mask[:-1]) for mask in at_random])
        right.set_xticks(range(len(structured)), structured)
        right.set(xlabel="pixels missing behind")
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def _bar(ax: Any, place: float, values: Sequence[float], entry: style.Line, marker: str | None = None) -> None:
    marker = entry.marker if marker is None else marker
    middle = median(values)
    reach = [[middle - min(values)], [max(values) - middle]]
    ax.errorbar(place, middle, reach, color=entry.color, marker=marker, capsize=2, linewidth=1.2)


def _pictures(rows: Sequence[Row], name: str) -> Figure:
    shown = {(row["mask"], row["method"]): row for row in rows if row["image"] == name and "filled" in row}
    chosen = [mask for mask in masks(rows) if (mask, METHODS[0]) in shown]
    fig, axes = style.figure(
        f"'{name}' from its known pixels (PSNR and SSIM of the whole picture)",
        len(chosen), len(METHODS) + 2, width=2.1, height=2.4, squeeze=False,
    )  # fmt: skip
    for line, mask in zip(axes, chosen, strict=True):
        row = shown[mask, METHODS[0]]
        truth, unknown = np.asarray(row["truth"]), np.asarray(row["unknown"]) == 1
        seen = np.repeat(truth[..., None] / 255, 3, axis=-1)
        seen[unknown] = (0.85, 0.2, 0.15)
        panels = [(f"{mask} missing (red)" if "%" in mask else f"missing behind {mask} (red)", seen)]
        panels += [
            (
                f"{m}\n{shown[mask, m]['psnr']:.1f} dB, {shown[mask, m]['ssim']:.2f}",
                np.asarray(shown[mask, m]["filled"]),
            )
            for m in METHODS
        ]
        for ax, (label, image) in zip(line, [*panels, ("photograph", truth)], strict=True):
            ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            ax.set_title(label, fontsize=9, fontweight="normal")
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
    return fig
