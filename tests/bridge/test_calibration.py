"""Statistics of a model on data: against autograd, and nothing left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llm_bridge as lb
from llm_bridge import calibrate, starts
from llm_bridge.accumulate import GradientSketch, MomentsSketch
from llm_bridge.calibrate import collect, importance, most_important
from llm_bridge.sites import find_sites

GRADIENTS, INPUTS = starts.SplitFrame(), starts.ExplainedVariance()


class Scalar(nn.Module):
    """A model whose output is its loss, over a convolution, a table and a linear layer."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 8)
        self.conv = nn.Conv1d(8, 5, 3)
        self.line = nn.Linear(5, 2)

    def forward(self, tokens):
        h = torch.tanh(self.conv(self.table(tokens).mT))
        return self.line(h.mT).square().mean()


@pytest.fixture
def scalar():
    torch.manual_seed(0)
    return Scalar().double()


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 6, (2, 7), generator=generator) for _ in range(3)]


def snapshot(model):
    return (
        [(m.training, len(m._forward_pre_hooks)) for m in model.modules()],
        [(p.requires_grad, None if p.grad is None else p.grad.clone(), p._version) for p in model.parameters()],
        [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()],
    )


def same(a, b):
    return str(a) == str(b)


# what is collected ------------------------------------------------------------------------------------------------


def test_gradients_are_the_mean_over_batches(scalar, tokens):
    sites = find_sites(scalar, ["table", "conv", "line"])
    found = collect(scalar, sites, GRADIENTS, tokens)
    total = sum(scalar(batch) for batch in tokens) / 3
    weights = [scalar.table.weight, scalar.conv.weight, scalar.line.weight]
    table, conv, line = torch.autograd.grad(total, weights)
    expected = {"table": table.mT, "conv": conv.flatten(1), "line": line}
    assert all(torch.allclose(found[name].double(), g, atol=1e-6) for name, g in expected.items())


def test_gradients_of_a_transposed_layer():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)).eval()
    ids = torch.arange(8).reshape(1, 8)
    found = collect(model, find_sites(model, ["c_fc"]), GRADIENTS, [{"input_ids": ids, "labels": ids}])
    weight = dict(model.named_parameters())["transformer.h.0.mlp.c_fc.weight"]
    (expected,) = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, weight)
    assert torch.allclose(found["transformer.h.0.mlp.c_fc"], expected.mT, atol=1e-6)


def test_moments_are_those_of_what_the_matrix_multiplies(scalar, tokens):
    sites = find_sites(scalar, ["conv", "line"])
    found = collect(scalar, sites, INPUTS, tokens)
    embedded = torch.cat([scalar.table(batch).mT for batch in tokens])
    patches = F.unfold(embedded[:, :, None], (1, 3)).mT.reshape(-1, 24)
    hidden = torch.tanh(scalar.conv(embedded)).mT.reshape(-1, 5)
    for name, rows in (("conv", patches), ("line", hidden)):
        assert torch.allclose(found[name].double(), rows.T @ rows / len(rows), atol=1e-6)


def test_masked_tokens_do_not_count(minilm):
    model, batch = minilm
    name = "encoder.layer.0.attention.self.query"
    found = collect(model, find_sites(model, [name]), INPUTS, [batch])[name]
    rows = model.embeddings(batch["input_ids"])[batch["attention_mask"].bool()]
    assert len(rows) < batch["input_ids"].numel()
    assert torch.allclose(found, rows.T @ rows / len(rows), atol=1e-5)


def test_every_way_to_give_data(mlp, task):
    x, y = task
    sites = find_sites(mlp, ["up"])

    def loss(part=slice(None)):
        return F.mse_loss(mlp(x[part]), y[part])

    def one_by_one():
        for part in (slice(16), slice(16, 32)):
            yield loss(part)

    def by_hand():
        loss().backward()

    ways = [loss, by_hand, one_by_one]
    results = [collect(mlp, sites, GRADIENTS, way) for way in ways]
    for other in results[1:]:
        assert all(torch.allclose(results[0][k], other[k], atol=1e-7) for k in results[0])
    batches = [[x], [(x,)], [[x]], iter([x]), [x.numpy()]]
    results = [collect(mlp, sites, INPUTS, way) for way in (lambda: mlp(x), *batches[:4])]
    for other in results[1:]:
        assert all(torch.equal(results[0][k], other[k]) for k in results[0])


