"""The study of Localized LoRA at toy size, its loader of MNIST, and its numbers against independent ones."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from studies import load

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from studies.localized import images, study
from studies.localized.transfer import adapted, pretrained, split

NEEDS_FILE = {"table1-lora", "table1-melora", "table1-localized", "table1-rank"}


def toy(cell: dict) -> dict:
    return {**cell, "steps": 3} if cell["part"] == "transfer" else cell


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    cells = [toy(cell) for cell in load("localized").config.cells(quick=True)]
    return [{**cell, **study.run(cell)} for cell in cells]


@pytest.mark.covers("X01", "X02", "X03")
def test_every_claim_is_evaluated(rows):
    found = study.measures(rows)
    there = next(row["found"] for row in rows if row.get("source") == "mnist")
    for claim in load("localized").config.claims:
        values = found[claim.measure]
        assert np.isfinite(values).all(), claim.id
        assert len(values) or (claim.id in NEEDS_FILE and not there), claim.id
    assert set(study.figures(rows)) == {"reconstructions", "images", "transfer"}
    assert all(table for table in study.tables(rows).values())


def idx(digits: np.ndarray) -> bytes:
    return np.array([2051, *digits.shape], ">u4").tobytes() + digits.astype(np.uint8).tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_the_second_test_image_of_mnist_is_read(tmp_path, packed):
    digits = np.random.default_rng(0).integers(0, 256, (3, 28, 28))
    content = idx(digits)
    if packed:
        (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    else:
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
    assert np.array_equal(images.mnist_two(tmp_path) * 255, digits[1])


def test_a_missing_file_says_where_it_belongs(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"put t10k-images-idx3-ubyte or .* into {tmp_path}"):
        images.mnist_two(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"\0" * 2000)
    with pytest.raises(ValueError, match="not a file of 28 x 28 images"):
        images.mnist_two(tmp_path)


def test_an_unknown_source_lists_those_that_exist():
    with pytest.raises(ValueError, match="no source 'paintings'; choose one of mnist, digits"):
        images.load("paintings")


def test_errors_are_those_of_truncated_singular_values():
    matrix = np.random.default_rng(0).standard_normal((28, 28))
    tail = {"lora": 0.0, "localized": 0.0, "melora": 0.0}
    tail["lora"] = (np.linalg.svd(matrix, compute_uv=False)[4:] ** 2).sum()
    for i in range(2):
        for j in range(2):
            block = matrix[14 * i : 14 * i + 14, 14 * j : 14 * j + 14]
            tail["localized"] += (np.linalg.svd(block, compute_uv=False)[2:] ** 2).sum()
    kept = [
        np.linalg.svd(matrix[7 * i : 7 * i + 7, 7 * i : 7 * i + 7], compute_uv=False)[:4] for i in range(4)
    ]  # what is off the diagonal is lost
    tail["melora"] = (matrix**2).sum() - sum((s**2).sum() for s in kept)
    found = images.errors(matrix)
    for name, rest in tail.items():
        assert found[name] == pytest.approx((rest / (matrix**2).sum()) ** 0.5, rel=1e-10), name


def test_budgets_of_the_transfer_are_what_trains():
    assert adapted("lora", 1, 2, 1e-3, 1, 0)["parameters"] == 2 * 128
    assert adapted("melora", 4, 2, 1e-3, 1, 0)["parameters"] == 2 * 128
    assert adapted("localized", 4, 2, 1e-3, 1, 0)["parameters"] == 4 * 2 * 128
    assert adapted("full", 0, 0, 1e-3, 1, 0)["parameters"] == 65 * 64 + 65 * 5


def test_parts_of_the_digits_are_apart_and_the_network_stays():
    before = [p.clone() for p in pretrained(0).parameters()]
    adapted("full", 0, 0, 1e-2, 2, 0)
    assert all((a == b).all() for a, b in zip(before, pretrained(0).parameters(), strict=True))
    sizes = [len(labels) for _, labels in split(0)]
    assert sum(sizes) == 896
    assert not (split(0).test[1][:20] == split(1).test[1][:20]).all()
