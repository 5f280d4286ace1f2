"""Every start against a dense decomposition, or the property that its source claims."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llm_bridge import starts
from llm_bridge.starts import StartSite, dominant_svd, minor_svd
from lowrank_sp.parameterizations import BurerMonteiro, Core, DiagonalCore, PoLAR
from lowrank_sp.parameterizations.frozen import FrozenCore

M, N, R, SCALE = 9, 7, 2, 0.5


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def spread(m: int, n: int, seed: int = 0) -> np.ndarray:
    """A matrix with singular values 1, 0.8, 0.64, ..., that no iteration can mix up."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((k, min(m, n))))[0] for k in (m, n))
    return (u * 0.8 ** np.arange(min(m, n))) @ v.T


def site(form=BurerMonteiro, weight=None, statistic=None, rank=R) -> StartSite:
    weight = torch.as_tensor(normal(M, N) if weight is None else weight)
    statistic = torch.as_tensor(statistic) if isinstance(statistic, np.ndarray) else statistic
    return StartSite(form, tuple(weight.shape), rank, SCALE, np.random.default_rng(1), lambda: weight, statistic)


def truncated(a: np.ndarray, which: slice) -> np.ndarray:
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    return (u[:, which] * s[which]) @ vh[which]


def update(point) -> np.ndarray:
    return SCALE * point.dense().numpy()


# of the weight ------------------------------------------------------------------------------------------------


@pytest.mark.covers("I04", "I05")
@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (300, 280), (280, 300)])
def test_both_ends_of_the_spectrum(shape):
    weight = spread(*shape) if min(shape) < 20 else spread(*shape) + 0.05 * np.eye(*shape)
    top, bottom = (start(site(weight=weight, rank=3)) for start in (starts.Principal(), starts.Minor()))
    assert np.allclose(update(top), truncated(weight, slice(3)), atol=1e-6)
    assert np.allclose(update(bottom), truncated(weight, slice(-3, None)), atol=1e-6)
    assert np.allclose(top.left.T @ top.left, top.right.T @ top.right, atol=1e-6)


def test_minor_vectors_of_a_large_matrix_with_a_crowded_spectrum():
    """Gaussian entries: the subspace found is nearly the least one."""
    weight = normal(400, 300)
    _, s, _ = minor_svd(torch.as_tensor(weight), 8, np.random.default_rng(0))
    exact = np.linalg.svd(weight, compute_uv=False)
    assert s.norm() < 1.1 * np.linalg.norm(exact[-8:])
    assert (s[:-1] >= s[1:]).all()


def test_minor_vectors_of_a_singular_matrix_are_finite():
    weight = torch.as_tensor(normal(300, 5) @ normal(5, 280))
    u, s, v = minor_svd(weight, 3, np.random.default_rng(0))
    assert s.abs().max() < 1e-10
    assert torch.allclose(u.T @ u, torch.eye(3, dtype=u.dtype))
    assert torch.allclose(weight @ v, torch.zeros(300, 3, dtype=u.dtype), atol=1e-8)


def test_dominant_vectors_of_a_large_matrix():
    weight = normal(300, 280)
    u, s, _ = dominant_svd(torch.as_tensor(weight), 8, np.random.default_rng(0))
    exact = np.linalg.svd(weight, compute_uv=False)[:8]
    assert np.allclose(s, exact, rtol=2e-2)
    assert torch.allclose(u.T @ u, torch.eye(8, dtype=u.dtype))


@pytest.mark.covers("I06")
@pytest.mark.parametrize("shape", [(M, N), (N, M)])
def test_leading_columns_are_those_of_the_full_factorization(shape):
    weight = normal(*shape)
    point = starts.LeadingColumns()(site(weight=weight))
    q, r = np.linalg.qr(weight)
    assert np.allclose(point.dense(), q[:, :R] @ r[:R])
    assert np.allclose(point.left.T @ point.left, np.eye(R))


@pytest.mark.covers("I07")
def test_triplets():
    weight = normal(M, N)
    point = starts.Triplets()(site(DiagonalCore, weight))
    assert np.allclose(update(point), truncated(weight, slice(R)))
    assert np.allclose(SCALE * point.values, np.linalg.svd(weight, compute_uv=False)[:R])
    assert np.allclose(point.right.T @ point.right, np.eye(R))


@pytest.mark.covers("I13")
def test_a_sketch_lies_in_the_row_space():
    weight = normal(M, 3) @ normal(3, N)
    point = starts.Sketch()(site(weight=weight))
    assert not point.left.any()
    assert np.linalg.matrix_rank(point.right) == R
    assert np.linalg.matrix_rank(np.vstack((weight, point.right.T))) == 3