def test_a_function_may_call_backward_on_a_frozen_model(mlp, task):
    mlp.requires_grad_(False)
    found = collect(mlp, find_sites(mlp, ["down"]), INPUTS, lambda: mlp(task[0]).square().mean().backward())
    expected = collect(mlp, find_sites(mlp, ["down"]), INPUTS, [task[0]])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(p.requires_grad or p.grad is not None for p in mlp.parameters())


def test_the_collection_is_deterministic(scalar, tokens):
    sites = find_sites(scalar, ["conv", "line"])
    scalar.train()
    first, second = (collect(scalar, sites, GRADIENTS, tokens) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dropout_is_off_while_it_lasts(task):
    model = nn.Sequential(nn.Linear(12, 6), nn.Dropout(0.9), nn.Linear(6, 1))
    found = collect(model, find_sites(model, ["2"]), INPUTS, [task[0]])["2"]
    rows = model[0](task[0])
    assert torch.allclose(found, rows.T @ rows / 32, atol=1e-6)
    assert model.training


# in little memory -------------------------------------------------------------------------------------------------


def test_a_gradient_sketch_is_exact_up_to_its_rank():
    rng = np.random.default_rng(0)
    parts = [torch.as_tensor(rng.standard_normal((300, 2)) @ rng.standard_normal((2, 200))) for _ in range(3)]
    sketch = GradientSketch((300, 200), rank=4, tests={})
    for part in parts:
        sketch.add(part)
    assert sum(a.numel() for a in sketch.sums) == sketch.size < 300 * 200 / 2
    assert torch.allclose(sketch.finished().dense(), sum(parts) / 3)


def test_a_gradient_sketch_finds_the_leading_part_of_a_decaying_spectrum():
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.standard_normal((n, 60)))[0] for n in (90, 70))
    values = 1.0 / np.arange(1, 61) ** 2
    gradient = torch.as_tensor((u * values) @ v.T)
    sketch = GradientSketch((90, 70), rank=4, tests={})
    sketch.add(gradient)
    found = torch.linalg.svdvals(sketch.finished().dense())[:8]
    assert np.allclose(found, values[:8], rtol=2e-2)


def test_an_incremental_decomposition_keeps_the_leading_moments():
    rng = np.random.default_rng(2)
    rows = torch.as_tensor(rng.standard_normal((500, 40)) * 0.7 ** np.arange(40))
    sketch = MomentsSketch(40, kept=20)
    for block in rows.split(170):
        sketch.add(block)
    thin = sketch.finished()
    assert thin.left.shape == (40, 20)
    exact = rows.T @ rows / 500
    assert torch.linalg.matrix_norm(thin.dense() - exact, 2) < 1e-4 * torch.linalg.matrix_norm(exact, 2)


