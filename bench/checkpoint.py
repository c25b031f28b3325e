"""Checkpoints: saving, saving beside training, loading with another number of ranks; ours in both layouts, and what others need.

A model of linear layers in bf16 with AdamW, stage 1, whose fp32 masters and two moments are about 3.2 GB (--quick: 0.4 GB, 2 ranks). All
measurements of one comparison alternate A B C, C B A on one disk; ratios are medians over rounds of two times of one round.

- save: seconds from the call until everything is on the disk. The limit is a raw write of as many bytes into as many new files: space
  reserved, our aio_handle (1 MiB x 32 or 4 MiB x 8, whichever is faster at the start) from huge pages past the page cache, fsync.
  torch.save leaves its file in the page cache: its time is given without and with an fsync; torch.distributed.checkpoint syncs. They
  save masters and moments, every rank its part. DeepSpeed (0.19.8) and our default layout save the bf16 weights as well.
- stall: seconds that save_checkpoint keeps training waiting with `checkpoint.async_save`, beside a copy of the same tensors by torch's
  copy_ and all threads into warm memory; steps beside the write; seconds until it is valid.
- load: by a fresh engine of 1, 2 and 3 ranks from what 2 ranks saved, files out of the page cache. The limit is a raw read of the bytes
  needed. Bytes that the kernel read from the disk for the ranks over the bytes needed; in a load of its own, which is not timed,
  private memory at its highest over that before and after.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parent))
import checkpoint_sides as sides  # noqa: E402
import harness  # noqa: E402

MIB = 2**20
SAVE_TARGET, STALL_TARGET, LOAD_TARGET = 0.9, 1.2, 1.15
LOAD_MEMORY = 128 * MIB  # of buffers on each rank, whatever the size of the states
FULL = {"width": 2048, "layers": 64}
QUICK = {"width": 1024, "layers": 34}
BYTES_OF_STATES = 12  # of a parameter: master and two moments


def median(values: list[float]) -> float:
    return statistics.median(values)


class Rounds:
    """Measurements that alternate, each under its name. A measurement returns a dictionary of numbers, the slowest rank's."""

    def __init__(self) -> None:
        self.ways: dict[str, Callable[[], dict[str, float]]] = {}
        self.found: dict[str, list[dict[str, float]]] = {}

    def run(self, rounds: int) -> Rounds:
        for way in self.ways.values():
            way()  # memory, files and operators that only the first one makes
        self.found = {name: [] for name in self.ways}
        for index in range(rounds):
            names = list(self.ways)
            for name in names if index % 2 == 0 else reversed(names):
                self.found[name].append(self.ways[name]())
        return self

    def of(self, name: str, synced: bool = True) -> list[float]:
        return [row["seconds"] + (row.get("sync_s", 0.0) if synced else 0.0) for row in self.found[name]]

    def over(self, name: str, other: str, synced: bool = True) -> float:
        """Time of one over that of the other."""
        return harness.pair_ratio(self.of(name, synced), self.of(other))

    def show(self, title: str, size: float) -> None:
        for name in self.found:
            bare, synced = median(self.of(name, synced=False)), median(self.of(name))
            without = f", {bare:.2f} s without its fsync" if synced > 1.001 * bare else ""
            print(f"{title}: {name:24} {synced:7.2f} s  {size / synced / 1e9:5.2f} GB/s{without}", flush=True)


def slowest(answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: max(answer[key] for answer in answers) if isinstance(answers[0][key], (int, float)) else answers[0][key] for key in answers[0]}