@pytest.mark.covers("I12")
def test_sub_blocks_recover_a_matrix_of_their_rank():
    weight = normal(M, R) @ normal(R, N, seed=1)
    assert np.allclose(update(starts.SubBlocks(1e-3)(site(Core, weight))), weight)
    weight = normal(M, N)
    expected = weight[:, :R] @ np.linalg.inv(weight[:R, :R]) @ weight[:R]
    assert np.allclose(update(starts.SubBlocks(1e-3)(site(Core, weight))), expected)


def test_sub_blocks_with_a_singular_block_are_bounded():
    weight = normal(M, N)
    weight[:R, :R] = [[1.0, 1.0], [1.0, 1.0 + 1e-9]]
    point = starts.SubBlocks()(site(Core, weight))
    assert np.linalg.matrix_rank(update(point), tol=1e-6) == 1
    assert np.linalg.norm(update(point)) < 10 * np.linalg.norm(weight)


def test_sub_blocks_share_the_scale_between_the_factors():
    sizes = []
    for scale in (1.0, 1e-2):
        point = starts.SubBlocks()(site(Core, scale * normal(M, N)))
        sizes.append([float(a.norm()) for a in point.arrays()])
        assert np.isclose(sizes[-1][1] * SCALE, R**0.5)  # of the identity, whatever the size of the weight
    assert np.allclose(np.divide(*sizes), [10, 1, 10])
    assert not any(a.any() for a in starts.SubBlocks()(site(Core, np.zeros((M, N)))).arrays())


# of gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.covers("I16")
def test_a_split_frame_makes_the_first_step_the_best_of_twice_the_rank():
    gradient = normal(M, N)
    point = starts.SplitFrame(gamma=M**0.5)(site(statistic=gradient))
    b, a = point.left.numpy(), point.right.T.numpy()
    assert np.allclose(b @ b.T @ gradient + gradient @ a.T @ a, truncated(gradient, slice(2 * R)))
    default = starts.SplitFrame()(site(statistic=gradient))
    assert np.allclose(default.left.T @ default.left, np.eye(R) * M**0.5 / 16)
    assert np.allclose(default.right.T @ default.right, np.eye(R) * M**0.5 / 16)


@pytest.mark.covers("I17")
def test_the_spectrum_of_the_gradient():
    gradient = normal(M, N)
    point = starts.GradientSpectrum()(site(statistic=gradient))
    expected = -truncated(gradient, slice(R)) / np.linalg.norm(gradient, 2) / 128
    assert np.allclose(point.dense(), expected)
    assert np.allclose(point.left.T @ point.left, point.right.T @ point.right)


def test_a_vanishing_gradient_gives_a_finite_start():
    point = starts.GradientSpectrum()(site(statistic=np.zeros((M, N))))
    assert torch.isfinite(point.dense()).all()


@pytest.mark.covers("I18", "P05")
def test_the_frame_of_the_gradient():
    """The gradient of the core at the start is diag(S_r): what the frozen factors see of G is its leading part."""
    gradient = normal(M, N)
    point = starts.GradientFrame()(site(FrozenCore, statistic=gradient))
    assert not point.core.any()
    seen = point.pullback(torch.as_tensor(gradient)).core
    assert np.allclose(seen, np.diag(np.linalg.svd(gradient, compute_uv=False)[:R]))


@pytest.mark.covers("I19")
def test_the_compressed_gradient_is_the_least_squares_fit():
    gradient = normal(M, N)
    point = starts.Compressed(gamma=0.1)(site(statistic=gradient))
    a = point.right.T.numpy()
    assert abs(a).max() <= N**-0.5
    fit = np.linalg.lstsq(a.T, gradient.T, rcond=None)[0].T  # of B A to G
    assert np.allclose(SCALE * point.left.numpy(), -0.1 * (N / R) ** 0.5 * fit)


def test_the_compressed_gradient_has_the_size_of_a_step():
    gradient = normal(200, 150)
    point = starts.Compressed(gamma=0.1)(site(weight=normal(200, 150), statistic=gradient, rank=8))
    assert np.isclose(np.linalg.norm(update(point)), 0.1 * np.linalg.norm(gradient), rtol=0.1)


@pytest.mark.parametrize(
    "start, form",
    [
        (starts.SplitFrame(), BurerMonteiro),
        (starts.GradientSpectrum(), BurerMonteiro),
        (starts.GradientFrame(), FrozenCore),
        (starts.Compressed(), BurerMonteiro),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, starts.Start) else "",
)
def test_a_product_of_thin_factors_may_stand_for_a_gradient(start, form):
    thin = BurerMonteiro(*(torch.as_tensor(normal(k, 5, seed=k)) for k in (M, N)))
    for name, array in zip(form.names, start(site(form, statistic=thin.dense())).arrays(), strict=True):
        other = getattr(start(site(form, statistic=thin)), name)
        assert torch.allclose(array @ array.T, other @ other.T, atol=1e-10)  # up to signs of singular vectors


