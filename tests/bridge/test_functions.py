"""The hand-written derivatives of the bridge: against finite differences, and what they keep for backward."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llm_bridge.functions import add_thin, narrowed, outer, rebuilt_linear, rescale, rescaled_linear
from llm_bridge.masks import dropout

K, M, N, R = 5, 4, 6, 2


def draw(*shape, seed=0, grad=True) -> Any:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_(grad)


def factors(start) -> Any:
    trained = (draw(M, R, seed=1), draw(N, R, seed=2))
    return trained + ((draw(M, R, seed=3, grad=False), draw(N, R, seed=4, grad=False)) if start else ())


def saved_bytes(function, own):
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = function()
    for t in own:
        kept.pop(t.untyped_storage().data_ptr(), None)
    return sum(kept.values()), out


@pytest.mark.parametrize("start", [False, True])
def test_add_thin_has_right_first_and_second_derivatives(start):
    parts = factors(start)

    def function(out, x, left, right):
        return add_thin(out.clone(), x, (left, right, *parts[2:]), 0.7)

    inputs = (draw(K, M), draw(K, N), *parts[:2])
    left, right = parts[:2]
    expected = inputs[0] + 0.7 * inputs[1] @ (right @ left.mT)
    if start:
        expected = expected - 0.7 * inputs[1] @ (parts[3] @ parts[2].mT)
    torch.testing.assert_close(function(*inputs), expected)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("frozen", ["x", "left", "right"])
def test_add_thin_without_some_gradients(frozen):
    x, (left, right) = draw(K, N), factors(False)
    {"x": x, "left": left, "right": right}[frozen].requires_grad_(False)
    assert torch.autograd.gradcheck(
        lambda out, x, left, right: add_thin(out.clone(), x, (left, right), 1.5), (draw(K, M), x, left, right)
    )


def test_add_thin_takes_any_strides_and_keeps_only_the_input_and_the_channels():
    x = draw(N, K).mT
    left, right = draw(R, M).mT, draw(R, N).mT
    out = F.linear(x, draw(M, N, grad=False))
    kept, result = saved_bytes(lambda: add_thin(out, x, (left, right), 2.0), (x, left, right))
    assert kept == R * K * 8
    torch.testing.assert_close(result, F.linear(x, draw(M, N, grad=False)) + 2.0 * x @ right @ left.mT)
    assert type(result.grad_fn).__name__ != "CopySlices"


def test_add_thin_keeps_no_input_for_a_frozen_right_factor():
    x, (left, right) = draw(K, N, grad=False), factors(False)
    right.requires_grad_(False)
    kept, _ = saved_bytes(lambda: add_thin(torch.zeros(K, M, dtype=x.dtype), x * 1, (left, right), 1.0), (left, right))
    assert kept == R * K * 8


def test_narrowed_rows():
    x, right = draw(K, N, seed=5), draw(N, R, seed=2)
    torch.testing.assert_close(narrowed(x, right), x @ right)
    assert torch.autograd.gradcheck(narrowed, (x, right))
    assert torch.autograd.gradgradcheck(narrowed, (x, right))


def test_outer_product():
    assert torch.autograd.gradcheck(outer, factors(False))
    assert torch.autograd.gradgradcheck(outer, factors(False))


@pytest.mark.parametrize("biased", [False, True])
def test_rescale_reads_the_gradient_off_its_own_result(biased):
    bias = (draw(M, seed=5),) if biased else ()

    def function(out, vector, *bias):
        return rescale(out.clone(), vector, bias[0] if bias else None)

    inputs = (draw(K, M), draw(M, seed=6), *bias)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_rescale_of_images_and_at_zero():
    vector = draw(3, 1, 1)
    assert torch.autograd.gradcheck(lambda o, v: rescale(o.clone(), v, None), (draw(2, 3, 2, 2), vector))
    zero = torch.zeros(M, dtype=torch.float64, requires_grad=True)
    rescale(draw(K, M) * 1, zero, None).sum().backward()
    assert torch.equal(zero.grad, torch.zeros(M, dtype=torch.float64))


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_rescaled_linear(start, separate, biased):
    weight, parts = draw(M, N, seed=9, grad=False), factors(start)
    bias = draw(M, seed=7) if biased else None

    def function(x, seen, left, right, vector, *bias):
        other = seen if separate else x
        given = bias[0] if bias else None
        return rescaled_linear(x, other, lambda: weight, (left, right, *parts[2:]), 0.7, vector, given)

    inputs = (draw(K, N), draw(K, N, seed=3), *parts[:2], draw(M, seed=6), *(() if bias is None else (bias,)))
    x, seen, left, right, vector = inputs[:5]
    change = left @ right.mT - (parts[2] @ parts[3].mT if start else 0)
    expected = (x @ weight.mT + 0.7 * (seen if separate else x) @ change.mT) * vector + (0 if bias is None else bias)
    torch.testing.assert_close(function(*inputs), expected)
    if not separate:
        seen.requires_grad_(False)
    assert torch.autograd.gradcheck(function, inputs)


def test_rescaled_linear_keeps_nothing_but_its_input():
    x, (left, right), vector = draw(K, N), factors(False), draw(M)
    weight = draw(M, N, seed=9, grad=False)
    kept, _ = saved_bytes(
        lambda: rescaled_linear(x, x, lambda: weight, (left, right), 1.0, vector, None), (x, left, right, vector)
    )
    assert kept == 0


def times_base(weight, left, right):
    return weight * (1 + left @ right.mT)


@pytest.mark.parametrize("biased", [False, True])
def test_rebuilt_linear(biased):
    weight = draw(M, N, seed=9, grad=False)
    bias = draw(M, seed=7) if biased else None

    def function(x, left, right, *bias):
        return rebuilt_linear(x, lambda: weight, bias[0] if bias else None, times_base, (left, right))

    inputs = (draw(K, N), *factors(False), *(() if bias is None else (bias,)))
    torch.testing.assert_close(function(*inputs), F.linear(inputs[0], times_base(weight, *inputs[1:3]), bias))
    assert torch.autograd.gradcheck(function, inputs)
    kept, _ = saved_bytes(lambda: function(*inputs), inputs)
    assert kept == 0


def test_rebuilt_linear_refuses_second_derivatives_clearly():
    weight, x, parts = draw(M, N, grad=False), draw(K, N), factors(False)
    out = rebuilt_linear(x, lambda: weight, None, times_base, parts)
    (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_half_precision_does_not_round_small_updates_away():
    torch.manual_seed(0)
    weight, x = torch.randn(64, 64).bfloat16(), torch.randn(500, 64).bfloat16()
    left, right = torch.full((64, 1), 1e-3), torch.randn(64, 1).sign()
    formed = (weight.float() * (1 + left @ right.mT)).bfloat16()
    assert torch.equal(formed, weight)  # a thousandth is less than bfloat16 resolves
    out = rebuilt_linear(x, lambda: weight, None, lambda w, a, b: w.float() * (1 + a @ b.mT), (left, right))
    change = (out.double() - F.linear(x, weight).double()).flatten()
    wanted = F.linear(x.double(), weight.double() * (left @ right.mT)).flatten()
    assert 0.4 < (change @ wanted) / (wanted @ wanted) < 1.1


@pytest.mark.parametrize("device_type", ["cpu"])
def test_autocast_computes_in_its_type(device_type):
    weight, x = torch.randn(M, N), torch.randn(K, N)
    left, right = (p.detach().float().requires_grad_() for p in factors(False))
    with torch.autocast(device_type, torch.bfloat16):
        out = add_thin(F.linear(x, weight), x, (left, right), 1.0)
        formed = rebuilt_linear(x, lambda: weight, None, times_base, (left, right))
        scaled = rescaled_linear(x, x, lambda: weight, (left, right), 1.0, torch.ones(M), None)
    assert out.dtype == formed.dtype == scaled.dtype == torch.bfloat16
    (out.float().sum() + formed.float().sum() + scaled.float().sum()).backward()
    assert left.grad.dtype == right.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), x @ weight.mT + x @ right @ left.mT, atol=0.2, rtol=0.05)
    torch.testing.assert_close(out, scaled, atol=0.1, rtol=0.05)


# dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dropout_has_the_same_mask_in_backward_and_keeps_a_bit_a_number(dtype):
    torch.manual_seed(0)
    x: Any = torch.randn(203, 50, dtype=dtype, requires_grad=True)
    kept, out = saved_bytes(lambda: dropout(x, 0.3, 0), (x,))
    out.sum().backward()
    assert kept == 8 * -(-203 * 50 // 64)
    torch.testing.assert_close(x.grad * x, out)
    survivor = torch.tensor(2**16 / (2**16 - round(0.3 * 2**16)), dtype=dtype)
    assert set(x.grad.unique().tolist()) == {0.0, survivor.item()}
    assert abs((out == 0).double().mean() - 0.3) < 0.02


@pytest.mark.parametrize("shape", [(), (1,), (3, 0), (5, 13), (2, 3, 7)])
def test_dropout_of_any_shape_and_layout(shape):
    torch.manual_seed(4)
    x: Any = torch.randn(shape, dtype=torch.float64).transpose(0, -1 if shape else 0).requires_grad_()
    out = dropout(x, 0.4, 0)
    out.sum().backward()
    assert out.shape == x.shape
    torch.testing.assert_close(x.grad * x, out)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeros_are_independent_of_place(rate):
    torch.manual_seed(1)
    mask = dropout(torch.ones(400, 1001), rate, 0)
    zeros = (mask == 0).float()
    assert abs(zeros.mean() - rate) < 4e-3
    assert (zeros.mean(0) - rate).abs().max() < 6 * (rate * (1 - rate) / 400) ** 0.5
    for shift in (1, 2, 3, 4, 1001):
        flat = zeros.flatten() - rate
        correlation = (flat[shift:] * flat[:-shift]).mean() / (rate * (1 - rate))
        assert abs(correlation) < 0.01
    torch.testing.assert_close(mask.mean(), torch.tensor(1.0), atol=2e-2, rtol=0)


def test_dropout_is_shared_by_users_of_one_tensor_and_by_no_others():
    torch.manual_seed(2)
    x = torch.randn(30, 30, requires_grad=True)
    first, second = dropout(x, 0.5, "q"), dropout(x, 0.5, "k")
    assert first is second
    again = dropout(x, 0.5, "q")
    assert not torch.equal(again, first)  # another pass
    assert dropout(x, 0.5, "k") is again
    assert not torch.equal(dropout(x.clone(), 0.5, "v"), again)
    third = dropout(x, 0.5, "v")
    assert not torch.equal(third, again)  # another tensor came between
    with torch.no_grad():
        x.add_(1.0)
    assert not torch.equal(dropout(x, 0.5, "o") == 0, third == 0)


def test_dropout_under_checkpointing_has_the_same_gradient():
    from torch.utils.checkpoint import checkpoint

    weight = torch.randn(3, 20, 20, requires_grad=True)

    def block(x):
        x = x * 1.5
        return torch.stack([dropout(x, 0.4, i) @ w for i, w in enumerate(weight)]).sum(0).tanh()

    x, found = torch.randn(6, 20, requires_grad=True), []
    for run in (block, lambda x: checkpoint(block, x, use_reentrant=False)):
        torch.manual_seed(3)
        out = run(x)
        found.append((out, *torch.autograd.grad(out.sum(), (x, weight))))
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


def test_dropout_of_a_seed_repeats():
    masks = []
    for _ in range(2):
        torch.manual_seed(5)
        masks.append(dropout(torch.ones(8, 8), 0.5, 0))
    assert torch.equal(*masks)

    def function(x):
        torch.manual_seed(5)
        return dropout(x * 1, 0.5, 0)

    assert torch.autograd.gradcheck(function, (draw(4, 5),))
    assert torch.autograd.gradgradcheck(function, (draw(4, 5),))
