"""What `tests/crash.sh N python` runs: two ranks train and save after every step, and are killed at a random moment, N times.

    crash_saves.py FOLDER ROUNDS [SEED]

Values of a state follow from its step. Every round builds the engines anew, loads with tag=None and compares all values on both ranks with
what the step means; the step must be at least the newest one whose save had returned before the kill, and all folders that look like
checkpoints must be whole. One after the other it takes both layouts, saving within the step and beside it, and stages 1 to 3. The
program imports torch once and forks the ranks of each round.
"""
from __future__ import annotations

import contextlib
import importlib
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

import torch

import deepspeed
from common import free_port
from deepspeed import _C

RANKS, WIDTH, PATIENCE_S = 2, 300, 240.0


class Counting(torch.nn.Module):
    """Every gradient is 1, so SGD with momentum 1 and rate 1 leaves base - step * (step + 1) / 2 and a momentum of `step`, exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.arange(WIDTH * WIDTH, dtype=torch.float32).view(WIDTH, WIDTH) % 1009)
        self.odd = torch.nn.Parameter(torch.arange(4097, dtype=torch.float32))
        self.frozen = torch.nn.Parameter(torch.arange(1000, dtype=torch.float32), requires_grad=False)
        self.register_buffer("last", torch.zeros(3))

    def forward(self) -> torch.Tensor:
        return self.table.sum() + self.odd.sum()


@dataclass
class Kind:
    """One way of saving, with a folder of its own."""

    name: str
    stage: int
    checkpoint: dict[str, Any]
    folder: str
    known: int = 0  # newest step whose save had returned, or that was loaded
    kills: int = 0
    saves: int = 0
    window_s: float = 0.3  # kills come within so much of the first save's begin: about two saves


def config_of(kind: Kind) -> dict[str, Any]:
    return {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0,
            "zero_optimization": {"stage": kind.stage, "stage3_param_persistence_threshold": 10},
            "optimizer": {"type": "SGD", "params": {"lr": 1.0, "momentum": 1.0}}, "checkpoint": {"keep_last": 3, **kind.checkpoint}}


def must(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def check(engine: Any, client: dict) -> int:
    """The step that was loaded; AssertionError where any value is of another one."""
    step = engine.global_steps
    first = Counting()
    must(client["step"] == step, f"step {step} has the client state {client}")
    for name, param in engine.module.named_parameters():
        base = getattr(first, name).detach()
        if not param.requires_grad:
            with deepspeed.zero.GatheredParameters([param]):
                must(torch.equal(param.detach(), base), f"step {step}: {name} has other values")
            continue
        value = deepspeed.utils.safe_get_full_fp32_param(param)
        momentum = deepspeed.utils.safe_get_full_optimizer_state(param, "momentum_buffer")
        must(torch.equal(value, base - step * (step + 1) / 2), f"step {step}: {name} has values of another step")
        must(torch.equal(momentum, torch.full_like(base, step)), f"step {step}: the momentum of {name} is of another step")
    must(torch.equal(engine.module.last, torch.full((3,), float(step))), f"step {step}: the buffer is of step {engine.module.last[0]}")
    return step


def rank_main(kind: Kind, rank: int, port: int, say: int) -> None:
    """One rank of a round: loads and checks, then saves step after step. Says L<step> when it has loaded, S<step> when that save is valid."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    deepspeed.init_distributed()
    engine = deepspeed.initialize(model=Counting(), config=config_of(kind))[0]
    path, client = engine.load_checkpoint(kind.folder)
    step = 0 if path is None else check(engine, client)
    if rank == 0:
        for name in os.listdir(kind.folder):
            folder = os.path.join(kind.folder, name)
            if not name.startswith(".") and os.path.isdir(folder):
                must(not (problems := _C.verify_tag(folder, True)), f"{folder} is not whole: {problems}")
        os.write(say, f"L{step}\n".encode())
    while True:
        step += 1
        engine.backward(engine())
        engine.step()
        engine.module.last.fill_(step)
        engine.save_checkpoint(kind.folder, client_state={"step": step})
        valid = step - 1 if engine._running_save is not None else step
        if rank == 0 and valid > 0:
            os.write(say, f"S{valid}\n".encode())


