"""Products with one fixed side of many columns: against plain operations, in what they keep and in what they count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import llm_bridge as lb
from llm_bridge.combines import one_sided
from llm_bridge.combines.one_sided import channels, fixed_left_linear, fixed_right_linear, formed_is_cheaper
from llm_bridge.noise import RankDropout
from llm_bridge.starts import ByArray, Constant
from lowrank_sp.parameterizations import FrozenValues, RandLoRA, VeRA

from .layer_cases import One, move
from .test_functions import saved_bytes

RECIPES = ["vera", "randlora"]


def draw(*shape, seed=0) -> Any:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def a_point(kind, m, n, r, seed=0):
    form = kind.for_shape((m, n))
    arrays = [draw(*shape, seed=seed + i) for i, shape in enumerate(form.shapes((m, n), r))]
    return form(*arrays)


def output_of(x, weight, bias, point, scale, keep=None):
    """By the function for the side that the point fixes, with the point's own arrays as inputs."""
    if point.fixed_side:
        seen = (x @ point.fixed()).detach()
        return fixed_right_linear(x, lambda: weight, bias, point.fixed(), seen, point, keep, scale)
    return fixed_left_linear(x, lambda: weight, bias, point.fixed(), point, keep, scale)


def counting() -> FlopCounterMode:
    """A counter that also sees products that are added in place."""

    def added(out, a, b, **_):
        return 2 * a[0] * a[1] * b[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added})


CASES = [(VeRA, 6, 5), (VeRA, 5, 7), (RandLoRA, 6, 5), (RandLoRA, 5, 7), (FrozenValues, 6, 5)]


@pytest.mark.parametrize("formed", [False, True])
@pytest.mark.parametrize("k", [4, 9])
@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize(("kind", "m", "n"), CASES)
def test_derivatives_whether_or_not_the_sum_is_formed(kind, m, n, keeps, k, formed, monkeypatch):
    monkeypatch.setattr(one_sided, "formed_is_cheaper", lambda *_: formed)
    point, weight, x, bias = a_point(kind, m, n, 3), draw(m, n, seed=20), draw(k, n), draw(m, seed=30)
    keep = draw(point.fixed().shape[1], seed=40) if keeps else None
    names = [i for i, array in enumerate(point.pull_moving(0 * point.moving())) if array is not None]

    def function(x, bias, *moved):
        arrays = list(point.arrays())
        for i, a in zip(names, moved, strict=True):
            arrays[i] = a
        return output_of(x, weight, bias, type(point)(*arrays), 0.7, keep)

    left, right = point.product()
    masked = right if keep is None else right * keep
    inputs = [x, bias, *(point.arrays()[i] for i in names)]
    torch.testing.assert_close(function(*inputs), F.linear(x, weight + 0.7 * left @ masked.mT, bias))
    assert torch.autograd.gradcheck(function, [a.requires_grad_() for a in inputs])


@pytest.mark.parametrize(("kind", "m", "n"), CASES)
def test_gradients_of_the_moving_side(kind, m, n):
    point = a_point(kind, m, n, 3)
    cotangent = draw(*point.moving().shape, seed=9)
    own = point.pull_moving(cotangent)
    moving = [i for i, g in enumerate(own) if g is not None]
    wanted = [point.arrays()[i].requires_grad_() for i in moving]
    expected = torch.autograd.grad(point.moving(), wanted, cotangent)
    for i, g in zip(moving, expected, strict=True):
        torch.testing.assert_close(own[i], g)


@pytest.mark.parametrize("k", [3, 200])
@pytest.mark.parametrize(("m", "n"), [(60, 48), (48, 60)])
@pytest.mark.parametrize("kind", [VeRA, RandLoRA])
def test_the_choice_counts_fewest_multiplications(kind, m, n, k, monkeypatch):
    """Without the passes over memory, which nothing counts, no other choice takes fewer operations."""
    monkeypatch.setattr(one_sided, "PASS", 0)
    counts = {}
    chosen = formed_is_cheaper
    for name, rule in {"chosen": chosen, "never": lambda *_: False, "always": lambda *_: True}.items():
        monkeypatch.setattr(one_sided, "formed_is_cheaper", rule)
        point = a_point(kind, m, n, 24)
        arrays = [a.requires_grad_(g is not None) for a, g in zip(point.arrays(), _moved(point), strict=True)]
        x = draw(k, n).requires_grad_()
        with counting() as counter:
            output_of(x, draw(m, n, seed=20), None, type(point)(*arrays), 1.0).sum().backward()
        counts[name] = counter.get_total_flops()
    assert counts["chosen"] == min(counts.values())
    assert counts["chosen"] == counts["never" if k == 3 else "always"] or counts["chosen"] < min(
        counts["never"], counts["always"]
    )


