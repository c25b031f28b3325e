"""Small models and data that tests train, and the plain torch loop they are compared with."""
from __future__ import annotations

from typing import Any, Callable

import torch
import torch.nn as nn
import torch.nn.functional as F

VOCABULARY = 17


class TinyLanguageModel(nn.Module):
    """Embedding, two linear layers, a norm, a frozen layer, a head tied to the embedding, a buffer, and a 0-dim parameter."""

    def __init__(self, width: int = 8, hidden: int = 15, tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.up = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.down = nn.Linear(hidden, width)
        self.frozen = nn.Linear(width, width)
        self.frozen.requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.register_buffer("table", torch.linspace(0.5, 1.5, width))
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        h = self.embedding(tokens)
        h = h + self.down(F.gelu(self.norm(self.up(h))))
        h = self.frozen(h) * self.scale * self.table.to(h.dtype)
        return F.cross_entropy(self.head(h).float().flatten(0, 1), targets.flatten())


def make_model(seed: int = 1, cls: Callable[..., nn.Module] = TinyLanguageModel, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return cls(**options)


def batch(step: int, rank: int = 0, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return (torch.randint(0, VOCABULARY, (size, 5), generator=generator), torch.randint(0, VOCABULARY, (size, 5), generator=generator))


def config(stage: int, micro: int = 4, steps: int = 1, **more: Any) -> dict:
    """A training configuration; every key can be overridden."""
    made = {"train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": steps, "gradient_clipping": 1.0,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 10},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1}}}
    made.update(more)
    return made


def train(engine: Any, steps: int, first: int = 0, rank: int = 0) -> list[float]:
    """engine.backward/step over micro-batches first .. first + steps."""
    losses = []
    for step in range(first, first + steps):
        loss = engine(*batch(step, rank))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def train_plain(model: nn.Module, steps: int, world: int = 1, accumulate: int = 1, lr: float = 1e-2, weight_decay: float = 0.1,
                clip: float = 1.0) -> list[list[float]]:
    """The same training in plain torch: gradients of all ranks' micro-batches are averaged. Losses by step and rank."""
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay)
    losses = []
    for step in range(steps):
        row = []
        for rank in range(world):
            loss = model(*batch(step, rank))
            (loss / (world * accumulate)).backward()
            row.append(loss.item())
        losses.append(row)
        if (step + 1) % accumulate == 0:
            if clip > 0:
                torch.nn.utils.clip_grad_norm_(params, clip)
            optimizer.step()
            optimizer.zero_grad()
    return losses


def full_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter, whole. Collective under ZeRO-3."""
    from deepspeed.zero import GatheredParameters
    weights = {}
    for name, param in model.named_parameters():
        with GatheredParameters([param]):
            weights[name] = param.detach().clone()
    return weights
