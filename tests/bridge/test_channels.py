"""Updates through channels, through their own apply and times the base: derivatives, and what they keep."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import llm_bridge as lb
from llm_bridge.combines.cheaper import channels_cost, formed_cost
from llm_bridge.functions import add_applied, add_channels, times_linear
from lowrank_sp.parameterizations import (
    BlockDiagonal,
    BlockGrid,
    Hadamard,
    Kronecker,
    LoKr,
    LoKrSmall,
    RaggedGrid,
    Sparse,
)
from tests.bridge.layer_cases import LORA, One, formula, move
from tests.bridge.test_functions import saved_bytes

K, M, N = 5, 4, 6
CHANNELS = {
    "diagonal": (BlockDiagonal, 2),
    "grid": (BlockGrid.of(2, 3), 1),
    "tall grid": (BlockGrid.of(4, 1), 1),
    "lokr": (LoKr.of(2), 2),
    "hadamard": (Hadamard, 2),
    "ragged": (RaggedGrid.of([[1, 0], [1, 1]]), 1),
    "ragged with gaps": (RaggedGrid.of([[2, 0, 1], [0, 0, 0]]), 1),
}
APPLIED = CHANNELS | {
    "kronecker": (Kronecker.of(2, 3), 2),
    "lokr small": (LoKrSmall, 1),
}
WAYS = [(add_channels, name) for name in CHANNELS] + [(add_applied, name) for name in APPLIED]
EVERY = pytest.mark.parametrize(("add", "name"), WAYS, ids=lambda v: v if isinstance(v, str) else v.__name__)


def draw(*shape, seed=0, grad=True) -> Any:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_(grad)


def parts(name, shape=(M, N)):
    form, rank = APPLIED[name]
    arrays = form.random(shape, rank, np.random.default_rng(3)).arrays()
    return form, tuple(torch.as_tensor(a).requires_grad_() for a in arrays)


@EVERY
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_first_and_second_derivatives(add, name, scale):
    form, arrays = parts(name)

    def function(out, x, *arrays):
        return add(out.clone(), x, form, arrays, scale)

    inputs = (draw(K, M), draw(K, N), *arrays)
    torch.testing.assert_close(function(*inputs), inputs[0] + scale * inputs[1] @ form(*arrays).dense().mT)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@EVERY
@pytest.mark.parametrize("frozen", [[0], [1], [0, 1], [1, 2]])
def test_without_some_gradients(add, name, frozen):
    """0 is the output, 1 the input, from 2 on the arrays."""
    form, arrays = parts(name)
    inputs = [draw(K, M), draw(K, N), *arrays]
    for index in frozen:
        inputs[index].requires_grad_(False)
    assert torch.autograd.gradcheck(lambda out, x, *a: add(out.clone(), x, form, a, 1.5), inputs)


@EVERY
def test_any_strides_of_the_output_and_the_input(add, name):
    form, arrays = parts(name)
    out, x = draw(M, K, grad=False).mT, draw(N, K).mT
    expected = out.clone() + 2.0 * x @ form(*arrays).dense().mT
    got = add(out, x, form, arrays, 2.0)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(out, expected)  # in place
    grad = draw(M, K, grad=False, seed=3).mT
    for a, b in zip(*(torch.autograd.grad(v, (x, *arrays), grad) for v in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)


@EVERY
def test_no_rows_at_all(add, name):
    form, arrays = parts(name)
    x = draw(0, N)
    out = add(torch.zeros(0, M, dtype=x.dtype), x, form, arrays, 2.0)
    out.sum().backward()
    assert out.shape == (0, M)
    assert all(a.grad is not None and not a.grad.any() for a in arrays)


@pytest.mark.parametrize("name", APPLIED)
def test_applied_keeps_nothing_but_the_input(name):
    form, arrays = parts(name)
    x = draw(K, N)
    kept, _ = saved_bytes(lambda: add_applied(torch.zeros(K, M, dtype=x.dtype), x, form, arrays, 1.0), (x, *arrays))
    assert kept == 0


@pytest.mark.parametrize(
    ("form", "rank", "channels"),
    [(BlockDiagonal, 2, 4), (BlockGrid, 1, 4), (Hadamard, 2, 4), (Hadamard, 3, 0), (LoKr.of(8), 2, 0)],
)
def test_channels_are_kept_where_they_are_few(form, rank, channels):
    arrays = tuple(torch.as_tensor(a) for a in form.random((24, 64), rank, np.random.default_rng(0)).arrays())
    x = draw(K, 64)
    arrays = tuple(a.requires_grad_() for a in arrays)
    kept, _ = saved_bytes(lambda: add_channels(torch.zeros(K, 24, dtype=x.dtype), x, form, arrays, 1.0), (x, *arrays))
    assert kept == channels * K * 8


def test_indices_of_a_form_are_no_numbers():
    point = Sparse.random((M, N), 5, np.random.default_rng(0)).map(torch.as_tensor)
    arrays = tuple(a.requires_grad_() if a.is_floating_point() else a for a in point.arrays())
    x = draw(K, N)
    got = add_applied(torch.zeros(K, M, dtype=x.dtype), x, type(point), arrays, 2.0)
    torch.testing.assert_close(got, 2.0 * x @ point.dense().mT)
    got.sum().backward()
    assert x.grad is not None


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(add, name, dtype):
    form, arrays = parts(name, (8, 12))
    arrays = tuple(a.detach().float().requires_grad_() for a in arrays)
    x, base = torch.randn(K, 12, generator=torch.Generator().manual_seed(1)), torch.zeros(8, 12)
    expected = x @ form(*[a.detach() for a in arrays]).dense().mT
    with torch.autocast("cpu", dtype):
        out = add(F.linear(x, base), x, form, arrays, 1.0)
    for result in (out, add(torch.zeros(K, 8, dtype=dtype), x.to(dtype), form, arrays, 1.0)):
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), expected, atol=0.3, rtol=0.05)
        result.float().sum().backward()
        assert all(a.grad is not None and a.grad.dtype == torch.float32 for a in arrays)


# times the base ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_times_linear(biased, scale):
    weight, left, right = draw(M, N, seed=9, grad=False), draw(M, 2, seed=1), draw(N, 2, seed=2)
    bias = (draw(M, seed=7),) if biased else ()

    def function(x, left, right, *bias):
        return times_linear(x, lambda: weight, bias[0] if bias else None, (left, right), scale)

    inputs = (draw(K, N), left, right, *bias)
    expected = F.linear(inputs[0], weight * (1 + scale * left @ right.mT), *bias)
    torch.testing.assert_close(function(*inputs), expected)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    kept, _ = saved_bytes(lambda: function(*inputs), inputs)
    assert kept == 0
    for frozen in (0, 1, 2):
        some = [t.detach().requires_grad_(i != frozen) for i, t in enumerate(inputs)]
        assert torch.autograd.gradcheck(function, some)


def test_times_linear_starts_exactly_at_the_base():
    weight, x = torch.randn(7, 9), torch.randn(3, 9)
    factors = torch.randn(7, 2), torch.zeros(9, 2)
    assert torch.equal(times_linear(x, lambda: weight, None, factors, 2.0), F.linear(x, weight))


def test_times_linear_in_half_precision_does_not_lose_small_updates():
    torch.manual_seed(0)
    weight, x = torch.randn(64, 64).bfloat16(), torch.randn(500, 64).bfloat16()
    left, right = torch.full((64, 1), 1e-3, requires_grad=True), torch.randn(64, 1).sign()
    out = times_linear(x, lambda: weight, None, (left, right), 1.0)
    change = (out.double() - F.linear(x, weight).double()).flatten()
    wanted = F.linear(x.double(), weight.double() * (left @ right.mT).double()).flatten()
    assert 0.4 < (change @ wanted) / (wanted @ wanted) < 1.1
    out.float().sum().backward()
    assert left.grad is not None
    assert left.grad.dtype == torch.float32


def test_times_linear_under_autocast():
    weight, x = torch.randn(M, N), torch.randn(K, N)
    left, right = torch.randn(M, 2, requires_grad=True), torch.randn(N, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = times_linear(x, lambda: weight, None, (left, right), 1.0)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    torch.testing.assert_close(out.float(), F.linear(x, weight * (1 + left @ right.mT)), atol=0.3, rtol=0.05)


# the cost of Hadamard products -------------------------------------------------------------------------------------


def counted_flops(model, x):
    """Of a forward and a backward pass, by the counter of torch, which does not know sums in place."""

    def batched(out, a, b, *_, out_shape=None, **__):
        return 2 * a[0] * a[1] * a[2] * b[2]

    def single(out, a, b, *_, out_shape=None, **__):
        return 2 * a[0] * a[1] * b[1]

    known = {torch.ops.aten.baddbmm_: batched, torch.ops.aten.addmm_: single}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        model(x).float().sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("m", "n", "tokens", "rank"), [(48, 40, 30, 2), (48, 40, 30, 4), (64, 96, 50, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cost_model_counts_what_torch_counts(m, n, tokens, rank, dtype):
    x = torch.randn(tokens, n, dtype=dtype, requires_grad=True)
    frozen = counted_flops(nn.Sequential(nn.Linear(n, m, dtype=dtype).requires_grad_(False)), x)
    models = {
        lb.Additive(): channels_cost(tokens, (m, n), rank**2),
        lb.Formed(): formed_cost(tokens, (m, n), 2 * rank, dtype == torch.bfloat16),
    }
    for combine, cost in models.items():
        model = nn.Sequential(nn.Linear(n, m, dtype=dtype))
        lb.adapt(model, lb.recipe("loha").but("one way", combine=combine), rank=rank)
        assert counted_flops(model, x) - frozen == cost.flops


def test_few_tokens_or_ranks_act_through_channels_and_many_form_the_matrix():
    def forms(tokens, shape, rank):
        return formed_cost(tokens, shape, 2 * rank).work < channels_cost(tokens, shape, rank**2).work

    assert not forms(512, (512, 512), 4)
    assert not forms(512, (1408, 512), 8)
    assert forms(512, (512, 512), 16)
    assert forms(2048, (512, 512), 12)
    assert not forms(1, (512, 512), 16)
    assert not forms(1024, (4096, 4096), 16)


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), lambda: torch.randn(3, 4, 6)),
    "embedding": (lambda: nn.Embedding(7, 5), lambda: torch.tensor([[0, 4, 6], [3, 3, 2]])),
    "conv2d": (lambda: nn.Conv2d(2, 5, 3, padding=1), lambda: torch.randn(2, 2, 7, 6)),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("tokens", [1, 400])
def test_cheaper_is_the_formula_either_way(layer, tokens):
    torch.manual_seed(0)
    make, data = LAYERS[layer]
    model, x = One(make()).double(), torch.cat([data()] * tokens)
    x = x.double() if x.is_floating_point() else x
    recipe = LORA.but("f", form=Hadamard, combine=lb.Cheaper())
    lb.adapt(model, recipe, rank=2, alpha=3.0, targets=["layer"], dtype=torch.float64)
    move(model)
    adapted = model.layer
    weight = formula("cheaper", adapted.kind.weight(adapted.base).detach(), adapted.adapter("default"))
    got = model(x)
    if layer == "embedding":
        expected = weight.mT[x]
    elif layer == "conv2d":
        expected = F.conv2d(x, weight.reshape(5, 2, 3, 3), adapted.base.bias, padding=1)
    else:
        expected = F.linear(x, weight, adapted.base.bias)
    torch.testing.assert_close(got, expected)
    arrays = list(adapted.adapter("default").parameters())
    probe = torch.randn_like(got)
    for a, b in zip(*(torch.autograd.grad((v * probe).sum(), arrays) for v in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)
    assert lb.merge(model).worst < 1e-12
    torch.testing.assert_close(model(x), got)
