"""One rank of a run that somebody watches; runs unchanged under real DeepSpeed and under this project.

    watched.py JOB    JOB: JSON with stage, steps, accumulate, sections (of the configuration), folder (to run in)

Prints one line "ANSWER ...": JSON with the label and step of every event, the files that appeared and their texts, and the timer lines.
"""
from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 1))


def configuration(stage: int, accumulate: int) -> dict[str, Any]:
    return {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": accumulate, "zero_allow_untested_optimizer": True,
            "optimizer": {"type": "SGD", "params": {"lr": 0.5}},
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0.0, "warmup_max_lr": 0.25, "warmup_num_steps": 4,
                                                         "warmup_type": "linear"}}}


def engine_with(module: nn.Module, config: dict[str, Any], sections: dict[str, Any]) -> Any:
    """deepspeed.initialize() with the sections of monitors and of the flops profiler in the configuration."""
    import deepspeed
    return deepspeed.initialize(model=module, model_parameters=module.parameters(), config={**config, **sections})[0]


def train(engine: Any, micro_steps: int, rank: int = 0) -> list[float]:
    losses = []
    for step in range(micro_steps):
        torch.manual_seed(100 * rank + step)
        loss = engine(torch.randn(2, 6)).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def main(job: dict[str, Any]) -> dict[str, Any]:
    os.chdir(job["folder"])
    engine = engine_with(model(), configuration(job["stage"], job["accumulate"]), job["sections"])
    seen: list[tuple[str, int]] = []
    write = engine.monitor.write_events

    def noted(events: list) -> None:
        seen.extend((label, step) for label, _, step in events)
        write(events)

    engine.monitor.write_events = noted
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        losses = train(engine, job["steps"] * job["accumulate"])
    files = {str(path): path.read_bytes().decode() for path in sorted(Path(".").rglob("*.csv"))}
    return {"events": seen, "files": files, "losses": losses, "printed": printed.getvalue().splitlines()}


if __name__ == "__main__":
    answer = main(json.loads(sys.argv[1]))
    print("ANSWER " + json.dumps(answer), flush=True)
