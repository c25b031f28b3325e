"""Trains a tiny Llama and a tiny OPT under Trainer, Accelerate and Lightning with this package and with DeepSpeed, and compares their losses.

    python tests/integrations/same_losses.py --reference FOLDER [--only TEXT] [--ranks N] [--own-adam]

FOLDER is put before PYTHONPATH and holds DeepSpeed (`pip install --no-deps --target FOLDER deepspeed==0.19.8`; what it imports must be
installed). Ours is what `import deepspeed` finds without it. Prints a table and fails where a loss differs by more than its dtype's rounding:

- fp32: 1e-5 relative. Both sum the same numbers in other orders: 1e-7 a step, made larger by AdamW's division while its moments are young.
- bf16: 2e-3 relative, half of the 2^-8 to which a number is rounded. A loss is the mean over 46 tokens, where roundings largely cancel; but
  DeepSpeed accumulates micro-batches in bf16 at some stages and in fp32 at others, and a weight that rounds to its other neighbour changes
  the losses of all later steps.

With several ranks the losses of all of them are compared. Both sides use torch's AdamW, or with --own-adam each side its own FusedAdam, which
DeepSpeed compiles. Cases whose packages are missing are left out and named. Exit status 0 only when every other case ran and agrees.
"""
from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "python"))

from common import free_port  # noqa: E402

TOLERANCE = {"fp32": 1e-5, "bf16": 2e-3}
PACKAGES = {"trainer": ("transformers", "accelerate"), "accelerate": ("transformers", "accelerate"), "lightning": ("transformers", "pytorch_lightning")}


class Case(NamedTuple):
    trainer: str
    model: str
    stage: int
    dtype: str
    lora: bool

    @property
    def name(self) -> str:
        return f"{self.trainer} {self.model} stage {self.stage} {self.dtype}{' lora' if self.lora else ''}"


def all_cases() -> list[Case]:
    return [Case(*values) for values in itertools.product(PACKAGES, ("llama", "opt"), (1, 2, 3), TOLERANCE, (False, True))]


def missing_packages(case: Case) -> list[str]:
    return [name for name in (*PACKAGES[case.trainer], *(["peft"] if case.lora else [])) if importlib.util.find_spec(name) is None]


def losses_of(cases: list[Case], first_path: str | None, args: argparse.Namespace) -> dict[str, list[float] | str]:
    """Losses of all ranks by case name; a text is what went wrong. The processes of a trainer train its cases one after the other."""
    found: dict[str, list[float] | str] = {}
    for trainer in PACKAGES:
        mine = [case for case in cases if case.trainer == trainer]
        if not mine:
            continue
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "cases.json").write_text(json.dumps({"cases": [list(case) for case in mine], "own_adam": args.own_adam}))
            endings = run_workers(Path(folder), first_path, args.ranks, args.timeout)
            by_rank = [rows_of(Path(folder, f"losses{rank}.jsonl")) for rank in range(args.ranks)]
        for case in mine:
            results = [rows.get(case.name, ending) for rows, ending in zip(by_rank, endings)]
            wrong = [result for result in results if isinstance(result, str)]
            found[case.name] = wrong[0] if wrong else [loss for losses in results for loss in losses]
    return found


def rows_of(path: Path) -> dict[str, list[float] | str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {row["case"]: row.get("losses") or row["error"] for row in rows}


def run_workers(folder: Path, first_path: str | None, ranks: int, timeout_s: float) -> list[str]:
    """How each rank's process ended. None is left."""
    port, logs = free_port(), [folder / f"log{rank}" for rank in range(ranks)]
    workers: list[subprocess.Popen] = []
    try:
        for rank, log in enumerate(logs):
            with open(log, "wb") as output:
                workers.append(subprocess.Popen([sys.executable, str(HERE / "same_losses_worker.py"), str(folder)], cwd=folder, stdout=output,
                                                stderr=subprocess.STDOUT, env=environment(first_path, rank, ranks, port)))
        deadline = time.monotonic() + timeout_s
        for worker in workers:
            try:
                worker.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    late = f", after {timeout_s:.0f} s"
    return [f"the process ended with {worker.returncode}{late if worker.returncode == -9 else ''}: {log.read_text(errors='replace')[-600:]}"
            for worker, log in zip(workers, logs)]


def environment(first_path: str | None, rank: int, ranks: int, port: int) -> dict[str, str]:
    made = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
            "LOCAL_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    if first_path is not None:
        made["PYTHONPATH"] = os.pathsep.join([first_path, *filter(None, [os.environ.get("PYTHONPATH")])])
    return made


def difference(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference of a step; infinite where one has more steps, or a number that is none."""
    if len(ours) != len(theirs) or not ours:
        return float("inf")
    worst = max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs))
    return worst if worst == worst else float("inf")


def judge(case: Case, ours: list[float] | str, theirs: list[float] | str) -> tuple[bool, str]:
    """Whether they agree, and the table's cells for it."""
    for who, losses in (("ours", ours), ("DeepSpeed", theirs)):
        if isinstance(losses, str):
            return False, f"FAILED with {who}: {losses.strip().splitlines()[-1] if losses.strip() else 'no output'}"
    worst = difference(ours, theirs)
    agrees = worst <= TOLERANCE[case.dtype]
    return agrees, f"{ours[0]:.6f} | {ours[-1]:.6f} | {theirs[-1]:.6f} | {worst:.1e} | {'ok' if agrees else 'DIFFERS'}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Losses with ours and with DeepSpeed")
    parser.add_argument("--reference", required=True, help="folder that holds DeepSpeed, to be put before PYTHONPATH")
    parser.add_argument("--only", default="", help="only cases whose names have this text; several separated by commas")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one trainer's cases (DeepSpeed compiles when first used)")
    parser.add_argument("--ranks", type=int, default=1, help="processes of each training, on this machine")
    parser.add_argument("--own-adam", action="store_true", help="FusedAdam of either side instead of torch's AdamW")
    args = parser.parse_args(arguments)
    if args.ranks < 1:
        parser.error(f"--ranks {args.ranks}: at least 1")
    if importlib.util.find_spec("deepspeed", None) is None or not Path(args.reference, "deepspeed").is_dir():
        parser.error(f"deepspeed must be importable, and {args.reference} must hold another one")
    wanted = [case for case in all_cases() if any(text in case.name for text in args.only.split(","))]
    left_out = {case: missing for case in wanted if (missing := missing_packages(case))}
    cases = [case for case in wanted if case not in left_out]
    ours, theirs = (losses_of(cases, path, args) for path in (None, args.reference))
    print("| case | first loss | last, ours | last, DeepSpeed | largest difference | |\n|---|---:|---:|---:|---:|---|")
    failed = 0
    for case in cases:
        agrees, cells = judge(case, ours[case.name], theirs[case.name])
        failed += not agrees
        print(f"| {case.name} | {cells} |")
    for case, missing in left_out.items():
        print(f"| {case.name} | left out: {', '.join(missing)} is not installed |")
    print(f"\n{len(cases) - failed} agree, {failed} FAILED, {len(left_out)} left out")
    return 0 if failed == 0 and cases else 1


if __name__ == "__main__":
    raise SystemExit(main())
