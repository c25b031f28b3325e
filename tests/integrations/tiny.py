"""Tiny models with random weights, real text as bytes, configurations: what the integration tests train.

Nothing here imports a package of the ecosystem before it is used.
"""
from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

VOCABULARY = 260  # bytes, and a few special tokens
LENGTH = 24


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips where a package is missing, without importing it."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (pip install {' '.join(missing)})")


def combinations(names: str, default: list, whole: list) -> pytest.MarkDecorator:
    """Parameters of a test; those only in `whole` run with --whole."""
    later = [pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.whole) for value in whole
             if value not in default]
    return pytest.mark.parametrize(names, [*default, *later])


def text_blocks(count: int, length: int = LENGTH, first: int = 0) -> list[dict[str, torch.Tensor]]:
    """Pieces of a source file of Python's library; every byte is a token."""
    text = Path(argparse.__file__).read_bytes()
    blocks = []
    for index in range(first, first + count):
        tokens = torch.tensor(list(text[index * length:(index + 1) * length]))
        labels = tokens.clone()
        labels[0] = -100  # nothing predicts the first token; a Trainer that counts labels should not count it
        blocks.append({"input_ids": tokens, "labels": labels})
    return blocks


def llama(**options: Any) -> Any:
    """Grouped-query attention, rotary tables, no dropout."""
    from transformers import LlamaConfig
    settings = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=256, eos_token_id=257, pad_token_id=258)
    return LlamaConfig(**{**settings, **options})


def opt(**options: Any) -> Any:
    """Learned positions, biases, a tied head; dropout only where asked for."""
    from transformers import OPTConfig
    settings = dict(vocab_size=VOCABULARY, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                    max_position_embeddings=64, dropout=0.0, bos_token_id=256, eos_token_id=257, pad_token_id=258)
    return OPTConfig(**{**settings, **options})


def build(config: Any, seed: int = 0) -> torch.nn.Module:
    """A causal language model of this configuration; Transformers shards it where a stage-3 configuration is alive."""
    from transformers import AutoModelForCausalLM
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)


def saved(config: Any, folder: str | Path, seed: int = 0) -> str:
    """The folder, with such a model in it."""
    build(config, seed).save_pretrained(folder)
    return str(folder)


def auto_config(stage: int, **sections: Any) -> dict:
    """A ds_config.json as Transformers' documentation shows it: everything that the Trainer knows is "auto"."""
    zero = {"stage": stage, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto", "stage3_gather_16bit_weights_on_model_save": True}
    return {"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}, "zero_optimization": zero,
            "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
            "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_min_lr": "auto", "warmup_max_lr": "auto",
                                                              "warmup_num_steps": "auto", "warmup_type": "linear"}},
            "gradient_clipping": "auto", "gradient_accumulation_steps": "auto", "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto", "steps_per_print": float("inf"), **sections}


def lora_config(**options: Any) -> Any:
    from peft import LoraConfig
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options})


def tokenizer() -> Any:
    """One token per byte; the text of a block is read back exactly."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens(["<s>", "</s>", "<pad>"])
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def same_everywhere(value: Any) -> bool:
    """Whether every rank holds an equal value."""
    import torch.distributed as dist
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return True
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return all(other == values[0] for other in values)


def gather_lists(values: list[float]) -> list[list[float]]:
    """Every rank's list, in rank order."""
    import torch.distributed as dist
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [values]
    lists: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(lists, values)
    return lists