# of activations -------------------------------------------------------------------------------------------------


def second_moments(rows: np.ndarray) -> np.ndarray:
    return rows.T @ rows / len(rows)


@pytest.mark.covers("I22")
def test_explained_variance_is_the_largest_possible():
    rows = normal(40, N) * 0.7 ** np.arange(N)
    c = second_moments(rows)
    point = starts.ExplainedVariance()(site(statistic=c))
    assert not point.left.any()
    assert np.allclose(point.right.T @ point.right, np.eye(R))
    a = point.right.T.numpy()
    assert np.isclose(np.trace(a @ c @ a.T), np.linalg.eigvalsh(c)[-R:].sum())


@pytest.mark.covers("I21")
@pytest.mark.parametrize(
    "start, which", [(starts.ContextPrincipal(), slice(R)), (starts.ContextMinor(), slice(-R, None))]
)
def test_the_part_of_the_weight_that_matters_for_the_context(start, which):
    weight, c = normal(M, N), second_moments(normal(40, N, seed=1) * 0.7 ** np.arange(N))
    u, s, vh = np.linalg.svd(weight @ c, full_matrices=False)
    expected = (u[:, which] * s[which]) @ vh[which] @ np.linalg.inv(c)
    assert np.allclose(update(start(site(weight=weight, statistic=c))), expected)


def test_the_context_at_full_rank_reproduces_the_weight():
    weight, c = normal(M, N), second_moments(normal(40, N, seed=1))
    for start in (starts.ContextPrincipal(), starts.ContextMinor()):
        assert np.allclose(update(start(site(weight=weight, statistic=c, rank=N))), weight)


def test_white_inputs_give_the_principal_start():
    weight = normal(M, N)
    expected = starts.Principal()(site(weight=weight))
    point = starts.ContextPrincipal()(site(weight=weight, statistic=3.0 * np.eye(N)))
    assert np.allclose(point.dense(), expected.dense())
    assert np.allclose(point.left.T @ point.left, expected.left.T @ expected.left)


def test_the_least_directions_of_few_inputs_are_balanced():
    """Inputs that span less than the layer takes say nothing about sizes: no factor may be tiny or huge."""
    weight, c = normal(M, N), second_moments(normal(N - 3, N, seed=1))
    point = starts.ContextMinor()(site(weight=weight, statistic=c))
    sizes = [a.norm(dim=0) for a in point.arrays()]
    assert torch.allclose(sizes[0], sizes[1])
    assert abs(update(point) @ c).max() < 1e-6  # nothing changes for the inputs seen


def test_thin_moments_serve_as_well():
    thin = torch.as_tensor(normal(N, 4))
    point = BurerMonteiro(thin, thin)
    for start in (starts.ContextPrincipal(), starts.ExplainedVariance()):
        dense, other = start(site(statistic=point.dense())), start(site(statistic=point))
        assert torch.allclose(dense.right @ dense.right.T, other.right @ other.right.T)
        assert torch.allclose(dense.dense(), other.dense())
    with pytest.raises(ValueError, match=r"inputs of this layer are too wide \(7\)"):
        starts.ContextMinor()(site(statistic=point))


# of nothing -----------------------------------------------------------------------------------------------------


@pytest.mark.covers("I02", "I03")
def test_random_starts():
    gaussian = starts.Gaussian(0.02)(site(DiagonalCore, normal(300, 200), rank=8))
    assert not gaussian.values.any()
    assert abs(gaussian.left.std() - 0.02) < 1e-3

    zero = starts.ZeroLeft()(site(Core))
    assert not zero.left.any()
    assert torch.equal(zero.core, torch.eye(R, dtype=zero.core.dtype))
    assert zero.right.abs().max() <= N**-0.5

    turned = starts.Reversed()(site(weight=normal(300, 200), rank=8))
    assert not turned.right.any()
    assert abs(turned.left.std() - 8**-0.5) < 0.02

    both = starts.NonZero(right=2.0, left=3.0)(site(weight=normal(300, 200), rank=8))
    assert 0.95 * 2 / 200**0.5 < both.right.abs().max() <= 2 / 200**0.5
    assert 0.95 * 3 / 200**0.5 < both.left.abs().max() <= 3 / 200**0.5

    frame = starts.OrthonormalIdentity()(site(PoLAR))
    assert torch.allclose(frame.left.T @ frame.left, torch.eye(R, dtype=frame.left.dtype))
    assert np.allclose(np.linalg.svd(frame.dense(), compute_uv=False)[:R], 1.0)


def test_what_does_not_fit_is_named():
    with pytest.raises(TypeError, match="gives left, values, right, but BurerMonteiro has left, right"):
        starts.Triplets()(site())
    with pytest.raises(ValueError, match="rank <= 3, got 4"):
        starts.SplitFrame()(site(statistic=normal(M, N), rank=4))
