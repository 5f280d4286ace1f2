"""The study of printed tables: the transcription is complete, and every claim is evaluated."""

from __future__ import annotations

import numpy as np
import pytest

from studies import load
from studies.benchmark_tables import analysis, study


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    found = []
    for cell in load("benchmark_tables").config.cells():
        result = study.run(cell)
        found += [{**cell, **row} for row in (result if isinstance(result, list) else [result])]
    return found


@pytest.mark.covers("X11", "X12", "X13", "X14", "X15", "X16", "X19", "X20", "X21")
def test_every_claim_is_evaluated(rows):
    found = study.measures(rows)
    for claim in load("benchmark_tables").config.claims:
        values = np.asarray(found[claim.measure], dtype=float)
        assert values.size, claim.id
        assert np.isfinite(values).all(), claim.id
    assert set(study.figures(rows)) == {"rates", "peaks"}
    assert len(study.tables(rows)["GLUE, peaks over learning rates"]) == 20


@pytest.mark.covers("X12", "D54")
def test_glue_is_transcribed_completely(rows):
    glue = analysis.of(rows, "glue")
    rates = {r["rate"] for r in glue}
    assert len(glue) == 140
    assert all(len([r for r in glue if r["method"] == name]) == len(rates) == 7 for name in analysis.methods(glue))
    assert all(0 <= r[task] <= 100 for r in glue for task in analysis.TASKS)
    # By hand: LoRA at 1e-4, whose nine scores add up to 716.93.
    [lora] = [r for r in glue if r["method"] == "LoRA" and r["rate"] == 1e-4]
    assert analysis.mean(lora) == pytest.approx(716.93 / 9)
    assert analysis.peak(glue, "RaSA") == (81.37, 5e-4)


@pytest.mark.covers("X11")
def test_tables_of_other_models_are_transcribed_completely(rows):
    ranks, cost, scores = (analysis.of(rows, part) for part in ("high_rank", "cost", "accuracy"))
    assert len(ranks) == 2 * 5 * 6
    assert max(r["score"] for r in ranks if r["task"] == "GSM8K") == 76.57
    assert {r["method"]: r["minutes"] for r in cost}["LoRAMoE, 8 experts"] == 36 * 60 + 31
    assert len(cost) == 19
    assert sum(r["percent"] is None for r in scores) == 4
