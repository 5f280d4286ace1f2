"""The settings of the survey's benchmark are those that recipes have, or take as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import llm_bridge as lb
from llm_bridge.experts import LowRankExperts, Top


def setting(name: str, *path: str) -> Any:
    """An attribute of an attribute of a recipe."""
    value: Any = lb.recipe(name)
    for part in path:
        value = getattr(value, part)
    return value


@pytest.mark.covers("X17")
@pytest.mark.parametrize(
    "name, path, published",
    [
        ("lora-ga", ("init", "gamma"), 16),
        ("lora-one", ("init", "gamma"), 128),
        ("nzlora", ("init", "left"), 16),
        ("nzlora", ("init", "right"), 16),
        ("delora", ("init", "strength"), 8),
        ("melora", ("form", "settings"), (2,)),
        ("moe-lora", ("form", "count"), 8),
        ("moe-lora", ("form", "gate"), Top(2)),
        ("goat", ("form", "count"), 8),
        ("goat", ("form", "gate", "active"), 2),
    ],
)
def test_defaults_are_the_published_settings(name, path, published):
    assert setting(name, *path) == published


@pytest.mark.covers("X17")
def test_settings_of_several_parts():
    on_b, on_a = setting("lora+", "rule").rules[-1].rates
    assert on_b / on_a == 16
    assert setting("rasa", "form", "settings")[0] == 1  # ranks that every layer puts into the pool
    budget = lb.Budget(8, 3000, first=100, last=900)
    assert [budget.at(step, 12, 1) for step in (1, 100, 2101, 3000)] == [12, 12, 8, 8]
    after = lb.jagged(100, warmup=10)
    assert [after(step) for step in (100, 105, 110, 150)] == [0.0, 0.5, 1.0, 1.0]
    assert LowRankExperts.of(6, Top(2)).parameter_count((5, 7), 1) == 6 * (5 + 7) + 6 * 7


@pytest.mark.covers("X17")
@pytest.mark.parametrize("name, rank, reached", [("melora", 8, 16), ("randlora", 32, 64), ("rasa", 8, 7 + 32)])
def test_ranks_that_the_settings_reach(name, rank, reached):
    """Two blocks of rank 8 reach 16, bases of rank 32 the whole layer, a pool of 32 layers one rank of each."""
    model: Any = lb.adapt(nn.Sequential(nn.Linear(64, 64)).double(), name, rank=rank, dtype=torch.float64)
    adapter = lb.adapted(model)["0"].adapter("default")
    torch.manual_seed(0)
    point = adapter.point().map(torch.randn_like)
    assert int(torch.linalg.matrix_rank(point.dense())) == reached
