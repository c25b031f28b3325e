"""A Transformers Trainer that remembers its losses exactly, and how the tests make one."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from tiny import text_blocks


class RecordingTrainer(Trainer):
    """`losses` holds what every micro-step returned; the Trainer's own log is rounded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[float] = []

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(float(loss))
        return loss


def arguments(folder: str | Path, deepspeed: Any = None, **options: Any) -> TrainingArguments:
    settings = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=6, learning_rate=5e-3, warmup_steps=2, weight_decay=0.01,
                    logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, seed=11)
    return TrainingArguments(str(folder), deepspeed=deepspeed, **{**settings, **options})


def trainer(model: Any, args: TrainingArguments, **options: Any) -> RecordingTrainer:
    blocks = text_blocks(48)
    return RecordingTrainer(model=model, args=args, **{"train_dataset": blocks[:40], "eval_dataset": blocks[40:], **options})
