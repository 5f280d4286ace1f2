"""Mixtures of experts, one input and one expert at a time; counts of published tables; balance."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import llm_bridge as lb
from llm_bridge.experts import KroneckerExperts, LowRankExperts, SharedInputExperts, Soft, Top, TopShare

from .test_variants import trained

FORMS = [LowRankExperts, SharedInputExperts, KroneckerExperts, LowRankExperts.of(3, TopShare(1))]
EVERY = pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
NAMES = ["moe-lora", "goat", "hydralora", "moka"]
NAMES += ["moelora", "loramoe", "moa", "adamole", "mola", "mlore", "llava-mole"]


def drawn(form, shape=(6, 4), rank=2, seed=0):
    return form.random(shape, rank, np.random.default_rng(seed)).map(torch.as_tensor)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def matrices(point):
    """The matrix of every expert."""
    left, right = point.left.numpy(), point.right.numpy()
    if isinstance(point, KroneckerExperts):
        return [np.kron(a, b) for a, b in zip(left, right, strict=True)]
    if isinstance(point, SharedInputExperts):
        return [b @ right.T for b in left]
    return [b @ a.T for b, a in zip(left, right, strict=True)]


def chosen(point, x):
    """The weights of the experts for one input."""
    gate, probabilities = type(point).gate, softmax(x @ point.router.numpy())
    if isinstance(gate, Soft):
        return probabilities
    order = np.argsort(-probabilities)[: gate.active]
    kept = {e: probabilities[e] for e in order}
    total = sum(kept.values()) if isinstance(gate, TopShare) else 1.0
    return np.array([kept.get(e, 0.0) / total for e in range(len(probabilities))])


@pytest.mark.covers("E00", "E07", "E16", "P58")
@EVERY
def test_one_input_and_one_expert_at_a_time(form):
    point = drawn(form)
    x = np.random.default_rng(1).standard_normal((3, 5, 4))
    got = point.apply(torch.as_tensor(x)).numpy()
    for place in np.ndindex(3, 5):
        weights = chosen(point, x[place])
        expected = sum(w * f @ x[place] for w, f in zip(weights, matrices(point), strict=True))
        assert np.allclose(got[place], expected)
    assert point.shape == (6, 4)


@EVERY
def test_outputs_of_every_expert(form):
    point, x = drawn(form), torch.as_tensor(np.random.default_rng(1).standard_normal((3, 5, 4)))
    expected = torch.stack([x @ torch.as_tensor(f).mT for f in matrices(point)], -2)
    assert torch.allclose(point.outputs(x), expected)


@EVERY
def test_gradients_are_those_of_differences(form):
    arrays = tuple(a.clone().requires_grad_() for a in drawn(form).arrays())
    x = torch.as_tensor(np.random.default_rng(2).standard_normal((3, 4)))
    assert torch.autograd.gradcheck(lambda *a: form(*a).apply(x), arrays)


@pytest.mark.covers("E00", "E07", "P58")
def test_parameter_counts():
    m, n, r = 96, 64, 2
    assert LowRankExperts.parameter_count((m, n), r) == 8 * r * (m + n) + 8 * n
    assert SharedInputExperts.parameter_count((m, n), r) == r * n + 3 * r * m + 3 * n
    assert KroneckerExperts.parameter_count((m, n), 1) == 4 * (8 * 8 + 12 * 8) + 4 * n


@pytest.mark.covers("E00", "E02")
@pytest.mark.parametrize(("experts", "count"), [(8, 30_932_992), (6, 23_199_744)])
def test_published_counts_of_llama_3_1_8b(experts, count):
    for name in ("moe-lora", "loramoe"):
        made = lb.recipe(name)
        form: Any = made.form
        assert trained(made.but("some", form=LowRankExperts.of(experts, Top(2), form.loss)), 1) == count


@pytest.mark.parametrize(("name", "inputs"), [("moe-lora", 256), ("hydralora", 256), ("moka", 16)])
def test_experts_start_as_small_as_the_layers_of_torch(name, inputs):
    model = lb.adapt(nn.Sequential(nn.Linear(256, 576)), name, rank=8)
    adapter = lb.adapted(model)["0"].adapter("default")
    torch.manual_seed(0)
    expected = nn.Linear(inputs, 2000).weight.std()
    assert torch.isclose(adapter.right.std(), expected, rtol=0.05)
    assert torch.isclose(adapter.router.std(), nn.Linear(256, 2000).weight.std(), rtol=0.05)
    assert adapter.left.count_nonzero() == 0


@pytest.mark.covers("I09", "E06")
def test_experts_of_goat_start_from_their_segments():
    torch.manual_seed(0)
    layer = nn.Linear(20, 24)
    lb.adapt(nn.Sequential(layer), "goat", rank=2, alpha=4.0)
    model = lb.adapt(nn.Sequential(layer), "goat", rank=2, alpha=4.0)
    point = lb.adapted(model)["0"].adapter("default").point()
    u, s, vh = np.linalg.svd(layer.weight.detach().double().numpy())
    for e, (b, a) in enumerate(zip(point.left, point.right, strict=True)):
        part = slice(2 * e, 2 * e + 2)
        expected = (u[:, part] * s[part]) @ vh[part] / (2.0 * 10.0)
        assert np.allclose((b @ a.mT).detach().numpy(), expected, atol=1e-5)


def test_segments_are_for_experts_with_a_pair_each():
    for name in ("lora", "hydralora"):
        made = lb.recipe(name).but("other", init=lb.recipe("goat").init)
        with pytest.raises(TypeError, match="no pair of factors for every expert; take LowRankExperts"):
            lb.adapt(nn.Sequential(nn.Linear(6, 4)), made, rank=2)


def test_a_layer_too_small_for_the_segments_starts_all_the_same():
    model = nn.Sequential(nn.Linear(6, 4))
    before = model(torch.ones(2, 6))
    lb.adapt(model, "goat", rank=3)
    assert torch.allclose(model(torch.ones(2, 6)), before, atol=1e-6)
    assert len(lb.summary(model).unmoved) == 1


@pytest.mark.covers("E00")
def test_balance_is_least_where_all_experts_are_chosen_equally_often():
    form = LowRankExperts.of(4, Top(1))
    point = drawn(form, (6, 4))
    even = form(point.left, point.right, 50 * torch.eye(4).double())
    assert torch.allclose(even.balance(torch.eye(4).double()), torch.ones(()).double())
    one = even.balance(torch.eye(4).double()[:1].repeat(4, 1))
    assert torch.allclose(one, 4 * torch.ones(()).double())
    x = np.random.default_rng(3).standard_normal((7, 4))
    gates = np.array([softmax(row @ point.router.numpy()) for row in x])
    shares = np.bincount(gates.argmax(1), minlength=4) / 7
    expected = 4 * shares @ gates.mean(0)
    assert np.isclose(point.balance(torch.as_tensor(x)).item(), expected)


@pytest.mark.covers("E00")
def test_balance_of_a_model_is_the_mean_over_its_layers(mlp, task):
    lb.adapt(mlp, "moe-lora", rank=2)
    seen = {}
    layers = lb.adapted(mlp)
    handles = [
        layer.base.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
        for name, layer in layers.items()
    ]
    with lb.balancing(mlp) as balance:
        mlp(task[0])
    for handle in handles:
        handle.remove()
    expected = torch.stack([layer.adapter("default").point().balance(seen[n]) for n, layer in layers.items()]).mean()
    assert torch.allclose(balance.total(), expected)
    balance.total().backward()
    adapter = layers["head"].adapter("default")
    assert adapter.router.grad is not None
    assert adapter.router.grad.norm() > 0
    assert adapter.left.grad is None
    mlp(task[0])
    assert len(balance.terms) == len(layers)


def test_balance_of_a_convolution_counts_patches():
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1))
    lb.adapt(model, "moe-lora", rank=1, targets=["0"])
    x = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    with lb.balancing(model) as balance:
        model(x)
    patches = nn.functional.unfold(x, 3, padding=1).mT
    expected = lb.adapted(model)["0"].adapter("default").point().balance(patches)
    assert torch.allclose(balance.total(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_no_mixture_can_be_merged(name, mlp, tmp_path):
    assert not lb.recipe(name).mergeable
    lb.adapt(mlp, name, rank=2)
    with pytest.raises(TypeError, match="which experts act depends on the activations"):
        lb.merge(mlp)
    with pytest.raises(ValueError, match=r"PEFT has no method for .*Experts.*; save keeps it"):
        lb.save_peft(mlp, tmp_path / "adapter")


@pytest.mark.parametrize("name", NAMES)
def test_saves_loads_and_mixes_in_a_batch(name, mlp, task, tmp_path):
    x, before = task[0][:6], mlp(task[0][:6])
    lb.adapt(mlp, name, rank=2)
    with torch.no_grad():
        for p in mlp.parameters():
            if p.requires_grad:
                p.add_(0.1)
    after = mlp(x)
    lb.save(mlp, tmp_path / "adapter")
    lb.unload(mlp)
    lb.load(mlp, tmp_path / "adapter")
    assert torch.equal(mlp(x), after)
    with lb.route(mlp, ["default", None] * 3):
        mixed = mlp(x)
    assert torch.allclose(mixed[::2], after[::2], atol=1e-6)
    assert torch.allclose(mixed[1::2], before[1::2], atol=1e-6)


def test_settings_survive_pickling_and_equal_ones_are_one_class():
    form = LowRankExperts.of(3, TopShare(2))
    assert form is LowRankExperts.of(3, TopShare(2))
    again = pickle.loads(pickle.dumps(drawn(form)))
    assert type(again) is form
    assert (form.count, form.gate) == (3, TopShare(2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LowRankExperts.of(0, Soft()), ValueError, "count must be a positive integer, got 0"),
        (lambda: LowRankExperts.of(2, Top(3)), ValueError, "between 1 and all of the 2 experts"),
        (lambda: LowRankExperts.of(2, TopShare(0)), ValueError, "between 1 and all of the 2 experts"),
        (lambda: LowRankExperts.of(2, "top"), TypeError, "gate must be a Gate"),
        (lambda: LowRankExperts.of(2, Soft(), "even"), TypeError, "loss must be an Auxiliary"),
    ],
)
def test_settings_that_do_not_fit_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_balance_needs_experts_and_a_run(mlp):
    lb.adapt(mlp, "lora", rank=2)
    with pytest.raises(ValueError, match="no active adapter of the model routes"), lb.balancing(mlp):
        pass
    lb.unload(mlp)
    lb.adapt(mlp, "moe-lora", rank=2)
    with lb.balancing(mlp) as balance, pytest.raises(ValueError, match="run the model inside"):
        balance.total()


def test_balance_under_checkpointing_has_the_same_gradient(mlp, task):
    lb.adapt(mlp, "moe-lora", rank=2)
    found = []
    for run in (mlp, lambda x: checkpoint(mlp, x, use_reentrant=False)):
        mlp.zero_grad()
        with lb.balancing(mlp) as balance:
            run(task[0])
            balance.total().backward()
        found.append([layer.adapter("default").router.grad for layer in lb.adapted(mlp).values()])
    assert all(torch.equal(a, b) and a.norm() > 0 for a, b in zip(*found, strict=True))


def test_balance_warns_where_training_runs_without_gradient(mlp, task):
    lb.adapt(mlp, "moe-lora", rank=2)
    with lb.balancing(mlp) as balance:
        checkpoint(mlp, task[0].clone().requires_grad_(), use_reentrant=True)
    with pytest.warns(UserWarning, match="the balance has no gradient.*use_reentrant=False"):
        total = balance.total()
    mlp.eval()
    with torch.no_grad(), lb.balancing(mlp) as balance:
        mlp(task[0])
    assert torch.allclose(balance.total(), total)


def test_routers_decide_in_single_precision():
    point = drawn(LowRankExperts.of(4, Top(1))).map(lambda a: a.to(torch.bfloat16))
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    expected = (x @ point.router).double().softmax(-1)
    assert point.apply(x).dtype == torch.bfloat16
    assert torch.allclose(point.probabilities(x).double(), expected, atol=1e-6)
    shares = torch.bincount(expected.argmax(-1), minlength=4) / 50
    assert torch.allclose(point.balance(x).double(), 4 * shares.double() @ expected.mean(0), atol=1e-6)


@pytest.mark.parametrize("name", ["moe-lora", "hyplora"])
@pytest.mark.parametrize("layer", [nn.Embedding(9, 6), nn.LSTM(6, 6), nn.MultiheadAttention(6, 2)])
def test_layers_that_hand_out_their_matrix_are_refused(name, layer):
    model = nn.ModuleDict({"inner": layer})
    with pytest.raises(ValueError, match=f"hands out.*recipe '{name}' has none.*exclude it"):
        lb.adapt(model, name, rank=2, targets=["inner"])
    assert not lb.adapted(model)
