"""The theory of LoRA's training in the surveys, run with the starts, rules, forms and optimizers of this project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from matplotlib.figure import Figure

from studies.lora_dynamics import analysis, plots

Row = Mapping[str, Any]

# The function of every part; modules are imported where they are needed, as some take torch and transformers.
PARTS = {
    "shared": "toys.width",
    "printed_start": "toys.width",
    "decoupled": "toys.width",
    "preconditioned": "toys.width",
    "closed": "training.closed",
    "oscillation": "training.oscillation",
    "compression": "training.compression",
    "spectral_gap": "starts.spectral_gap",
    "encoder": "starts.in_encoder",
    "merged": "merging.merged",
    "safety": "merging.safety",
    "trivial": "merging.trivial",
    "storage": "merging.storage",
    "projection": "tangent.projection",
    "bound": "tangent.bound",
    "costs": "tangent.costs",
    "manifold": "tangent.manifold",
    "gates": "experts.gates",
    "threshold": "experts.threshold",
    "balance": "experts.balance",
    "minima": "kernel.minima",
    "minima_encoder": "kernel.in_encoder",
    "regression": "samples.regression",
    "complexity": "samples.complexity",
    "start_size": "scales.start_size",
    "allocation": "scales.allocation",
    "counts": "scales.counts",
}


def run(cell: dict[str, Any]) -> Any:
    """One instance of one part."""
    module, name = PARTS[cell["part"]].split(".")
    return getattr(import_module(f"studies.lora_dynamics.{module}"), name)(cell)


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Numbers by name, for the claims."""
    return analysis.measures(rows)


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Layers of the encoder, and exponents."""
    return analysis.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Widths, compression, first subspaces, first gradients, minima, samples."""
    return plots.figures(rows)
