"""Grouped inputs go into zero points of a quantized weight, and elastic connections are means and repetitions."""

import numpy as np
import pytest

import lowrank_sp as lr
from lowrank_sp.parameterizations import Elastic, GroupedInputs
from lowrank_sp.testing import check_parameterization

RNG = np.random.default_rng


def quantized(weight, group, levels=16):
    """Codes, scales and zero points of every row in groups of columns: ``W ~ scale (codes - zero)``."""
    grouped = weight.reshape(len(weight), -1, group)
    low, high = grouped.min(-1, keepdims=True), grouped.max(-1, keepdims=True)
    scale = (high - low) / (levels - 1)
    return np.round((grouped - low) / scale), scale, -low / scale


@pytest.mark.covers("P113")
def test_the_update_goes_into_the_zero_points_and_leaves_the_codes():
    rng = RNG(0)
    codes, scale, zero = quantized(rng.standard_normal((6, 12)), 4)
    point = GroupedInputs.of(4).random((6, 12), 2, rng)
    x = rng.standard_normal((5, 12))
    expected = x @ (scale * (codes - zero)).reshape(6, 12).T + point.apply(x)
    moved = zero - (point.left @ point.right.T)[..., None] / scale
    assert np.allclose(x @ (scale * (codes - moved)).reshape(6, 12).T, expected)


@pytest.mark.covers("P113")
def test_inputs_are_summed_over_groups():
    point = GroupedInputs.of(3).random((4, 6), 2, RNG(1))
    x = RNG(2).standard_normal((5, 6))
    pooled = np.add.reduceat(x, [0, 3], axis=1)
    assert np.allclose(point.apply(x), pooled @ point.right @ point.left.T)
    assert np.allclose(point.dense(), np.kron(point.left @ point.right.T, np.ones((1, 3))))


@pytest.mark.covers("P113")
def test_parameter_count_of_groups():
    assert GroupedInputs.of(32).parameter_count((96, 64), 2) == 96 * 2 + 64 // 32 * 2


@pytest.mark.covers("P113")
def test_conversion_gives_the_nearest_grouped_matrix():
    left, right = RNG(3).standard_normal((5, 4)), RNG(4).standard_normal((6, 4))
    form = GroupedInputs.of(2)
    found = form.from_product(left, right, 2).dense()
    target = left @ right.T
    start = lr.inits.gaussian(lr.MatrixFactorization(target), form, 2, seed=5)
    solved = lr.solve(lr.MatrixFactorization(target), start, lr.AltScaledGD(step_size=1.0), max_iter=300)
    assert np.allclose(found, solved.point.dense(), atol=1e-6)


@pytest.mark.parametrize("group", [1, 3])
def test_contract_of_other_groups(group):
    check_parameterization(GroupedInputs.of(group), (5, 9), 2, batch=(2,))


@pytest.mark.covers("P114")
def test_what_is_elastic_passes_by_the_factors():
    rng = RNG(5)
    point = Elastic.random((6, 9), 3, rng)
    x = rng.standard_normal((4, 9))
    hidden = x @ point.right + point.inputs * x.reshape(4, 3, 3).mean(-1)
    expected = hidden @ point.left.T + point.outputs * hidden.repeat(2, axis=-1)
    assert np.allclose(point.apply(x), expected)
    assert Elastic.parameter_count((96, 64), 8) == (96 + 64) * 8 + 2


@pytest.mark.covers("P114")
def test_sides_that_the_rank_does_not_divide_have_as_many_groups_as_the_greatest_common_divisor():
    point = Elastic.random((9, 10), 6, RNG(6))
    none = Elastic(0 * point.left, 0 * point.right, point.outputs, point.inputs)
    x = RNG(7).standard_normal((4, 10))
    hidden = point.inputs * x.reshape(4, 2, 5).mean(-1).repeat(3, axis=-1)
    expected = point.outputs * hidden.reshape(4, 3, 2).sum(-1).repeat(3, axis=-1)
    assert np.allclose(none.apply(x), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GroupedInputs.of(0), "group must be a positive integer, got 0"),
        (lambda: GroupedInputs.of(True), "group must be a positive integer, got True"),
        (lambda: GroupedInputs.of(4).shapes((6, 10), 1), "groups of 4 columns must divide the 10 columns"),
        (lambda: GroupedInputs.of(4).shapes((6, 8), 3), "at least 3 groups"),
        (lambda: GroupedInputs.of(2).shapes((2, 8), 3), "the rank be at most 2"),
    ],
)
def test_groups_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