class Bench:
    def __init__(self, args: argparse.Namespace, folder: str) -> None:
        self.args, self.folder, self.shape = args, folder, QUICK if args.quick else FULL
        self.rounds = args.rounds or (2 if args.quick else 5)
        self.parameters = sum(n for shape in sides.shapes(**self.shape) for n in [shape[0] * (shape[1] if len(shape) > 1 else 1)])
        self.size = self.parameters * BYTES_OF_STATES
        self.way: int | None = None
        self.counter = 0
        self.results: dict[str, Any] = {}

    # ---- sides
    def engine(self, ranks: int, *, reference: bool = False) -> harness.Side:
        threads = max(1, self.args.threads // ranks)
        if reference:
            side = harness.reference_side(f"DeepSpeed x {ranks}", __file__, self.args.reference, ranks=ranks, threads=threads)
        else:
            side = harness.Side(f"ours x {ranks}", __file__, ranks=ranks, threads=threads, timeout_s=900)
        side.call("build", **self.shape, threads=threads)
        side.call("step")
        side.call("step")
        return side

    def plain(self, ranks: int) -> harness.Side:
        threads = max(1, self.args.threads // ranks)
        side = harness.Side(f"torch x {ranks}", __file__, ranks=ranks, threads=threads, timeout_s=900)
        side.call("build_plain", **self.shape, threads=threads)
        return side

    def raw(self, ranks: int) -> harness.Side:
        side = harness.Side(f"raw x {ranks}", __file__, ranks=ranks)
        side.call("start_raw")
        if self.way is None:
            ways = (0, 1, 1, 0)
            times: dict[int, list[float]] = {0: [], 1: []}
            for way in ways:
                times[way].append(self.write_raw(side, self.size, way)["seconds"])
            self.way = min(times, key=lambda way: min(times[way]))
            print("raw write, GB/s: " + ", ".join(f"{name} {self.size / min(times[way]) / 1e9:.2f}" for way, name in enumerate(("1 MiB x 32", "4 MiB x 8"))))
        return side

    # ---- one measurement each
    def write_raw(self, side: harness.Side, size: int, way: int | None = None) -> dict[str, float]:
        path = self.new_tag("raw")
        seconds = side.slowest("raw_write", path=os.path.join(self.folder, path), size=size, way=self.way if way is None else way)
        for rank in range(side.ranks):
            os.unlink(os.path.join(self.folder, f"{path}.{rank}"))
        os.sync()
        return {"seconds": seconds}

    def new_tag(self, name: str) -> str:
        self.counter += 1
        return f"{name}{self.counter}"

    def saved(self, side: harness.Side, function: str, **arguments: Any) -> dict[str, Any]:
        """A save into a new folder, removed at once."""
        tag = self.new_tag(function)
        found = slowest(side.call(function, folder=self.folder, tag=tag, **arguments))
        shutil.rmtree(os.path.join(self.folder, tag))
        os.sync()
        return found

    # ---- comparisons
    def native(self, ranks: int, raw: harness.Side, ours: harness.Side, plain: harness.Side) -> None:
        ours.call("configure", format="native", async_save=False)
        rounds = Rounds()
        rounds.ways = {
            "raw": lambda: self.write_raw(raw, self.size),
            "ours, native": lambda: self.saved(ours, "save", synced=True),
            "torch.save": lambda: self.saved(plain, "torch_save"),
            "distributed.checkpoint": lambda: self.saved(plain, "dcp_save"),
        }
        rounds.run(self.rounds).show(f"save, {ranks} rank(s)", self.size)
        self.results[f"save x {ranks}"] = {
            "raw_share": 1 / rounds.over("ours, native", "raw"),
            "ours_s": median(rounds.of("ours, native")),
            "torch_save": rounds.over("torch.save", "ours, native"),
            "torch_save_unsynced": rounds.over("torch.save", "ours, native", synced=False),
            "distributed_checkpoint": rounds.over("distributed.checkpoint", "ours, native"),
        }

    def beside(self, ranks: int, ours: harness.Side, plain: harness.Side) -> None:
        """The first asynchronous save of the engine is measured as well."""
        ours.call("configure", format="native", async_save=True)
        alone = median([ours.slowest("step") for _ in range(3)])
        ours.slowest("copy_states")
        rows, theirs = [], []
        for _ in range(1 + self.rounds):
            copied = [ours.slowest("copy_states")]
            row = self.saved(ours, "save_beside", least_steps=3)
            copied.append(ours.slowest("copy_states"))
            rows.append({**row, "copy": sum(copied) / 2, "step": median(row["steps"])})
            theirs.append(self.saved(plain, "dcp_beside"))
        first, rest = rows[0], rows[1:]
        self.results[f"beside x {ranks}"] = found = {
            "first_stall_over_copy": first["stall"] / first["copy"],
            "stall_over_copy": median([row["stall"] / row["copy"] for row in rest]),
            "stall_s": median([row["stall"] for row in rest]),
            "copy_s": median([row["copy"] for row in rest]),
            "total_s": median([row["total"] for row in rest]),
            "step_over_alone": median([row["step"] / alone for row in rest]),
            "distributed_checkpoint_stall_s": median([row["stall"] for row in theirs[1:]]),
            "distributed_checkpoint_first_stall_s": theirs[0]["stall"],
            "distributed_checkpoint_total_s": median([row["total"] for row in theirs[1:]]),
        }
        print(f"beside training, {ranks} rank(s): " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)

    def default_layout(self, ranks: int, raw: harness.Side, ours: harness.Side, reference: harness.Side | None) -> None:
        """What DeepSpeed's programs read, saved and loaded."""
        ours.call("configure", format="deepspeed", async_save=False)
        size = self.parameters * (BYTES_OF_STATES + 2)
        rounds = Rounds()
        rounds.ways = {"raw": lambda: self.write_raw(raw, size), "ours, DeepSpeed's layout": lambda: self.saved(ours, "save", synced=True)}
        if reference:
            rounds.ways["DeepSpeed"] = lambda: self.saved(reference, "save", synced=False)
        rounds.run(self.rounds).show(f"save, {ranks} rank(s)", size)
        ours.call("save", folder=self.folder, tag="ours", synced=True)
        loads = Rounds()
        loads.ways = {"ours, DeepSpeed's layout": lambda: slowest(ours.call("load", folder=self.folder, tag="ours"))}
        if reference:
            reference.call("save", folder=self.folder, tag="theirs", synced=False)
            loads.ways["DeepSpeed"] = lambda: slowest(reference.call("load", folder=self.folder, tag="theirs"))
        loads.run(self.rounds).show(f"load, {ranks} rank(s)", size)
        name = "ours, DeepSpeed's layout"
        self.results[f"default layout x {ranks}"] = {
            "raw_share": 1 / rounds.over(name, "raw"),
            "save_s": median(rounds.of(name)),
            "load_s": median(loads.of(name)),
            "deepspeed_save": rounds.over("DeepSpeed", name) if reference else None,
            "deepspeed_save_unsynced": rounds.over("DeepSpeed", name, synced=False) if reference else None,
            "deepspeed_load": loads.over("DeepSpeed", name) if reference else None,
        }
        for tag in ("ours", "theirs"):
            shutil.rmtree(os.path.join(self.folder, tag), ignore_errors=True)

    def other_ranks(self, ranks: int, tag: str) -> None:
        """Loading of the native checkpoint `tag` by another number of ranks."""
        ours, raw = self.engine(ranks), self.raw(ranks)
        try:
            paths = [str(path) for path in sorted(Path(self.folder, tag).glob("*.safetensors"))]

            def read() -> dict[str, float]:
                for side_path in paths:
                    sides.forget(os.path.dirname(side_path))
                return {"seconds": raw.slowest("raw_read", paths=paths, way=self.way)}

            details: list[list[dict]] = []

            def load() -> dict[str, float]:
                details.append(ours.call("load", folder=self.folder, tag=tag, watched=not details))
                return {"seconds": max(row["seconds"] for row in details[-1])}

            rounds = Rounds()
            rounds.ways = {"raw read": read, "ours, native": load}
            rounds.run(self.rounds).show(f"load, saved by 2, {ranks} rank(s)", self.size)
        finally:
            ours.close()
            raw.close()
        read_share = median([sum(row["read"] for row in rows) / self.size for rows in details])
        first = details[0]
        grown = max(row["peak"] - max(row["before"], row["after"]) for row in first)
        self.results[f"load 2 to {ranks}"] = {"over_raw": rounds.over("ours, native", "raw read"), "read_over_needed": read_share,
                                              "temporary_memory_bytes": grown, "new_files": sorted({name for rows in details for row in rows for name in row["new_files"]})}  # fmt: skip
        print(f"load, saved by 2, {ranks} rank(s): read {read_share:.3f} of the bytes needed, temporary memory {grown / MIB:.0f} MiB", flush=True)

    # ---- all
    def world(self, ranks: int) -> None:
        raw, ours = self.raw(ranks), self.engine(ranks)
        plain = reference = None
        try:
            plain = self.plain(ranks)
            self.native(ranks, raw, ours, plain)
            self.beside(ranks, ours, plain)
            plain.close()
            if ranks == 2:
                ours.call("configure", format="native", async_save=False)
                ours.call("save", folder=self.folder, tag="by2", synced=True)
            reference = self.engine(ranks, reference=True) if self.args.reference else None
            self.default_layout(ranks, raw, ours, reference)
        finally:
            for side in (raw, ours, plain, reference):
                if side:
                    side.close()

    def run(self) -> None:
        print(f"{self.parameters / 1e6:.0f} M parameters: masters and moments {self.size / 1e9:.2f} GB; "
              f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors", flush=True)
        for ranks in self.args.ranks:
            self.world(ranks)
        if 2 in self.args.ranks:
            for ranks in (1,) if self.args.quick else (1, 2, 3):
                self.other_ranks(ranks, "by2")

    def met(self) -> bool:
        saves = all(found["raw_share"] >= SAVE_TARGET for name, found in self.results.items() if name.startswith("save"))
        stalls = all(found["stall_over_copy"] <= STALL_TARGET for name, found in self.results.items() if name.startswith("beside"))
        loads = all(found["over_raw"] <= LOAD_TARGET and found["temporary_memory_bytes"] <= LOAD_MEMORY and not found["new_files"]
                    for name, found in self.results.items() if name.startswith("load"))
        return saves and stalls and loads


def main() -> None:
    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--folder", default=os.environ.get("TMPDIR", "/tmp"), help="on the disk to measure")
        parser.add_argument("--ranks", type=int, nargs="+", help="default: 1 and 2; with --quick 2")
        parser.add_argument("--rounds", type=int)
        parser.add_argument("--threads", type=int, default=os.cpu_count())

    args = harness.arguments(__doc__, extra)
    args.ranks = args.ranks or ([2] if args.quick else [1, 2])
    if not harness.have_ours():
        harness.result("checkpoint", ours=None, opponent=None, ratio=None, limit_share=None, met=None)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the folder and the workers are cleared away then, too
    folder = tempfile.mkdtemp(prefix="deepscale_checkpoint_", dir=args.folder)
    bench = Bench(args, folder)
    try:
        bench.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    first = bench.results[f"save x {args.ranks[0]}"]
    harness.result(
        "checkpoint",
        ours=first["ours_s"],
        opponent=first["torch_save"] * first["ours_s"],
        ratio=first["torch_save"],
        limit_share=first["raw_share"],
        unit="seconds of a save in the native format; opponent: torch.save and fsync; limit_share: raw write / save",
        met=bench.met(),
        state_bytes=bench.size,
        load_average=os.getloadavg()[0],
        **bench.results,
    )


if __name__ == "__main__":
    harness.serve({function.__name__: function for function in sides.WORKERS}) if harness.is_worker() else main()
