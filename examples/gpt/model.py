"""A decoder-only transformer (GPT) in plain PyTorch; nothing in this file knows about sharding.

    tokens -> token embedding + position embedding -> n_layer x Block -> LayerNorm -> head (tied to the token embedding)
    Block: x + attention(norm(x)), then x + mlp(norm(x))

Parameter names and shapes (the format of --save_init / --init_from; the C++ example uses the same):
    token_embedding.weight [vocab_size, d_model]        position_embedding.weight [block_size, d_model]
    blocks.I.attention_norm.{weight,bias} [d_model]     blocks.I.mlp_norm.{weight,bias} [d_model]
    blocks.I.attention.qkv.{weight,bias} [3*d_model, d_model], [3*d_model]      (rows: query, key, value)
    blocks.I.attention.projection.{weight,bias} [d_model, d_model], [d_model]
    blocks.I.mlp.expand.{weight,bias} [4*d_model, d_model], [4*d_model]
    blocks.I.mlp.contract.{weight,bias} [d_model, 4*d_model], [d_model]
    final_norm.{weight,bias} [d_model]                  head.weight is token_embedding.weight
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class GPTConfig:
    """Size of a GPT. Raises ValueError for sizes that cannot work."""

    vocab_size: int
    block_size: int = 128
    n_layer: int = 6
    d_model: int = 384
    n_head: int = 6

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "d_model", "n_head"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.d_model % self.n_head:
            raise ValueError(f"d_model must be a multiple of n_head, got d_model={self.d_model}, n_head={self.n_head}")


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.projection = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        heads = (batch, time, self.n_head, width // self.n_head)
        query, key, value = (part.view(heads).transpose(1, 2) for part in self.qkv(x).split(width, dim=2))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.projection(mixed.transpose(1, 2).reshape(batch, time, width))


class Mlp(nn.Module):
    """Two linear layers with GELU (tanh form) between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.d_model, 4 * config.d_model)
        self.contract = nn.Linear(4 * config.d_model, config.d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.contract(F.gelu(self.expand(x), approximate="tanh"))


class Block(nn.Module):
    """One transformer layer, normalised before each half."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.d_model)
        self.mlp = Mlp(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """The language model. `forward(tokens)` gives logits, `forward(tokens, targets)` the mean cross entropy in nats."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.block_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.head.weight = self.token_embedding.weight

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.final_norm(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    @torch.no_grad()
    def generate(self, tokens: torch.Tensor, count: int, *, temperature: float = 0.8, top_k: int = 40,
                 generator: torch.Generator | None = None) -> torch.Tensor:
        """Appends `count` sampled tokens to `tokens` [batch, time].

        Every rank does the same number of forward passes whatever it samples, so sharded parameters (stage 3) can be
        gathered by all ranks together. The window slides once block_size tokens are there.
        """
        for _ in range(count):
            logits = self(tokens[:, -self.config.block_size:])[:, -1].float() / temperature
            best = logits.topk(min(top_k, logits.shape[-1]))
            choice = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
            tokens = torch.cat([tokens, best.indices.gather(1, choice)], dim=1)
        return tokens


def initial_value(name: str, shape: torch.Size, config: GPTConfig, seed: int) -> torch.Tensor:
    """The initial value of one parameter in fp32 (GPT-2's scheme): a function of name, shape and seed only.

    So a run starts from the same weights whatever the ZeRO stage, the number of ranks and the order of construction.
    """
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if "norm" in name:
        return torch.ones(shape)
    residual = name.endswith(("projection.weight", "contract.weight"))
    deviation = 0.02 / math.sqrt(2 * config.n_layer) if residual else 0.02
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    return torch.empty(shape).normal_(0.0, deviation, generator=generator)
