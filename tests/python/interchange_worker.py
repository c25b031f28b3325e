"""One rank of an interchange run; runs unchanged under real DeepSpeed and under this project, which only differ by what `deepspeed` is.

    interchange_worker.py JOB    JOB: JSON with stage, dtype, optimizer, directory, load (bool), steps, save (bool), and if wanted offload, frozen_group,
                                 universal (what is loaded), save_universal (what is saved)

Prints one line: JSON with the losses after loading and the full final weights' sums. The environment gives rank and world.
"""
from __future__ import annotations

import json
import os
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F

VOCABULARY = 23


class Model(nn.Module):
    """A tied head, a frozen layer, a buffer, sizes that no world divides."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 10)
        self.up = nn.Linear(10, 37)
        self.norm = nn.LayerNorm(37)
        self.down = nn.Linear(37, 10)
        self.frozen = nn.Linear(10, 10)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(10, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("table", torch.linspace(0.5, 1.5, 10))

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        h = self.embedding(tokens)
        h = h + self.down(F.gelu(self.norm(self.up(h))))
        h = self.frozen(h) * self.table.to(h.dtype)
        return F.cross_entropy(self.head(h).float().flatten(0, 1), targets.flatten())


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    tokens = torch.randint(0, VOCABULARY, (4, 7), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def with_frozen_group(model: nn.Module) -> dict:
    """Optimizer and scheduler of a client, as a trainer makes them; nothing of the first group is trained."""
    groups = [{"params": [p for p in model.parameters() if p.requires_grad == trained], "lr": lr} for trained, lr in ((False, 1.0), (True, 1e-2))]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)}


def main(job: dict) -> dict:
    import deepspeed
    torch.set_num_threads(1)
    torch.manual_seed(5)
    deepspeed.init_distributed(dist_backend="gloo" if not torch.cuda.is_available() else None)
    rank = int(os.environ["RANK"])
    config = {
        "train_micro_batch_size_per_gpu": 4, "gradient_clipping": 0.5,
        "optimizer": {"type": job["optimizer"], "params": {"lr": 1e-2, "weight_decay": 0.05}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": 1e-2, "warmup_num_steps": 6}},
        "zero_optimization": {"stage": job["stage"], "stage3_param_persistence_threshold": 40},
        "zero_allow_untested_optimizer": True,
    }
    if job["dtype"] != "fp32":
        config[job["dtype"]] = {"enabled": True}
    if job.get("offload"):
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if job.get("universal"):
        config["checkpoint"] = {"load_universal": True}
    model = Model()
    given = {"model_parameters": [p for p in model.parameters() if p.requires_grad]}
    if job.get("frozen_group"):
        del config["optimizer"], config["scheduler"]
        given = with_frozen_group(model)
    engine, *_ = deepspeed.initialize(model=model, config=config, **given)
    first = 0
    if job["load"]:
        path, client_state = engine.load_checkpoint(job["directory"])
        assert path is not None, f"nothing to load in {job['directory']}"
        first = client_state["position"]
    losses = []
    for step in range(first, first + job["steps"]):
        loss = engine(*batch(step, rank))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    if job["save"]:
        save = engine.save_universal_checkpoint if job.get("save_universal") else engine.save_checkpoint
        save(job["directory"], tag="step", client_state={"position": first + job["steps"]})
    sums = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            sums[name] = parameter.detach().double().sum().item()
    return {"losses": losses, "sums": sums, "steps": engine.global_steps, "lr": engine.get_lr()}


if __name__ == "__main__":
    answer = main(json.loads(sys.argv[1]))
    print("ANSWER " + json.dumps(answer), flush=True)
    os._exit(0)  # the other ranks' shutdown is not this test's business
