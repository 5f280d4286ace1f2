"""What the printed tables say: averages, peaks, rates, collapses, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["TASKS", "mean", "measures", "methods", "of", "peak", "tables"]

Row = Mapping[str, Any]
Rows = Sequence[Row]

TASKS = ("SST-2", "CoLA", "MNLI", "MRPC", "QNLI", "QQP", "RTE", "STS-B", "WNLI")
INITIALIZED = ("EVA", "PiSSA", "LoRAGA", "LoRA-One", "NZLoRA")
SLOW = ("AdaLoRA", "DoRA", "DeLoRA", "HiRA")
MIXTURES = ("LoRAMoE", "GOAT")
# Scores that one class for all examples gives; on QNLI and SST-2 both classes, and on MNLI all three, occur.
CONSTANT = {"SST-2": (50.92, 49.08), "MNLI": (32.74, 31.82, 35.45), "QNLI": (50.63, 49.37), "WNLI": (56.34, 43.66)}


def of(rows: Rows, part: str, **where: Any) -> list[Row]:
    """The rows of a part with the given values."""
    return [r for r in rows if r["part"] == part and all(r[key] == value for key, value in where.items())]


def measures(rows: Rows) -> dict[str, Any]:
    """Numbers by name."""
    [text], [qualities] = of(rows, "text"), of(rows, "qualities")
    glue, ranks, cost = of(rows, "glue"), of(rows, "high_rank"), of(rows, "cost")
    return {
        **_averages(glue),
        **_peaks(glue),
        **_rates(glue),
        **_collapses(glue),
        **_high_ranks(ranks, text),
        **_costs(cost),
        **_texts(text),
        **_accuracies(of(rows, "accuracy"), qualities),
    }


def methods(glue: Rows) -> list[str]:
    """In the order of the tables."""
    return list(dict.fromkeys(r["method"] for r in glue))


def mean(row: Row, without: Sequence[str] = ()) -> float:
    """Over tasks."""
    return float(np.mean([row[task] for task in TASKS if task not in without]))


def peak(glue: Rows, method: str, without: Sequence[str] = ()) -> tuple[float, float]:
    """Best printed average over rates, or best mean without some tasks, and its rate."""
    own = [r for r in glue if r["method"] == method]
    return max((mean(r, without) if without else r["average"], r["rate"]) for r in own)


def _at(glue: Rows, method: str, rate: float) -> float:
    return next(r["average"] for r in glue if r["method"] == method and r["rate"] == rate)


# GLUE ---------------------------------------------------------------------------------------------------------------


def _averages(glue: Rows) -> dict[str, Any]:
    gaps = np.array([abs(r["average"] - mean(r)) for r in glue])
    off = [r for r, gap in zip(glue, gaps, strict=True) if gap > 0.0051]
    implied = [9 * r["average"] - sum(r[t] for t in TASKS if t != "STS-B") for r in off if r["STS-B"] == 0]
    return {
        "average_gaps": gaps,
        "averages_off": len(off),
        "off_correlation": [r["STS-B"] for r in off],
        "off_implied": implied,
    }


def _peaks(glue: Rows) -> dict[str, Any]:
    best = {name: peak(glue, name)[0] for name in methods(glue)}
    bare = {name: peak(glue, name, ("WNLI",))[0] for name in best}
    over = [best[name] - best["LoRA"] for name in best if name != "LoRA"]
    rising = [_at(glue, "LoRA", rate) for rate in (1e-6, 1e-5, 5e-5, 1e-4)]
    return {
        "lora_first": rising[0],
        "lora_peak": best["LoRA"],
        "lora_rises": np.diff(rising),
        "lora_peak_rate": peak(glue, "LoRA")[1],
        "rasa_peak": best["RaSA"],
        "over_by_half": sum(gap >= 0.5 for gap in over),
        "over_by_one": sum(gap >= 1 for gap in over),
        "below_share": float(np.mean([gap < 0 for gap in over])),
        "below_share_bare": float(np.mean([bare[name] < bare["LoRA"] for name in bare if name != "LoRA"])),
        "rasa_lead_bare": bare["RaSA"] - max(v for k, v in bare.items() if k != "RaSA"),
        "rasa_wnli": next(r["WNLI"] for r in glue if r["method"] == "RaSA" and r["rate"] == peak(glue, "RaSA")[1]),
        "initialized_early": [_at(glue, k, 1e-5) - _at(glue, "LoRA", 1e-5) for k in INITIALIZED],
        "initialized_peaks": [best[k] - best["LoRA"] for k in INITIALIZED],
    }


def _rates(glue: Rows) -> dict[str, Any]:
    rates = sorted({r["rate"] for r in glue})
    _, own = peak(glue, "LoRA")
    wins = {k: sum(_at(glue, k, rate) > _at(glue, "LoRA", rate) for rate in rates) for k in MIXTURES}
    near = {k: sum(_at(glue, k, rate) > peak(glue, k)[0] - 2 for rate in rates) for k in ("LoRA", "MoSLoRA")}
    gains = [_at(glue, "LoRA+", rate) - _at(glue, "LoRA", rate) for rate in rates]
    return {
        "hira_behind": _at(glue, "LoRA", 1e-5) - _at(glue, "HiRA", 1e-5),
        "best_rate_ratios": [peak(glue, k)[1] / own for k in SLOW],
        "matching_rate_ratios": [ratio for k in SLOW for ratio in _matching(glue, k, rates, own)],
        "mixture_losses": [len(rates) - n for n in wins.values()],
        "moslora_steadier": near["MoSLoRA"] - near["LoRA"],
        "loraplus_early": gains[:2],
        "loraplus_late": [gain for gain, rate in zip(gains, rates, strict=True) if rate in (1e-4, 5e-4)],
    }


def _matching(glue: Rows, method: str, rates: Sequence[float], best: float) -> list[float]:
    """For every rate of LoRA up to its best one, the least rate at which a method reaches its score, over that rate."""
    found = []
    for rate in (r for r in rates if r <= best):
        enough = [other for other in rates if _at(glue, method, other) >= _at(glue, "LoRA", rate)]
        found += [min(enough) / rate] if enough else []
    return found


def _collapses(glue: Rows) -> dict[str, Any]:
    flat = [r for r in glue if r["SST-2"] in CONSTANT["SST-2"] and r["rate"] > 1e-4]
    return {
        "collapsed_mnli": float(np.mean([r["MNLI"] in CONSTANT["MNLI"] for r in flat])),
        "collapsed_qnli": float(np.mean([r["QNLI"] in CONSTANT["QNLI"] for r in flat])),
        "collapsed_last": float(np.mean([r["SST-2"] in CONSTANT["SST-2"] for r in glue if r["rate"] == 5e-3])),
        "wnli_best": max(r["WNLI"] for r in glue),
        "wnli_over_constant": sum(r["WNLI"] > max(CONSTANT["WNLI"]) for r in glue),
    }


# other tables -------------------------------------------------------------------------------------------------------


def _high_ranks(rows: Rows, text: Row) -> dict[str, Any]:
    best = {}
    for row in rows:
        key = (row["task"], row["method"])
        best[key] = max(best.get(key, (0.0, 0.0)), (row["score"], row["rate"]))
    by_task = {task: max(score for (t, _), (score, _) in best.items() if t == task) for task in ("GSM8K", "HumanEval")}
    lora, ga = best["HumanEval", "LoRA alpha 256"], best["HumanEval", "LoRA-GA"]
    names = {method.split(" alpha")[0] for _, method in best}
    return {
        "gsm8k_best": [best["GSM8K", "LoRA alpha 256"][0] - by_task["GSM8K"]],
        "gsm8k_gain": best["GSM8K", "LoRA alpha 256"][0] - text["sweep"]["lora_best"],
        "gsm8k_gain_all": [best["GSM8K", method][0] - text["sweep"]["lora_best"] for t, method in best if t == "GSM8K"],
        "humaneval_peaks": [lora[0], ga[0]],
        "humaneval_behind": by_task["HumanEval"] - lora[0],
        "humaneval_rate": ga[1],
        "high_rank_missing": sum(name not in names for name in text["high_rank"]["methods"]),
    }


def _costs(rows: Rows) -> dict[str, Any]:
    time, memory = ({r["method"]: r[key] for r in rows} for key in ("minutes", "megabytes"))
    plain = [name for name in time if "checkpointing" not in name]
    return {
        "dora_memory": memory["DoRA"] / memory["LoRA"] - 1,
        "dora_memory_lead": memory["DoRA"] - max(memory[k] for k in plain if k != "DoRA"),
        "loramoe_time": time["LoRAMoE, 8 experts"] / time["LoRA"] - 1,
        "loramoe_time_lead": time["LoRAMoE, 8 experts"] - max(time[k] for k in plain if k != "LoRAMoE, 8 experts"),
        "slower_than_lora": [time[k] / time["LoRA"] for k in plain if k != "LoRA"],
        "larger_than_lora": [memory[k] / memory["LoRA"] for k in plain if k != "LoRA"],
    }


def _texts(text: Row) -> dict[str, Any]:
    sweep, base, scale, images = text["sweep"], text["sensitivity"], text["scale"], text["images"]
    return {
        "images_rise": images["at_5e-4"] - images["at_1e-6"],
        "images_flat": abs(images["at_5e-4"] - images["at_2e-4"]),
        "early_lead": sweep["loraga_at_1e-6"] - sweep["lora_at_1e-6"],
        "late_lead": sweep["loraplus_best"] - sweep["lora_best"],
        "samples_gain": base["lora_samples_395k"] - base["lora_samples_100k"],
        "batch_loss": base["lora_batch_first"] - base["lora_batch_256"],
        "dropout_loss": base["loraga_no_dropout"] - base["loraga_dropout"],
        "base_runs": base["lora_batch_first"] - base["lora_samples_100k"],
        "tasks_missing": scale["tasks"] - sum(scale["named"].values()),
        "metrics_missing": len(TASKS) - len(scale["metrics"]),
        "runs_per_entry": scale["runs_per_entry"],
    }


def _accuracies(rows: Rows, qualities: Row) -> dict[str, Any]:
    full = {r["table"]: r for r in rows if r["method"] == "full"}
    shares = {(r["table"], r["method"]): 100 * r["millions"] / full[r["table"]]["millions"] for r in rows}
    changes = {(r["table"], r["method"]): r["score"] - full[r["table"]]["score"] for r in rows}
    ranges, words = qualities["shunfoundation"], qualities["survey2026sp"]

    def outside(values: Mapping[tuple[str, str], float], key: str) -> list[float]:
        found = []
        for (_, method), value in values.items():
            if method in ranges and method != "full":
                low, high = ranges[method][key]
                found.append(max(low - value, value - high, 0.0))
        return found

    return {
        "percent_gaps": [abs(shares[r["table"], r["method"]] - r["percent"]) for r in rows if r["percent"] is not None],
        "lora_16_over_full": [v for (_, method), v in changes.items() if method == "LoRA r = 16"],
        "share_outside": outside(shares, "percent"),
        "change_outside": outside(changes, "change"),
        "pareto": [_dominated(rows, r) for r in rows if r["method"].startswith("LoRA")],
        "lora_overhead": ranges["LoRA r = 8"]["overhead"],
        "words_over_adapter": [a - b for a, b in zip(words["LoRA"], words["adapter"], strict=True)],
        "words_dominated": sum(all(a >= b for a, b in zip(v, words["LoRA"], strict=True)) for v in words.values()) - 1,
    }


def _dominated(rows: Rows, row: Row) -> int:
    """How many methods of its table have fewer parameters and a score at least as high."""
    others = [r for r in rows if r["table"] == row["table"] and r["method"] != row["method"]]
    return sum(r["millions"] <= row["millions"] and r["score"] >= row["score"] for r in others)


def tables(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """Peaks of all methods."""
    glue, found = of(rows, "glue"), []
    for name in methods(glue):
        (best, rate), (bare, bare_rate) = peak(glue, name), peak(glue, name, ("WNLI",))
        found.append({"method": name, "peak": best, "rate": rate, "without WNLI": bare, "its rate": bare_rate})
    return {"GLUE, peaks over learning rates": sorted(found, key=lambda r: -r["peak"])}
