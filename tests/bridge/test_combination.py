"""Weighted sums of adapters: against dense sums, PEFT's own combination, and bad arguments."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import llm_bridge as lb
from lowrank_sp.parameterizations import Hadamard

from .test_checkpoint import X, equal, output, shake, trained


def updates(model, name: str) -> dict[str, np.ndarray]:
    """``s F`` of every layer, dense."""
    layers = lb.adapted(model).items()
    return {p: layer.adapter(name).update().detach().double().numpy() for p, layer in layers if name in layer.names()}


def several(model) -> None:
    """Three adapters with other forms, starts, ranks, scales and layers."""
    trained(model, "lora", name="a", alpha=5.0, also_train=[])
    trained(model, "pissa", name="b", rank=2, targets=["up", "head"], also_train=[])
    trained(model, "polar", name="c", rank=4, alpha=2.0, targets=["down"], also_train=[])


def dense_sum(model, weights: dict[str, float]) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        for path, update in updates(model, name).items():
            total[path] = total.get(path, 0) + weight * update
    return total


@pytest.mark.covers("A13")
def test_the_sum_is_exact_by_default(mlp):
    several(mlp)
    weights = {"a": 0.7, "b": -0.3, "c": 1.5}
    expected = dense_sum(mlp, weights)
    report = lb.combine(mlp, list(weights), list(weights.values()))
    mixed = updates(mlp, "mix")
    assert mixed.keys() == expected.keys()
    for path, update in expected.items():
        assert np.allclose(mixed[path], update, atol=1e-5)
    assert report.worst < 1e-12
    assert report.ranks["layers.0.down"] == 7  # the ranks of a and c
    assert report.ranks["layers.0.up"] == 7  # that of a, and twice that of b, whose start is subtracted
    assert {layer.active for layer in lb.adapted(mlp).values()} == {("mix",)}


def test_a_truncated_sum_is_the_nearest_matrix(mlp):
    several(mlp)
    weights = {"a": 1.0, "b": 2.0, "c": -1.0}
    expected = dense_sum(mlp, weights)
    report = lb.combine(mlp, list(weights), list(weights.values()), name="short", rank=2)
    for path, update in expected.items():
        u, s, vh = np.linalg.svd(update)
        best = (u[:, :2] * s[:2]) @ vh[:2]
        assert np.allclose(updates(mlp, "short")[path], best, atol=1e-5)
        assert report.errors[path] == pytest.approx(np.linalg.norm(s[2:]) / np.linalg.norm(s), rel=1e-5)


def test_forms_without_thin_factors(mlp):
    trained(mlp, lb.recipe("lora").but("loha", form=Hadamard), rank=2, name="a", also_train=[])
    trained(mlp, "lora", name="b", also_train=[])
    expected = dense_sum(mlp, {"a": 1.0, "b": 0.5})
    lb.combine(mlp, ["a", "b"], [1.0, 0.5])
    for path, update in expected.items():
        assert np.allclose(updates(mlp, "mix")[path], update, atol=1e-5)


@pytest.mark.covers("A13")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_agrees_with_the_exact_combination_of_peft(mlp, tmp_path):
    import peft

    fresh = copy.deepcopy(mlp)
    for seed, name in enumerate("ab"):
        trained(mlp, "lora", name=name, alpha=4.0, also_train=[])
        shake(mlp, seed)
        lb.save_peft(mlp, tmp_path / name, name=name)
    theirs = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "a"), adapter_name="a")
    theirs.load_adapter(str(tmp_path / "b"), adapter_name="b")
    theirs.add_weighted_adapter(["a", "b"], [0.7, 0.3], "mix", combination_type="svd", svd_rank=6)
    theirs.set_adapter("mix")
    lb.combine(mlp, ["a", "b"], [0.7, 0.3])
    assert torch.allclose(output(mlp), output(theirs, X), atol=1e-5)


def test_what_trains_in_full_moves_by_the_weighted_sum(mlp):
    start = mlp.head.weight.detach().clone()
    moved = []
    for seed, name in enumerate("ab"):
        trained(mlp, name=name)
        shake(mlp, seed)
        moved.append(mlp.head.weight.detach() - start)
    lb.combine(mlp, ["a", "b"], [0.25, 2.0])
    assert torch.allclose(mlp.head.weight, start + 0.25 * moved[0] + 2.0 * moved[1], atol=1e-6)
    lb.activate(mlp)
    assert torch.equal(mlp.head.weight, start)
    lb.activate(mlp, "a")
    assert torch.allclose(mlp.head.weight, start + moved[0], atol=1e-6)


def test_two_adapters_cannot_both_give_a_parameter_its_value(mlp):
    for name in "ab":
        trained(mlp, name=name)
    tuned = mlp.head.weight.detach().clone()
    with pytest.raises(ValueError, match="train the same parameters in full"):
        lb.activate(mlp, "a", "b")
    assert torch.equal(mlp.head.weight, tuned)


def test_a_combination_saves_trains_and_exports(mlp, tmp_path):
    fresh = copy.deepcopy(mlp)
    several(mlp)
    lb.combine(mlp, ["a", "b"], [1.0, 1.0])
    assert all(
        p.requires_grad for layer in lb.adapted(mlp).values() for p in layer.adapters["adapter_mix"].parameters()
    )
    lb.save(mlp, tmp_path / "ours", name="mix")
    lb.save_peft(mlp, tmp_path / "theirs", name="mix")
    assert torch.equal(output(lb.load(copy.deepcopy(fresh), tmp_path / "ours")), output(mlp))
    assert torch.allclose(output(lb.load_peft(fresh, tmp_path / "theirs")), output(mlp), atol=1e-5)


BAD = {
    "unknown": ({"names": ["a", "z"], "weights": [1, 1]}, "no adapter 'z'"),
    "count": ({"names": ["a", "b"], "weights": [1.0]}, "weights must be 2 finite numbers"),
    "infinite": ({"names": ["a"], "weights": [float("inf")]}, "weights must be 1 finite numbers"),
    "twice": ({"names": ["a", "a"], "weights": [1, 1]}, "names must be a list of different adapters"),
    "text": ({"names": "a", "weights": [1]}, "names must be a list of different adapters"),
    "none": ({"names": [], "weights": []}, "names must be a list of different adapters"),
    "taken": ({"names": ["a"], "weights": [1], "name": "b"}, "has an adapter 'b' already"),
    "rank": ({"names": ["a"], "weights": [1], "rank": -1}, "rank must be at least 1"),
    "dora": ({"names": ["a", "d"], "weights": [1, 1]}, r"adapter 'd' \(dora\) does more than add"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_change_nothing(mlp, case):
    several(mlp)
    trained(mlp, "dora", name="d", also_train=[])
    before, names = copy.deepcopy(mlp.state_dict()), list(lb.setups(mlp))
    settings, match = BAD[case]
    with pytest.raises(ValueError, match=match):
        lb.combine(mlp, **settings)
    assert equal(before, mlp.state_dict())
    assert list(lb.setups(mlp)) == names
