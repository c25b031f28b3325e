"""What MosaicML Composer 0.27 does with an engine, its last release that has DeepSpeed; it cannot be installed beside today's torch.

Configuration filled in from the trainer's own arguments, a scheduler bound to the client's optimizer before initialize(), DeepSpeed found by
isinstance, backward and step for every micro-batch, and checkpoints under one fixed tag.
"""
from __future__ import annotations

import datetime
from typing import Any

import torch

TAG = "deepspeed"


class ComposerTrainer:

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, deepspeed_config: dict, device_batch: int, microbatch: int,
                 precision: str) -> None:
        import deepspeed
        self.schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))]
        deepspeed.init_distributed(timeout=datetime.timedelta(seconds=300))
        self.microbatch, self.device_batch = microbatch, device_batch
        config = self.parsed(deepspeed_config, precision)
        self.model, self.optimizers, _, _ = deepspeed.initialize(config=config, model=model, optimizer=optimizer)
        self.dtype = {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}.get(precision, torch.float32)

    def parsed(self, given: dict, precision: str) -> dict:
        """Sizes and precision are the trainer's; optimizer and scheduler must not be in the configuration."""
        assert "optimizer" not in given and "scheduler" not in given
        config = dict(given, train_batch_size=self.device_batch * torch.distributed.get_world_size(), train_micro_batch_size_per_gpu=self.microbatch,
                      gradient_accumulation_steps=self.device_batch // self.microbatch, zero_allow_untested_optimizer=True)
        if precision == "amp_bf16":
            config["bf16"] = {"enabled": True}
        elif precision == "amp_fp16":
            config["fp16"] = {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 500}
        return config

    @property
    def is_model_deepspeed(self) -> bool:
        from deepspeed import DeepSpeedEngine
        return isinstance(self.model, DeepSpeedEngine)

    def train_batch(self, batch: dict[str, torch.Tensor]) -> float:
        assert self.is_model_deepspeed
        self.model.train()
        total = 0.0
        for first in range(0, self.device_batch, self.microbatch):
            part = {key: value[first:first + self.microbatch] for key, value in batch.items()}
            loss = self.model(**part).loss
            self.model.backward(loss)
            self.model.step()
            total += loss.item() * self.microbatch / self.device_batch
        for scheduler in self.schedulers:
            scheduler.step()
        return total

    def save(self, folder: str) -> None:
        self.model.save_checkpoint(folder, tag=TAG)

    def load(self, folder: str, weights_only: bool, strict: bool) -> Any:
        path, _ = self.model.load_checkpoint(folder, tag=TAG, load_module_only=weights_only, load_module_strict=strict)
        if path is None:
            raise RuntimeError(f"no checkpoint in {folder}")
        return path
