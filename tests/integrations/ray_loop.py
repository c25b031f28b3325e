"""The inner loop that Ray Train's DeepSpeed example hands to its workers, as a script without Ray: every rank is such a worker.

It steps the optimizer, the schedule and zero_grad() directly instead of engine.step(), asks for `gradient_clipping: True`, and lets
initialize() make the data loader with its own collate function.
    deepspeed --num_gpus 2 ray_loop.py --stage 3 --out FOLDER      prints one line of JSON on rank 0
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "python")]

import deepspeed  # noqa: E402
from deepspeed.accelerator import get_accelerator  # noqa: E402

from tiny import build, llama, text_blocks  # noqa: E402


def config_of(stage: int, batch_size: int, offload: bool) -> dict:
    zero: dict = {"stage": stage}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {"optimizer": {"type": "AdamW", "params": {"lr": 5e-3}}, "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 4}},
            "fp16": {"enabled": False}, "bf16": {"enabled": False}, "zero_optimization": zero, "gradient_accumulation_steps": 1,
            "gradient_clipping": True, "steps_per_print": 10, "train_micro_batch_size_per_gpu": batch_size, "wall_clock_breakdown": False}


def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def evaluate(model, batches, device: str) -> float:
    model.eval()
    total = torch.zeros(1)
    with torch.no_grad():
        for batch in batches:
            total += model(**{key: value.to(device) for key, value in batch.items()}).loss.cpu()
    torch.distributed.all_reduce(total)
    return total.item() / (len(batches) * torch.distributed.get_world_size())


def main() -> None:
    parser = deepspeed.add_config_arguments(argparse.ArgumentParser())
    parser.add_argument("--local_rank", type=int, default=-1)
    parser.add_argument("--stage", type=int, default=3)
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    deepspeed.init_distributed()
    model = build(llama())
    blocks = text_blocks(40)
    model, optimizer, batches, schedule = deepspeed.initialize(model=model, model_parameters=model.parameters(), training_data=blocks[:32],
                                                               collate_fn=collate, config=config_of(args.stage, 4, args.offload))
    held_out = torch.utils.data.DataLoader(blocks[32:][model.global_rank::torch.distributed.get_world_size()], batch_size=2, collate_fn=collate)
    device = get_accelerator().device_name(model.local_rank)
    rows, rates = [], []
    for _ in range(args.epochs):
        model.train()
        for batch in batches:
            loss = model(**{key: value.to(device) for key, value in batch.items()}).loss
            model.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            rates.append(schedule.get_last_lr()[0])
        rows.append(evaluate(model, held_out, device))
        model.save_checkpoint(args.out)
        torch.distributed.barrier()
    if model.global_rank == 0:
        result = {"losses": rows, "clip": model.gradient_clipping(), "world": torch.distributed.get_world_size(), "batches": len(batches), "rates": rates}
        Path(args.out, "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
