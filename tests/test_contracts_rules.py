"""Every registered update rule keeps the contract of `lowrank_sp.testing.check_rule` on all its forms."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp.rules import Horizontal, Landing, Mixing, PerFactor, Plain, Rule, Scaled, chain, mixed
from lowrank_sp.testing import check_rule

PAIRS = [
    pytest.param(rule, form, id=f"{name}-{form.__name__}")
    for name, rule in lr.RULES.items()
    for form in lr.FORMS.values()
    if issubclass(form, rule.needs)
]


@pytest.mark.covers("lowrank_sp.rules.precondition.*", "lowrank_sp.rules.accumulate.*")
@pytest.mark.covers("lowrank_sp.rules.geometry.*")
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("rule, form", PAIRS)
def test_contract(rule, form, library, batch):
    check_rule(rule, form, library=library, batch=batch)


@pytest.mark.parametrize("rule", lr.RULES.values(), ids=lr.RULES)
def test_contract_in_complex_numbers(rule):
    check_rule(rule, dtype="complex128")


def test_contract_of_rules_with_settings():
    check_rule(PerFactor((1.0, 4.0)))
    check_rule(chain(Scaled(), PerFactor((1.0, 1.0)), Plain()))


def test_per_factor_rates_must_match_the_form():
    with pytest.raises(ValueError, match=r"rates has 3 entries.*left, right"):
        check_rule(PerFactor((1.0, 1.0, 1.0)))


MIXING = {name: rule for name, rule in lr.RULES.items() if isinstance(rule, Mixing)}
MIXING["horizontal-damped"] = Horizontal(damping=0.1)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", MIXING)
def test_small_matrices_of_many_points_at_once(name, convert):
    """Points of two shapes, their products behind one another: the directions are those of each alone."""
    rule, rng = MIXING[name], np.random.default_rng(0)
    forms = [form for form in lr.FORMS.values() if rule.mixes(form)]
    assert forms or rule == Landing(damping=0.0)
    for form in forms:
        batches = [((7, 5), (2,)), ((4, 9), (3,))]
        points = [form.random(shape, 3, rng, batch).map(convert) for shape, batch in batches]
        grads = [form.random(shape, 3, rng, batch).map(convert) for shape, batch in batches]
        parts = [rule.products(g, x) for g, x in zip(grads, points, strict=True)]
        join = torch.cat if convert is torch.as_tensor else np.concatenate
        pairs = rule.mix(tuple(join(p) for p in zip(*parts, strict=True)))
        for grad, point, own in zip(grads, points, (slice(0, 2), slice(2, 5)), strict=True):
            mine = tuple(tuple(a if a is None else a[own] for a in pair) for pair in pairs)
            expected, _ = rule.update(grad, rule.init(point), point)
            for a, b in zip(mixed(grad, point, mine).arrays(), expected.arrays(), strict=True):
                assert np.allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e5])
def test_one_pass_is_as_near_to_the_direction_as_a_division(condition):
    """In single precision, for gradients ``(E Y, E^T X)`` over Gram matrices with this condition number."""
    rng = np.random.default_rng(0)

    def thin(m):
        q, turn = (np.linalg.qr(rng.standard_normal(shape))[0] for shape in ((m, 8), (8, 8)))
        return torch.as_tensor((q * np.geomspace(1, condition**-0.5, 8)) @ turn)[None]

    x, y, full = thin(300), thin(400), torch.as_tensor(rng.standard_normal((300, 400)))
    rule, point, grad = Scaled(), lr.BurerMonteiro(x, y), lr.BurerMonteiro(full @ y, full.mT @ x)
    exact, _ = rule.update(grad, (), point)
    point, grad = (p.map(torch.Tensor.float) for p in (point, grad))
    errors = []
    for found in (rule.update(grad, (), point)[0], mixed(grad, point, rule.mix(rule.products(grad, point)))):
        pairs = zip(found.arrays(), exact.arrays(), strict=True)
        errors.append([float((a.double() - b).norm() / b.norm()) for a, b in pairs])
    assert all(a > 0 and b < 2 * a for a, b in zip(*errors, strict=True))


@dataclass(frozen=True)
class Drifting(Rule):
    """Declares an equivariance that it lacks."""

    equivariant = True

    def init(self, point):
        return ()

    def update(self, grad, state, point, loss=None):
        return grad, state

    def carry(self, state, old, new):
        return state


@dataclass(frozen=True)
class Impure(Rule):
    """Changes the gradient that it is given."""

    def init(self, point):
        return ()

    def update(self, grad, state, point, loss=None):
        grad.arrays()[0][...] *= 2
        return grad, state

    def carry(self, state, old, new):
        return state


@dataclass(frozen=True)
class Ascending(Rule):
    """Goes uphill."""

    def init(self, point):
        return ()

    def update(self, grad, state, point, loss=None):
        return -grad, state

    def carry(self, state, old, new):
        return state


@pytest.mark.parametrize(
    "rule, message",
    [
        (Drifting(), "depends on the gauge"),
        (Impure(), "must not change the gradient"),
        (Ascending(), "descend"),
    ],
    ids=["equivariance", "purity", "descent"],
)
def test_the_contract_notices_a_broken_rule(rule, message):
    with pytest.raises(AssertionError, match=message):
        check_rule(rule)


def test_the_contract_refuses_what_is_not_a_rule():
    with pytest.raises(AssertionError, match="not a"):
        check_rule("scaled")