def _moved(point):
    return point.pull_moving(0 * point.moving())


@pytest.mark.parametrize("k", [10, 90])
@pytest.mark.parametrize("name", RECIPES)
def test_what_is_kept(name, k):
    """Channels in place of the input for a fixed right side, and a sum that is no larger than the input."""
    model = nn.Sequential(nn.Linear(48, 40, bias=False))
    lb.adapt(model, name, rank=24, targets=["0"])
    x = torch.randn(k, 48) * 1
    x.requires_grad_()
    own = [*model.parameters(), *model.buffers()]
    kept, _ = saved_bytes(lambda: model(x * 1), own)
    formed = 4 * 40 * 48 if k == 90 else 0
    assert kept == (4 * k * 24 if name == "vera" else 4 * k * 48) + formed


def test_all_singular_values_keep_the_input_alone():
    model = nn.Sequential(nn.Linear(48, 40, bias=False))
    lb.adapt(model, "svft", rank=8, targets=["0"])
    x = torch.randn(60, 48).requires_grad_()
    kept, _ = saved_bytes(lambda: model(x * 1), [*model.parameters(), *model.buffers()])
    assert kept == 4 * 60 * 48


def test_one_product_for_all_who_see_the_same_input():
    torch.manual_seed(0)
    x, right, other = torch.randn(4, 6), torch.randn(6, 3), torch.randn(6, 3)
    first = channels(x, x.view(4, 6), right)
    assert channels(x, x.view(4, 6), right) is first
    torch.testing.assert_close(first, x @ right)
    assert channels(x, x, other) is not first
    again = channels(x, x, right)
    assert again is not first
    assert channels(x.clone(), x, right) is not again
    again = channels(x, x, right)
    x.add_(1.0)
    torch.testing.assert_close(channels(x, x, right), x @ right)
    again = channels(x, x, right)
    right.mul_(2.0)
    torch.testing.assert_close(channels(x, x, right), 2 * again)


def test_another_matrix_at_the_address_of_one_that_is_gone():
    x, memory = torch.randn(4, 6), np.random.default_rng(0).standard_normal((6, 3), dtype="float32")
    right = torch.from_numpy(memory)
    first = channels(x, x, right)
    assert channels(x, x, torch.from_numpy(memory)) is first  # a view of the same
    del right
    memory *= 2
    torch.testing.assert_close(channels(x, x, torch.from_numpy(memory)), 2 * first)


def test_channels_in_another_type_are_shared():
    x, right = torch.randn(4, 6), torch.randn(6, 3)
    first = channels(x, x.bfloat16(), right)
    assert channels(x, x.bfloat16(), right) is first
    assert first.dtype == torch.bfloat16
    assert channels(x, x, right) is not first


class Attention(nn.Module):
    """Three projections of one input."""

    def __init__(self):
        super().__init__()
        for name in ("q", "k", "v"):
            setattr(self, name, nn.Linear(32, 32, bias=False))

    def forward(self, x):
        return self.q(x) + self.k(x) * self.v(x)


def test_projections_of_one_input_share_the_product_in_a_step():
    model, x = Attention(), torch.randn(5, 32)
    lb.adapt(model, "vera", rank=16)
    with counting() as counter:
        model(x)
    base, left, right = 3 * 2 * 5 * 32 * 32, 3 * 2 * 5 * 32 * 16, 2 * 5 * 32 * 16
    assert counter.get_total_flops() == base + left + right


