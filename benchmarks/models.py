"""Models of the benchmarks, from configuration with random weights, and copies that share those weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["LAYERS", "clone", "llama", "tokens"]

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 2000,
}
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def llama(device: str = "cpu") -> nn.Module:
    """A small Llama in single precision on a CPU; the shapes of Llama-3.1-8B in bfloat16 on a GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**(SMALL if device == "cpu" else LLAMA_8B))
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(kept)


def tokens(model: nn.Module) -> dict[str, Tensor]:
    """A batch for a model of `llama`: two sequences of 256 tokens on a CPU, one of 1024 on a GPU."""
    device = next(model.parameters()).device
    shape = (2, 256) if device.type == "cpu" else (1, 1024)
    ids = torch.randint(0, 2000, shape, generator=torch.Generator().manual_seed(0)).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def clone(model: nn.Module) -> nn.Module:
    """The same model again, with parameters of its own in the same memory."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    shared |= {id(b): b for b in model.buffers()}
    return copy.deepcopy(model, shared)
