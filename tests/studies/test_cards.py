"""Report cards: known dimensions and costs, a class of the user's own, and every registered form."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lowrank_sp.factors import MatrixFactors
from lowrank_sp.parameterizations import FORMS, BurerMonteiro, Hadamard, PoLAR
from lowrank_sp.testing.common import fitting_shape
from studies.__main__ import main
from studies.cards.behaviour import Budget
from studies.cards.build import card, text
from studies.cards.cost import _tensors, count
from studies.cards.geometry import dimensions, equivariance
from studies.cards.subject import resolve
from studies.config import ConfigError

TINY = Budget(iterations=4, instances=1, repetitions=1)

OWN = '''
from lowrank_sp.factors import factorization
from lowrank_sp.parameterizations import BurerMonteiro

@factorization
class Mine(BurerMonteiro):
    """A form of my own."""
    left: object
    right: object

@factorization
class Wrong(BurerMonteiro):
    """Its adjoint forgets a factor."""
    left: object
    right: object

    def partial(self, index, g):
        return 2 * super().partial(index, g)
'''


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own_form.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize("form, gauge", [(BurerMonteiro, 9), (PoLAR, 6)])
def test_dimensions_of_rank_three_matrices(form, gauge):
    m, n, r = 12, 10, 3
    row = dimensions(form, (m, n), r)
    assert row["image dimension"] == r * (m + n - r)
    assert row["gauge dimension"] == gauge
    assert row["rank reached"] == row["rank declared"] == r


def test_hadamard_reaches_the_square_of_its_rank():
    row = dimensions(Hadamard, (14, 12), 2)
    assert row["rank reached"] == 4
    # Each factor has its GL(2), and rows and columns can be scaled in one and unscaled in the other.
    assert row["gauge dimension"] == 2 * 4 + 14 + 12 - 1


def test_the_gauge_gap_tells_scaled_from_plain_descent():
    gaps = {row["rule"]: row["gap"] for row in equivariance(BurerMonteiro, (8, 6), 2)}
    assert gaps["scaled"] < 1e-12
    assert gaps["refactored"] < 1e-12
    assert gaps["plain"] > 1e-3
    assert gaps["scaled+adam"] > 1e-3


MATRIX_FORMS = sorted(name for name, form in FORMS.items() if issubclass(form, MatrixFactors))


def applied(name):
    """A point of a form, and 128 inputs for it."""
    form, shape = FORMS[name], (96, 64)
    try:
        form.shapes(shape, 4)
    except ValueError:
        shape = fitting_shape(form, 4)
    point = _tensors(form.random(shape, 4, np.random.default_rng(0)))
    return point, torch.randn(128, shape[1], requires_grad=True)


@pytest.mark.parametrize("name", MATRIX_FORMS)
def test_operations_agree_with_a_profiler(name):
    """The profiler counts matrix products, and nothing else."""
    from torch.utils.flop_counter import FlopCounterMode

    point, x = applied(name)
    counted = count(point, x)
    inputs = [x, *(a for a in point.arrays() if a.requires_grad)]
    with FlopCounterMode(display=False) as profiler:
        out = point.apply(x)
        torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)
    assert counted["of them in products"] == pytest.approx(profiler.get_total_flops(), rel=0.1)
    assert counted["operations"] >= counted["of them in products"]


@pytest.mark.parametrize("name", MATRIX_FORMS)
def test_bytes_agree_with_a_profiler(name):
    """What the allocator has handed out and not got back when ``apply`` returns, besides the result."""
    from torch.profiler import ProfilerActivity, profile

    point, x = applied(name)
    counted = count(point, x)["bytes kept"]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = point.apply(x)
    held = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    assert counted == pytest.approx(held - out.untyped_storage().nbytes(), rel=0.1, abs=64)


class Transformed:
    """Channels by a Fourier transform, to count."""

    def arrays(self):
        return ()

    def apply(self, x):
        return torch.fft.fft(x).real


def test_fourier_transforms_are_counted_by_their_length():
    found = count(Transformed(), torch.randn(10, 64, requires_grad=True))
    assert found["of them in products"] == 0
    assert found["operations"] == pytest.approx(2 * 5 * 10 * 64 * 6, rel=0.2)  # forward and backward


def test_bytes_that_lora_keeps():
    point = _tensors(BurerMonteiro.random((96, 64), 4, np.random.default_rng(0)))
    x = torch.randn(128, 64, requires_grad=True)
    assert count(point, x)["bytes kept"] == 4 * 128 * 4


def test_a_class_in_a_file(own, tmp_path):
    document, path = card(f"{own}:Mine", tmp_path, budget=TINY)
    assert all(row["passed"] == "yes" for row in document["sections"]["Contracts"])
    assert json.loads(path.with_suffix(".json").read_text())["card"] == "Mine"
    assert "A form of my own." in path.read_text()
    shown = text(document)
    assert "gauge dimension" in shown
    assert "ScaledGD" in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_a_class_that_breaks_its_promise(own, tmp_path):
    document, _ = card(f"{own}:Wrong", tmp_path, budget=TINY)
    failed = document["sections"]["Contracts"][0]
    assert failed["passed"] == "no"
    assert "partial" in failed["why"] or "pullback" in failed["why"]


def test_a_rule_from_the_command_line(tmp_path, capsys):
    assert main(["card", "refactored", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "BurerMonteiro" in shown
    assert str(tmp_path / "cards/refactored.html") in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FORMS))
def test_every_form_has_a_card(name, tmp_path):
    document, _ = card(name, tmp_path, budget=TINY)
    # A form may be real by nature; in the other cases its contract holds.
    failed = [
        row for row in document["sections"]["Contracts"] if row["passed"] == "no" and row["contract"] != "complex"
    ]
    assert not failed


@pytest.mark.parametrize(
    "name, message",
    [
        ("polr", "did you mean PoLAR"),
        ("nowhere.at.all:Form", "cannot import"),
        ("missing.py:Form", "no file"),
        ("math:pi", "neither a subclass"),
        ("math:nothing", "has no 'nothing'"),
    ],
)
def test_what_cannot_be_found(name, message):
    with pytest.raises(ConfigError, match=message):
        resolve(name)