def start_rank(kind: Kind, rank: int, port: int, say: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        rank_main(kind, rank, port, say)
    except BaseException:
        os.write(say, f"E rank {rank}: {traceback.format_exc()!r}\n".encode())
    os._exit(1)


def import_all(kind: Kind) -> None:
    """What ranks import on their way is imported here once: a child makes an engine and tells its modules."""
    heard, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
        deepspeed.init_distributed()
        engine = deepspeed.initialize(model=Counting(), config=config_of(kind))[0]
        engine.save_checkpoint(kind.folder)
        engine.load_checkpoint(kind.folder)
        os.write(say, "\n".join(sorted(sys.modules)).encode())
        os._exit(0)
    os.close(say)
    with os.fdopen(heard) as names:
        for name in names.read().split():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    must(os.waitpid(pid, 0)[1] == 0, "the first engine could not be made")
    shutil.rmtree(kind.folder)
    os.makedirs(kind.folder)


class Round:
    """Two ranks from their start to their end."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._said, say = os.pipe()
        port = free_port()
        self.pids = [start_rank(kind, rank, port, say) for rank in range(RANKS)]
        os.close(say)
        self._text = b""

    def listen(self, seconds: float) -> list[str]:
        """Whole lines that come within the time; at once when there are some."""
        if select.select([self._said], [], [], seconds)[0]:
            self._text += os.read(self._said, 65536)
        *lines, self._text = self._text.split(b"\n")
        return [line.decode() for line in lines]

    def follow(self, lines: list[str]) -> None:
        for line in lines:
            if line.startswith("E"):
                raise AssertionError(f"{self.kind.name}: nothing hindered this save or load: {line}")
            step = int(line[1:])
            if line.startswith("L"):
                must(step >= self.kind.known, f"{self.kind.name}: step {self.kind.known} was saved, and {step} is what tag=None loads")
            else:
                self.kind.saves += 1
            self.kind.known = max(self.kind.known, step)

    def loaded(self) -> None:
        """Returns when the ranks begin to save."""
        before, end = self.kind.saves, time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            lines = self.listen(1.0)
            self.follow(lines)
            if any(line.startswith("L") for line in lines) or self.kind.saves > before:
                return
        raise AssertionError(f"{self.kind.name}: the ranks did not load within {PATIENCE_S:.0f} s")

    def kill(self) -> None:
        """Both at once, or one shortly before the other, which then saves alone."""
        pids = random.sample(self.pids, RANKS)
        os.kill(pids[0], signal.SIGKILL)
        if random.random() < 0.5:
            time.sleep(random.uniform(0, 0.03))
        os.kill(pids[1], signal.SIGKILL)

    def end(self) -> list[str]:
        for pid in self.pids:
            os.waitpid(pid, 0)
        lines: list[str] = []
        while more := self.listen(0):
            lines += more
        os.close(self._said)
        return lines


def run_round(kind: Kind) -> None:
    ranks = Round(kind)
    try:
        ranks.loaded()
        before, end = kind.saves, time.monotonic() + random.uniform(0, kind.window_s)
        while (left := end - time.monotonic()) > 0:
            ranks.follow(ranks.listen(left))
    finally:
        ranks.kill()
        last = ranks.end()
    # A rank whose neighbour was killed first may have said so.
    ranks.follow([line for line in last if not line.startswith("E")])
    kind.kills += 1
    kind.window_s = min(20.0, kind.window_s * 1.5) if kind.saves == before else max(0.02, kind.window_s / 1.2)


def main() -> int:
    folder, rounds = sys.argv[1], int(sys.argv[2])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(10**6)
    random.seed(seed)
    deepspeed.logger.setLevel("ERROR")
    kinds = []
    for layout, stage in (("native", 2), ("deepspeed", 1), ("native", 3), ("deepspeed", 3)):
        for beside in (False, True):
            name = f"{layout} stage {stage}{' beside training' if beside else ''}"
            kinds.append(Kind(name, stage, {"format": layout, "async_save": beside}, os.path.join(folder, name.replace(" ", "_"))))
            os.makedirs(kinds[-1].folder)
    for kind in (kinds[0], kinds[2]):
        import_all(kind)
    begin = time.monotonic()
    for number in range(rounds):
        try:
            run_round(kinds[number % len(kinds)])
        except AssertionError as problem:
            print(f"FAILED in round {number + 1} (seed {seed}): {problem}")
            return 1
    for kind in kinds:
        print(f"   {kind.name}: {kind.kills} kills, {kind.saves} saves finished, newest step {kind.known}")
        if kind.kills >= 20 and not kind.known:
            print(f"FAILED: {kind.name} never finished a save")
            return 1
    if rounds > 0 and not any(kind.saves for kind in kinds):
        print("FAILED: no save was ever finished")
        return 1
    print(f"{rounds} kills of two Python ranks in {time.monotonic() - begin:.0f} s: no wrong load, no checkpoint lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
