"""Adapters inside attention and recurrent modules, and on quantized layers."""

import copy
import sys
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llm_bridge as lb
from llm_bridge.parts import AdaptedPart
from tests.bridge.layer_cases import VARIANTS, One, formula, move

ALL = pytest.mark.parametrize("variant", VARIANTS)


def attention(**options):
    return nn.MultiheadAttention(8, 2, batch_first=True, **options)


def call_attention(model, x):
    return model.layer(x, x[..., : model.layer.kdim], x[..., : model.layer.vdim], need_weights=False)[0]


HOSTS = {
    "attention": (attention, call_attention, ["q_proj", "k_proj", "v_proj", "out_proj"]),
    "attention of other sizes": (
        lambda: attention(kdim=5, vdim=6),
        call_attention,
        ["q_proj", "k_proj", "v_proj", "out_proj"],
    ),
    "lstm": (
        lambda: nn.LSTM(8, 6, num_layers=2, batch_first=True),
        lambda m, x: m.layer(x)[0],
        ["ih_l0", "hh_l0", "ih_l1", "hh_l1"],
    ),
    "bidirectional lstm with projection": (
        lambda: nn.LSTM(8, 6, bidirectional=True, proj_size=3),
        lambda m, x: m.layer(x)[0],
        ["ih_l0", "hh_l0", "hr_l0", "ih_l0_reverse", "hh_l0_reverse", "hr_l0_reverse"],
    ),
    "gru": (lambda: nn.GRU(8, 6, bias=False), lambda m, x: m.layer(x)[0], ["ih_l0", "hh_l0"]),
    "rnn": (lambda: nn.RNN(8, 6), lambda m, x: m.layer(x)[0], ["ih_l0", "hh_l0"]),
}
INSIDE = pytest.mark.parametrize("host", HOSTS)
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def adapt_host(host, variant="additive", **options) -> Any:
    torch.manual_seed(0)
    make, call, names = HOSTS[host]
    model, x = One(make()).double(), torch.randn(3, 5, 8, dtype=torch.float64)
    plain = copy.deepcopy(model)
    chosen = VARIANTS[variant]
    lb.adapt(model, chosen, rank=2, alpha=3.0, targets=["layer"], dtype=torch.float64, **options)
    return model, plain, x, call, names


def matrices(plain):
    """Where a plain module keeps the matrices, by the names of the bridge: (parameter, rows)."""
    layer = plain.layer
    if not isinstance(layer, nn.MultiheadAttention):
        found = [n for n, _ in layer.named_parameters() if n.startswith("weight")]
        return {n[len("weight_") :]: (layer.get_parameter(n), slice(None)) for n in found}
    rest = {"out_proj": (layer.out_proj.weight, slice(None))}
    if layer.in_proj_weight is None:
        return {f"{k}_proj": (getattr(layer, f"{k}_proj_weight"), slice(None)) for k in "qkv"} | rest
    return {f"{k}_proj": (layer.in_proj_weight, slice(8 * i, 8 * i + 8)) for i, k in enumerate("qkv")} | rest


@INSIDE
@pytest.mark.parametrize("variant", ["additive", "times base", "magnitude", "subtracted start", "formed"])
def test_hosts_compute_with_the_adapted_weights(host, variant):
    model, plain, x, call, names = adapt_host(host, variant)
    assert sorted(lb.adapted(model)) == sorted(f"layer.{n}" for n in names)
    torch.testing.assert_close(call(model, x), call(plain, x))
    move(model)
    assert isinstance(model.layer, type(plain.layer))
    with torch.no_grad():
        for name, (parameter, rows) in matrices(plain).items():
            adapter = lb.adapted(model)[f"layer.{name}"].adapter("default")
            parameter[rows] = formula(variant, parameter[rows].clone(), adapter)
    for training in (True, False):
        model.train(training)
        plain.train(training)
        torch.testing.assert_close(call(model, x), call(plain, x))
        with torch.no_grad():
            torch.testing.assert_close(call(model, x), call(plain, x))
    call(model, x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    torch.testing.assert_close(call(copy.deepcopy(model), x), call(plain, x))


@INSIDE
def test_hosts_merge_unmerge_and_come_back(host):
    model, plain, x, call, _ = adapt_host(host)
    kept = {name: p.clone() for name, p in plain.named_parameters()}
    move(model)
    expected = call(model, x)
    lb.merge(model)
    torch.testing.assert_close(call(model, x), expected)
    lb.unmerge(model)
    torch.testing.assert_close(call(model, x), expected)
    with lb.disable(model):
        torch.testing.assert_close(call(model, x), call(plain, x))
    lb.unload(model)
    assert type(model.layer) is type(plain.layer)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters())
    torch.testing.assert_close(call(model, x), call(plain, x))


@INSIDE
def test_hosts_take_several_adapters_and_refuse_mixed_batches(host):
    model, _, x, call, names = adapt_host(host)
    move(model)
    one = call(model, x)
    lb.adapt(model, "lora", rank=1, targets=[names[0]], name="other", dtype=torch.float64)
    move(model, seed=4)
    assert not torch.allclose(call(model, x), one)
    lb.activate(model, "default")
    torch.testing.assert_close(call(model, x), one)
    with lb.route(model, ["other", None, "default"]), pytest.raises(ValueError, match="cannot mix"):
        call(model, x)
    lb.drop(model, "default")
    assert list(lb.adapted(model)) == [f"layer.{names[0]}"]


