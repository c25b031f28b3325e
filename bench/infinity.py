"""Training larger than memory: a transformer in bf16 with AdamW, stage 3, parameters, gradients, master copy and moments in files.

The training process runs under a memory limit that is a fraction of what its states need: a memory control group (version 2 or 1)
where one can be made, else RLIMIT_DATA (its private memory; said in the output). Shown:

- It trains under the limit; the peak of its private memory, sampled from outside, beside the limit and beside the memory plan (which
  leaves out activations) with what the program itself held before. Target: peak / plan at most 1.05.
- Time: steps and measurements of the drive alternate, in one folder. The drive is measured with the project's own aio_handle or
  with fio, whichever is faster here at the start: O_DIRECT, large requests, reads and writes at once in the step's proportion.
  Limit of a step = max(bytes / bandwidth, compute): bytes are those that the step's files read and wrote (the kernel's count of
  the process beside it), bandwidth the mean of the measurements before and after the step, compute the time of the same step with
  everything in memory. That does not fit for the whole model, so models of one and four layers train in memory, two steps of
  each in every round, and a line through the faster ones gives any number of layers. Target: step / limit at most 1.15, median
  over rounds.
- Values: a small model has the same losses and weights, bit for bit, as in memory.

Opponent: DeepSpeed 0.19.8 with the same settings (buffers and sub-groups set to what the largest layer needs), under the same limit
and, if it does not train there, under six tenths of the machine's free memory; afterwards, since the disk has no room for both. The drive is measured around its steps,
too: the ratio is (its step x bandwidth) / (our step x bandwidth), so that a drive that changes its speed favours nobody.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness  # noqa: E402
from machine_limits import MemoryLimit, PeakMemory, limit_data, private_bytes  # noqa: E402

MIB, GIB = 2**20, 2**30
TARGET = 1.15
PEAK_TARGET = 1.05
PIECE = 32 * MIB  # of the drive's measurement
PIECES = 16

# width, layers, tokens of a step, memory limit; vocabulary 16384
FULL = {"width": 2048, "layers": 25, "tokens": 128, "limit": 4 * GIB}
QUICK = {"width": 1024, "layers": 6, "tokens": 128, "limit": 1 * GIB}
VOCABULARY = 16384

state: dict = {}


def parameters(width: int, layers: int) -> int:
    return layers * (12 * width * width + 2 * width) + 2 * VOCABULARY * width + width


# ---------------------------------------------------------------- worker: training


def make_model(width: int, layers: int):
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm, self.mlp_norm = (nn.LayerNorm(width, bias=False) for _ in range(2))
            self.qkv = nn.Linear(width, 3 * width, bias=False)
            self.projection = nn.Linear(width, width, bias=False)
            self.expand = nn.Linear(width, 4 * width, bias=False)
            self.contract = nn.Linear(4 * width, width, bias=False)

        def forward(self, x):
            batch, time_, _ = x.shape
            heads = (batch, time_, width // 64, 64)
            query, key, value = (part.view(heads).transpose(1, 2) for part in self.qkv(self.attention_norm(x)).split(width, dim=2))
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.projection(mixed.transpose(1, 2).reshape(x.shape))
            return x + self.contract(F.gelu(self.expand(self.mlp_norm(x)), approximate="tanh"))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = nn.LayerNorm(width, bias=False)
            self.head = nn.Linear(width, VOCABULARY, bias=False)

        def forward(self, tokens):
            x = self.embedding(tokens[:, :-1])
            for block in self.blocks:
                x = block(x)
            return F.cross_entropy(self.head(self.norm(x)).float().flatten(0, 1), tokens[:, 1:].flatten())

    torch.manual_seed(1)
    return Transformer()


def settings(folder: str | None) -> dict:
    zero: dict[str, Any] = {"stage": 3, "overlap_comm": False, "stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 50_000_000,
                            "stage3_prefetch_bucket_size": 25_000_000}  # fmt: skip
    if folder:
        place = {"device": "nvme", "nvme_path": folder}
        zero |= {"offload_optimizer": place, "offload_param": {**place, "max_in_cpu": 0}, **state.get("more", {})}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "zero_optimization": zero,
    }


def build(width: int, layers: int, tokens: int, folder: str | None, more: dict | None = None) -> dict:
    import torch

    import deepspeed

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    state["more"] = more or {}
    deepspeed.init_distributed()
    program = private_bytes()
    config = settings(folder)
    begin = time.perf_counter()
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = make_model(width, layers)
    built = time.perf_counter()
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    generator = torch.Generator().manual_seed(2)
    state.update(engine=engine, tokens=torch.randint(VOCABULARY, (8, 1, tokens + 1), generator=generator), steps=0)
    plan = engine.memory_plan()["rank_bytes"] if hasattr(engine, "memory_plan") else None
    return {"model_s": built - begin, "engine_s": time.perf_counter() - built, "program_bytes": program,
            "plan_bytes": plan and sum(plan[place] for place in ("pinned", "pageable", "shared"))}


def moved() -> dict[str, float]:
    """What this process has read and written so far: as its files count, and as the kernel does."""
    facts = state["engine"].file_tier_facts().values() if hasattr(state["engine"], "file_tier_facts") else ()
    with open("/proc/self/io") as file:
        kernel = {name: int(value) for name, value in (line.split(":") for line in file)}
    return {
        "read": sum(fact["read_bytes"] for fact in facts),
        "written": sum(fact["written_bytes"] for fact in facts),
        "wait_s": sum(fact["wait_seconds"] for fact in facts),
        "kernel_read": kernel["read_bytes"],
        "kernel_written": kernel["write_bytes"],
    }


def step() -> dict:
    engine = state["engine"]
    before = moved()
    begin = time.perf_counter()
    loss = engine(state["tokens"][state["steps"] % 8])
    forward = time.perf_counter()
    engine.backward(loss)
    backward = time.perf_counter()
    engine.step()
    end = time.perf_counter()
    state["steps"] += 1
    after = moved()
    parts = {"forward_s": forward - begin, "backward_s": backward - forward, "update_s": end - backward}
    return {"seconds": end - begin, "loss": loss.item(), **parts, **{key: after[key] - before[key] for key in after}}


def tier_facts() -> dict:
    return state["engine"].file_tier_facts() if hasattr(state["engine"], "file_tier_facts") else {}


def digest(steps: int) -> dict:
    """Losses of some steps and a hash over all weights."""
    import deepspeed

    losses = [step()["loss"] for _ in range(steps)]
    found = hashlib.sha256()
    for name, parameter in sorted(state["engine"].module.named_parameters()):
        with deepspeed.zero.GatheredParameters([parameter]):
            found.update(name.encode() + parameter.detach().float().numpy().tobytes())
    return {"losses": losses, "weights": found.hexdigest()}


# ---------------------------------------------------------------- worker: the drive


def start_drive(folder: str, size: int) -> dict:
    import torch

    from deepspeed.ops.aio import aio_handle, tuned_settings

    found = tuned_settings(folder)
    handle = aio_handle(found["block_size"], found["queue_depth"])
    path = os.path.join(folder, f"bench_infinity_{os.getpid()}.bin")
    pieces = [handle.new_cpu_locked_tensor(PIECE, torch.empty(0, dtype=torch.uint8)) for _ in range(PIECES)]
    for piece in pieces:
        piece.random_(0, 255)
    state.update(handle=handle, path=path, size=size, pieces=pieces, offset=0)
    for offset in range(0, size, PIECE):
        handle.async_pwrite(pieces[offset // PIECE % PIECES], path, offset)
        if offset // PIECE % PIECES == PIECES - 1:
            handle.wait()
    handle.wait()
    return {"path": path, **found}


def move_mixed(size: int, read_share: float) -> float:
    """Bytes per second."""
    handle, balance, half = state["handle"], 0.0, state["size"] // 2
    begin = time.perf_counter()
    for done in range(0, size // PIECE):
        balance += read_share
        place = state["offset"] = (state["offset"] + PIECE) % half
        if balance >= 1:  # reads in the first half of the file, writes in the second
            balance -= 1
            handle.async_pread(state["pieces"][done % PIECES], state["path"], place)
        else:
            handle.async_pwrite(state["pieces"][done % PIECES], state["path"], half + place)
        if done % PIECES == PIECES - 1:
            handle.wait()
    handle.wait()
    return size // PIECE * PIECE / (time.perf_counter() - begin)


def fio_mixed(path: str, size: int, read_share: float, setting: tuple[str, int]) -> float:
    """Bytes per second."""
    words = ["fio", "--name=bench", f"--filename={path}", "--rw=rw", f"--rwmixread={round(100 * read_share)}", "--direct=1",
             f"--size={state['drive_size']}", f"--io_size={size}", f"--bs={setting[0]}", f"--iodepth={setting[1]}", "--ioengine=io_uring",
             "--overwrite=1", "--fallocate=none", "--thread", "--output-format=json"]  # fmt: skip
    answer = subprocess.run(words, capture_output=True, text=True)
    if answer.returncode != 0:
        raise RuntimeError(f"fio failed: {answer.stderr.strip() or answer.stdout.strip()}")
    job = json.loads(answer.stdout[answer.stdout.index("{") :])["jobs"][0]
    return (job["read"]["io_bytes"] + job["write"]["io_bytes"]) / (job["job_runtime"] / 1e3)


# ---------------------------------------------------------------- benchmark half: memory


def available_bytes() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))


# ---------------------------------------------------------------- benchmark half: measuring


class Drive:
    """The drive's bandwidth for the step's mix of reads and writes, by the better of our queue and fio."""

    FIO = (("1M", 32), ("4M", 8))

    def __init__(self, side: harness.Side, folder: str, size: int, amount: int) -> None:
        self.side, self.amount, self.share, self.fio = side, amount, None, None
        state["drive_size"] = size
        found = side.call("start_drive", folder=folder, size=size)[0]
        self.path = found["path"]
        self.ours = f"aio_handle {found['block_size'] // 1024} KiB x {found['queue_depth']}"
        self.way = self.ours

    def choose(self, share: float) -> None:
        """Measures each way twice, alternating."""
        self.share = share
        if not shutil.which("fio"):
            print("fio is not installed: the drive is measured with our own queue alone")
        ways: list[tuple[str, int] | None] = [None, *(self.FIO if shutil.which("fio") else ())]
        speeds: dict = {way: [] for way in ways}
        for order in (ways, ways[::-1]):
            for self.fio in order:
                speeds[self.fio].append(self.speed())
        names = {way: f"fio io_uring {way[0]} x {way[1]}" if way else self.ours for way in ways}
        self.fio = max(ways, key=lambda way: max(speeds[way]))
        self.way = names[self.fio]
        print("drive, GB/s: " + ", ".join(f"{names[way]} {max(found) / 1e9:.2f}" for way, found in speeds.items()), flush=True)

    def speed(self) -> float:
        if self.fio is None:
            return self.side.call("move_mixed", size=self.amount, read_share=self.share)[0]
        return fio_mixed(self.path, self.amount, self.share, self.fio)


def same_bits(folder: str) -> bool:
    """A small model in memory and in files."""
    found = []
    for place in (None, folder):
        with harness.Side(f"bits {place is not None}", __file__, threads=1) as side:
            side.call("build", width=256, layers=3, tokens=32, folder=place)
            found.append(side.call("digest", steps=4)[0])
    print(f"small model, 4 steps: losses {found[1]['losses']} in files; weights and losses equal to memory: {found[0] == found[1]}", flush=True)
    return found[0] == found[1]


class Compute:
    """Seconds of a step in memory, for any number of layers."""

    FEW, MORE = 1, 4

    def __init__(self, size: dict, threads: int) -> None:
        self.layers = size["layers"]
        self.sides = [harness.Side(f"{count} in memory", __file__, threads=threads, timeout_s=1800) for count in (self.FEW, self.MORE)]
        for side, count in zip(self.sides, (self.FEW, self.MORE)):
            side.call("build", layers=count, folder=None, width=size["width"], tokens=size["tokens"])
            side.call("step")

    def seconds(self) -> float:
        few, more = (min(side.call("step")[0]["seconds"] for _ in range(2)) for side in self.sides)
        slope = max(more - few, 0.0) / (self.MORE - self.FEW)
        return few + (self.layers - self.FEW) * slope

    def close(self) -> None:
        for side in self.sides:
            side.close()


def train(size: dict, folder: str, rounds: int, limit: MemoryLimit | None, side: harness.Side, drive: Drive, compute: Compute, more: dict) -> dict:
    """Steps of one side, each between two measurements of the drive."""
    if limit:
        limit.apply(side.pids, lambda size: side.call("limit_data", size=size))
    peak = PeakMemory(side.pids[0])
    try:
        shape = {key: size[key] for key in ("width", "layers", "tokens")}
        made = side.call("build", folder=folder, more=more, **shape)[0]
        print(f"{side.name}: model built in {made['model_s']:.1f} s, engine in {made['engine_s']:.1f} s", flush=True)
        for _ in range(2):  # the first step learns the order of use
            row = side.call("step")[0]
        if drive.share is None:
            drive.choose(row["read"] / (row["read"] + row["written"]))
        rows, speed = [], drive.speed()
        for index in range(rounds):
            row = side.call("step")[0]
            before, speed = speed, drive.speed()
            row["speed"], row["compute"] = (before + speed) / 2, compute.seconds()
            row["bytes"] = row["read"] + row["written"] or row["kernel_read"] + row["kernel_written"]
            row["limit"] = max(row["bytes"] / row["speed"], row["compute"])
            rows.append(row)
            show_step(index, row)
        return {**made, "rows": rows, "facts": side.call("tier_facts")[0], "peak": peak.peak, "group_peak": limit.highest() if limit else None}
    finally:
        peak.close()
        side.close()


def show_step(index: int, row: dict) -> None:
    print(
        f"step {index}: {row['seconds']:7.2f} s (forward {row['forward_s']:.2f}, backward {row['backward_s']:.2f}, update {row['update_s']:.2f}; "
        f"waiting {row['wait_s']:.2f}), {row['bytes'] / 1e9:6.2f} GB (kernel {(row['kernel_read'] + row['kernel_written']) / 1e9:.2f}), "
        f"drive {row['speed'] / 1e9:.2f} GB/s = {row['bytes'] / row['speed']:6.2f} s, compute {row['compute']:6.2f} s, "
        f"step / limit {row['seconds'] / row['limit']:.3f}, loss {row['loss']:.3f}",
        flush=True,
    )


def reference(args: argparse.Namespace, size: dict, folder: str, rounds: int, limit: MemoryLimit, drive: Drive, compute: Compute) -> dict | None:
    """DeepSpeed with buffers and groups no larger than the largest layer makes necessary; never at the cost of the whole machine."""
    largest = max(VOCABULARY, 4 * size["width"]) * size["width"]
    nvme = {"device": "nvme", "nvme_path": folder}
    zero = {
        "sub_group_size": 3 * largest // 2,
        "offload_param": {**nvme, "max_in_cpu": 0, "buffer_size": 3 * largest // 2},
        "offload_optimizer": {**nvme, "pipeline_read": True, "pipeline_write": True, "buffer_count": 12},
    }
    generous = MemoryLimit(available_bytes() * 6 // 10, "generous")
    try:
        for applied in (limit, generous):
            if not applied.folder:
                continue
            name = f"DeepSpeed 0.19.8, {applied.size / GIB:.1f} GiB"
            side = harness.reference_side(name, __file__, args.reference, threads=args.threads)
            try:
                return {**train(size, folder, rounds, applied, side, drive, compute, zero), "limit": applied.size}
            except harness.SideFailed as failure:
                lines = str(failure).strip().splitlines()
                print(f"{name}: does not train: {lines[0][:200]} ... {lines[-1][:300]}", flush=True)
    finally:
        generous.close()
    return None


def measure(args: argparse.Namespace, size: dict, folder: str, rounds: int) -> tuple[dict, dict | None, MemoryLimit, Drive]:
    amount = min(2 * GIB, max(GIB // 2, parameters(size["width"], size["layers"]) * 4))
    limit = MemoryLimit(size["limit"])
    print(f"memory limit {size['limit'] / GIB:.2f} GiB by {limit.kind}" + ("" if limit.folder else ": no control group can be made here"))
    ours = harness.Side("infinity", __file__, threads=args.threads, timeout_s=3600)
    drive_side = harness.Side("drive", __file__, threads=1, timeout_s=600)
    compute = None
    try:
        compute = Compute(size, args.threads)
        drive = Drive(drive_side, folder, amount, amount)
        found = train(size, folder, rounds, limit, ours, drive, compute, args.more)
        print(f"files: {json.dumps(found['facts'])}")
        theirs = reference(args, size, folder, max(rounds // 2, 1), limit, drive, compute) if args.reference else None
    finally:
        for side in (ours, drive_side, *([compute] if compute else [])):
            side.close()
        limit.close()
    return found, theirs, limit, drive


def main() -> None:
    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--folder", default=os.environ.get("TMPDIR", "/tmp"), help="where the files go: on the drive to measure")
        parser.add_argument("--width", type=int)
        parser.add_argument("--layers", type=int)
        parser.add_argument("--tokens", type=int, help="of a step")
        parser.add_argument("--limit-mib", type=int, help="memory of the training process")
        parser.add_argument("--rounds", type=int)
        parser.add_argument("--threads", type=int, default=os.cpu_count())
        parser.add_argument("--more", type=json.loads, default={}, help="JSON object that is merged into our zero_optimization")

    args = harness.arguments(__doc__, extra)
    size = dict(QUICK if args.quick else FULL)
    size |= {key: getattr(args, key) for key in ("width", "layers", "tokens") if getattr(args, key)}
    if args.limit_mib:
        size["limit"] = args.limit_mib * MIB
    rounds = args.rounds or 5
    count = parameters(size["width"], size["layers"])
    print(f"{count / 1e6:.0f} M parameters: bf16 weights {count * 2 / 1e9:.1f} GB, master and moments {count * 12 / 1e9:.1f} GB")
    if not harness.have_ours():
        harness.result("infinity", ours=None, opponent=None, ratio=None, limit_share=None, met=None)
        return
    with harness.scratch_folder("infinity", args.folder) as folder:
        equal = same_bits(folder)
        found, theirs, limit, drive = measure(args, size, folder, rounds)
    share = statistics.median(row["seconds"] / row["limit"] for row in found["rows"])
    moved_work = [statistics.median(row["seconds"] * row["speed"] for row in side["rows"]) if side else None for side in (theirs, found)]
    expected = found["plan_bytes"] + found["program_bytes"]
    print(f"peak memory {found['peak'] / MIB:.0f} MiB of {size['limit'] / MIB:.0f} MiB (the group's own, with page cache: "
          f"{(found['group_peak'] or 0) / MIB:.0f}); planned {found['plan_bytes'] / MIB:.0f} MiB beside the program's {found['program_bytes'] / MIB:.0f}: "
          f"peak / plan {found['peak'] / expected:.3f}")
    harness.result(
        "infinity",
        ours=statistics.median(row["seconds"] for row in found["rows"]),
        opponent=statistics.median(row["seconds"] for row in theirs["rows"]) if theirs else None,
        ratio=moved_work[0] / moved_work[1] if theirs else None,
        limit_share=1 / share,
        unit="seconds per step; limit_share: limit / step",
        met=share <= TARGET and equal and found["peak"] <= PEAK_TARGET * expected,
        step_over_limit=share,
        equal_bits=equal,
        parameters=count,
        limit_bytes=limit.size,
        limit_kind=limit.kind,
        peak_bytes=found["peak"],
        peak_over_plan=found["peak"] / expected,
        group_peak_bytes=found["group_peak"],
        opponent_peak_bytes=theirs["peak"] if theirs else None,
        opponent_limit_bytes=theirs["limit"] if theirs else None,
        drive=drive.way,
        rounds=found["rows"],
    )


if __name__ == "__main__":
    workers = (build, step, digest, tier_facts, limit_data, start_drive, move_mixed)
    harness.serve({function.__name__: function for function in workers}) if harness.is_worker() else main()
