"""Peak memory per rank while training in bf16 with AdamW, stages 0-3 on 1, 2 and 4 CPU ranks, against formula + declared buffers.

Formula for P parameters on N ranks, bytes: weights 2P, gradients 2P, master copy and two moments 12P, each divided by N
where the stage shards it: 16P, 4P+12P/N, 2P+14P/N, 16P/N. Declared buffers: what the engine says it holds beyond that
(its memory_bytes()["buckets"]), and one gathered layer with its gradient. Opponent: real DeepSpeed 0.19.8, same settings;
it declares nothing, so that its rows show peak / (formula + one layer).

Accounting: Pss_Anon + Pss_Shmem of /proc/PID/smaps_rollup, sampled from outside every few milliseconds over initialisation
and training. Shards of CPU ranks lie in memory that all ranks map: a proportional share counts every page once, where the
resident size (RSS, VmHWM) of each rank would count it N times. File-backed pages (libraries) are left out. The level
after imports and a first training of a tiny model is subtracted; the figure is the sum over ranks at its peak / N.
The model is a stack of equal linear layers without activations to speak of (one row per batch).
Target: measured <= 1.05 of (formula + declared).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness  # noqa: E402

WIDTH = 1024
BUCKET = 4_000_000  # elements
MIB = 2**20


def formula(parameters: int, stage: int, ranks: int) -> int:
    weights, gradients, optimizer = 2 * parameters, 2 * parameters, 12 * parameters
    return sum(part // ranks if stage >= threshold else part for part, threshold in ((weights, 3), (gradients, 2), (optimizer, 1)))


def train(width: int, layers: int, stage: int, steps: int) -> dict:
    """Builds, trains and drops a model; returns what the engine declares."""
    import torch

    import deepspeed
    from torch import nn

    torch.set_num_threads(1)
    deepspeed.init_distributed()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "overlap_comm": False,
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_max_live_parameters": BUCKET,
            "stage3_max_reuse_distance": 0,
            "stage3_param_persistence_threshold": 1000,
        },
    }
    torch.set_default_dtype(torch.bfloat16)
    with deepspeed.zero.Init(config_dict_or_path=config, enabled=stage == 3):
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    torch.set_default_dtype(torch.float32)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    x = torch.randn(1, width, dtype=torch.bfloat16)
    for _ in range(steps):
        engine.backward(engine(x).float().square().mean())
        engine.step()
    core = getattr(engine, "_core", None)  # ours; real DeepSpeed declares nothing
    declared = core.memory_bytes() if core is not None else {}
    engine.destroy()
    return declared


def proportional_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        fields = dict(line.split(":", 1) for line in rollup if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return sum(int(value.split()[0]) for value in fields.values()) * 1024


def total(side: harness.Side) -> int:
    return sum(proportional_bytes(pid) for pid in side.pids)


def measure(name: str, python: str, ranks: int, stage: int, layers: int) -> dict:
    """Peak bytes per rank above the level after a tiny training, and what the engine declares."""
    environment = harness.reference_environment() if python != sys.executable else {}
    with harness.Side(f"{name} {stage} {ranks}", __file__, python=python, ranks=ranks, environment=environment, timeout_s=900) as side:
        side.call("train", width=64, layers=2, stage=stage, steps=2)
        time.sleep(0.2)
        base, peak = total(side), 0
        side.begin("train", width=WIDTH, layers=layers, stage=stage, steps=12)
        import threading

        answers: list = []
        waiter = threading.Thread(target=lambda: answers.append(finish(side)), daemon=True)
        waiter.start()
        while waiter.is_alive():
            peak = max(peak, total(side))
            time.sleep(0.003)
        if isinstance(answers[0], Exception):
            raise answers[0]
    return {"peak": (peak - base) / ranks, "declared": answers[0][0]}


def finish(side: harness.Side):
    try:
        return side.finish()
    except harness.SideFailed as failure:
        return failure


def compare(name: str, python: str, ranks: int, stage: int, layers: int) -> dict | None:
    parameters = layers * WIDTH * WIDTH
    try:
        found = measure(name, python, ranks, stage, layers)
    except harness.SideFailed as failure:
        print(f"FAILED {name}, stage {stage}, {ranks} ranks: {failure}", flush=True)
        return None
    states = formula(parameters, stage, ranks)
    layer = 2 * 2 * WIDTH * WIDTH  # one layer's weight (gathered) and its gradient
    allowed = states + found["declared"].get("buckets", 0) + layer
    share = found["peak"] / allowed
    print(
        f"{name:18} stage {stage}, {ranks} rank(s): peak {found['peak'] / MIB:8.1f} MiB per rank, formula {states / MIB:8.1f}, "
        f"declared buffers {(allowed - states) / MIB:7.1f}, peak / (formula + declared) {share:.3f}",
        flush=True,
    )
    return {
        "side": name,
        "stage": stage,
        "ranks": ranks,
        "peak_bytes": found["peak"],
        "formula_bytes": states,
        "allowed_bytes": allowed,
        "share": share,
        "declared": found["declared"],
    }


def main() -> None:
    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--layers", type=int, help="layers of 1024 x 1024 (default: 64, quick: 32)")

    args = harness.arguments(__doc__, extra)
    layers = args.layers or (32 if args.quick else 64)
    print(f"{layers * WIDTH * WIDTH / 1e6:.0f} M parameters")
    ours = harness.have_ours()
    rows = []
    for ranks in (2,) if args.quick else (1, 2, 4):
        for stage in (0, 1, 2, 3):
            if ours:
                rows.append(compare("ours", sys.executable, ranks, stage, layers))
            if args.reference and not (args.quick and stage < 2):
                rows.append(compare("DeepSpeed 0.19.8", args.reference, ranks, stage, layers))
    rows = [row for row in rows if row]
    worst = {side: max((row["share"] for row in rows if row["side"] == side), default=None) for side in ("ours", "DeepSpeed 0.19.8")}
    peaks = {(row["side"], row["stage"], row["ranks"]): row["peak_bytes"] for row in rows}
    ratios = [peak / peaks["ours", *case] for (side, *case), peak in peaks.items() if side != "ours" and ("ours", *case) in peaks]
    harness.result(
        "memory",
        ours=worst["ours"],
        opponent=worst["DeepSpeed 0.19.8"],
        ratio=min(ratios, default=None),
        limit_share=1 / worst["ours"] if worst["ours"] else None,
        unit="largest peak / (formula + declared buffers); ratio: smallest DeepSpeed peak / our peak of one case",
        met=worst["ours"] <= 1.05 if worst["ours"] else None,
        cases=rows,
    )


if __name__ == "__main__":
    harness.serve({"train": train}) if harness.is_worker() else main()
