"""Runs the programs of programs.py one after another and prints a table: program, command, result, seconds. See run.sh."""
from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import programs
from programs import HERE, ROOT, Problem, Program, slug

LIMIT_S = 600
NOT_BUILT = "not built"
ACCEPTED = ("ok", "skipped", NOT_BUILT)


@dataclass(frozen=True)
class Result:
    program: Program
    status: str  # one of ACCEPTED, or FAILED
    command: str  # as it was run
    reason: str = ""
    seconds: float = 0.0

    def text(self) -> str:
        return f"{self.status}: {self.reason}" if self.reason else self.status


def find_checkout() -> tuple[Path | None, str]:
    """The checkout that DEEPSCALE_EXAMPLES names, and why there is none. SystemExit where it names something else."""
    given = os.environ.get("DEEPSCALE_EXAMPLES")
    if not given:
        return None, "no checkout (set DEEPSCALE_EXAMPLES)"
    folder = Path(given).expanduser().resolve()
    if not any((folder / part).is_dir() for part in (programs.CIFAR, programs.HELLO, programs.CHAT, programs.INFERENCE)):
        raise SystemExit(f"DEEPSCALE_EXAMPLES={given}: this is no checkout of DeepSpeedExamples, it has no {programs.CIFAR}; "
                         "clone https://github.com/deepspeedai/DeepSpeedExamples and give its folder")
    return folder, ""


def missing_package(needs: dict[str, str]) -> str:
    """What keeps a program from running in this environment; empty when nothing does."""
    for package, start in needs.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return f"needs {package} (tests/examples/requirements.txt)"
        if not version.startswith(start):
            return f"needs {package} {start.rstrip('.')}.x, found {version} (tests/examples/requirements.txt)"
    return ""


def why_skipped(program: Program, checkout: Path | None, no_checkout: str) -> str:
    if program.of_checkout:
        if checkout is None:
            return no_checkout
        if not (checkout / program.files).is_dir():
            return f"the checkout has no {program.files}"
    return missing_package(program.needs)


def make_inputs(folder: Path) -> None:
    """Once per folder; made beside its place and renamed, so that an interrupted run leaves nothing half made."""
    inputs = folder / "inputs"
    recipe = (HERE / "make_inputs.py").read_text(encoding="utf-8")
    if (inputs / "recipe.py").is_file() and (inputs / "recipe.py").read_text(encoding="utf-8") == recipe:
        return
    print("making tiny models and data sets ...", flush=True)
    unfinished = folder / "inputs.unfinished"
    for old in (inputs, unfinished):
        shutil.rmtree(old, ignore_errors=True)
    run = subprocess.run([sys.executable, str(HERE / "make_inputs.py"), str(unfinished)], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise SystemExit(f"make_inputs.py failed ({run.returncode}):\n{run.stderr[-2000:]}")
    (unfinished / "recipe.py").write_text(recipe, encoding="utf-8")
    unfinished.rename(inputs)


def prepare(program: Program, folder: Path, checkout: Path | None, started: set[str]) -> Path:
    """The run's folder, with links to the program's files and to the inputs."""
    name = program.folder or slug(program.name)
    place = folder / "runs" / name
    if name in started:
        return place
    started.add(name)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    source = (checkout if program.of_checkout else ROOT) if program.files else None
    entries = list((source / program.files).iterdir()) if source is not None else []
    if program.needs:
        entries += list((folder / "inputs").iterdir())
    for entry in entries:
        if not (place / entry.name).exists() and entry.name not in ("out", "__pycache__"):
            (place / entry.name).symlink_to(entry)
    return place


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def execute(command: str, place: Path, environment: dict[str, str], log: Path) -> int | None:
    """Exit status; None when it took too long. Everything it started has ended with it."""
    with open(log, "wb") as output:
        child = subprocess.Popen(["bash", "-c", command], cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                                 stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return child.wait(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            return None
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()


def judge(program: Program, status: int | None, output: str, place: Path) -> tuple[str, str]:
    if status is None:
        return "FAILED", f"still running after {LIMIT_S} s"
    if status != 0:
        if program.not_built and re.search(rf"NotImplementedError(?=.*not built).*{program.not_built}", output):
            return NOT_BUILT, program.not_built
        lines = [line.strip() for line in output.splitlines() if re.search(r"Error\b|[Ee]rror:", line)]
        return "FAILED", f"exit status {status}" + (f", {lines[-1][:120]}" if lines else "")
    try:
        for check in program.checks:
            check(output, place)
    except Problem as problem:
        return "FAILED", str(problem)
    return "ok", ""


def run(program: Program, folder: Path, checkout: Path | None, started: set[str]) -> Result:
    place = prepare(program, folder, checkout, started)
    paths = [path.format(checkout=checkout, tests=HERE) for path in program.paths]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])}
    (folder / "logs").mkdir(exist_ok=True)
    log = folder / "logs" / f"{slug(program.name)}.log"
    command = program.command.replace("{port}", str(free_port()))
    begin = time.monotonic()
    status = execute(command, place, environment, log)
    seconds = time.monotonic() - begin
    status_text, reason = judge(program, status, log.read_text(encoding="utf-8", errors="replace"), place)
    return Result(program, status_text, command, reason + (f"; log: {log}" if status_text == "FAILED" else ""), seconds)


def print_table(results: list[Result]) -> None:
    rows = [("program", "command", "result", "seconds")]
    rows += [(r.program.name, r.command, r.text(), f"{r.seconds:.1f}" if r.seconds else "-") for r in results]
    print()
    for number, row in enumerate(rows):
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        if number == 0:
            print("|---|---|---|---:|")
    counts = {status: sum(r.status == status for r in results) for status in (*ACCEPTED, "FAILED")}
    print("\n" + ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "FAILED"))


def _letters(name: str) -> str:
    """`gpt_like` finds GPTLike."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the example programs by their command lines.", prog="tests/examples/run.sh")
    parser.add_argument("folder", nargs="?", default=str(ROOT / "build" / "examples"), help="inputs, logs and outputs")
    parser.add_argument("--only", default="", metavar="TEXT", help="programs whose name contains this, in small letters or not")
    parser.add_argument("--list", action="store_true", help="print the command lines and run nothing")
    args = parser.parse_args()
    chosen = [p for p in programs.all_programs() if _letters(args.only) in _letters(p.name)]
    if not chosen:
        parser.error(f"--only {args.only}: no program has such a name; --list shows them")
    if args.list:
        for program in chosen:
            print(f"{program.name}: {program.command}")
        return 0
    checkout, no_checkout = find_checkout()
    folder = Path(args.folder).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results, started = [], set()
    for program in chosen:
        skipped = why_skipped(program, checkout, no_checkout)
        if not skipped and program.needs:
            make_inputs(folder)
        result = Result(program, "skipped", program.command, skipped) if skipped else run(program, folder, checkout, started)
        results.append(result)
        print(f"{program.name}: {result.text()} ({result.seconds:.1f} s)", flush=True)
    print_table(results)
    return 0 if all(result.status in ACCEPTED for result in results) else 1


def _interrupted(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # on its way out execute() ends what it started


if __name__ == "__main__":
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, _interrupted)
    sys.exit(main())
