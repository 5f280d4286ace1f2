"""Every layer type with every way of combining: against the dense formula, merged, unmerged and in mixed batches."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llm_bridge as lb
from tests.bridge.layer_cases import LORA, VARIANTS, One, formula, move

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), lambda: torch.randn(3, 4, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), lambda: torch.randn(3, 6)),
    "strided linear": (lambda: nn.Linear(6, 5), lambda: torch.randn(6, 4, 3).permute(2, 1, 0)),
    "conv1d of gpt2": (lambda: gpt2_layer(5, 6), lambda: torch.randn(3, 4, 6)),
    "embedding": (lambda: nn.Embedding(7, 5, padding_idx=1), lambda: torch.tensor([[0, 4, 6], [3, 3, 2]])),
    "conv1d": (lambda: nn.Conv1d(3, 5, 2, padding=1, dilation=2), lambda: torch.randn(2, 3, 8)),
    "conv2d": (lambda: nn.Conv2d(2, 5, (3, 2), stride=2, padding=1), lambda: torch.randn(2, 2, 7, 6)),
    "conv2d reflect": (lambda: nn.Conv2d(2, 5, 3, padding=1, padding_mode="reflect"), lambda: torch.randn(2, 2, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 5, (1, 3, 2), padding=1, bias=False), lambda: torch.randn(2, 2, 3, 4, 3)),
    "conv2d same": (
        lambda: nn.Conv2d(2, 5, 3, padding="same", dilation=2, bias=False),
        lambda: torch.randn(2, 2, 5, 5),
    ),
}
CASES = pytest.mark.parametrize("layer", LAYERS)
ALL = pytest.mark.parametrize("variant", VARIANTS)


def gpt2_layer(out, inner):
    from transformers.pytorch_utils import Conv1D

    return Conv1D(out, inner)


def adapt_one(layer, variant, seed=0, **options) -> Any:
    """A model of one layer in double precision, adapted and moved off its start; and its input."""
    torch.manual_seed(seed)
    make, data = LAYERS[layer]
    model, x = One(make()).double(), data()
    lb.adapt(model, VARIANTS[variant], rank=2, alpha=3.0, targets=["layer"], dtype=torch.float64, **options)
    move(model)
    return model, x.double() if x.is_floating_point() else x


def by_hand(layer, x, weight):
    """The layer with another weight (out, in), written without the bridge."""
    if isinstance(layer, nn.Embedding):
        return weight.mT[x]
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        other = copy.deepcopy(layer)
        del other.weight
        other.weight = weight.reshape(layer.weight.shape)
        return other(x)
    return F.linear(x, weight, layer.bias)


@CASES
@ALL
def test_forward_and_gradients_are_those_of_the_formula(layer, variant):
    model, x = adapt_one(layer, variant)
    adapted = model.layer
    adapter, base = adapted.adapter("default"), adapted.base
    weight = adapted.kind.weight(base).detach()
    probe = x.clone().requires_grad_() if x.is_floating_point() else x
    inputs = [*[p for p in adapter.parameters() if p.requires_grad], *([probe] if x.is_floating_point() else [])]
    results = []
    for out in (model(probe), by_hand(base, probe, formula(variant, weight, adapter))):
        torch.manual_seed(2)
        results.append((out, *torch.autograd.grad((out * torch.randn_like(out)).sum(), inputs)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-8)


@CASES
@ALL
def test_starts_at_the_pretrained_layer(layer, variant):
    torch.manual_seed(0)
    make, data = LAYERS[layer]
    model, x = One(make()), data()
    expected = model(x)
    lb.adapt(model, VARIANTS[variant], rank=2, targets=["layer"])
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.covers("A07")
@CASES
@ALL
def test_merging_equals_the_forward_and_unmerging_is_exact(layer, variant):
    model, x = adapt_one(layer, variant)
    stored = model.layer.base.weight.detach().clone()
    expected = model(x)
    report = lb.merge(model)
    assert report.worst < 1e-12
    torch.testing.assert_close(model(x), expected)
    lb.unmerge(model)
    assert torch.equal(model.layer.base.weight, stored)
    torch.testing.assert_close(model(x), expected)
    lb.merge(model)
    lb.unload(model)
    torch.testing.assert_close(model(x), expected)


@CASES
@ALL
def test_a_mixed_batch_gives_every_sample_its_adapter(layer, variant):
    model, x = adapt_one(layer, variant)
    lb.adapt(model, LORA, rank=1, targets=["layer"], name="other", dtype=torch.float64)
    move(model, seed=5)
    names = ["other", "default", None][: len(x)]
    with lb.route(model, names):
        mixed = model(x)
    for i, name in enumerate(names):
        lb.activate(model, *([name] if name else []))
        torch.testing.assert_close(mixed[i], model(x)[i])


@CASES
@pytest.mark.parametrize("variant", ["additive", "additive, not thin", "formed", "subtracted start", "three factors"])
def test_several_active_adapters_add_up(layer, variant):
    model, x = adapt_one(layer, variant)
    alone = model(x)
    lb.adapt(model, LORA, rank=1, targets=["layer"], name="other", dtype=torch.float64)
    move(model, seed=5)
    other = model(x)
    lb.activate(model)
    base = model(x)
    lb.activate(model, "default", "other")
    torch.testing.assert_close(model(x), alone + other - base)


@ALL
def test_input_dropout_averages_to_the_update(variant):
    """The base never sees the noise, and the update, linear in its input, sees it without bias."""
    model, x = adapt_one("linear", variant, dropout=0.5)
    model.eval()
    expected = model(x[0, 0])
    model.train()
    torch.manual_seed(0)
    runs = model(x[0, 0].expand(20000, 6))
    spread = runs.std(0) / 20000**0.5
    assert (spread > 0).all()
    assert ((runs.mean(0) - expected).abs() < 6 * spread).all()


def test_bfloat16_base_with_factors_in_single_precision():
    for variant in VARIANTS.values():
        torch.manual_seed(0)
        model = One(nn.Linear(64, 48)).bfloat16()
        x = torch.randn(10, 64).bfloat16()
        lb.adapt(model, variant, rank=4, targets=["layer"])
        move(model)
        reference = copy.deepcopy(model).float()
        out = model(x)
        assert out.dtype == torch.bfloat16
        error = (out.float() - reference(x.float())).norm() / reference(x.float()).norm()
        assert error < 2e-2, variant.name
        out.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_bfloat16_merge_reports_its_error_and_unmerges_exactly():
    torch.manual_seed(0)
    model = One(nn.Linear(64, 48)).bfloat16()
    lb.adapt(model, "lora", rank=4, targets=["layer"])
    move(model)
    stored = model.layer.base.weight.detach().clone()
    adapter = model.layer.adapter("default").requires_grad_(False)
    exact = stored.double() + adapter.update().double()
    for _ in range(10):
        report = lb.merge(model)
        wrong = (model.layer.base.weight.double() - exact).norm() / adapter.update().double().norm()
        assert report.worst == pytest.approx(float(wrong), rel=1e-6)
        assert 0 < report.worst < 0.1
        lb.unmerge(model)
    assert torch.equal(model.layer.base.weight, stored)


@pytest.mark.parametrize("variant", ["additive", "subtracted start", "magnitude", "times base"])
def test_a_hook_on_the_base_sees_the_output_of_the_base(variant):
    model, x = adapt_one("linear", variant)
    seen = []
    base = model.layer.base
    expected = model(x)
    handle = base.register_forward_hook(lambda module, inputs, out: seen.append(out))
    torch.testing.assert_close(model(x), expected)
    for out in seen:
        torch.testing.assert_close(out, F.linear(x.reshape(-1, 6), base.weight, base.bias))
    handle.remove()


def test_the_update_is_no_write_into_a_view():
    """Writing into a view of the base's output would make autograd copy slices."""
    model, x = adapt_one("linear", "additive")
    nodes, todo = set(), [model(x.requires_grad_()).grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += [n for n, _ in node.next_functions]
    names = {type(n).__name__ for n in nodes}
    assert "CopySlices" not in names
    assert "_AddThinBackward" in names


@pytest.mark.slow
@ALL
def test_compiles_as_one_graph(variant):
    model, x = adapt_one("linear", variant)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_checkpointing_with_dropout_and_adapters_has_the_same_gradient():
    from torch.utils.checkpoint import checkpoint

    model, x = adapt_one("linear", "additive", dropout=0.3)
    model.train()
    found = []
    for run in (lambda: model(x * 2), lambda: checkpoint(lambda y: model(y * 2), x, use_reentrant=False)):
        torch.manual_seed(0)
        found.append(torch.autograd.grad(run().square().sum(), list(model.layer.adapters.parameters())))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(2, 2, 1), nn.Embedding(5, 4, max_norm=1.0), nn.LayerNorm(4)],
)
def test_unsupported_layers_are_refused(layer):
    model = One(layer)
    with pytest.raises(TypeError, match="no adapter can meet; supported: Linear"):
        lb.adapt(model, rank=1, targets=["layer"])
    assert model.layer is layer


def test_padding_row_of_an_embedding_and_its_scale():
    class Scaled(nn.Embedding):
        """A subclass with a forward of its own, as some language models have it."""

        def forward(self, x):
            return 3.0 * super().forward(x)

    with pytest.raises(TypeError, match="no adapter can meet"):
        lb.adapt(One(Scaled(5, 4)), rank=1, targets=["layer"])
    model = One(nn.Embedding(5, 4, padding_idx=2))
    lb.adapt(model, rank=1, targets=["layer"])
    move(model)
    model(torch.tensor([2, 2, 0])).sum().backward()
    assert model.layer.base.weight.grad is None
    assert model.layer.padding_idx == 2
