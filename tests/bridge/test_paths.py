"""Paths beside blocks: the formula, transformers, files, mixed batches, and what is refused."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import llm_bridge as lb
from llm_bridge.paths import ResidualPath

from .test_recipes import train


class Model(nn.Module):
    """Encoder layers of torch, called with a keyword."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(src=x)
        return x


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def x():
    return torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1))


BLOCKS = r"layers\.\d"


def shake(model):
    """Move all that trains."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))


@pytest.mark.covers("P56")
def test_a_block_gets_a_low_rank_path_beside_it(model, x):
    before = model(x)
    sites = lb.open_paths(model, BLOCKS, width=8)
    assert sites == ["layers.0.residual_path", "layers.1.residual_path"]
    assert torch.equal(model(x), before)
    lb.adapt(model, "lor2c", rank=2, alpha=3.0, targets=sites)
    assert torch.equal(model(x), before)
    shake(model)
    expected = x
    for i, block in enumerate(model.layers):
        adapter = lb.adapted(model)[f"layers.{i}.residual_path"].adapter("default")
        path = 1.5 * expected @ adapter.right @ adapter.left.mT
        with lb.disable(model):
            plain = block(expected)
        expected = plain + path
    assert torch.allclose(model(x), expected, atol=1e-5)


@pytest.mark.covers("P56")
def test_counts_two_factors_for_every_block(minilm):
    model, batch = minilm
    before = model(**batch).last_hidden_state
    lb.adapt(model, "lor2c", rank=4, targets=lb.open_paths(model, r"encoder\.layer\.\d+"))
    assert torch.equal(model(**batch).last_hidden_state, before)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 6 * 2 * 4 * 384
    shake(model)
    assert not torch.allclose(model(**batch).last_hidden_state, before, atol=1e-3)
    with lb.disable(model):
        assert torch.equal(model(**batch).last_hidden_state, before)


def test_blocks_of_a_llama_learn_with_and_without_recomputation(llama):
    model, ids = llama
    lb.adapt(model, "lor2c", rank=2, targets=lb.open_paths(model, r"model\.layers\.\d"))
    shake(model)
    losses = []
    for recompute in (False, True):
        if recompute:
            for layer in model.model.layers:
                plain = type(layer).forward.__get__(layer)
                layer.forward = partial(checkpoint, plain, use_reentrant=False)
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        losses.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(losses[0]) == 4
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*losses, strict=True))


def test_paths_learn_and_layers_inside_learn_too(model, x):
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    lb.open_paths(model, BLOCKS, width=8)
    lb.adapt(model, "lor2c", rank=2, targets=["residual_path", "linear1"])
    assert len(lb.adapted(model)) == 4
    losses = train(model, (x, target), 40)
    assert losses[-1] < 0.9 * losses[0]


def test_saves_loads_and_says_that_paths_must_be_open(model, x, tmp_path):
    lb.adapt(model, "lor2c", rank=2, targets=lb.open_paths(model, BLOCKS, width=8))
    shake(model)
    after = model(x)
    lb.save(model, tmp_path / "adapter")
    fresh = Model()
    with pytest.raises(ValueError, match=r"residual_path, layers\.1\.residual_path, which the model does not have"):
        lb.load(fresh, tmp_path / "adapter")
    lb.open_paths(fresh, BLOCKS, width=8)
    lb.load(fresh, tmp_path / "adapter")
    assert torch.equal(fresh(x), after)


def test_mixes_in_a_batch_and_comes_off(model, x):
    names, before = set(model.state_dict()), model(x)
    lb.adapt(model, "lor2c", rank=2, targets=lb.open_paths(model, BLOCKS, width=8))
    shake(model)
    after = model(x)
    with lb.route(model, ["default", None] * 2):
        mixed = model(x)
    assert torch.allclose(mixed[::2], after[::2], atol=1e-6)
    assert torch.allclose(mixed[1::2], before[1::2], atol=1e-6)
    with pytest.raises(ValueError, match=r"path of layers\.0 has an adapter"):
        lb.close_paths(model)
    lb.unload(model)
    lb.close_paths(model)
    assert torch.equal(model(x), before)
    assert set(model.state_dict()) == names
    assert not any(block._forward_hooks or block._forward_hooks_with_kwargs for block in model.layers)
    lb.open_paths(model, BLOCKS, width=8)
    lb.open_paths(model, BLOCKS, width=8)
    assert [len(block._forward_hooks) for block in model.layers] == [1, 1]
    assert set(model.state_dict()) == names


def test_a_copy_has_paths_of_its_own(model, x):
    lb.adapt(model, "lor2c", rank=2, targets=lb.open_paths(model, BLOCKS, width=8))
    twin = copy.deepcopy(model)
    shake(twin)
    assert not torch.allclose(twin(x), model(x), atol=1e-3)


def test_is_not_merged_and_says_why(model, x):
    lb.adapt(model, "lor2c", rank=2, targets=lb.open_paths(model, BLOCKS, width=8))
    shake(model)
    after = model(x)
    with pytest.raises(ValueError, match="a path beside a block cannot be merged"):
        lb.merge(model)
    assert torch.equal(model(x), after)


@pytest.mark.parametrize("write", [lb.export_lora, lb.save_peft])
def test_files_of_peft_have_no_place_for_it(model, tmp_path, write):
    lb.adapt(model, "lora", rank=2, targets=lb.open_paths(model, BLOCKS, width=8))
    with pytest.raises(ValueError, match=r"layers\.0\.residual_path is a path beside a block, for which PEFT"):
        write(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_tuples_keep_what_follows():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x), "more"

    model = nn.ModuleDict({"pair": Pair()})
    lb.adapt(model, "lor2c", rank=2, targets=lb.open_paths(model, "pair", width=4))
    shake(model)
    x = torch.ones(2, 4)
    adapter = lb.adapted(model)["pair.residual_path"].adapter("default")
    first, more = model["pair"](x)
    assert more == "more"
    assert torch.allclose(first, model["pair"].inner(x) + x @ adapter.right @ adapter.left.mT, atol=1e-6)


def test_a_path_is_where_its_block_is():
    model = nn.ModuleDict({"block": nn.Sequential(nn.Linear(4, 4))}).to(torch.bfloat16)
    lb.open_paths(model, "block", width=4)
    path = model.get_submodule("block.residual_path")
    assert isinstance(path, ResidualPath)
    assert path.weight.dtype == torch.bfloat16
    assert path.double().weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("blocks", "width", "message"),
    [
        (BLOCKS, None, "width must be the number of channels of the blocks, a positive integer, got None"),
        (BLOCKS, 0, "got 0"),
        (["layer"], 8, "blocks holds 'layer', which matches no module; did you mean layers"),
        (lambda name, module: False, 8, "no block is chosen"),
        ("layers", 8, "layers only holds modules and is never called"),
        ("linear1", 8, r"layers\.[01]\.linear1 is a single layer"),
    ],
)
def test_blocks_that_do_not_exist_are_refused(model, blocks, width, message):
    with pytest.raises(ValueError, match=message):
        lb.open_paths(model, blocks, width)


def test_a_block_of_another_width_is_refused_as_it_runs(model, x):
    lb.open_paths(model, BLOCKS, width=7)
    with pytest.raises(ValueError, match=r"width 7 needs a block whose first argument.*TransformerEncoderLayer"):
        model(x)


def test_a_block_that_returns_no_tensor_is_refused_as_it_runs(x):
    class Named(nn.Module):
        def forward(self, x):
            return {"out": x}

    model = nn.ModuleDict({"named": Named()})
    lb.open_paths(model, "named", width=8)
    with pytest.raises(TypeError, match=r"a path needs a block whose.*got Tensor and dict at a Named"):
        model["named"](x)
    with pytest.raises(TypeError, match="got NoneType and dict"):
        model["named"](x=None)
