"""One rank of the resharding matrix (reshard.py): saves and resumes checkpoints of many configurations, one engine after the other.

    deepspeed --num_gpus W reshard_worker.py JOBS      JOBS: JSON {"folder", "format", "save": [case], "resume": [{"saved", "case", "damage"}]}

Writes one JSON line per job to JOBS.results (rank 0). Between saving and resuming it makes JOBS.saved and sleeps until there is JOBS.go:
by then other numbers of ranks have saved theirs. Every job is the same training: ranks share out the rows of one global batch,
so the global loss (the mean over ranks) of different numbers of ranks can be compared. All that a step sees is restored or it is
not the same: weights and optimizer states, a rate that changes every step, a buffer that counts, and random numbers of torch
(dropout), Python and NumPy (which data).
"""
from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from typing import Any, Callable

import numpy
import torch
import torch.nn as nn
import torch.nn.functional as F

VOCABULARY, LENGTH, ROWS = 23, 5, 12  # rows of a global micro-batch: 1, 2, 3 and 4 ranks divide it
BEFORE, AFTER = 4, 10  # steps before the save, and those that are compared
HIDDEN = 37


class Model(nn.Module):
    """Sizes that 2, 3 and 4 do not divide, a tied head, a frozen layer, a 0-dim parameter, a buffer that counts, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 10)
        self.up = nn.ModuleList(nn.Linear(10, HIDDEN) for _ in range(2))
        self.norm = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(HIDDEN, 10) for _ in range(2))
        self.frozen = nn.Linear(10, 10)
        self.frozen.requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(10, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor, rows: slice) -> torch.Tensor:
        self.seen += 1
        h = self.embedding(tokens)
        for up, norm, down in zip(self.up, self.norm, self.down):
            kept = (torch.rand(ROWS, 1, HIDDEN) > 0.1)[rows].to(h.dtype)  # of the whole batch: each rank takes its own
            h = h + down(F.gelu(norm(up(h))) * kept)
        h = self.frozen(h) * self.scale * (1 + 0.1 * math.cos(self.seen.item()))
        return F.cross_entropy(self.head(h).float().flatten(0, 1), targets.flatten())


# ---------------------------------------------------------------- one configuration
def in_groups(case: dict) -> bool:
    """Whether parameters are sharded inside groups of two ranks."""
    return case["recipe"] in ("mics", "hpz") and case["stage"] == 3 and case["world"] % 2 == 0


def settings(case: dict, layout: str, files: str) -> dict:
    """The configuration of a case: {"stage", "world", "tier", "recipe"}."""
    stage, tier, recipe = case["stage"], case["tier"], case["recipe"]
    accumulate = 2 if recipe == "accumulate" else 1
    zero: dict[str, Any] = {"stage": stage, "stage3_param_persistence_threshold": 40}
    if tier == "file":
        zero["offload_optimizer"] = {"device": "nvme", "nvme_path": files}
        if stage == 3:
            zero["offload_param"] = {"device": "nvme", "nvme_path": files, "max_in_cpu": 0}
    elif tier == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
    if in_groups(case):
        zero["mics_shard_size" if recipe == "mics" else "zero_hpz_partition_size"] = 2
    if recipe == "ratio" and stage == 3 and tier != "host":
        zero["offload_optimizer"]["ratio"] = 0.5
    made = {"train_micro_batch_size_per_gpu": ROWS // case["world"], "gradient_accumulation_steps": accumulate, "gradient_clipping": 1.0,
            "zero_optimization": zero, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
            "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": 2e-3, "warmup_num_steps": 20}}}
    if layout == "universal":
        made["checkpoint"] = {"load_universal": True}
    else:
        made["checkpoint"] = {"format": layout}
    if recipe.startswith("bf16"):
        only = recipe == "bf16-only"  # masters, gradients and states too
        made["bf16"] = {"enabled": True, "bf16_master_weights_and_grads": only, "bf16_optimizer_states": only}
    if recipe == "fp16":  # overflows at first, then grows every third step
        made["fp16"] = {"enabled": True, "initial_scale_power": 19, "loss_scale_window": 3, "hysteresis": 1}
    if recipe not in OBJECTS:
        made["optimizer"] = OPTIMIZERS.get(recipe, OPTIMIZERS["adamw"])
    return made


OPTIMIZERS = {"adamw": {"type": "AdamW", "params": {"lr": 2e-3, "weight_decay": 0.1}},
              "lion": {"type": "Lion", "params": {"lr": 2e-3, "weight_decay": 0.1}},
              "muon": {"type": "Muon", "params": {"lr": 2e-3, "weight_decay": 0.1}},
              "adagrad": {"type": "Adagrad", "params": {"lr": 2e-3}}}
# Given as objects: computed by the core, and by torch itself.
OBJECTS = {"client-adamw": lambda groups: torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.99)),
           "client-sgd": lambda groups: torch.optim.SGD(groups, lr=2e-3, momentum=0.9, nesterov=True),
           "nadam": lambda groups: torch.optim.NAdam(groups, lr=2e-3),
           "amsgrad": lambda groups: torch.optim.AdamW(groups, lr=2e-3, amsgrad=True)}


def groups_of(model: nn.Module) -> list[dict]:
    """Weights decay, the rest does not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [{"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0}]


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    numpy.random.seed(number)


def random_state() -> dict:
    kind, keys, *rest = numpy.random.get_state()
    return {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": [kind, keys.tolist(), *rest]}


def set_random_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype="uint32"), *rest))


