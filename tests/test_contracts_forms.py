"""Every registered parameterization keeps the contract of `lowrank_sp.testing.check_parameterization`."""

from typing import Any

import numpy as np
import pytest

import lowrank_sp as lr
from lowrank_sp.parameterizations.bm import whole_product
from lowrank_sp.testing import check_parameterization

BATCHES = pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
DEFINITE = [f for f in lr.FORMS.values() if f.universal or f is lr.SymmetricBurerMonteiro]
LIBRARIES = pytest.mark.parametrize("library", ["numpy", "torch"])


@pytest.mark.covers("lowrank_sp.parameterizations.*")
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@BATCHES
@LIBRARIES
@pytest.mark.parametrize("form", lr.FORMS.values(), ids=lr.FORMS)
def test_contract(form, library, batch, dtype):
    check_parameterization(form, library=library, dtype=dtype, batch=batch)


@pytest.mark.parametrize("form", lr.FORMS.values(), ids=lr.FORMS)
def test_contract_at_rank_one_and_full_rank(form):
    """Or the least and the largest size that the shape can hold."""
    sizes = [r for r in (1, 2, 3, 4) if holds(form, (4, 4), r)]
    for rank in (sizes[0], sizes[-1]):
        check_parameterization(form, (4, 4), rank, seed=3)


def holds(form, shape, size):
    try:
        form.shapes(shape, size)
    except ValueError:
        return False
    return True


@pytest.mark.covers("P01", "P24", "P26")
@pytest.mark.parametrize(
    "form, count",
    [
        (lr.BurerMonteiro, lambda m, n, r: (m + n) * r),
        (lr.SVD, lambda m, n, r: (m + n + 1) * r),
        (lr.PoLAR, lambda m, n, r: (m + n + r) * r),
        (lr.SymmetricBurerMonteiro, lambda m, n, r: n * r),
    ],
    ids=["BurerMonteiro", "SVD", "PoLAR", "SymmetricBurerMonteiro"],
)
def test_parameter_count_is_the_published_one(form, count):
    m, n, r = (64, 64, 8) if form is lr.SymmetricBurerMonteiro else (96, 64, 8)
    assert form.parameter_count((m, n), r) == count(m, n, r)


