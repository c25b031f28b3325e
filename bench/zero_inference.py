"""ZeRO-Inference: tokens per second of a Llama whose weights do not fit into the memory that the process may use.

Sides, each under its own memory limit, one pass (one token for the batch) after the other, interleaved with measurements of the drive:
    disk       weights in 16 bits in files (zero.Init, offload_param nvme)
    disk int4  the same in 4 bits
    accelerate Transformers' device_map with everything on disk (Accelerate)
    DeepSpeed  0.19.8's ZeRO-Inference, if its interpreter is given and has Transformers
Then, without a limit: weights in host memory, against the bandwidth of reading memory by all threads.

Limit of a side on disk: bandwidth of the drive / bytes that the process read per pass (what stays resident is not read).
Targets: disk at least 0.9 of its limit, disk int4 at least 3 times disk, host at least 0.9 of memory bandwidth; peak of private memory
at most 1.05 of the memory plan with what the program itself held before (activations are not in the plan).
The model has random weights and a real folder (examples/zero_inference/random_weights.py), made in --folder once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness  # noqa: E402
from machine_limits import MIB, DriveReads, MemoryLimit, PeakMemory, bytes_read, limit_data, private_bytes  # noqa: E402

EXAMPLE = harness.ROOT / "examples" / "zero_inference"
QUICK = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 8, "num_attention_heads": 16,
         "num_key_value_heads": 16, "max_position_embeddings": 2048}
PROMPT = 8


# ---------------------------------------------------------------- worker
class Worker:
    model: Any = None
    keep: Any = None
    peak: Any = None
    data: Any = None
    program = plan = 0

    def load(self, kind: str, folder: str, files: str, bits: int) -> dict:
        import torch
        torch.set_num_threads(os.cpu_count() or 1)
        self.peak = PeakMemory()
        start, read = time.perf_counter(), bytes_read()
        if kind == "accelerate":
            self._load_accelerate(folder, files)
        else:
            self._load_zero(kind, folder, files, bits)
        return {"seconds": time.perf_counter() - start, "bytes_read": bytes_read() - read}

    def _load_accelerate(self, folder: str, files: str) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
        layers = AutoConfig.from_pretrained(folder).num_hidden_layers
        places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk",
                  **{f"model.layers.{layer}": "disk" for layer in range(layers)}}
        self.model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16, device_map=places, offload_folder=files,
                                                          offload_buffers=False).eval()

    def _load_zero(self, kind: str, folder: str, files: str, bits: int) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401 (the last one loads the model's code)
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        import deepspeed
        self.program = private_bytes()
        hidden = AutoConfig.from_pretrained(folder).hidden_size
        param: dict = {"device": "cpu"} if kind == "host" else {"device": "nvme", "nvme_path": files, "buffer_count": 5, "buffer_size": 2**31}
        if kind == "reference":
            param["buffer_size"], param["max_in_cpu"] = 200_000_000, 0
        config: dict = {"bf16": {"enabled": True}, "train_batch_size": 1, "steps_per_print": 2000,
                        "zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": 2 * hidden**2, "offload_param": param,
                                              "stage3_param_persistence_threshold": hidden, "stage3_max_live_parameters": 2 * hidden**2}}
        if bits < 16:
            config["weight_quantization"] = {"quantized_initialization": {"num_bits": bits, "group_size": 64, "group_dim": 1, "symmetric": False}}
        self.keep = HfDeepSpeedConfig(config)
        model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16)
        engine = deepspeed.initialize(model=model, config=config)[0]
        if hasattr(engine, "memory_plan"):
            planned = engine.memory_plan()["rank_bytes"]
            self.plan = self.program + sum(planned[place] for place in ("pinned", "pageable", "shared"))
        self.model = engine.module.eval()

    def generate(self, tokens: int) -> dict:
        """One generation of `tokens` passes. Seconds and bytes read, the prompt's pass included."""
        import torch
        ids = torch.randint(0, 1000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
        read, start = bytes_read(), time.perf_counter()
        with torch.no_grad():
            self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                                do_sample=False)
        elapsed = time.perf_counter() - start
        return {"seconds": elapsed / tokens, "bytes": (bytes_read() - read) / tokens, "peak": self.peak.peak, "plan": self.plan}

    def weight_bytes(self) -> int:
        """Of the weights that a pass reads: all but the rows of an embedding that no token needs."""
        table = self.model.get_input_embeddings().weight
        return sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in self.model.parameters() if p is not table)

    def memory_bandwidth(self) -> float:
        """Bytes per second of summing a large tensor by all threads: what reading costs."""
        import torch
        if self.data is None:
            self.data = torch.ones(1024 * MIB // 8, dtype=torch.int64)
            self.data.sum()
        return self.data.nbytes / statistics.median(harness.seconds(self.data.sum) for _ in range(3))


# ---------------------------------------------------------------- benchmark
def make_model(folder: Path, quick: bool) -> int:
    """Writes the random model unless it is there; bytes of its weights."""
    sys.path.insert(0, str(EXAMPLE))
    import random_weights
    from transformers import LlamaConfig
    if not (folder / "model.safetensors.index.json").exists():
        random_weights.write_model(LlamaConfig(**QUICK) if quick else random_weights.config_of("llama-2-7b"), folder)
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def reason_of(error: Exception) -> str:
    """One line: how the process ended, or the exception that it answered with."""
    lines = str(error).strip().splitlines()
    return lines[0] if "exit status" in lines[0] else lines[-1]


def start_side(name: str, kind: str, args: argparse.Namespace, folder: Path, bits: int, limit: MemoryLimit | None,
               python: str) -> harness.Side | None:
    files = args.folder / f"files-{kind}-{bits}"
    files.mkdir(parents=True, exist_ok=True)
    environment = harness.reference_environment() if kind == "reference" else {}
    side = harness.Side(name, __file__, python=python, threads=os.cpu_count() or 1, timeout_s=1200,
                        environment={**environment, "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"})
    try:
        if limit:
            limit.apply(side.pids, lambda size: side.call("limit_data", size=size))
        [loaded] = side.call("load", kind=kind, folder=str(folder), files=str(files), bits=bits)
    except harness.SideFailed as error:
        print(f"{name}: did not run: {reason_of(error)}", flush=True)
        side.close()
        return None
    limited = f"memory limit {limit.size / 2**30:.2f} GiB ({limit.kind})" if limit else "no memory limit"
    print(f"{name}: {limited}, loaded in {loaded['seconds']:.1f} s, "
          f"{loaded['bytes_read'] / 1e9:.2f} GB read", flush=True)
    return side


def on_disk(args: argparse.Namespace, folder: Path, weights: int, limit: int) -> dict:
    drive = DriveReads(sorted(folder.glob("*.safetensors")), 256 * MIB if args.quick else 1024 * MIB)
    wanted = [("disk", "disk", 16, sys.executable), ("disk int4", "disk", 4, sys.executable), ("accelerate", "accelerate", 16, sys.executable)]
    if args.reference:
        wanted.append(("DeepSpeed", "reference", 16, args.reference))
    limits = [MemoryLimit(limit, f"{kind}-{bits}") for _, kind, bits, _ in wanted]
    sides: list[harness.Side] = []
    try:
        for (name, kind, bits, python), own in zip(wanted, limits):
            if side := start_side(name, kind, args, folder, bits, own, python):
                sides.append(side)
        return measure(sides, drive, args.quick)
    finally:
        harness.close_all()
        for own in limits:
            own.close()


def measure(sides: list[harness.Side], drive: DriveReads, quick: bool) -> dict:
    runs: dict[str, list[dict]] = {side.name: [] for side in sides}
    try:
        for side in sides:
            side.call("generate", tokens=3)  # learns the order, decides what stays
        for _ in range(2 if quick else 4):
            for side in list(sides):
                before = drive.measure()
                try:
                    [run] = side.call("generate", tokens=3)
                except harness.SideFailed as error:
                    print(f"{side.name}: failed: {reason_of(error)}", flush=True)
                    sides.remove(side)
                    continue
                run["bandwidth"] = (before + drive.measure()) / 2
                runs[side.name].append(run)
                print(f"{side.name:<10} {1 / run['seconds']:8.3f} tokens/s   {run['bytes'] / 1e9:6.2f} GB per pass   drive {run['bandwidth'] / 1e9:5.2f} GB/s"
                      f"   share {run['bytes'] / run['bandwidth'] / run['seconds']:5.2f}   peak {run['peak'] / 2**30:5.2f} GiB" + (f" of planned {run['plan'] / 2**30:5.2f}" if run["plan"] else ""), flush=True)
    finally:
        for side in sides:
            side.close()
    return runs


def on_host(args: argparse.Namespace, folder: Path) -> dict | None:
    side = start_side("host", "host", args, folder, 16, None, sys.executable)
    if side is None:
        return None
    with side:
        [weights] = side.call("weight_bytes")
        [first] = side.call("generate", tokens=3)
        rounds = []
        for _ in range(3 if args.quick else 6):
            [bandwidth] = side.call("memory_bandwidth")
            [run] = side.call("generate", tokens=16)
            rounds.append({"seconds": run["seconds"], "share": weights / bandwidth / run["seconds"], "bandwidth": bandwidth})
    share = statistics.median(r["share"] for r in rounds)
    print(f"host       {1 / statistics.median(r['seconds'] for r in rounds):8.3f} tokens/s   {weights / 1e9:6.2f} GB   memory "
          f"{statistics.median(r['bandwidth'] for r in rounds) / 1e9:5.2f} GB/s   share {share:5.2f}   peak {first['peak'] / 2**30:5.2f} GiB of planned "
          f"{first['plan'] / 2**30:5.2f}", flush=True)
    return {"tokens_per_s": 1 / statistics.median(r["seconds"] for r in rounds), "share": share, "peak": first["peak"], "plan": first["plan"]}


def report(runs: dict[str, list[dict]], host: dict | None, limit: int) -> None:
    speed = {name: statistics.median(1 / r["seconds"] for r in found) for name, found in runs.items() if found}
    share = {name: statistics.median(r["bytes"] / r["bandwidth"] / r["seconds"] for r in found) for name, found in runs.items() if found}
    int4 = harness.pair_ratio([r["seconds"] for r in runs["disk"]], [r["seconds"] for r in runs["disk int4"]])
    others = {name: speed[name] for name in ("accelerate", "DeepSpeed") if name in speed}
    ratio = harness.pair_ratio([r["seconds"] for r in runs["accelerate"]], [r["seconds"] for r in runs["disk"]]) if runs.get("accelerate") else None
    peak_over_plan = {name: found[-1]["peak"] / found[-1]["plan"] for name, found in runs.items() if found and found[-1]["plan"]}
    if host:
        peak_over_plan["host"] = host["peak"] / host["plan"]
    met = {"disk": share["disk"] >= 0.9, "int4": int4 >= 3.0, "host": host is not None and host["share"] >= 0.9,
           "memory": max(peak_over_plan.values()) <= 1.05}
    harness.result("zero_inference", ours={"disk": speed["disk"], "disk int4": speed["disk int4"], "host": host and host["tokens_per_s"]},
                   opponent=others, ratio=ratio, limit_share=share["disk"], int4_over_bf16=int4, host_share=host and host["share"],
                   shares=share, peak_over_plan=peak_over_plan, peak_gib={name: max(r["peak"] for r in found) / 2**30 for name, found in runs.items() if found},
                   limit_gib=limit / 2**30, met=met)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=Path(os.environ.get("TMPDIR", "/var/tmp")) / "deepscale-zero-inference",
                        help="where model and files live; on the drive to be measured (40 GB, with --quick 4 GB)")
    parser.add_argument("--keep", action="store_true", help="keep the model for the next run")
    parser.add_argument("--limit-gib", type=float, help="memory limit of a side on disk (default 4, with --quick 1.25)")


def main() -> None:
    args = harness.arguments(__doc__, options)
    if not harness.have_ours():
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    folder = args.folder / ("quick" if args.quick else "llama-2-7b")
    limit = int((args.limit_gib or (1.25 if args.quick else 4)) * 2**30)
    try:
        weights = make_model(folder, args.quick)
        print(f"{folder}: {weights / 1e9:.2f} GB of weights", flush=True)
        runs = on_disk(args, folder, weights, limit)
        report(runs, on_host(args, folder), limit)
    finally:
        harness.close_all()
        for files in args.folder.glob("files-*"):
            shutil.rmtree(files, ignore_errors=True)
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if harness.is_worker():
        worker = Worker()
        harness.serve({"limit_data": limit_data} | {name: getattr(worker, name) for name in ("load", "generate", "weight_bytes", "memory_bandwidth")})
    else:
        main()