def test_what_a_form_fixes_may_train():
    torch.manual_seed(0)
    names = ("scales", "left", "values", "right")
    model, x = One(nn.Linear(12, 10, bias=False)).double(), draw(40, 12)
    made = lb.recipe("vera").but("all", trains=names, shares=())
    lb.adapt(model, made, rank=4, targets=["layer"], dtype=torch.float64)
    move(model)
    adapted: Any = model.layer
    adapter = adapted.adapter("default")
    moved = [getattr(adapter, name) for name in names]
    outputs = model(x), x @ (adapted.base.weight + adapter.scale * adapter.point().dense()).mT
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), moved) for out in outputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_checkpointing_computes_the_shared_product_again(name, reentrant):
    torch.manual_seed(0)
    x, model = draw(40, 32).requires_grad_(), Attention().double()
    lb.adapt(model, name, rank=16, dtype=torch.float64)
    move(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = []
    for out in (model(x), checkpoint(model, x, use_reentrant=reentrant)):
        x.grad = None
        model.zero_grad()
        out.square().sum().backward()
        found.append([t.grad.clone() for t in (x, *trained) if t.grad is not None])
        assert len(found[-1]) == 1 + len(trained)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def conv1d(inputs, outputs):
    from transformers.pytorch_utils import Conv1D

    return Conv1D(outputs, inputs)


LAYERS = {
    "linear": (lambda: nn.Linear(12, 10), lambda: draw(20, 5, 12)),
    "wide": (lambda: nn.Linear(10, 12), lambda: draw(2, 1, 10)),
    "conv1d": (lambda: conv1d(12, 10), lambda: draw(20, 5, 12)),
    "conv2d": (lambda: nn.Conv2d(3, 10, 2), lambda: draw(2, 3, 4, 4)),
    "embedding": (lambda: nn.Embedding(12, 10), lambda: torch.arange(10).view(2, 5)),
}


def twins(name, layer, **options):
    found = []
    for combine in (one_sided.OneSided(), lb.Additive()):
        torch.manual_seed(0)
        model: Any = One(layer()).double()
        made = lb.recipe(name).but("other", combine=combine, noise=options.pop("noise", lb.recipe(name).noise))
        options.setdefault("noise", made.noise)
        chosen = {key: value for key, value in options.items() if key != "noise"}
        lb.adapt(model, made, targets=["layer"], dtype=torch.float64, seed=4, **chosen)
        move(model)
        found.append(model)
    return found


@pytest.mark.parametrize("noise", [None, RankDropout])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", RECIPES)
def test_outputs_and_gradients_are_those_of_thin_factors(name, kind, noise):
    layer, inputs = LAYERS[kind]
    x = inputs()
    if x.is_floating_point():
        x.requires_grad_()
    options = {} if noise is None else {"noise": noise, "dropout": 0.5}
    found = []
    for model in twins(name, layer, rank=4, **options):
        torch.manual_seed(3)
        out = model(x)
        trained = [p for p in model.parameters() if p.requires_grad]
        inputs_of = [x, *trained] if x.is_floating_point() else trained
        found.append((out, *torch.autograd.grad(out.square().sum(), inputs_of)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", RECIPES)
def test_half_precision_never_rounds_the_sum(name):
    own, other = (model.bfloat16() for model in twins(name, LAYERS["linear"][0], rank=4))
    x = LAYERS["linear"][1]().bfloat16().requires_grad_()
    outputs = [model(x) for model in (own, other)]
    torch.testing.assert_close(*outputs, atol=0.2, rtol=0.05)
    outputs[0].float().sum().backward()
    assert not formed_is_cheaper(10**6, (8, 8), 512, 16, torch.bfloat16)


@pytest.mark.parametrize("name", RECIPES)
def test_autocast_computes_in_its_type(name):
    own, other = (model.float() for model in twins(name, LAYERS["linear"][0], rank=4))
    x = LAYERS["linear"][1]().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [model(x) for model in (own, other)]
    assert outputs[0].dtype == torch.bfloat16
    torch.testing.assert_close(*outputs, atol=0.2, rtol=0.05)
    for out in outputs:
        out.float().sum().backward()
    pairs = zip(own.parameters(), other.parameters(), strict=True)
    assert all(a.grad.dtype == torch.float32 for a, _ in pairs if a.requires_grad)


def test_fixed_matrices_are_drawn_once_for_all_layers():
    drawn = []

    def normal(shape, rng):
        drawn.append(shape)
        return rng.standard_normal(shape)

    start = ByArray((("scales", Constant(0.0)), ("left", normal), ("values", Constant(0.1)), ("right", normal)))
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 9), nn.Linear(9, 4))
    lb.adapt(model, lb.recipe("vera").but("counted", init=start), rank=3, targets=["0", "1", "2"])
    assert sorted(drawn) == [(9, 3), (9, 3)]  # the longest of each side
    rights = [layer.adapter("default").right for layer in lb.adapted(model).values()]
    assert all(torch.equal(right, rights[2][: len(right)]) and right.abs().min() > 0 for right in rights)