@pytest.mark.parametrize("name", ["lora-ga", "lora-one", "lora-sb", "gora-init", "eva", "corda"])
def test_recipes_start_alike_from_sketches(name, monkeypatch):
    """Eight inputs of ten directions: neither gradients nor moments have more than what a sketch holds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(120, 90), nn.Tanh(), nn.Linear(90, 3))
    x = torch.randn(8, 10) @ torch.randn(10, 120)

    def update(model):
        lb.adapt(model, name, rank=2, targets=["0"], calibration=lambda: model(x).square().mean())
        points = [layer.adapter("default").point().map(torch.detach) for layer in lb.adapted(model).values()]
        products = [p.left @ p.left.mT if name == "lora-sb" else p.right @ p.right.mT for p in points]
        lb.unload(model)
        return products

    dense = update(model)
    monkeypatch.setattr(calibrate, "BUDGET", 0)
    monkeypatch.setattr(calibrate, "WIDTH", 0)
    assert all(torch.allclose(a, b, atol=1e-4 * float(a.norm())) for a, b in zip(dense, update(model), strict=True))


# nothing is left behind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [GRADIENTS, INPUTS], ids=["gradients", "inputs"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_afterwards_as_before(start, fails, mlp, task):
    mlp.layers[0].eval()
    mlp.layers[1]["down"].weight.requires_grad_(False)
    F.mse_loss(mlp(task[0]), task[1]).backward()
    before = snapshot(mlp)

    def run():
        yield F.mse_loss(mlp(task[0]), task[1])
        if fails:
            raise RuntimeError("out of coffee")

    def calibration():
        return list(run())

    sites = find_sites(mlp, ["up", "down"])
    if fails:
        with pytest.raises(RuntimeError, match="coffee"):
            collect(mlp, sites, start, calibration)
    else:
        collect(mlp, sites, start, calibration)
    assert same(snapshot(mlp), before)


def test_another_adapter_is_out_of_the_way(mlp, task):
    sites = find_sites(mlp, ["down"])
    expected = collect(mlp, sites, INPUTS, [task[0]])
    lb.adapt(mlp, "lora", rank=2, name="first")
    with torch.no_grad():
        for layer in lb.adapted(mlp).values():
            layer.adapter("first").left.fill_(1.0)
    flags = [p.requires_grad for p in mlp.parameters()]
    found = collect(mlp, find_sites(mlp, ["down"]), INPUTS, [task[0]])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert flags == [p.requires_grad for p in mlp.parameters()]
    lb.adapt(mlp, "eva", rank=2, name="second", targets=["down"], calibration=[task[0]])


# errors -----------------------------------------------------------------------------------------------------------


def fails(mlp, start, calibration, error, match):
    before = snapshot(mlp)
    with pytest.raises(error, match=match):
        collect(mlp, find_sites(mlp, ["up"]), start, calibration)
    assert same(snapshot(mlp), before)


def test_bad_calibrations_are_named(mlp, task):
    x = task[0]
    fails(mlp, INPUTS, [], ValueError, "has no batches")
    fails(mlp, INPUTS, 5, TypeError, "must be batches for the model, or a function that runs it, got int")
    fails(mlp, INPUTS, x, TypeError, "put a single batch into a list")
    fails(mlp, INPUTS, ["text"], TypeError, "a batch must be a mapping, a tuple or a tensor, got str")
    fails(mlp, INPUTS, lambda: None, ValueError, "no inputs reached layers.0.up, layers.1.up during calibration")
    fails(mlp, GRADIENTS, lambda: None, ValueError, "no gradients reached")
    fails(mlp, GRADIENTS, [x], ValueError, r"needs a scalar loss, got \(32, 4\)")
    fails(mlp, GRADIENTS, lambda: torch.tensor(1.0), ValueError, "has no gradient with respect to the chosen layers")
    fails(mlp, GRADIENTS, lambda: mlp(x).sum() * float("nan"), ValueError, "hold NaN or infinity")
    fails(mlp, INPUTS, [x * float("inf")], ValueError, "the inputs of layers.0.up hold NaN or infinity")


def test_a_transformer_without_labels_has_no_loss(llama):
    model, ids = llama
    with pytest.raises(ValueError, match="put labels into the batches"):
        collect(model, find_sites(model, ["q_proj"]), GRADIENTS, [{"input_ids": ids}])


def test_layers_without_a_statistic_are_named(scalar, tokens):
    with pytest.raises(TypeError, match=r"table \(Embedding\) has no inputs but indices"):
        collect(scalar, find_sites(scalar, ["table"]), INPUTS, tokens)
    scalar.line.weight = nn.Parameter(torch.zeros(2, 5, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"line \(Linear\) has no floating-point weight"):
        collect(scalar, find_sites(scalar, ["line"]), GRADIENTS, tokens)


def test_a_recipe_that_needs_data_says_so(mlp):
    with pytest.raises(ValueError, match="recipe 'eva' starts from inputs of the layers: pass calibration="):
        lb.adapt(mlp, "eva", rank=2)
    assert not lb.adapted(mlp)


# importance -------------------------------------------------------------------------------------------------------


@pytest.mark.covers("P07", "R25")
def test_importance_is_the_mean_of_weight_times_gradient(mlp, task):
    def loss():
        return F.mse_loss(mlp(task[0]), task[1])

    weights = {name: layer.weight for name, layer in mlp.named_modules() if isinstance(layer, nn.Linear)}
    gradients = torch.autograd.grad(loss(), list(weights.values()))
    expected = {
        name: float((w.detach() * g).abs().mean()) for (name, w), g in zip(weights.items(), gradients, strict=True)
    }
    scores = importance(mlp, loss)
    assert scores.keys() == expected.keys()
    assert all(np.isclose(scores[name], expected[name], rtol=1e-5) for name in scores)
    best = most_important(mlp, loss, 2)
    assert set(best) == set(sorted(expected, key=lambda name: -expected[name])[:2])
    lb.adapt(mlp, "lora", rank=2, targets=best)
    assert list(lb.adapted(mlp)) == best


@pytest.mark.parametrize("count", [0, 6])
def test_a_count_out_of_range(count, mlp, task):
    with pytest.raises(ValueError, match=f"count must lie between 1 and 5.*got {count}"):
        most_important(mlp, lambda: mlp(task[0]).square().mean(), count)
