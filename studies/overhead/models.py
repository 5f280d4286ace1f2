"""Models to measure, from configuration with random weights, and copies that share those weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["LAYERS", "SIZES", "clone", "llama", "tokens"]

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# by name: for tests, for quick runs, of the benchmarks, and of the survey
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 500,
    },
    "half": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 1000,
    },
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 2000,
    },
    "Llama-3.1-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}


def llama(device: str = "cpu", size: str | None = None) -> nn.Module:
    """A Llama of one of `SIZES`: in single precision on a CPU, in bfloat16 on a GPU.

    By default the small one on a CPU, and the shapes of Llama-3.1-8B on a GPU.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES[size or ("small" if device == "cpu" else "Llama-3.1-8B")])
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device("cpu" if device == "counted" else device):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(kept)


def tokens(model: nn.Module, shape: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """A batch of sequences for a model of `llama`: by default 2 of 256 tokens on a CPU, one of 1024 on a GPU."""
    weight = next(model.parameters())
    shape = shape or ((2, 256) if weight.device.type == "cpu" else (1, 1024))
    ids = torch.randint(0, min(2000, len(weight)), shape, generator=torch.Generator().manual_seed(0)).to(weight.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def clone(model: nn.Module) -> nn.Module:
    """The same model again, with parameters of its own in the same memory."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    shared |= {id(b): b for b in model.buffers()}
    return copy.deepcopy(model, shared)
