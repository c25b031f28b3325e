"""Models whose operations are counted; as a program, runs unchanged under real DeepSpeed and under this project.

Prints one line "ANSWER ...": JSON with {model: [flops, macs, params]} of one forward.
"""
from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn as nn


def mlp() -> tuple[nn.Module, dict[str, Any]]:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.LayerNorm(20), nn.Dropout(0.5), nn.Linear(20, 5), nn.Softmax(-1))
    return model, {"input_shape": (3, 10)}


def conv_net() -> tuple[nn.Module, dict[str, Any]]:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(2),
                          nn.Conv2d(8, 8, 3, groups=4, bias=False, dilation=2), nn.GroupNorm(2, 8), nn.ConvTranspose2d(8, 4, 2, stride=2),
                          nn.Upsample(scale_factor=2), nn.InstanceNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return model, {"input_shape": (2, 3, 32, 32)}


def transformer() -> tuple[nn.Module, dict[str, Any]]:
    return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation=nn.GELU()), {"input_shape": (2, 5, 16)}


def tokens() -> dict[str, Any]:
    return {"kwargs": {"input_ids": torch.zeros(2, 9, dtype=torch.long)}}


def llama() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import LlamaConfig, LlamaForCausalLM
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                        num_key_value_heads=2)), tokens()


def opt() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import OPTConfig, OPTForCausalLM
    return OPTForCausalLM(OPTConfig(vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                                    max_position_embeddings=32, word_embed_proj_dim=32)), tokens()


MODELS = {made.__name__: made for made in (mlp, conv_net, transformer, llama, opt)}


def main() -> dict[str, list[int]]:
    from deepspeed.profiling.flops_profiler import get_model_profile
    figures = {}
    for name, made in MODELS.items():
        model, given = made()
        figures[name] = list(get_model_profile(model, print_profile=False, as_string=False, **given))
    return figures


if __name__ == "__main__":
    print("ANSWER " + json.dumps(main()), flush=True)