@INSIDE
def test_hosts_refuse_dropout_on_the_input(host):
    _, plain, x, call, _ = adapt_host(host)
    torch.manual_seed(0)
    fresh = One(HOSTS[host][0]())
    with pytest.raises(ValueError, match="dropout on the input"):
        lb.adapt(fresh, "lora", rank=2, targets=["layer"], dropout=0.1)
    assert type(fresh.layer) is type(plain.layer)
    lb.adapt(fresh, "lora-drop", rank=2, targets=["layer"], dropout=0.5)
    move(fresh)
    x = x.float()
    assert not torch.equal(call(fresh, x), call(fresh, x))
    fresh.eval()
    assert torch.equal(call(fresh, x), call(fresh, x))


def test_all_linear_finds_attention_but_not_recurrent_gates():
    model = nn.ModuleDict({"attn": attention(), "rnn": nn.LSTM(8, 8), "up": nn.Linear(8, 8)})
    found = [site.name for site in lb.find_sites(model)]
    assert found == ["attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj", "up"]
    assert [s.name for s in lb.find_sites(model, targets=["q_proj", "hh_l0"])] == ["attn.q_proj", "rnn.hh_l0"]
    assert [s.name for s in lb.find_sites(model, exclude=["attn"])] == ["up"]
    lb.adapt(model, rank=1)
    assert [site.name for site in lb.find_sites(model)] == found
    assert list(lb.adapted(model)) == ["attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj", "up"] or set(
        lb.adapted(model)
    ) == set(found)


def test_the_fused_encoder_layer_of_torch_uses_the_adapters():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double(), torch.randn(3, 5, 8).double()
    lb.adapt(model, rank=2, targets=["self_attn"], dtype=torch.float64)
    assert len(lb.adapted(model)) == 8
    move(model)
    model.train()
    slow = model(x)
    model.eval()
    with torch.no_grad():
        fast = model(x)
    torch.testing.assert_close(fast, slow)
    assert isinstance(model.get_submodule("layers.0.self_attn.q_proj"), AdaptedPart)


def test_a_subclass_of_a_host_is_refused_before_anything_changes():
    class Own(nn.LSTM):
        pass

    model = nn.ModuleDict({"up": nn.Linear(4, 4), "rnn": Own(4, 4)})
    with pytest.raises(TypeError, match="subclass"):
        lb.adapt(model, rank=1, targets=["up", "rnn"])
    assert type(model["up"]) is nn.Linear


# quantized layers, by classes that follow the protocols of the libraries ---------------------------------------------


class Codes(torch.Tensor):
    """A weight in 8 bits that behaves like the tensors of torchao: it dequantizes when a linear layer uses it."""

    __module__ = "torchao.dtypes"

    @staticmethod
    def __new__(cls, weight):
        made = torch.Tensor._make_subclass(cls, (weight * 100).round())
        made.scale = 0.01
        return made

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            x, weight, bias = (*args, None)[:3]
            return F.linear(x, Codes.dequantize(weight), bias)
        return super().__torch_function__(function, types, args, kwargs or {})

    def dequantize(self):
        with torch._C.DisableTorchFunctionSubclass():
            return self.detach().as_subclass(torch.Tensor) * 0.01


def torchao_layer() -> Any:
    layer: Any = nn.Linear(6, 5)
    layer.weight = nn.Parameter(Codes(layer.weight.detach()), requires_grad=False)
    return layer


def bitsandbytes_layer(monkeypatch, kind) -> Any:
    """A stand-in for the modules of bitsandbytes and for the function that dequantizes their weights."""
    functional: Any = types.ModuleType("bitsandbytes.functional")
    functional.dequantize_4bit = lambda data, state: data.float() * state
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)

    def forward(self, x):
        return F.linear(x, self.full, self.bias)

    layer: Any = type(kind, (nn.Linear,), {"forward": forward, "__module__": "bitsandbytes.nn.modules"})(6, 5)
    full = layer.weight.detach()
    if kind == "Linear4bit":
        codes, state = (full * 100).round().to(torch.int8), 0.01
        layer.full = codes.float() * state
        layer.weight = stored = nn.Parameter(codes, requires_grad=False)
        vars(stored).update(quant_state=state)
    else:
        scale = full.abs().amax(1)
        codes = (full * 127 / scale[:, None]).round().to(torch.int8)
        layer.full = codes.float() * scale[:, None] / 127
        layer.weight = stored = nn.Parameter(codes, requires_grad=False)
        vars(stored).update(CB=codes, SCB=scale)
        layer.state = types.SimpleNamespace(CB=None, SCB=None)
    return layer


@pytest.mark.parametrize("protocol", ["torchao", "Linear4bit", "Linear8bitLt"])
@ALL
def test_quantized_layers_act_as_their_dequantized_weight(protocol, variant, monkeypatch):
    torch.manual_seed(0)
    layer = torchao_layer() if protocol == "torchao" else bitsandbytes_layer(monkeypatch, protocol)
    full = layer.weight.dequantize() if protocol == "torchao" else layer.full
    model, plain = One(layer), One(nn.Linear(6, 5))
    with torch.no_grad():
        plain.layer.weight.copy_(full)
        plain.layer.bias.copy_(layer.bias)
    for m in (model, plain):
        lb.adapt(m, VARIANTS[variant], rank=2, targets=["layer"])
        move(m)
    found = []
    for m in (model, plain):
        x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        found.append(torch.autograd.grad(m(x).square().sum(), [x, *(p for p in m.parameters() if p.requires_grad)]))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    expected = model(x)
    with pytest.raises(ValueError, match="quantized; merging would round"):
        lb.merge(model)
    torch.testing.assert_close(model(x), expected)
