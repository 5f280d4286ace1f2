"""Products of thin matrices: whatever route they take, they are those of einsum, and so are their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowrank_sp import thin

SHAPES = [(512, 8), (512, 3), (3, 4096, 8), (2, 260, 6), (2, 3, 256, 4), (5, 7, 8), (2, 300, 16), (2, 257, 5), (4, 0)]


def normal(rng, *shape, dtype="float32"):
    return rng.standard_normal(shape).astype(dtype)


def close(got, expected):
    expected = np.asarray(expected)
    assert tuple(got.shape) == expected.shape
    assert np.allclose(np.asarray(got), expected, atol=1e-5 * max(1.0, np.abs(expected).max(initial=0.0)))


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(shape, dtype, convert):
    rng = np.random.default_rng(0)
    a, b = normal(rng, *shape, dtype=dtype), normal(rng, *shape, dtype=dtype)
    small = normal(rng, *shape[:-2], shape[-1], shape[-1], dtype=dtype)
    x, y, s = (convert(v) for v in (a, b, small))
    close(thin.gram(x), np.einsum("...mi,...mj->...ij", a, a))
    close(thin.cross(x, y), np.einsum("...mi,...mj->...ij", a, b))
    close(thin.times(x, s), np.einsum("...mi,...ij->...mj", a, small))
    close(thin.add_times(y, x, s), b + np.einsum("...mi,...ij->...mj", a, small))
    close(thin.add_times(y, x, s, -0.5), b - 0.5 * np.einsum("...mi,...ij->...mj", a, small))
    both = np.einsum("...mi,...ij->...mj", a, small) + np.einsum("...mi,...ji->...mj", b, small)
    close(thin.combine(x, s, y, s.mT), both)
    close(x, a)
    close(y, b)


def test_shapes_that_differ_and_layouts_that_do():
    rng = np.random.default_rng(1)
    a, b, small = normal(rng, 2, 512, 8), normal(rng, 2, 512, 5), normal(rng, 2, 8, 5)
    x, y, s = (torch.as_tensor(v) for v in (a, b, small))
    turned = x.mT.contiguous().mT
    for left in (x, turned):
        close(thin.cross(left, y), np.einsum("...mi,...mj->...ij", a, b))
        close(thin.cross(left, x), np.einsum("...mi,...mj->...ij", a, a))
        close(thin.times(left, s), np.einsum("...mi,...ij->...mj", a, small))
        close(thin.add_times(y, left, s), b + np.einsum("...mi,...ij->...mj", a, small))
    square = normal(rng, 8, 8)
    close(thin.add_times(x, x, torch.as_tensor(square)[None]), a + a @ square)
    close(thin.add_times(x[:, :1], x, torch.as_tensor(square)[None]), a[:, :1] + a @ square)
    assert thin.add_times(x.double(), x, torch.as_tensor(square)[None]).dtype == torch.float64
    close(thin.times(x, torch.as_tensor(square)), a @ square)
    close(thin.add_times(turned, x, torch.as_tensor(square)), a + a @ square)
    close(
        thin.add_times(x, turned, torch.as_tensor(square)[None].repeat(2, 1, 1), torch.tensor(2.0)), a + 2 * a @ square
    )
    pair = torch.as_tensor(np.stack((square, square)))
    for first, second in ((x, turned), (turned, x), (x, x[:, :, :8])):
        close(thin.combine(first, pair, second, pair), 2 * a @ square)
    close(thin.combine(x, torch.as_tensor(square), x, torch.as_tensor(square)), 2 * a @ square)
    assert thin.combine(x, pair, x.double(), pair.double()).dtype == torch.float64


def test_gradients_pass_through_the_folded_route():
    rng = np.random.default_rng(2)
    start, s = normal(rng, 2, 512, 8), torch.as_tensor(normal(rng, 2, 8, 8))
    ends = []
    for dtype in (torch.float32, torch.float64):  # only the first is folded
        x = torch.as_tensor(start).to(dtype).requires_grad_()
        small = s.to(dtype)
        total = thin.gram(x).square().sum() / 512 + thin.add_times(x, thin.times(x, small), small).sum()
        (total + thin.combine(x, small, x.square(), small).square().sum() / 512).backward()
        ends.append(x.grad)
    assert torch.allclose(ends[0].double(), ends[1], rtol=1e-4, atol=1e-3)
