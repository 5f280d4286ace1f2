"""What the claims about LoRA's training compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["fit", "measures", "of", "tables"]

Row = Mapping[str, Any]
Rows = Sequence[Row]


def of(rows: Rows, *parts: str, **where: Any) -> list[Row]:
    """The rows of some parts with the given values."""
    return [r for r in rows if r["part"] in parts and all(r[key] == value for key, value in where.items())]


def measures(rows: Rows) -> dict[str, Any]:
    """Numbers by name: one value an instance."""
    found: dict[str, Any] = {}
    for part in (_widths, _training, _encoder, _merging, _layers, _experts, _landscape, _samples, _sizes):
        found |= part(rows)
    return found


# widths -----------------------------------------------------------------------------------------------------------


def _widths(rows: Rows) -> dict[str, Any]:
    plain, scaled = of(rows, "shared", "printed_start", "decoupled"), of(rows, "preconditioned")
    half = of(rows, "shared", exponents=[-0.5, -0.5])
    wide, narrow = (of(rows, "decoupled", input=kind) for kind in ("of width", "of norm one"))
    return {
        "increment_gap": [r["gap"] for r in plain],
        "scaled_increment_gap": [r["gap"] for r in scaled],
        "printed_start_factors": _slopes(of(rows, "printed_start"), "b", "ax"),
        "zero_start_factors": _slopes(half, "b", "ax"),
        "zero_start_output": _slopes(half, "output"),
        "shared_unstable": [max(map(abs, _slopes([r], "delta1", "delta2"))) for r in of(rows, "shared")],
        "decoupled_increments": _slopes(wide, "delta1", "delta2"),
        "decoupled_output": _slopes(wide, "output"),
        "decoupled_norm_one": _slopes(narrow, "delta1"),
        "scaled_bounded": _slopes(scaled, "delta1", "delta2", "delta3", "output", "b", "ax"),
        "scaled_first": _slopes(scaled, "delta1", "output"),
        "scaled_second": _slopes(scaled, "delta2"),
    }


def _slopes(rows: Rows, *names: str) -> list[float]:
    return [value for r in rows for name in names for value in r["slopes"][name]]


# runs -------------------------------------------------------------------------------------------------------------


def _training(rows: Rows) -> dict[str, Any]:
    closed, swing = of(rows, "closed"), of(rows, "oscillation")
    calm = [r for r in closed if r["rate_times_limit"] <= 0.4]
    printed = [r for r in closed if r["rate_over_limit"] <= 0.01]
    return {
        "closed_forms": [r[name] for r in closed for name in ("left_gap", "right_gap")],
        "update_gap": [r["update_gap"] for r in closed],
        "update_printed": [r["printed_gap"] for r in closed],
        "bound_share": [r["bound_share"] for r in closed if r["rate_times_limit"] < 1],
        "bound_oscillating": [r["bound_share"] for r in swing],
        "oscillating_forms": [r["left_gap"] for r in swing],
        "second_term": [r["second_term"] for r in calm],
        "second_over_square": [r["second_term"] / r["rate_times_limit"] ** 2 for r in calm],
        "second_term_printed": [r["second_term"] for r in printed],
        "compression_gap": [r["compression_gap"] for r in calm],
        "compression_sign": [r["sign"] for r in calm],
        "compressed_weights": [r["weights_gap"] for r in of(rows, "compression")],
        "compressed_state": [r["state_share"] - r["rank_share"] for r in of(rows, "compression")],
        **{f"step_gap_{k}": [r[f"step_gap_{k}"] for r in closed] for k in (0, 1, 2)},
    }


# pretrained encoder -----------------------------------------------------------------------------------------------

LAYERS = (
    "split_excess",
    "same_excess",
    "compressed_gap",
    "compressed_size",
    "compressed_cosine",
    "zero_right",
    "zero_left_gap",
    "frame_gap",
    "printed_frame_gap",
    "scaled_frame_gap",
    "token_share",
    "independent_share",
    "batch_share",
    "variance_sum",
    "variance_printed",
    "sorsa",
    "sorsa_printed",
    "dora",
    "dora_printed",
    "angle",
    "kept",
    "context_printed",
    "context_corrected",
    "context_start",
    "along",
    "against",
)


def _encoder(rows: Rows) -> dict[str, Any]:
    layers, gaps = of(rows, "encoder"), of(rows, "spectral_gap")
    found: dict[str, Any] = {name: [r[name] for r in layers if name in r] for name in LAYERS}
    none = [r for r in gaps if r["level"] == 0]
    by_level = [np.mean([r["angle"] for r in gaps if r["level"] == k]) for k in sorted({r["level"] for r in gaps})]
    return found | {
        "cosine_to_share": [r["compressed_cosine"] / r["root_share"] for r in layers],
        "token_gain": [r["token_share"] / r["token_random"] for r in layers],
        "batch_gain": [r["batch_share"] / r["batch_random"] for r in layers],
        "angle_low_rank": [r["angle"] for r in none],
        "angle_with_tail": [r["angle"] for r in gaps if r["level"] > 0],
        "angle_growth": np.diff(by_level),
    }


def _merging(rows: Rows) -> dict[str, Any]:
    merged, safety, trivial = of(rows, "merged"), of(rows, "safety"), of(rows, "trivial")
    square = [r for r in safety if r["outputs"] == r["inputs"]]
    return {
        "shared_weights": [r["shared_gap"] for r in merged],
        "own_weights": [r["own_gap"] for r in merged],
        "own_gain": [r["gain"] for r in merged],
        "square_removed": [r["removed"] for r in square],
        "truncated_removed": [r["truncated_removed"] for r in safety],
        "rank_missing": [r["rank_missing"] for r in safety],
        "square_identity": [r["identity_gap"] for r in trivial if r["shape"][0] == r["shape"][1]],
        "tall_rank": [r["rank_gap"] for r in trivial if r["shape"][0] > r["shape"][1]],
        "wide_singular": [r["singular"] for r in trivial if r["shape"][0] < r["shape"][1]],
        **{f"storage_{k}": [r[k] for r in of(rows, "storage")] for k in ("printed", "corrected")},
    }


# one layer ----------------------------------------------------------------------------------------------------------


def _layers(rows: Rows) -> dict[str, Any]:
    steps, bounds, sets = of(rows, "projection"), of(rows, "bound"), of(rows, "manifold")
    found: dict[str, Any] = {f"pro_{k}": [r[k] for r in steps] for k in ("step_gap", "gauge_gap", "misprint")}
    found["pro_unique"] = [r[k] for r in steps for k in ("uniqueness", "zero_start")]
    found |= {f"delora_{k}": [r[k] for r in bounds] for k in ("survey", "columns", "aligned", "unnormalized")}
    found["delora_from_zero"] = [r["from_zero"] for r in bounds]
    for rule, key in (("RefLoRA", "reflora"), ("LoRA-Pro", "lorapro")):
        for axis in ("rank", "side"):
            found[f"{key}_{axis}_cost"] = [r[f"{axis}_exponent"] for r in of(rows, "costs", rule=rule)]
    shapes = ("nola", "aurora", "loda", "fast_lora", "fast_lora_product", "fast_lora_printed", "total_space")
    found |= {f"shape_{k}": [r[k] for r in sets if k in r] for k in shapes}
    return found | {
        "set_dimension": [r["dimension"] - r["expected"] for r in sets],
        "set_subspace": [r["dimension"] - r["subspace"] for r in sets],
        "set_sums": [r["rank_of_sum"] for r in sets],
        "set_lower": [r["lower_dimension"] - r["dimension"] for r in sets],
        "hira_ones": [r["hira_ones"] for r in sets],
        "hira_generic": [r["hira_generic"] for r in sets],
    }


LOSSES = ("minimized", "maximized", "bridge")


def _experts(rows: Rows) -> dict[str, Any]:
    gates, balance = of(rows, "gates"), of(rows, "balance")
    return {
        "gate_errors": [r["standard_errors"] for r in gates],
        "gate_integral": [abs(r["closed"] - r["integral"]) for r in gates],
        **{f"matching_{kind}": [r["after"] for r in balance if r["loss"] == kind] for kind in LOSSES},
        "slope_matching": [r["on_matching"] for r in balance],
        "slope_others": [r["on_others"] for r in balance],
        "threshold_printed": [r["printed_gradient"] for r in of(rows, "threshold")],
        "threshold_bridge": [r["bridge_gradient"] for r in of(rows, "threshold")],
    }


# landscape and samples ------------------------------------------------------------------------------------------------


def _landscape(rows: Rows) -> dict[str, Any]:
    ends, real = of(rows, "minima"), of(rows, "minima_encoder")
    enough = [r for r in ends if r["sufficient"]]
    return {
        "encoder_certified": [r["certified"] for r in real if r["sufficient"]],
        "encoder_rank_one": [r["certified"] for r in real if r["rank"] == 1],
        "enough_certified": [r["certified"] for r in enough],
        "enough_apart": [r["apart"] for r in enough],
        "rank_one_apart": [max((r["apart"] for r in ends if r["rank"] == 1), default=0.0)],
        "half_certified": [r["certified"] for r in ends if not r["sufficient"] and 2 * r["rank"] ** 2 > r["data"]],
    }


def fit(rows: Rows, name: str) -> tuple[float, float]:
    """Exponents of the means over seeds in the number of samples and in r (d + k)."""
    groups: dict[tuple[int, int], list[float]] = {}
    for r in rows:
        groups.setdefault((r["samples"], r["parameters"]), []).append(r[name])
    keys = np.log(np.array(list(groups), dtype=float))
    design = np.column_stack((np.ones(len(keys)), keys))
    logs = np.log([np.mean(values) for values in groups.values()])
    _, in_samples, in_parameters = map(float, np.linalg.lstsq(design, logs, rcond=None)[0])
    return in_samples, in_parameters


def _samples(rows: Rows) -> dict[str, Any]:
    fits, draws = of(rows, "regression"), of(rows, "complexity")
    if not fits:
        return {}
    found: dict[str, Any] = {}
    for name in ("distance", "excess", "gap"):
        found[f"{name}_in_samples"], found[f"{name}_in_parameters"] = fit(fits, name)
    ratios = [found[f"{name}_in_parameters"] / -found[f"{name}_in_samples"] for name in ("distance", "excess", "gap")]
    logs = np.log([[r["samples"], r["side"], r["complexity"]] for r in draws])
    design = np.column_stack((np.ones(len(logs)), logs[:, :2]))
    in_samples, in_side = np.linalg.lstsq(design, logs[:, 2], rcond=None)[0][1:]
    return found | {"exponent_ratios": ratios, "complexity_in_samples": in_samples, "complexity_in_side": in_side}


def _sizes(rows: Rows) -> dict[str, Any]:
    sizes, ranks, counts = of(rows, "start_size"), of(rows, "allocation"), of(rows, "counts")
    return {
        "start_corrected": [r["corrected_exponent"] for r in sizes],
        "start_printed": [r["printed_exponent"] for r in sizes],
        "allocated": [k for r in ranks for k in r["ranks"]],
        "allocated_printed": [r["printed"] for r in ranks],
        **{name: [r[name] for r in counts] for name in ("aurora", "aurora_printed", "unmergeable")},
    }


# tables ---------------------------------------------------------------------------------------------------------------


def tables(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """The layers of the encoder by their kind, and exponents in the width after the last step."""
    layers = of(rows, "encoder")
    kinds = dict.fromkeys(r["layer"].split(".", 1)[1] for r in layers)
    columns: dict[str, Callable[[Row], float]] = {
        "tail after 2r": lambda r: r["tail"],
        "cosine of GoRA to -G": lambda r: r["compressed_cosine"],
        "largest angle of LoRA-One": lambda r: r["angle"],
        "EVA's share, tokens": lambda r: r["token_share"],
        "EVA's share, batch": lambda r: r["batch_share"],
    }
    by_kind = []
    for kind in kinds:
        own = [r for r in layers if r["layer"].split(".", 1)[1] == kind]
        by_kind.append({"layer": kind} | {name: float(np.median([f(r) for r in own])) for name, f in columns.items()})
    widths = [
        {"rule": r["part"], "rates": str(r["exponents"]), "start": r["start"], "input": r["input"]}
        | {name: r["slopes"][name][-1] for name in ("delta1", "delta2", "output", "b", "ax")}
        for r in of(rows, "shared", "printed_start", "decoupled", "preconditioned")
    ]
    return {"Layers of the encoder, medians": by_kind, "Exponents in the width": widths}
