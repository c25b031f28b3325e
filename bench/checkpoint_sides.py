"""What the processes of checkpoint.py do: one engine (ours or DeepSpeed's) or a plain dictionary of tensors, saved, loaded and timed.

Every function is a command of harness.serve(); ranks get the same command at the same time and begin to count after a barrier.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any, Callable

MIB = 2**20
PIECE = 256 * MIB  # of a raw write's source: as much of it as no cache holds
TOKENS = 32

state: dict[str, Any] = {}


# ---------------------------------------------------------------- common


def world() -> tuple[int, int]:
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def start_torch(threads: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(threads)
    if not dist.is_initialized():
        dist.init_process_group("gloo")


def together() -> None:
    import torch.distributed as dist

    dist.barrier()


def fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def sync_all(folder: str) -> float:
    """Seconds until every file of a folder is on the disk, for programs that leave that to chance."""
    begin = time.perf_counter()
    for path in glob.glob(f"{folder}/**", recursive=True):
        fsync(path)
    return time.perf_counter() - begin


def forget(folder: str) -> None:
    """Takes the files of a folder out of the page cache."""
    for path in glob.glob(f"{folder}/**", recursive=True):
        if os.path.isfile(path):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def remove(path: str) -> None:
    """One rank is enough. What the file system does about it is over when the next measurement begins."""
    shutil.rmtree(path, ignore_errors=True)
    os.sync()


def counted(key: str) -> int:
    return int(re.search(rf"^{key}: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)[1])


class Peak:
    """Largest private (with shared) memory of this process while it is open; what it was before."""

    def __enter__(self) -> Peak:
        from machine_limits import private_bytes

        self._measure, self._running = private_bytes, True
        self.before = self.peak = private_bytes()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._running:
            self.peak = max(self.peak, self._measure())
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join()
        self.peak = max(self.peak, self._measure())


# ---------------------------------------------------------------- engines: ours and DeepSpeed's


def shapes(width: int, layers: int) -> list[tuple[int, ...]]:
    """Of the parameters; the odd vectors keep tensors from standing at round places in files."""
    return [shape for _ in range(layers) for shape in ((width, width), (width,), (width // 2 + 1,))]


def make_model(width: int, layers: int):
    import torch
    from torch import nn

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(width, width)
            self.odd = nn.Parameter(torch.zeros(width // 2 + 1))

        def forward(self, x):
            return torch.tanh(self.linear(x)) + self.odd.sum()

    return nn.Sequential(*(Layer() for _ in range(layers)))


def build(width: int, layers: int, threads: int, stage: int = 1) -> dict:
    import torch

    import deepspeed

    start_torch(threads)
    deepspeed.init_distributed(dist_backend="gloo")
    torch.manual_seed(1)
    model = make_model(width, layers).to(torch.bfloat16)
    config = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
              "zero_optimization": {"stage": stage, "overlap_comm": False}, "zero_allow_untested_optimizer": True}  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    state.update(engine=engine, width=width, x=torch.randn(TOKENS, width, dtype=torch.bfloat16))
    return {"parameters": sum(p.numel() for p in model.parameters())}


def step() -> float:
    engine = state["engine"]
    begin = time.perf_counter()
    loss = engine(state["x"]).float().square().mean()
    engine.backward(loss)
    engine.step()
    return time.perf_counter() - begin


def configure(**keys: Any) -> None:
    """Keys of our section `checkpoint`, without a second engine."""
    for key, value in keys.items():
        setattr(state["engine"]._config.checkpoint, key, value)


def save(folder: str, tag: str, synced: bool) -> dict:
    """synced: the program brings its files to the disk itself."""
    together()
    begin = time.perf_counter()
    state["engine"].save_checkpoint(folder, tag=tag)
    seconds = time.perf_counter() - begin
    together()
    sync_s = 0.0 if synced else sync_all(os.path.join(folder, tag))
    return {"seconds": seconds, "sync_s": sync_s}


def load(folder: str, tag: str, watched: bool = False) -> dict:
    """What it takes from files that are not in memory: time, bytes of the disk; watched: private memory, which takes time itself."""
    if world()[0] == 0:
        forget(os.path.join(folder, tag))
    together()
    read, entries = counted("read_bytes"), set(os.listdir(folder))
    peak = Peak()
    with peak if watched else contextlib.nullcontext():
        begin = time.perf_counter()
        path, _ = state["engine"].load_checkpoint(folder, tag=tag)
        seconds = time.perf_counter() - begin
    if path is None:
        raise RuntimeError(f"{folder}/{tag} was not loaded")
    memory = {"before": peak.before, "peak": peak.peak, "after": peak._measure()} if watched else {}
    return {"seconds": seconds, "read": counted("read_bytes") - read, "new_files": sorted(set(os.listdir(folder)) - entries), **memory}


def own_tensors() -> list:
    """Masters and moments of this rank, in place."""
    engine = state["engine"]
    found = []
    for index in range(len(engine.core_params)):
        for key in ("fp32", *engine._core.state_keys()):
            value = engine._core.read_local(index, key)
            if value is not None and value.numel():
                found.append(value.reshape(-1))
    return found


def copy_states() -> float:
    """Seconds of a plain copy of masters and moments into warm memory, by all threads."""
    import torch

    tensors = own_tensors()
    if "warm" not in state:
        state["warm"] = torch.zeros(PIECE // 4 + max(t.numel() for t in tensors))
    warm, at = state["warm"], 0
    together()
    begin = time.perf_counter()
    for tensor in tensors:
        if at > PIECE // 4:
            at = 0
        warm[at:at + tensor.numel()].copy_(tensor)
        at += tensor.numel()
    return time.perf_counter() - begin


def save_beside(folder: str, tag: str, least_steps: int) -> dict:
    """An asynchronous save with steps beside it until it is done, at least some."""
    engine = state["engine"]
    together()
    begin = time.perf_counter()
    engine.save_checkpoint(folder, tag=tag)
    stall = time.perf_counter() - begin
    running = engine._running_save
    steps = []
    while len(steps) < least_steps:
        steps.append(step())
    stepped = time.perf_counter()
    done_before = running is None or running._job.done
    engine.wait_for_checkpoint()
    end = time.perf_counter()
    return {"stall": stall, "steps": steps, "wait": end - stepped, "total": end - begin, "done_before_wait": done_before}


# ---------------------------------------------------------------- plain dictionaries: torch.save and torch.distributed.checkpoint


def build_plain(width: int, layers: int, threads: int) -> None:
    """What an engine of this model keeps on this rank: fp32 masters and two moments."""
    import torch

    start_torch(threads)
    rank, ranks = world()
    state["plain"] = {
        f"{kind}.{index}.rank{rank}": torch.randn(torch.Size(shape).numel() // ranks)
        for index, shape in enumerate(shapes(width, layers))
        for kind in ("fp32", "exp_avg", "exp_avg_sq")
    }


def torch_save(folder: str, tag: str) -> dict:
    import torch

    os.makedirs(os.path.join(folder, tag), exist_ok=True)
    together()
    begin = time.perf_counter()
    with open(os.path.join(folder, tag, f"rank{world()[0]}.pt"), "wb") as file:
        torch.save(state["plain"], file)
        file.flush()
        written = time.perf_counter()
        os.fsync(file.fileno())
    together()
    return {"seconds": written - begin, "sync_s": time.perf_counter() - written}


def torch_load(folder: str, tag: str) -> dict:
    import torch

    path = os.path.join(folder, tag, f"rank{world()[0]}.pt")
    forget(os.path.join(folder, tag))
    together()
    begin = time.perf_counter()
    torch.load(path)
    return {"seconds": time.perf_counter() - begin}


def dcp_save(folder: str, tag: str) -> dict:
    """It syncs its files by default."""
    import torch.distributed.checkpoint as dcp

    together()
    begin = time.perf_counter()
    dcp.save(state["plain"], checkpoint_id=os.path.join(folder, tag))
    return {"seconds": time.perf_counter() - begin, "sync_s": 0.0}


def dcp_beside(folder: str, tag: str) -> dict:
    import torch.distributed.checkpoint as dcp

    together()
    begin = time.perf_counter()
    future = dcp.async_save(state["plain"], checkpoint_id=os.path.join(folder, tag))  # memory kept for the copy needs a GPU
    stall = time.perf_counter() - begin
    future.result()
    return {"stall": stall, "total": time.perf_counter() - begin}


# ---------------------------------------------------------------- raw: what the disk takes and gives


def start_raw() -> None:
    import torch

    from deepspeed.ops.aio import aio_handle

    start_torch(1)
    state["handles"] = [aio_handle(block, depth) for block, depth in ((MIB, 32), (4 * MIB, 8))]
    state["source"] = state["handles"][0].new_cpu_locked_tensor(PIECE, torch.empty(0, dtype=torch.uint8))
    state["source"].random_(0, 255)


def raw_write(path: str, size: int, way: int) -> float:
    """Seconds until a new file of a rank's part of `size` bytes is on the disk, with space taken beforehand."""
    rank, ranks = world()
    path, size = f"{path}.{rank}", size // ranks // MIB * MIB
    handle, source = state["handles"][way], state["source"]
    together()
    begin = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.posix_fallocate(descriptor, 0, size)
    for offset in range(0, size, PIECE):
        handle.sync_pwrite(source[:min(PIECE, size - offset)], path, offset)
    os.fsync(descriptor)
    os.close(descriptor)
    return time.perf_counter() - begin


def raw_read(paths: list[str], way: int) -> float:
    """Seconds to read this rank's part of the files, all ranks together all of them, past the page cache."""
    rank, ranks = world()
    handle, source = state["handles"][way], state["source"]
    together()
    begin = time.perf_counter()
    for path in paths:
        each = os.path.getsize(path) // ranks // MIB * MIB
        for offset in range(rank * each, (rank + 1) * each, PIECE):
            handle.sync_pread(source[:min(PIECE, (rank + 1) * each - offset)], path, offset)
    return time.perf_counter() - begin


WORKERS: tuple[Callable[..., Any], ...] = (build, step, configure, save, load, copy_states, save_beside, build_plain, torch_save, torch_load, dcp_save,
                                           dcp_beside, start_raw, raw_write, raw_read, forget, remove)  # fmt: skip
