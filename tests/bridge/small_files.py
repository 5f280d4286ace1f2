"""Files for the tests of fine-tuning: a small model with its tokenizer, and labelled texts."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = ["<pad>", "<unk>", "</s>", *(f"w{i}" for i in range(40))]


def save_llama(path: Path) -> str:
    """A Llama of two small blocks with random weights, and a tokenizer of forty words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


def save_rows(path: Path, count: int = 60) -> str:
    """Texts of one of two vocabularies each."""
    generator = torch.Generator().manual_seed(2)
    rows = []
    for i in range(count):
        words = torch.randint(0, 20, (6,), generator=generator) + 20 * (i % 2)
        rows.append({"text": " ".join(f"w{w}" for w in words), "label": ("low", "high")[i % 2]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
