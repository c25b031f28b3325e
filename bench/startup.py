"""Start-up: import, launcher and first step, each as wall time of fresh processes that take turns.

  import      `import torch, deepspeed` against `import torch` (what a script pays anyway); real DeepSpeed 0.19.8 likewise
  launcher    `deepspeed --num_gpus 2 noop.py` against torchrun and against real DeepSpeed's launcher; limit: two bare Pythons
  report      `ds_report` against real DeepSpeed's
  first step  a script that builds a small GPT and makes one step, with the engine (stage 2, two ranks) against the same script with
              plain torch and Gloo; real DeepSpeed with its operators compiled already, and with --cold also with an empty cache
              (it compiles them at its first step: minutes)
Targets: import at most 0.1 s over torch; launcher at most 0.15 s over two bare Pythons; ds_report at most 0.1 s; first step at most
2 s over plain torch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness  # noqa: E402

EXAMPLE = harness.ROOT / "examples" / "gpt"
MODEL = f"""
import sys
sys.path.insert(0, {str(EXAMPLE)!r})
import torch
from model import GPT, GPTConfig
torch.set_num_threads(1)
model = GPT(GPTConfig(256, 64, 2, 128, 4))
tokens = torch.zeros(2, 64, dtype=torch.long)
"""
PLAIN = MODEL + """
torch.distributed.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
model(tokens, tokens).backward()
optimizer.step()
"""
ENGINE = MODEL + """
import deepspeed
engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config={
    "train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}})
engine.backward(engine(tokens, tokens))
engine.step()
"""
LEAVE = "\nimport os\nos._exit(0)\n"  # first step, not shutdown, is what is timed


def environment(python: str, extra: dict[str, str] | None = None) -> dict[str, str]:
    variables = {**os.environ, "PATH": f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}", "OMP_NUM_THREADS": "1"}
    if python != sys.executable:
        variables.update(harness.reference_environment())
    return {**variables, **(extra or {})}


def wall(commands: list[list[str]], environments: list[dict[str, str]]) -> float:
    """Seconds until all commands, started together, have ended. Raises SideFailed when one fails."""
    with tempfile.TemporaryFile() as log:
        begin = time.perf_counter()
        children = [
            subprocess.Popen(command, env=variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            for command, variables in zip(commands, environments)
        ]
        codes = [child.wait() for child in children]
        elapsed = time.perf_counter() - begin
        if any(codes):
            log.seek(0)
            raise harness.SideFailed(f"{commands[0]} ended with {codes}:\n{log.read().decode(errors='replace')[-2000:]}")
    return elapsed


def python_run(python: str, code: str):
    return lambda: wall([[python, "-c", code]], [environment(python)])


def two_ranks(python: str, script: Path, extra: dict[str, str] | None = None):
    def run() -> float:
        port = str(harness.free_port())
        variables = [
            environment(
                python,
                {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": "2",
                    "LOCAL_SIZE": "2",
                    "LOCAL_WORLD_SIZE": "2",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    **(extra or {}),
                },
            )
            for rank in range(2)
        ]
        return wall([[python, str(script)]] * 2, variables)

    return run


def launcher_run(python: str, program: str, arguments: list[str]):
    def run() -> float:
        variables = environment(python)
        command = shutil.which(program, path=variables["PATH"])
        if command is None:
            raise harness.SideFailed(f"no {program} beside {python} or on PATH")
        return wall([[command, *arguments[:2], "--master_port", str(harness.free_port()), *arguments[2:]]], [variables])

    return run


def compare(title: str, contenders: dict, rounds: int) -> dict[str, list[float]]:
    """Runs every contender once to warm the file cache, then in turns. A contender that fails is reported and left out."""
    times: dict[str, list[float]] = {}
    for name, run in contenders.items():
        try:
            run()
            times[name] = []
        except (harness.SideFailed, OSError) as failure:
            print(f"FAILED {title}, {name}: {failure}", flush=True)
    for index in range(rounds):
        for name in list(times)[:: 1 if index % 2 else -1]:
            times[name].append(contenders[name]())
    for name, samples in times.items():
        print(f"{title:11} {name:34} {statistics.median(samples):8.3f} s (median of {rounds})", flush=True)
    return times


def added(times: dict[str, list[float]], name: str, base: str) -> float | None:
    """Median over rounds of (name - base), or None when one of them is missing."""
    return statistics.median(a - b for a, b in zip(times[name], times[base])) if name in times and base in times else None


def compare_imports(args, ours: bool, rounds: int) -> dict:
    contenders = {"import torch": python_run(sys.executable, "import torch")}
    if ours:
        contenders["ours"] = python_run(sys.executable, "import torch, deepspeed")
    if args.reference:
        contenders["import torch, its environment"] = python_run(args.reference, "import torch")
        contenders["DeepSpeed 0.19.8"] = python_run(args.reference, "import torch, deepspeed")
    times = compare("import", contenders, rounds)
    return {
        "ours": added(times, "ours", "import torch"),
        "DeepSpeed 0.19.8": added(times, "DeepSpeed 0.19.8", "import torch, its environment"),
    }


def program_run(python: str, program: str):
    def run() -> float:
        variables = environment(python)
        command = shutil.which(program, path=variables["PATH"])
        if command is None:
            raise harness.SideFailed(f"no {program} beside {python} or on PATH")
        return wall([[command]], [variables])

    return run


def compare_reports(args, ours: bool, rounds: int) -> dict:
    contenders = {}
    if ours:
        contenders["ours"] = program_run(sys.executable, "ds_report")
    if args.reference:
        contenders["DeepSpeed 0.19.8"] = program_run(args.reference, "ds_report")
    return {name: statistics.median(samples) for name, samples in compare("report", contenders, rounds).items()}


def compare_launchers(args, ours: bool, rounds: int, folder: Path) -> dict:
    script = folder / "noop.py"
    script.write_text("")
    contenders = {
        "two bare Pythons (limit)": two_ranks(sys.executable, script),
        "torchrun": launcher_run(sys.executable, "torchrun", ["--nproc_per_node", "2", str(script)]),
    }
    if ours:
        contenders["ours"] = launcher_run(sys.executable, "deepspeed", ["--num_gpus", "2", str(script)])
    if args.reference:
        contenders["DeepSpeed 0.19.8"] = launcher_run(args.reference, "deepspeed", ["--num_gpus", "2", str(script)])
    times = compare("launcher", contenders, rounds)
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    medians["ours added"] = added(times, "ours", "two bare Pythons (limit)")
    return medians


def compare_first_steps(args, ours: bool, rounds: int, folder: Path) -> dict:
    plain, engine = folder / "plain.py", folder / "engine.py"
    plain.write_text(PLAIN + LEAVE)
    engine.write_text(ENGINE + LEAVE)
    contenders = {"plain torch": two_ranks(sys.executable, plain)}
    if ours:
        contenders["ours"] = two_ranks(sys.executable, engine)
    if args.reference:
        contenders["DeepSpeed 0.19.8"] = two_ranks(args.reference, engine)
    times = compare("first step", contenders, rounds)
    found = {"ours": added(times, "ours", "plain torch"), "DeepSpeed 0.19.8": added(times, "DeepSpeed 0.19.8", "plain torch")}
    if args.reference and args.cold:
        found["DeepSpeed 0.19.8, cold"] = two_ranks(args.reference, engine, {"TORCH_EXTENSIONS_DIR": str(folder / "extensions")})()
        print(f"first step  DeepSpeed 0.19.8, nothing compiled yet     {found['DeepSpeed 0.19.8, cold']:8.1f} s (once)", flush=True)
    return found


def main() -> None:
    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--cold", action="store_true", help="also measure real DeepSpeed with an empty cache of compiled operators (minutes)"
        )

    args = harness.arguments(__doc__, extra)
    ours = harness.have_ours()
    rounds = 1 if args.quick else 7
    folder = Path(tempfile.mkdtemp(prefix="deepscale-startup-"))
    try:
        imports = compare_imports(args, ours, 3 if args.quick else 11)
        launchers = compare_launchers(args, ours, rounds, folder)
        reports = compare_reports(args, ours, 3 if args.quick else 11)
        first = compare_first_steps(args, ours, rounds, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("ours", "DeepSpeed 0.19.8"):
        if imports[name] is not None and first.get(name) is not None:
            print(
                f"{name}: import adds {imports[name]:.3f} s to torch, first step {first[name]:.2f} s later than plain torch, "
                f"launcher {launchers.get(name, float('nan')):.2f} s, ds_report {reports.get(name, float('nan')):.3f} s"
            )
    figures = (imports["ours"], first["ours"], launchers["ours added"], reports.get("ours")) if ours else (None,)
    known = None not in figures
    harness.result(
        "startup",
        ours={"import_s": imports["ours"], "first_step_s": first["ours"], "launcher_s": launchers.get("ours"),
              "launcher_added_s": launchers["ours added"], "report_s": reports.get("ours")} if ours else None,
        opponent={
            "import_s": imports["DeepSpeed 0.19.8"],
            "first_step_s": first["DeepSpeed 0.19.8"],
            "first_step_cold_s": first.get("DeepSpeed 0.19.8, cold"),
            "launcher_s": launchers.get("DeepSpeed 0.19.8"),
            "torchrun_s": launchers.get("torchrun"),
            "report_s": reports.get("DeepSpeed 0.19.8"),
        },
        ratio=launchers["torchrun"] / launchers["ours"] if "ours" in launchers else None,
        limit_share=launchers["two bare Pythons (limit)"] / launchers["ours"] if "ours" in launchers else None,
        unit="seconds; ratio and limit_share of the launcher",
        met=all(figure <= target for figure, target in zip(figures, (0.1, 2.0, 0.15, 0.1))) if known else None,
    )


if __name__ == "__main__":
    main()
