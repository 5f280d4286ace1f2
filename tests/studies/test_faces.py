"""Faces from a folder and from scikit-learn's cache, and what is said where there are none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from skimage import io

from studies.robust_background import faces


@pytest.fixture
def folder(tmp_path):
    """Three pictures of Ada, two in colour; one of Bob; a note that is no picture."""
    rng = np.random.default_rng(0)
    for name, count in (("Ada", 3), ("Bob", 1)):
        (tmp_path / name).mkdir()
        for k in range(count):
            pixels = np.full((20, 16) if k == 0 else (20, 16, 3), 51 * (k + 1), np.uint8)
            pixels[5 + k : 9 + k, 4:8] = rng.integers(200, 255)
            io.imsave(tmp_path / name / f"{k}.png", pixels, check_contrast=False)
    (tmp_path / "Ada" / "notes.txt").write_text("no picture")
    return tmp_path


def test_pictures_of_a_folder_are_grey_rows_in_order(folder):
    found = faces.load_faces(folder, least=1, shape=(10, 8))
    assert found.names == ["Ada"] * 3 + ["Bob"]
    assert found.images.shape == (4, 80)
    corners = found.images.reshape(4, 10, 8)[:, 0, 0]
    assert np.allclose(corners, np.array([51, 102, 153, 51]) / 255, atol=1e-6)
    assert found.of("Ada").shape == (3, 80)
    assert found.most_pictured() == "Ada"
    assert set(faces.load_faces(folder, least=2).names) == {"Ada"}


def test_the_cache_of_scikit_learn(monkeypatch):
    images = np.random.default_rng(0).random((3, 5, 4)).astype(np.float32)
    cached = SimpleNamespace(images=images, data=images.reshape(3, -1), target=[1, 0, 1], target_names=["Ada", "Bob"])
    monkeypatch.setattr("sklearn.datasets.fetch_lfw_people", lambda **_: cached)
    found = faces.load_faces()
    assert found.names == ["Bob", "Ada", "Bob"]
    assert found.shape == (5, 4)
    assert np.array_equal(found.of("Bob"), images[[0, 2]].reshape(2, -1))


def test_what_is_missing_says_where_to_put_it(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "cache"))
    with pytest.raises(
        FileNotFoundError, match=r"no faces in .*lfw_home \(.* is missing\); call sklearn.datasets.fetch_lfw_people"
    ):
        faces.load_faces()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere; make it"):
        faces.load_faces(folder / "nowhere")
    with pytest.raises(FileNotFoundError, match="no person has 20 pictures"):
        faces.load_faces(folder)


def test_the_command_draws_the_pictures_of_one_person(folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "ada.png"
    arguments = ["--least", "3", "--rank", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["faces", str(folder), *arguments])
    faces.main()
    assert "3 pictures of Ada" in capsys.readouterr().out
    assert io.imread(output).ndim == 3
    monkeypatch.setattr(sys, "argv", ["faces", str(folder), "--least", "1", "--person", "Eve"])
    with pytest.raises(SystemExit):
        faces.main()
    assert "no pictures of 'Eve'; there are Ada, Bob" in capsys.readouterr().err
