"""Sizes of the models that the surveys count parameters of: their linear layers, and what else they hold."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MODELS", "Model"]


@dataclass(frozen=True)
class Model:
    """A transformer by the sizes of its blocks.

    Parameters
    ----------
    layers : int
    linear : dict
        ``(in, out)`` of the linear layers of one block, by name.
    attention : tuple of str
        Those that read the input of the attention and of its output.
    biased : bool
        Whether linear layers have biases.
    beside : int
        Parameters outside of linear layers: embeddings and norms.
    """

    layers: int
    linear: dict[str, tuple[int, int]]
    attention: tuple[str, ...]
    biased: bool = True
    beside: int = 0

    @property
    def total(self) -> int:
        """All parameters, without heads and poolers."""
        return self.layers * sum(a * b + b * self.biased for a, b in self.linear.values()) + self.beside

    def sites(self, names: tuple[str, ...] = ()) -> list[tuple[str, tuple[int, int]]]:
        """Type and ``(out, in)`` of every adapted layer: all linear ones, or those named."""
        chosen = names or tuple(self.linear)
        return [(name, self.linear[name][::-1]) for name in chosen for _ in range(self.layers)]


def _encoder(width: int, inner: int, layers: int, embedded: int, biased: bool = True) -> Model:
    """A post- or pre-norm encoder with ``embedded`` vectors in its embeddings, two norms a block and one beside."""
    square = dict.fromkeys(("q", "k", "v", "o"), (width, width))
    linear = {**square, "up": (width, inner), "down": (inner, width)}
    return Model(layers, linear, tuple(square), biased, embedded * width + (4 * layers + 2) * width)


_LLAMA = {"q": 4096, "k": 1024, "v": 1024, "o": 4096, "gate": 14336, "up": 14336}

MODELS = {
    "Llama-3.1-8B": Model(
        32,
        {**{name: (4096, out) for name, out in _LLAMA.items()}, "down": (14336, 4096)},
        ("q", "k", "v", "o"),
        False,
        2 * 128256 * 4096 + 65 * 4096,
    ),
    "RoBERTa-large": _encoder(1024, 4096, 24, 50265 + 514 + 1),
    "GPT-3": _encoder(12288, 4 * 12288, 96, 50257 + 2048),
    "ViT-B/16": _encoder(768, 3072, 12, 3 * 16 * 16 + 1 + 197 + 1),
}