def build(case: dict, layout: str, files: str, start: int) -> Any:
    """A fresh engine; `start` decides its weights and random numbers."""
    import deepspeed
    seed(start)
    model = Model()
    make = OBJECTS.get(case["recipe"])
    chosen = {"optimizer": make(groups_of(model))} if make else {} if case["recipe"] == "muon" else {"model_parameters": groups_of(model)}
    engine = deepspeed.initialize(model=model, config=settings(case, layout, files), **chosen)[0]
    # Of one's own: ranks draw other numbers, which only as many ranks can go on with.
    seed(start + (1 + engine.global_rank if case["recipe"] == "own-random" else 0))
    return engine


def train(engine: Any, steps: int) -> list[str]:
    """The global losses of the micro-batches, in hexadecimal."""
    import deepspeed.comm as dist
    world, rank = engine.dp_world_size, engine.global_rank
    rows = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    losses = []
    for _ in range(steps * engine.gradient_accumulation_steps()):
        generator = torch.Generator().manual_seed(random.randrange(1 << 30) + int(numpy.random.randint(1 << 30)))
        tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1), generator=generator)[rows]
        loss = engine(tokens[:, :-1].contiguous(), (tokens[:, 1:] * 5 % VOCABULARY).contiguous(), rows)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    total = torch.tensor(losses, dtype=torch.float64)
    dist.all_reduce(total)
    return [(value / world).hex() for value in total.tolist()]


def counters(engine: Any) -> dict:
    return {"steps": engine.global_steps, "samples": engine.global_samples, "skipped": engine.skipped_steps, "lr": engine.get_lr(),
            "scale": engine.loss_scale()}


# ---------------------------------------------------------------- damages that must be found
def _nudge(engine: Any, key: str) -> None:
    """One element of one state of one parameter."""
    from deepspeed.utils import (safe_get_full_fp32_param, safe_get_full_optimizer_state, safe_set_full_fp32_param,
                                 safe_set_full_optimizer_state)
    param = engine.module.down[1].weight
    if key == "fp32":
        value = safe_get_full_fp32_param(param)
        value.view(-1)[100] += 0.01
        safe_set_full_fp32_param(param, value)
    else:
        value = safe_get_full_optimizer_state(param, key)
        value.view(-1)[100] = value.view(-1)[100] * 4 + 1e-3
        safe_set_full_optimizer_state(param, value, key)


def _nudge_frozen(engine: Any) -> None:
    import deepspeed
    with torch.no_grad(), deepspeed.zero.GatheredParameters([engine.module.frozen.weight], modifier_rank=0):
        engine.module.frozen.weight[3, 4] += 0.01


DAMAGES = {
    "a master": lambda engine: _nudge(engine, "fp32"),
    "exp_avg": lambda engine: _nudge(engine, "exp_avg"),
    "exp_avg_sq": lambda engine: _nudge(engine, "exp_avg_sq"),
    "the step": lambda engine: engine._core.set_step(engine._core.get_step() + 1),
    "the scheduler": lambda engine: engine.lr_scheduler.step(),
    "a buffer": lambda engine: engine.module.seen.add_(1),
    "a frozen weight": _nudge_frozen,
    "random numbers": lambda engine: torch.rand(1),
}


# ---------------------------------------------------------------- jobs
def key_of(case: dict) -> str:
    return f"s{case['stage']}-w{case['world']}-{case['tier']}-{case['recipe']}"


class Worker:
    def __init__(self, job: dict) -> None:
        self.layout, self.folder = job["format"], job["folder"]
        self.files = os.path.join(self.folder, "nvme")

    def save(self, case: dict) -> dict:
        engine = build(case, "native" if self.layout == "universal" else self.layout, self.files, start=1)
        before = train(engine, BEFORE)
        where = os.path.join(self.folder, key_of(case))
        write = engine.save_universal_checkpoint if self.layout == "universal" else engine.save_checkpoint
        write(where, tag="saved", client_state={"random": random_state(), "from": key_of(case)})
        after = train(engine, AFTER)
        answer = {"before": before, "losses": after, "counters": counters(engine)}
        engine.destroy()
        return answer

    def resume(self, saved: dict, case: dict, damage: str | None) -> dict:
        from deepspeed._C import CheckpointError
        engine = build(case, self.layout, self.files, start=2)
        try:
            path, client = engine.load_checkpoint(os.path.join(self.folder, key_of(saved)))
        except CheckpointError as problem:  # the same on all ranks
            engine.destroy()
            return {"problem": str(problem)}
        if path is None or client["from"] != key_of(saved):
            return {"problem": f"loaded {path}, whose client state is {sorted(client)}"}
        # Random numbers are restored when there are as many ranks as before.
        if self.layout == "universal" or saved["world"] != case["world"]:
            set_random_state(client["random"])
        if damage:
            DAMAGES[damage](engine)
        answer = {"losses": train(engine, AFTER), "counters": counters(engine)}
        engine.destroy()
        return answer


def main(path: str) -> None:
    import deepspeed
    torch.set_num_threads(1)
    deepspeed.init_distributed()
    with open(path) as file:
        job = json.load(file)
    worker = Worker(job)
    rank = int(os.environ["RANK"])
    with open(f"{path}.results" if rank == 0 else os.devnull, "w") as results:

        def answer(kind: str, item: dict, work: Callable[..., dict], *arguments: Any) -> None:
            begin = time.monotonic()
            found = work(*arguments)
            results.write(json.dumps({"kind": kind, "item": item, "seconds": time.monotonic() - begin, **found}) + "\n")
            results.flush()

        for case in job["save"]:
            answer("save", case, worker.save, case)
        if rank == 0:
            open(f"{path}.saved", "w").close()
        while not os.path.exists(f"{path}.go"):
            if not os.path.exists(path):
                sys.exit("the folder of this run is gone")
            time.sleep(0.2)
        for item in job["resume"]:
            answer("resume", item, worker.resume, item["saved"], item["case"], item["damage"])


if __name__ == "__main__":
    main(sys.argv[1])