@pytest.mark.parametrize("source", DEFINITE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("target", DEFINITE, ids=lambda f: f.__name__)
def test_conversion_keeps_a_positive_semidefinite_matrix(source, target):
    x = np.random.default_rng(0).standard_normal((6, 2))
    point = source.from_product(x, x)
    assert np.allclose(point.to(target).dense(), x @ x.T, atol=1e-12)


def test_symmetric_whitening_treats_the_two_occurrences_as_independent_factors():
    """Twice the normal equations of the left factor of ``X Y^T`` at ``Y = X``, as a Kronecker matrix."""
    rng = np.random.default_rng(1)
    x, g = rng.standard_normal((5, 2)), rng.standard_normal((5, 2))
    normal = np.kron(np.eye(5), 2 * x.T @ x) + 0.3 * np.eye(10)
    expected = np.linalg.solve(normal, g.reshape(-1)).reshape(5, 2)
    got = lr.SymmetricBurerMonteiro(x).whiten(lr.SymmetricBurerMonteiro(g), 0.3)
    assert np.allclose(got.factor, expected, atol=1e-12)


def test_symmetric_scaled_step_at_one_half_is_the_babylonian_square_root():
    """For a scalar, ``X - 1/2 (X^2 - a) X / X^2 = (X + a / X) / 2``."""
    a, x = 7.0, 3.0
    problem = lr.MatrixFactorization([[a]])
    point = lr.SymmetricBurerMonteiro(np.array([[x]]))
    direction = point.whiten(problem.gradient(point))
    assert np.isclose(point.retract(direction, 0.5).factor.item(), (x + a / x) / 2)


@pytest.mark.covers("O10")
def test_fixed_rank_blocks_are_isometries_on_tangent_vectors():
    rng = np.random.default_rng(2)
    point = lr.FixedRank.random((7, 5), 2, rng)
    tangent = point.project(point.map(lambda a: rng.standard_normal(a.shape)))
    for i in range(3):
        block = tangent.map(lambda a: 0 * a).with_array(i, tangent.arrays()[i])
        assert np.isclose(np.linalg.norm(point.pushforward(block)), block.norm())
    assert np.isclose(np.linalg.norm(point.pushforward(tangent)), tangent.norm())
    white = point.whiten(tangent, 0.25)
    assert all(np.allclose(w, t / 1.25) for w, t in zip(white.arrays(), tangent.arrays(), strict=True))


def test_points_are_frozen():
    point = lr.BurerMonteiro.random((3, 2), 1, np.random.default_rng(0))
    with pytest.raises(AttributeError):
        point.left = point.left + 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("broken", ["dense", "pullback", "whiten", "retract"])
def test_the_contract_notices_a_broken_form(broken):
    """A form with one wrong method fails, with its name and the property in the message."""
    from lowrank_sp.factors import factorization

    wrong: dict[str, Any] = {
        "dense": lambda self: 2 * self.left @ self.right.T,
        "pullback": lambda self, g: type(self)(g @ self.right, 2 * g.T @ self.left),
        "whiten": lambda self, grad, damping=0.0: grad,
        "retract": lambda self, direction, step, wrt=None: self + direction.scale(step),
    }
    body = {"__annotations__": {"left": object, "right": object}, broken: wrong[broken]}
    form: Any = factorization(type("Wrong", (lr.BurerMonteiro,), body))
    if broken != "pullback":
        form.pullback = lambda self, g: type(self)(g @ self.right, np.asarray(g.T @ self.left))
    with pytest.raises(AssertionError, match="Wrong"):
        check_parameterization(form)


def test_the_contract_refuses_what_is_not_a_form():
    with pytest.raises(AssertionError, match="not a subclass of Factors"):
        check_parameterization(dict)


@pytest.mark.parametrize("universal, message", [(True, "declared universal"), (False, "not the nearest")])
def test_the_contract_notices_a_conversion_that_is_not_what_is_declared(universal, message):
    """A product with three columns, as the contract makes one, comes back doubled: neither exact nor nearest."""
    from lowrank_sp.factors import factorization

    def doubled(cls, left, right, rank=None):
        left = 2 * left if left.shape[-1] == 3 else left
        return cls(*lr.BurerMonteiro.from_product(left, right, rank).arrays())

    body = {
        "__annotations__": {"left": object, "right": object},
        "from_product": classmethod(doubled),
        "universal": universal,
    }
    form: Any = factorization(type("Wrong", (lr.BurerMonteiro,), body))
    form.pullback = lambda self, g: form(self.partial(0, g), self.partial(1, g))
    form.product = lambda self: whole_product(self)
    with pytest.raises(AssertionError, match=message):
        check_parameterization(form)


@pytest.mark.slow  # the import of the compiler
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a")
@pytest.mark.parametrize("form", [*lr.FORMS.values(), lr.LowRankPlusSparse.on([0, 2], [1, 1], (6, 6))])
def test_a_scaled_step_traces_as_one_graph(form):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    point = form.random((6, 6), 2, rng).map(torch.as_tensor)
    form = type(point)
    target = torch.as_tensor(rng.standard_normal((6, 6)))

    def step(arrays):
        here = form(*arrays)
        return here.retract(here.whiten(here.pullback(here.dense() - target), 0.1), 0.1).arrays()

    expected = step(point.arrays())
    torch._dynamo.reset()
    traced = torch.compile(step, fullgraph=True, backend="eager")(point.arrays())
    assert all(torch.allclose(a, b) for a, b in zip(traced, expected, strict=True))
