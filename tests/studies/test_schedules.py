"""Counts of the cheapest orders of products: against what torch counts, and their choice under a limit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import llm_bridge as lb
from studies.overhead.models import SIZES, llama, tokens
from studies.overhead.schedules import FORMS, Site, frozen_work, least, sites_of
from studies.overhead.step import Step


def counter() -> FlopCounterMode:
    """That of torch, which does not know sums in place, and attention only by its names on a GPU."""

    def added(out, a, b, **_):
        return 2 * a[0] * a[1] * b[1]

    def attention(q, k, v, *_, **__):
        return sdpa_flop_count(q, k, v)

    def attention_backward(grad, q, k, v, *_, **__):
        return sdpa_backward_flop_count(grad, q, k, v)

    aten = torch.ops.aten
    known = {
        aten.addmm_: added,
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    return FlopCounterMode(display=False, custom_mapping=known)


def test_the_frozen_model_is_counted_as_torch_counts_it():
    model = llama("cpu", "tiny").requires_grad_(False)
    step = Step(model, tokens(model, (2, 24)))
    with counter() as seen:
        step()
    assert sum(work.flops for work in frozen_work(SIZES["tiny"], 2, 24)) == seen.get_total_flops()


class Shared(nn.Module):
    """Layers that see one input."""

    def __init__(self, m, n, count):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, m, bias=False) for _ in range(count))

    def forward(self, x):
        return torch.cat([layer(x) for layer in self.layers], 1)


def counted(name, m, n, k, rank, share, dtype=torch.float32) -> int:
    """What an adapter adds to the flops of a step of such layers."""
    found = []
    for adapt in (False, True):
        torch.manual_seed(0)
        model: Any = Shared(m, n, share).to(dtype).requires_grad_(False)
        if adapt:
            lb.adapt(model, name, rank=rank)
        x = torch.randn(k, n, dtype=dtype, requires_grad=True)
        with counter() as seen:
            model(x).square().sum().backward()
        found.append(seen.get_total_flops())
    return found[1] - found[0]


CASES = [("lora", "lora", 4, 4), ("dora", "dora", 4, 4), ("oft", "rotated", 16, 16), ("vera", "fixed right", 24, 24)]


@pytest.mark.parametrize("share", [1, 3])
@pytest.mark.parametrize("k", [24, 200])
@pytest.mark.parametrize(("m", "n"), [(48, 64), (64, 48), (48, 48)])
@pytest.mark.parametrize(("name", "form", "rank", "size"), CASES)
def test_an_adapter_takes_one_of_the_orders_that_are_counted(name, form, rank, size, m, n, k, share):
    orders = {schedule.flops for schedule in FORMS[form](Site(m, n, share), k, size)}
    got = counted(name, m, n, k, rank, share)
    assert got >= min(orders)
    assert got in orders or name == "vera"  # which does not share the way back


@pytest.mark.parametrize("k", [24, 200])
@pytest.mark.parametrize(("m", "n"), [(48, 64), (64, 48)])
def test_no_adapter_takes_less(m, n, k):
    for name, form, rank, size in (("randlora", "random bases", 4, 48), ("hira", "formed", 4, 4)):
        assert counted(name, m, n, k, rank, 1) >= min(s.flops for s in FORMS[form](Site(m, n), k, size))


@pytest.mark.parametrize(("m", "n"), [(48, 64), (64, 48)])
def test_in_half_precision_a_change_has_a_product_of_its_own(m, n):
    for name in ("hira", "sine", "loran"):
        for dtype, form in ((torch.float32, "formed"), (torch.bfloat16, "formed beside")):
            (order,) = FORMS[form](Site(m, n), 200, 4)
            ones = (4 if dtype is torch.float32 else 2) * m * n if name == "hira" else 0  # a column more
            assert counted(name, m, n, 200, 4, 1, dtype) == order.flops + ones


def test_the_least_within_a_limit():
    sites, k = sites_of(SIZES["small"]), 512
    free = least(FORMS["fixed right"], sites, k, 256)
    assert free is not None
    lean = least(FORMS["fixed right"], sites, k, 256, free.kept / 2)
    assert lean is not None
    assert lean.kept <= free.kept / 2
    assert lean.flops > free.flops
    assert least(FORMS["fixed right"], sites, k, 256, 0) is None


def test_sites_with_fewer_heads_for_keys_and_values():
    sites = sites_of(SIZES["Llama-3.1-8B"])
    assert [(s.m, s.n, s.share) for s in sites[:2]] == [(4096, 4096, 1), (1024, 4096, 2)]
    assert sum(s.share for s in sites) == sum(s.share for s in sites_of(SIZES["small"])) == 7


def test_what_is_kept_is_what_autograd_keeps():
    """Of the whole small model, per token: the inputs and channels of LoRA, and the outputs that DoRA needs."""
    kept = {}
    for name in ("frozen", "lora", "dora"):
        model = llama("cpu", "tiny").requires_grad_(False)
        if name != "frozen":
            lb.adapt(model, name, rank=4)
        kept[name] = Step(model, tokens(model, (2, 24))).saved()
    blocks, k = SIZES["tiny"]["num_hidden_layers"], 48
    for name in ("lora", "dora"):
        choice = least(FORMS[name], sites_of(SIZES["tiny"]), k, 4)
        assert choice is not None
        assert (kept[name] - kept["frozen"]) / (4 * blocks * choice.kept) == pytest.approx(1, abs=0.05)
