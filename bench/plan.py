"""Measured peak memory of training in bf16 with AdamW on CPU ranks against what ds_plan says before the run.

Cases: stages 0 to 3, accumulation in fp32, optimizer states and parameters in files, 1 and 2 ranks. The model is a stack of
equal linear layers, as in memory.py, whose accounting is used: proportional share of anonymous and shared memory, above the
level after a first training of a tiny model; ds_plan is asked without the program's own memory. What of a single row per
batch is kept for backward is next to nothing, so activations do not count.
Target: peak <= 1.05 of the plan in every case. `tightness` is the smallest peak / plan: a plan far above the truth is no help.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness  # noqa: E402
import memory  # noqa: E402

WIDTH = memory.WIDTH
MIB = 2**20
SMALL_BUFFERS = {"reduce_bucket_size": 4_000_000, "stage3_prefetch_bucket_size": 4_000_000, "stage3_max_live_parameters": 4_000_000,
                 "stage3_max_reuse_distance": 0, "stage3_param_persistence_threshold": 1000}
STATES_IN_FILES = {"offload_optimizer": {"device": "nvme"}}
PARAMS_IN_FILES = {"offload_param": {"device": "nvme", "max_in_cpu": 0}}
FILE_BUFFERS = {"sub_group_size": 1_000_000}

CASES = [  # name, ranks, quick, zero_optimization, other keys
    ("stage 0", 1, True, {"stage": 0}, {}),
    ("stage 1", 2, False, {"stage": 1}, {}),
    ("stage 2", 1, False, {"stage": 2}, {}),
    ("stage 2", 2, True, {"stage": 2}, {}),
    ("stage 2, default buffers", 2, False, {"stage": 2}, {"default": True}),
    ("stage 2, accumulation in fp32", 2, False, {"stage": 2}, {"gradient_accumulation_steps": 2,
                                                               "data_types": {"grad_accum_dtype": "fp32"}}),
    ("stage 3", 1, False, {"stage": 3}, {}),
    ("stage 3", 2, True, {"stage": 3}, {}),
    ("stage 3, default buffers", 2, False, {"stage": 3}, {"default": True}),
    ("stage 2, states in files", 2, True, {"stage": 2, **STATES_IN_FILES, **FILE_BUFFERS}, {}),
    ("stage 3, states in files", 1, False, {"stage": 3, **STATES_IN_FILES, **FILE_BUFFERS}, {}),
    ("stage 3, all in files", 1, True, {"stage": 3, **STATES_IN_FILES, **PARAMS_IN_FILES, **FILE_BUFFERS}, {}),
    ("stage 3, all in files", 2, True, {"stage": 3, **STATES_IN_FILES, **PARAMS_IN_FILES, **FILE_BUFFERS}, {}),
    ("stage 3, parameters in files", 2, False, {"stage": 3, **PARAMS_IN_FILES}, {}),
]


def configuration(zero: dict, more: dict, folder: str) -> dict:
    more = dict(more)
    zero = {**({} if more.pop("default", False) else SMALL_BUFFERS), **zero}
    for section in ("offload_optimizer", "offload_param"):
        if section in zero:
            zero[section] = {**zero[section], "nvme_path": folder}
    return {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "gradient_clipping": 1.0,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}, "zero_optimization": zero, **more}


def train(width: int, layers: int, config: dict, steps: int) -> None:
    """Builds, trains and drops a model."""
    import torch

    import deepspeed
    from torch import nn

    torch.set_num_threads(1)
    deepspeed.init_distributed()
    torch.set_default_dtype(torch.bfloat16)
    with deepspeed.zero.Init(config_dict_or_path=config, enabled=config["zero_optimization"]["stage"] == 3):
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    torch.set_default_dtype(torch.float32)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    x = torch.randn(1, width, dtype=torch.bfloat16)
    for _ in range(steps * engine.gradient_accumulation_steps()):
        engine.backward(engine(x).float().square().mean())
        engine.step()
    engine.destroy()


def write_shapes(path: Path, layers: int) -> None:
    """A safetensors file with the model's header; its data is a hole."""
    size = 2 * WIDTH * WIDTH
    header = json.dumps({f"{i}.weight": {"dtype": "BF16", "shape": [WIDTH, WIDTH], "data_offsets": [i * size, (i + 1) * size]}
                         for i in range(layers)}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + layers * size)


def planned(folder: Path, shapes: Path, config: dict, ranks: int) -> dict:
    (folder / "ds_config.json").write_text(json.dumps(config))
    from deepspeed.launcher.runner import native_program

    run = subprocess.run([native_program("ds_plan"), "--model", str(shapes), "--ds_config", str(folder / "ds_config.json"), "--world", str(ranks),
                          "--device", "cpu", "--program_mib", "0", "--json"], capture_output=True, text=True)
    if not run.stdout:
        raise RuntimeError(f"ds_plan failed: {run.stderr}")
    return json.loads(run.stdout)


def peak_of(name: str, ranks: int, layers: int, config: dict) -> float:
    """Largest memory per rank above the level after a tiny training."""
    with harness.Side(name, __file__, ranks=ranks, timeout_s=900) as side:
        side.call("train", width=64, layers=2, config=config, steps=2)
        time.sleep(0.2)
        base, peak = memory.total(side), 0
        side.begin("train", width=WIDTH, layers=layers, config=config, steps=6)
        answers: list = []
        waiter = threading.Thread(target=lambda: answers.append(memory.finish(side)), daemon=True)
        waiter.start()
        while waiter.is_alive():
            peak = max(peak, memory.total(side))
            time.sleep(0.003)
        if isinstance(answers[0], Exception):
            raise answers[0]
    return (peak - base) / ranks


def compare(case: tuple, layers: int, folder: Path) -> dict:
    name, ranks, _, zero, more = case
    config = configuration(zero, more, str(folder))
    shapes = folder / "shapes.safetensors"
    write_shapes(shapes, layers)
    plan = planned(folder, shapes, config, ranks)
    expected = sum(plan["rank_bytes"][place] for place in ("pinned", "pageable", "shared"))
    peak = peak_of(f"{name} {ranks}", ranks, layers, config)
    share = peak / expected
    print(f"{name:32} {ranks} rank(s): peak {peak / MIB:8.1f} MiB per rank, plan {expected / MIB:8.1f}, peak / plan {share:.3f}", flush=True)
    rows = {f"{row['state']} ({row['place']})": row["bytes"] for row in plan["rows"]}
    return {"case": name, "ranks": ranks, "peak_bytes": peak, "plan_bytes": expected, "share": share, "plan": rows}


def main() -> None:
    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--layers", type=int, help="layers of 1024 x 1024 (default: 96, quick: 48)")
        parser.add_argument("--case", help="only cases whose name contains this")
        parser.add_argument("--folder", help="where the files of states go (default: TMPDIR)")

    args = harness.arguments(__doc__, extra)
    if not harness.have_ours():
        return
    layers = args.layers or (48 if args.quick else 96)
    print(f"{layers * WIDTH * WIDTH / 1e6:.0f} M parameters")
    rows = []
    with harness.scratch_folder("plan", args.folder) as folder:
        for case in CASES:
            if (case[2] or not args.quick) and (args.case or "") in case[0]:
                rows.append(compare(case, layers, Path(folder)))
    shares = [row["share"] for row in rows]
    harness.result("plan", ours=max(shares), opponent=None, ratio=None, limit_share=None, unit="largest peak / plan",
                   met=max(shares) <= 1.05, tightness=min(shares), cases=rows)


if __name__ == "__main__":
    harness.serve({"train": train}) if harness.is_worker() else main()
