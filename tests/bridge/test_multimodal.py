"""Factors by modality with attention to the text, token by token; what they refuse; and that they learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import llm_bridge as lb
from llm_bridge.multimodal import Modal

KINDS = torch.tensor([[1, 1, 0, 0, 0], [0, 2, 2, 0, 1], [1, 2, 1, 1, 2]])
ATTENDED = torch.tensor([[0, 0, 1, 1, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]]).bool()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Block().double()


def tokens() -> torch.Tensor:
    return torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


MADE = lb.recipe("moka-multimodal").but("three", form=Modal.of(3))


def adapt(model, **options):
    lb.adapt(model, MADE, rank=2, alpha=3.0, dtype=torch.float64, **options)
    with torch.no_grad():
        for k, layer in enumerate(lb.adapted(model).values()):
            left = layer.adapter("default").left
            left.copy_(torch.randn(left.shape, generator=torch.Generator().manual_seed(k), dtype=left.dtype))
    return model


def by_hand(adapter, x, kinds, attended) -> np.ndarray:
    """``s A_k x`` of one sample, with what tokens that are no text attend to, one token at a time; then B."""
    right, left = adapter.right.detach().numpy(), adapter.left.detach().numpy()
    h = np.stack([adapter.scale * right[k].T @ row for k, row in zip(kinds, x, strict=True)])
    text = h[attended]
    out = []
    for k, row in zip(kinds, h, strict=True):
        if k > 0 and len(text):
            e = np.exp(text @ row / np.sqrt(len(text)))
            row = row + (e / e.sum()) @ text
        out.append(left @ row)
    return np.stack(out)


@pytest.mark.covers("P110", "E14")
@pytest.mark.parametrize("attended", [None, ATTENDED])
def test_one_token_at_a_time(block, attended):
    x = tokens()
    layer = block.up
    base = layer(x).detach().numpy()
    adapt(block, targets=["up"])
    with lb.modalities(block, KINDS, attended):
        got = block.up(x).detach().numpy()
    mask = KINDS == 0 if attended is None else attended
    adapter = lb.adapted(block)["up"].adapter("default")
    for sample in range(3):
        expected = by_hand(adapter, x[sample].numpy(), KINDS[sample].numpy(), mask[sample].numpy())
        assert np.allclose(got[sample], base[sample] + expected)
    scale, right = adapter.scale, adapter.right[0].detach()
    assert np.allclose(block.up(x).detach(), base + (scale * x @ right @ adapter.left.detach().T).numpy())


@pytest.mark.covers("P110")
def test_parameters_are_those_of_a_way_down_for_each_modality(block):
    adapt(block, targets=["up"])
    assert sum(p.numel() for p in block.parameters() if p.requires_grad) == 3 * 2 * 6 + 2 * 8
    assert Modal.of(3).parameter_count((8, 6), 2) == 3 * 2 * 6 + 2 * 8


@pytest.mark.covers("P110", "E14")
def test_every_modality_learns_and_gradients_are_those_of_differences(block):
    adapt(block)
    x, y = tokens(), torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    factors = [p for p in block.parameters() if p.requires_grad]

    def loss(*arrays):
        state = dict(zip([n for n, p in block.named_parameters() if p.requires_grad], arrays, strict=True))
        with lb.modalities(block, KINDS):
            return (torch.func.functional_call(block, state, (x,)) - y).square().mean()

    assert torch.autograd.gradcheck(loss, [p.detach().clone().requires_grad_() for p in factors])
    optimizer, losses = lb.optimizer(block, lr=3e-2), []
    for _ in range(60):
        optimizer.zero_grad()
        with lb.modalities(block, KINDS, ATTENDED):
            value = (block(x) - y).square().mean()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.6 * losses[0]
    rights: list[Any] = [layer.adapter("default").right.grad for layer in lb.adapted(block).values()]
    assert all((grad.abs().amax((1, 2)) > 0).all() for grad in rights)


def test_text_does_not_see_other_modalities(block):
    adapt(block)
    x = tokens()
    with lb.modalities(block, KINDS):
        before = block(x)
        x[KINDS > 0] += 1.0
        after = block(x)
    assert torch.equal(before[KINDS == 0], after[KINDS == 0])
    assert not torch.allclose(before[KINDS > 0], after[KINDS > 0])


def test_saves_and_loads(block, tmp_path):
    adapt(block)
    with lb.modalities(block, KINDS):
        expected = block(tokens())
    lb.save(block, tmp_path)
    lb.unload(block)
    lb.load(block, tmp_path, recipe=MADE)
    with lb.modalities(block, KINDS):
        assert torch.allclose(block(tokens()), expected, atol=1e-6)


BAD = {
    "floats": (lambda: (KINDS.double(),), TypeError, "kinds must be an integer tensor"),
    "one axis": (lambda: (KINDS[0],), TypeError, "kinds must be an integer tensor"),
    "too many": (lambda: (KINDS + 1,), ValueError, "kinds must lie between 0 and 2"),
    "mask": (lambda: (KINDS, ATTENDED.long()), TypeError, "attended must be a bool tensor"),
    "no text": (lambda: (KINDS, KINDS > 0), ValueError, "attended names tokens that are no text"),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_do_not_fit(block, case):
    adapt(block)
    arguments, error, message = BAD[case]
    with pytest.raises(error, match=message), lb.modalities(block, *arguments()):
        pass


def test_other_tokens_and_other_models_are_refused(block):
    adapt(block)
    with lb.modalities(block, KINDS), pytest.raises(ValueError, match=r"got tokens \(3, 4\), but modalities are given"):
        block(tokens()[:, :4])
    block(tokens()[:, :4])  # outside everything is text
    with pytest.raises(ValueError, match="count must be a positive integer, got 0"):
        Modal.of(0)
    lb.unload(block)
    lb.adapt(block, "lora", rank=2)
    with (
        pytest.raises(ValueError, match="no active adapter of the model knows modalities"),
        lb.modalities(block, KINDS),
    ):
        pass
