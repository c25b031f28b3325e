"""GPTLike: a small decoder-only transformer in plain PyTorch. Nothing in this file knows about sharding or precision.

    bytes -> token embedding + position table -> n_layer x Block -> LayerNorm -> head (the token embedding again)

`positions` is a buffer: a table of sines that is part of the model and is not trained. It is fp32 here and is added to the embedding
as it is, so whoever casts the parameters to 16 bits has to cast it too (docs/precision.md says what the engine does).
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256  # bytes


def sine_table(length: int, width: int) -> Tensor:
    """[length, width]: sines in the even columns, cosines in the odd ones, with wavelengths from 2 pi to 10000 * 2 pi.
    A. Vaswani et al., Attention Is All You Need (2017), section 3.5."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length).unsqueeze(1) * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :width]


class Block(nn.Module):
    """Attention and a feed-forward network, each normalised before and added after."""

    def __init__(self, d_model: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.attention_norm = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.mix = nn.Linear(d_model, d_model)
        self.feed_norm = nn.LayerNorm(d_model)
        self.feed = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        query, key, value = (part.view(batch, time, self.n_head, -1).transpose(1, 2)
                             for part in self.qkv(self.attention_norm(x)).split(width, dim=2))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.feed(self.feed_norm(x))


class GPTLike(nn.Module):
    """Logits of the next byte for every position."""

    def __init__(self, n_layer: int, d_model: int, n_head: int, block_size: int) -> None:
        super().__init__()
        if d_model % n_head:
            raise ValueError(f"--d_model must be a multiple of --n_head, got {d_model} and {n_head}")
        self.embedding = nn.Embedding(VOCABULARY, d_model)
        self.register_buffer("positions", sine_table(block_size, d_model))
        self.blocks = nn.ModuleList(Block(d_model, n_head) for _ in range(n_layer))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, VOCABULARY, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def next_byte_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats per byte, in fp32: sums over thousands of positions do not fit into fp16."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
