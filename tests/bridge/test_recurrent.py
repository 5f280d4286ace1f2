"""LoRA on the stacked gates of recurrent layers, against networks that are unrolled by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import llm_bridge as lb

INPUTS, STATES, STEPS, BATCH = 5, 4, 7, 3


class Reader(nn.Module):
    """A recurrent layer and a linear one that reads its last state."""

    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.rnn = kind(INPUTS, STATES, batch_first=True)
        self.head = nn.Linear(STATES, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def gates_of(model: Reader, path: str, base: Tensor) -> Tensor:
    """``W + s B A`` of the stacked gates, by the factors of the adapter."""
    adapter = lb.adapted(model)[f"rnn.{path}"].adapter("default")
    return base + adapter.scale * adapter.left @ adapter.right.T


def lstm(x: Tensor, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor) -> Tensor:
    h, c = x.new_zeros(len(x), STATES), x.new_zeros(len(x), STATES)
    for t in range(x.shape[1]):
        i, f, g, o = (x[:, t] @ wi.T + bi + h @ wh.T + bh).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return h


def gru(x: Tensor, wi: Tensor, wh: Tensor, bi: Tensor, bh: Tensor) -> Tensor:
    h = x.new_zeros(len(x), STATES)
    for t in range(x.shape[1]):
        (ri, zi, ni), (rh, zh, nh) = (x[:, t] @ wi.T + bi).chunk(3, 1), (h @ wh.T + bh).chunk(3, 1)
        r, z = (ri + rh).sigmoid(), (zi + zh).sigmoid()
        h = (1 - z) * (ni + r * nh).tanh() + z * h
    return h


UNROLLED = {"lstm": (nn.LSTM, lstm), "gru": (nn.GRU, gru)}


@pytest.fixture(params=UNROLLED)
def reader(request):
    torch.manual_seed(0)
    kind, unrolled = UNROLLED[request.param]
    return Reader(kind).double(), unrolled


def sequences() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, STEPS, INPUTS, generator=generator, dtype=torch.float64)
    return x, torch.randn(BATCH, 2, generator=generator, dtype=torch.float64)


def base_arrays(model: Reader) -> list[Tensor]:
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return [getattr(model.rnn, name).detach().clone() for name in names]


@pytest.mark.covers("P14")
def test_gates_act_as_in_the_unrolled_network(reader):
    """States and all gradients of the factors, through every time step."""
    model, unrolled = reader
    x, _ = sequences()
    wi, wh, bi, bh = base_arrays(model)
    plain = model(x)
    lb.adapt(model, "lora", rank=2, targets=["ih_l0", "hh_l0"], dtype=torch.float64)
    factors = [p for p in model.parameters() if p.requires_grad]
    assert [tuple(p.shape) for p in factors] == [(len(wi), 2), (INPUTS, 2), (len(wh), 2), (STATES, 2)]
    torch.testing.assert_close(model(x), plain)
    with torch.no_grad():
        for k, p in enumerate(factors):
            p.copy_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k), dtype=p.dtype))
    by_hand = model.head(unrolled(x, gates_of(model, "ih_l0", wi), gates_of(model, "hh_l0", wh), bi, bh))
    out = model(x)
    torch.testing.assert_close(out, by_hand)
    assert not torch.allclose(out, plain)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    ours, expected = (torch.autograd.grad((made * weights).sum(), factors) for made in (out, by_hand))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.covers("P14")
def test_training_moves_the_gates_and_merging_keeps_them(reader):
    model, _ = reader
    x, y = sequences()
    kept = base_arrays(model)
    lb.adapt(model, "lora", rank=2, targets=["ih_l0", "hh_l0"], dtype=torch.float64)
    optimizer = lb.optimizer(model, lr=5e-2)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    after = model(x)
    expected = [gates_of(model, path, w).detach() for path, w in zip(("ih_l0", "hh_l0"), kept[:2], strict=True)]
    lb.merge(model)
    lb.unload(model)
    assert type(model.rnn) in (nn.LSTM, nn.GRU)
    for merged, wanted in zip(base_arrays(model), [*expected, *kept[2:]], strict=True):
        torch.testing.assert_close(merged, wanted)
    torch.testing.assert_close(model(x), after)
