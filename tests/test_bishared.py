"""The transforms of Bi-Share LoRA written out, their ranks and counts, and what they refuse."""

import numpy as np
import pytest

from lowrank_sp.parameterizations import BSLoRAGate, BSLoRAKronecker
from lowrank_sp.testing import check_parameterization

RNG = np.random.default_rng


@pytest.mark.covers("P64", "T12")
def test_gates_leave_a_matrix_of_rank_one():
    p = BSLoRAGate.of(9, 7).random((6, 5), 3, RNG(0))
    expected, shared = p.left @ p.right.T, []
    for scope in ("layer", "model"):
        u, z, v, w, a, b = (getattr(p, f"{name}_{scope}") for name in ("rows", "cols", "tall", "wide", "left", "right"))
        shared.append(u[:, None] @ (v[None] @ a @ b.T @ w[:, None]) @ z[None])
    assert np.allclose(p.dense(), expected + sum(shared))
    assert [np.linalg.matrix_rank(term) for term in shared] == [1, 1]


@pytest.mark.covers("P64", "T12")
def test_kronecker_products_repeat_the_pair_with_weights():
    p = BSLoRAKronecker.of(4, 3).random((12, 6), 2, RNG(1))
    shared = []
    for scope in ("layer", "model"):
        a, b, x, y = (getattr(p, f"{name}_{scope}") for name in ("rows", "cols", "left", "right"))
        shared.append(np.kron(a[:, None] * b, x @ y.T))
        assert np.allclose(np.kron(a[:, None], x) @ np.kron(b[:, None], y).T, shared[-1])
    assert np.allclose(p.dense(), p.left @ p.right.T + sum(shared))
    assert [np.linalg.matrix_rank(term) for term in shared] == [2, 2]


@pytest.mark.covers("P64")
def test_parameter_counts_are_the_published_ones():
    m, n, r, tall, wide = 96, 64, 8, 32, 16
    local = (m + n) * r
    gates, pair = m + tall + wide + n, (tall + wide) * r
    assert BSLoRAGate.of(tall, wide).parameter_count((m, n), r) == local + 2 * (gates + pair)
    assert BSLoRAKronecker.of(tall, wide).parameter_count((m, n), r) == local + 2 * (3 + 4 + pair)


@pytest.mark.parametrize("form", [BSLoRAGate.of(9, 4), BSLoRAKronecker.of(2, 5), BSLoRAKronecker.of(6, 5)])
def test_contract_of_other_sizes(form):
    for library in ("numpy", "torch"):
        check_parameterization(form, (6, 5), 2, library=library, batch=(2,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BSLoRAGate.of(0, 3), "rows and cols must be positive integers, got 0, 3"),
        (lambda: BSLoRAKronecker.of(3, 2.5), "rows and cols must be positive integers, got 3, 2.5"),
        (lambda: BSLoRAKronecker.of(4, 5).shapes((6, 5), 1), "4 x 5 must divide the sides, got the shape"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
