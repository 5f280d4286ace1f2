"""Adapters made of others without training: matched outputs, searches, choices, trimmed sums, projections, CKA."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import llm_bridge as lb
from llm_bridge.merging import Largest, Rescaled, Summed
from lowrank_sp.parameterizations import Hadamard

from .test_checkpoint import X, equal, output, shake, trained
from .test_combination import several, updates


def alike(model, count=3, rank=2):
    """Trained LoRAs of one rank, without parameters that train in full."""
    names = "abcde"[:count]
    for name in names:
        trained(model, "lora", rank=rank, name=name, also_train=[])
        shake(model, ord(name))
    return list(names)


# TIES, DARE and their kin -------------------------------------------------------------------------------------------
@pytest.mark.covers("A18")
@pytest.mark.parametrize("density", [0.2, 0.55])
def test_trimmed_and_elected_entries_are_those_of_peft(mlp, density):
    from peft.utils import merge_utils

    several(mlp)
    names, weights = ["a", "b", "c"], [0.7, -0.3, 1.5]
    parts = {path: [updates(mlp, n)[path] for n in names if path in updates(mlp, n)] for path in updates(mlp, "a")}
    for how, theirs in (
        (lb.ties(density), merge_utils.ties),
        (lb.magnitude_prune(density), merge_utils.magnitude_prune),
    ):
        report = lb.combine(mlp, names, weights, how=how)
        for path, own in parts.items():
            have = torch.tensor([w for n, w in zip(names, weights, strict=True) if path in updates(mlp, n)]).double()
            expected = theirs([torch.as_tensor(u) for u in own], have, density)
            assert np.allclose(updates(mlp, "mix")[path], expected.numpy(), atol=1e-5)
        assert report.worst < 1e-5
        lb.drop(mlp, "mix")


@pytest.mark.covers("A18")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_truncated_ties_merge_is_that_of_peft(mlp, tmp_path):
    import peft

    fresh = copy.deepcopy(mlp)
    for seed, name in enumerate("ab"):
        trained(mlp, "lora", name=name, alpha=4.0, also_train=[])
        shake(mlp, seed)
        lb.save_peft(mlp, tmp_path / name, name=name)
    theirs = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "a"), adapter_name="a")
    theirs.load_adapter(str(tmp_path / "b"), adapter_name="b")
    options = {"combination_type": "ties_svd", "svd_rank": 5, "density": 0.4}
    theirs.add_weighted_adapter(["a", "b"], [0.7, 0.3], "mix", **options)
    theirs.set_adapter("mix")
    lb.combine(mlp, ["a", "b"], [0.7, 0.3], rank=5, how=lb.ties(0.4))
    assert torch.allclose(output(mlp), output(theirs, X), atol=1e-5)


@pytest.mark.covers("A18")
def test_random_entries_are_scaled_up_and_their_mean_is_the_sum(mlp):
    names = alike(mlp, 2)
    whole = updates(mlp, "a")
    for density in (0.3, 0.8):
        lb.combine(mlp, ["a"], [1.0], name="one", how=lb.dare(density))
        for path, update in updates(mlp, "one").items():
            kept = np.abs(update) > 1e-6
            assert np.allclose(update[kept], whole[path][kept] / density, atol=1e-4)
            assert abs(kept.mean() - density) < 0.2
        lb.drop(mlp, "one")
    mean = dict.fromkeys(whole, 0.0)
    expected = {path: whole[path] - 2 * updates(mlp, "b")[path] for path in whole}
    for seed in range(60):
        lb.combine(mlp, names, [1.0, -2.0], name="some", how=lb.dare(0.5, seed))
        mean = {path: mean[path] + update / 60 for path, update in updates(mlp, "some").items()}
        lb.drop(mlp, "some")
    for path, update in expected.items():
        assert np.linalg.norm(mean[path] - update) < 0.3 * np.linalg.norm(update)


@pytest.mark.covers("A18")
def test_elected_signs_of_random_entries_and_seeds(mlp):
    names = alike(mlp)
    found = {}
    for seed in (0, 0, 1):
        lb.combine(mlp, names, [1.0, 1.0, 1.0], how=lb.dare_ties(0.6, seed))
        found.setdefault(seed, []).append(updates(mlp, "mix")["layers.1.up"])
        lb.drop(mlp, "mix")
    first, again = found[0]
    assert np.array_equal(first, again)
    assert not np.allclose(first, found[1][0])
    largest = np.max([np.abs(updates(mlp, n)["layers.1.up"]) for n in names], 0)
    assert (np.abs(first) <= largest / 0.6 + 1e-5).all()  # means of those that agree, never sums


@pytest.mark.parametrize("density", [0, 1.5, True, -0.2])
def test_densities_that_are_none(density):
    for part in (Largest, Rescaled):
        with pytest.raises(ValueError, match=r"density must lie in \(0, 1\]"):
            part(density)


# weights by layer ---------------------------------------------------------------------------------------------------
@pytest.mark.covers("A13")
def test_every_layer_may_have_its_own_weights(mlp):
    several(mlp)
    paths = list(updates(mlp, "a"))
    weights = {path: [0.5 * i, 1.0, -i] for i, path in enumerate(paths)} | {"head": [0.3, 0.2, 0.1]}
    lb.combine(mlp, ["a", "b", "c"], weights)
    for path, mixed in updates(mlp, "mix").items():
        expected = sum(w * updates(mlp, n).get(path, 0) for n, w in zip("abc", weights[path], strict=True))
        assert np.allclose(mixed, expected, atol=1e-5)


def test_weights_by_layer_that_do_not_fit(mlp):
    names = alike(mlp, 2)
    trained(mlp, "lora", rank=2, name="full")
    before, there = copy.deepcopy(mlp.state_dict()), list(lb.setups(mlp))
    whole = {path: [1.0, 1.0] for path in updates(mlp, "a")}
    cases = [
        (names, {"layers.0.up": [1.0, 1.0]}, "weights by layer must have all layers"),
        (names, whole | {"layers.0.up": [1.0]}, "weights must be 2 finite numbers"),
        (["a", "full"], whole, "'full' also trains parameters of the model"),
    ]
    for chosen, weights, message in cases:
        with pytest.raises(ValueError, match=message):
            lb.combine(mlp, chosen, weights)
    assert equal(before, mlp.state_dict())
    assert list(lb.setups(mlp)) == there


# output matching ----------------------------------------------------------------------------------------------------
def batches(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(6, 12, generator=generator) + 0.5 for _ in range(2)]


def seen(model, name, data):
    """The inputs of every layer while an adapter acts."""
    found: dict[str, list[np.ndarray]] = {path: [] for path in lb.adapted(model)}
    handles = [
        layer.base.register_forward_pre_hook(
            lambda _, args, path=path: found[path].append(args[0].detach().double().numpy())
        )
        for path, layer in lb.adapted(model).items()
    ]
    lb.activate(model, name)
    for batch in data:
        model(batch)
    for handle in handles:
        handle.remove()
    return {path: np.concatenate(parts) for path, parts in found.items()}


@pytest.mark.covers("A14")
def test_weights_are_the_least_squares_of_outputs(mlp):
    several(mlp)
    trained(mlp, lb.recipe("lora").but("loha", form=Hadamard), rank=2, name="d", targets=["up"], also_train=[])
    data = {name: batches(seed, 1.0 + seed) for seed, name in enumerate("abcd")}
    found = lb.output_matching(mlp, data)
    assert {layer.active for layer in lb.adapted(mlp).values()} == {("d",), ()}
    inputs = {name: seen(mlp, name, data[name]) for name in data}
    left = 0.0
    for path, weights in found.by_layer().items():
        own = {n: updates(mlp, n).get(path, np.zeros((1, 1))) for n in "abcd"}
        shape = max(u.shape for u in own.values())
        own = {n: np.broadcast_to(u, shape) for n, u in own.items()}
        rows = [inputs[n][path] / len(inputs[n][path]) ** 0.5 for n in "abcd"]
        design = np.stack([np.concatenate([(x @ own[n].T).ravel() for x in rows]) for n in "abcd"], 1)
        target = np.concatenate([(x @ own[n].T).ravel() for n, x in zip("abcd", rows, strict=True)])
        expected, *_ = np.linalg.lstsq(design, target, rcond=1e-6)
        assert np.allclose(weights, expected, atol=1e-4)
        left += ((design @ weights - target) ** 2).sum()
    total = sum(found.sizes.values())
    assert np.isclose(found.error(found.by_layer()), left / total, atol=1e-5)
    assert found.error(found.by_layer()) <= found.error(found.overall()) < found.error([0.25] * 4)
    assert found.error([0.0] * 4) == pytest.approx(1.0)
    lb.combine(mlp, found.names, found.by_layer())


@pytest.mark.covers("A14")
def test_data_in_common_give_equal_weights(mlp):
    """Where layers see the same inputs whichever adapter acts."""
    model = nn.Sequential(nn.Linear(12, 5))
    for name in "abc":
        shake(lb.adapt(model, "lora", rank=2, name=name), ord(name))
    found = lb.output_matching(model, dict.fromkeys("abc", batches(0)))
    assert np.allclose(found.overall(), [1 / 3] * 3)
    own = {name: [(torch.arange(12) % 3 == i) * b for b in batches(0)] for i, name in enumerate("abc")}
    assert not np.allclose(lb.output_matching(model, own).overall(), [1 / 3] * 3, atol=0.05)


def test_matching_of_what_cannot_be_matched(mlp):
    alike(mlp, 2)
    mlp.train()
    with pytest.raises(ValueError, match="no adapter 'z'"):
        lb.output_matching(mlp, {"a": batches(0), "z": batches(0)})
    with pytest.raises(ValueError, match=r"have not reached layers\.0\.up"):
        lb.output_matching(mlp, {"a": lambda: None})
    with pytest.raises(ValueError, match="no batches"):
        lb.output_matching(mlp, {"a": []})
    assert mlp.training
    assert lb.adapted(mlp)["layers.1.up"].active == ("b",)
    assert not any(layer._forward_pre_hooks for layer in lb.adapted(mlp).values())


# LoraHub ------------------------------------------------------------------------------------------------------------
@pytest.mark.covers("A15")
def test_coefficients_of_factors_are_found_by_losses_alone(mlp):
    names = alike(mlp, 3)
    factors = {
        p: [(a.left.detach(), a.right.detach()) for a in _adapters(layer, names)]
        for p, layer in lb.adapted(mlp).items()
    }
    wanted = [0.8, -0.6, 0.3]
    hidden = copy.deepcopy(mlp)
    lb.activate(hidden)
    with torch.no_grad():
        for path, pairs in factors.items():
            left, right = (torch.stack([w * pair[i] for w, pair in zip(wanted, pairs, strict=True)]) for i in (0, 1))
            hidden.get_submodule(path).base.weight += left.sum(0) @ right.sum(0).mT
        target = hidden(X)
    lb.activate(mlp, "a")

    def search(evaluations, penalty):
        return lb.search_weights(
            mlp, names, lambda: (mlp(X) - target).square().mean(), "mix", evaluations, 1.5, penalty
        )

    report = search(120, 0.0)
    assert len(report.losses) <= 120
    assert report.loss == min(report.losses) < 1e-2 * report.losses[0]
    sign = np.sign(report.weights[0])  # both factors change sign together
    assert np.allclose(sign * np.array(report.weights), wanted, atol=0.2)
    assert (mlp(X) - target).square().mean().item() == pytest.approx(report.loss, rel=1e-3)
    assert {layer.active for layer in lb.adapted(mlp).values()} == {("mix",)}
    lb.drop(mlp, "mix")
    short = search(20, 0.0)
    assert short.losses == report.losses[:20]
    lb.drop(mlp, "mix")
    assert search(20, 1e3).weights == (0.0, 0.0, 0.0)


def _adapters(layer, names) -> list[Any]:
    return [layer.adapter(name) for name in names]


def test_searches_that_fail_leave_nothing(mlp):
    names = alike(mlp, 2)
    trained(mlp, "lora", rank=3, name="wide", also_train=[])
    trained(mlp, lb.recipe("lora").but("loha", form=Hadamard), rank=2, name="loha", also_train=[])
    trained(mlp, "lora", rank=2, name="full")
    lb.activate(mlp, "b")
    mlp.train()
    before, there = copy.deepcopy(mlp.state_dict()), list(lb.setups(mlp))

    def zero():
        return 0.0

    cases = [
        ((names, lambda: float("nan")), {}, ValueError, "loss returned nan"),
        ((names, lambda: 1 / 0), {}, ZeroDivisionError, "division"),
        ((["a", "wide"], zero), {}, ValueError, "other ranks"),
        ((["a", "loha"], zero), {}, TypeError, "no thin factors"),
        ((["a", "full"], zero), {}, ValueError, "also trains parameters"),
        ((names, zero), {"evaluations": 3}, ValueError, "evaluations must be at least 4"),
        ((names, zero), {"bound": 0.0}, ValueError, "bound positive"),
        ((names, zero), {"name": "wide"}, ValueError, "has an adapter 'wide' already"),
    ]
    for arguments, options, error, message in cases:
        with pytest.raises(error, match=message):
            lb.search_weights(mlp, *arguments, **options)
    assert equal(before, mlp.state_dict())
    assert list(lb.setups(mlp)) == there
    assert mlp.training
    assert lb.adapted(mlp)["layers.1.up"].active == ("b",)


# K-LoRA -------------------------------------------------------------------------------------------------------------
@pytest.mark.covers("A17")
def test_layers_go_to_the_adapter_with_larger_leading_entries(mlp):
    trained(mlp, "lora", rank=2, name="content", also_train=[], targets=["up", "down"])
    shake(mlp, 1)
    trained(mlp, "lora", rank=3, name="style", also_train=[], targets=["up", "head"], alpha=30.0)
    shake(mlp, 2)
    content, style = updates(mlp, "content"), updates(mlp, "style")
    level = sum(np.abs(u).sum() for u in content.values()) / sum(np.abs(u).sum() for u in style.values())
    chosen = lb.layerwise_choice(mlp, ["content", "style"])
    tops = {}
    for path in content.keys() & style.keys():
        first, second = (np.sort(np.abs(u[path]).ravel())[-6:].sum() for u in (content, style))
        tops[path] = first / (level * second)
        assert chosen[path] == ([1.0, 0.0] if tops[path] >= 1 else [0.0, 1.0])
    assert chosen["layers.0.down"] == [1.0, 0.0]
    assert chosen["head"] == [0.0, 1.0]
    for low, high in pairwise(sorted(tops.values())):
        between = lb.layerwise_choice(mlp, ["content", "style"], strength=(low + high) / 2)
        assert {p for p in tops if between[p][0]} == {p for p, t in tops.items() if t >= high}
    lb.combine(mlp, ["content", "style"], chosen)
    for path, weights in chosen.items():
        assert np.allclose(updates(mlp, "mix")[path], (content, style)[weights.index(1.0)][path], atol=1e-5)


def test_choices_between_what_is_no_pair(mlp):
    names = alike(mlp)
    for arguments, options, message in (
        ((names,), {}, "two adapters, got 3"),
        ((["a", "z"],), {}, "no adapter 'z'"),
        ((["a", "b"],), {"strength": 0.0}, "must be positive"),
        ((["a", "b"],), {"count": 0}, "must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            lb.layerwise_choice(mlp, *arguments, **options)


def test_a_sum_keeps_thin_factors(mlp):
    alike(mlp, 2)
    assert lb.combine(mlp, ["a", "b"], [1.0, 1.0], how=Summed()).worst < 1e-12
