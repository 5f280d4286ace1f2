"""Real images as matrices, and their nearest matrices of three forms with equal numbers of parameters."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import lowrank_sp as lr

__all__ = ["MNIST", "errors", "forms", "load", "mnist_two", "nearest"]

Array = np.ndarray
MNIST = Path(__file__).parent / "data"
PHOTOS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "moon",
    "page",
    "rocket",
)


def forms(side: int) -> dict[str, tuple[Any, int]]:
    """LoRA, MELoRA with 4 blocks and Localized LoRA with 2 x 2, each with ``2 side (side / 7)`` numbers."""
    rank = side // 7
    return {
        "lora": (lr.BurerMonteiro, rank),
        "melora": (lr.BlockDiagonal.of(4), rank),
        "localized": (lr.BlockGrid.of(2, 2), rank // 2),
    }


def nearest(matrix: Array, form: Any, size: int) -> Array:
    """The nearest matrix of a form: truncated SVDs of the matrix or of its blocks."""
    return form.from_product(matrix, np.eye(matrix.shape[1]), size).dense()


def errors(matrix: Array) -> dict[str, float]:
    """Relative Frobenius errors of the three."""
    norm = np.linalg.norm(matrix)
    found = forms(matrix.shape[0])
    return {name: float(np.linalg.norm(nearest(matrix, *pair) - matrix) / norm) for name, pair in found.items()}


def load(source: str) -> list[Array]:
    """The matrices of a source.

    Raises
    ------
    FileNotFoundError
        For ``"mnist"`` when the file is not there, with the place where it belongs.
    ValueError
        For an unknown source, with those that exist.
    """
    if source not in SOURCES:
        raise ValueError(f"there is no source {source!r}; choose one of {', '.join(SOURCES)}")
    return SOURCES[source]()


def mnist_two(folder: Path = MNIST) -> Array:
    """The first 2 among the test images of MNIST: the one with index 1.

    Raises
    ------
    FileNotFoundError
        When the file of test images is not in the folder, packed or not.
    ValueError
        When it is not what it should be.
    """
    name = "t10k-images-idx3-ubyte"
    packed, plain = folder / f"{name}.gz", folder / name
    if packed.is_file():
        content = gzip.decompress(packed.read_bytes())
    elif plain.is_file():
        content = plain.read_bytes()
    else:
        raise FileNotFoundError(f"MNIST's test images are not here; put {name} or {name}.gz into {folder}")
    magic, *shape = np.frombuffer(content[:16], ">u4")
    if magic != 2051 or shape[1:] != [28, 28] or len(content) < 16 + 2 * 784:
        raise ValueError(f"{folder / name}: not a file of 28 x 28 images in IDX format")
    return np.frombuffer(content[16 + 784 : 16 + 2 * 784], np.uint8).reshape(28, 28) / 255.0


def _digits() -> list[Array]:
    """The first hundred 8 x 8 digits of scikit-learn, enlarged to 28 x 28 by splines."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    images = np.asarray(load_digits()["images"][:100])
    return [np.clip(zoom(image, 3.5, order=3), 0.0, 16.0) / 16.0 for image in images]


def _grey() -> dict[str, Array]:
    """Photographs of scikit-image, grey, in [0, 1]."""
    from skimage import color, data

    found: Mapping[str, Any] = {name: getattr(data, name)() for name in PHOTOS}
    return {n: color.rgb2gray(image) if image.ndim == 3 else image / 255.0 for n, image in found.items()}


def _photos() -> list[Array]:
    """The photographs at 224 x 224."""
    from skimage.transform import resize

    return [resize(image, (224, 224), anti_aliasing=True) for image in _grey().values()]


def _patches() -> list[Array]:
    """Ten patches of 28 x 28 from each photograph, at random places that are not black."""
    rng = np.random.default_rng(0)
    return [patch for image in _grey().values() for patch in _cut(image, 10, rng)]


def _print() -> list[Array]:
    """A hundred patches of 28 x 28 of printed text, white on black: strokes, as in a digit."""
    return _cut(1.0 - _grey()["page"], 100, np.random.default_rng(0))


def _cut(image: Array, count: int, rng: np.random.Generator) -> list[Array]:
    found: list[Array] = []
    while len(found) < count:
        top, left = (int(rng.integers(k - 28)) for k in image.shape)
        patch = image[top : top + 28, left : left + 28]
        found += [patch] if patch.any() else []
    return found


SOURCES = {
    "mnist": lambda: [mnist_two()],
    "digits": _digits,
    "photos": _photos,
    "patches": _patches,
    "print": _print,
}
