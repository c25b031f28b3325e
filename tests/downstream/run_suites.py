"""Runs the suites of suites.py with DeepScale and with real DeepSpeed and compares them test by test. See run.sh."""
from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import environment
from compare import Outcome, read_outcomes, summary
from environment import HERE, ROOT, Missing
from suites import SUITES, Suite

OURS, THEIRS = "deepscale", "deepspeed"
TEST_LIMIT_S = 600
RAN = (0, 1)  # pytest's exit statuses when it ran the tests: all passed, some failed


@dataclass(frozen=True)
class Plan:
    """What is common to all runs."""
    folder: Path
    python: Path
    paths: dict[str, Path]  # of the package, by side
    inputs: Path
    quick: bool

    def environment(self, side: str) -> dict[str, str]:
        paths = [self.paths[side], HERE / "children", HERE / "plugins"]
        changed = {
            "PYTHONPATH": os.pathsep.join(map(str, paths)), "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "TORCH_EXTENSIONS_DIR": str(self.folder / "extensions"), "PYTHONDONTWRITEBYTECODE": "1", "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "offline",
            "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        }
        return {**os.environ, **changed}


    def results(self, suite: Suite, side: str, ending: str) -> Path:
        """Where a run's results are. A choice of the tests is never taken for all of them."""
        return self.folder / f"{suite.name}-{side}{'-quick' if self.quick else ''}{ending}"


def prepare(suite: Suite, side: str, checkout: Path, plan: Plan) -> Path:
    """The run's folder: models under the hub's names, and the checkout's folders that tests name by relative paths."""
    place = plan.folder / "runs" / f"{suite.name}-{side}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for entry in [*plan.inputs.iterdir(), checkout / "tests", checkout / "examples"]:
        if entry.exists():
            (place / entry.name).symlink_to(entry)
    return place


def execute(command: list[str], place: Path, variables: dict[str, str], log: Path) -> int:
    """Exit status. All that it started has ended with it, also when this program is interrupted."""
    with open(log, "wb") as output:
        child = subprocess.Popen(command, cwd=place, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            return child.wait()
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)  # one_process_each ends the test that runs
                try:
                    child.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def run(suite: Suite, side: str, checkout: Path, plan: Plan) -> tuple[dict[str, Outcome], str]:
    """The outcomes, and what kept the tests from running; empty when they ran."""
    place = prepare(suite, side, checkout, plan)
    outcomes, log, complete = (plan.results(suite, side, ending) for ending in (".jsonl", ".log", ".complete"))
    for old in (complete, outcomes):
        old.unlink(missing_ok=True)
    # Options are single words, and files come last: one_process_each takes them apart when a test starts itself again as another rank.
    options = ["-pone_process_each", f"-p{suite.plugin}", f"--outcomes={outcomes}", f"--test-limit={TEST_LIMIT_S}", "-pno:cacheprovider", "-q",
               "--color=no", "--tb=short", f"--rootdir={checkout}"]
    chosen = [f"-k{suite.quick}"] if plan.quick else []
    command = [str(plan.python), "-m", "pytest", *options, *chosen, *[str(checkout / test) for test in suite.tests]]
    begin = time.monotonic()
    status = execute(command, place, plan.environment(side), log)
    read = read_outcomes(outcomes)
    print(f"{suite.name} with {side}: {len(read)} tests in {time.monotonic() - begin:.0f} s, log: {log}", flush=True)
    shutil.rmtree(place, ignore_errors=True)
    if status not in RAN or not read:
        return read, f"{suite.name} with {side}: pytest ended with {status} after {len(read)} tests; log: {log}"
    complete.touch()
    return read, ""


def earlier(suite: Suite, side: str, plan: Plan) -> tuple[dict[str, Outcome] | None, str]:
    """The outcomes of an earlier run of the same choice of tests that came to its end; otherwise None, and what to do."""
    outcomes = plan.results(suite, side, ".jsonl")
    if not plan.results(suite, side, ".complete").is_file():
        found = "an incomplete run's" if outcomes.is_file() else "no"
        again = " and with --quick" if plan.quick else " and without --quick"
        return None, f"{suite.name}: compared with nothing: {found} results of {side} in {outcomes}; run once without --ours-only{again}"
    return read_outcomes(outcomes), ""


def make_plan(args: argparse.Namespace) -> Plan:
    folder = Path(args.folder).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    ours = Path(os.environ.get("DEEPSCALE_PATH", ROOT / "build" / "release" / "python")).expanduser().resolve()
    if not (ours / "deepspeed" / "__init__.py").is_file():
        raise Missing(f"no deepspeed in {ours}: build it (cmake --preset release && cmake --build --preset release), or set DEEPSCALE_PATH")
    python = environment.interpreter(folder)
    paths = {OURS: ours}
    if not args.ours_only:
        paths[THEIRS] = environment.reference(folder, python)
    plan = Plan(folder, python, paths, environment.inputs(folder, python), args.quick)
    if not args.ours_only:
        environment.warm_up(python, plan.environment(THEIRS))
    return plan


def run_all(chosen: list[Suite], plan: Plan) -> tuple[dict[str, tuple[dict, dict | None]], list[str]]:
    """{suite: (our outcomes, the reference's)} and what went wrong. Without the reference, its outcomes of an earlier run are taken; that
    there are none is a problem too."""
    results, problems = {}, []
    for suite in chosen:
        try:
            checkout = environment.checkout(suite, plan.folder)
        except Missing as missing:
            problems.append(f"{suite.name}: not run: {missing}")
            continue
        ours, problem = run(suite, OURS, checkout, plan)
        if THEIRS in plan.paths:
            theirs, other = run(suite, THEIRS, checkout, plan)
        else:
            theirs, other = earlier(suite, THEIRS, plan)
        problems += [one for one in (problem, other) if one]
        results[suite.name] = (ours, theirs)
    return results, problems


def main() -> int:
    names = ", ".join(suite.name for suite in SUITES)
    parser = argparse.ArgumentParser(description="Runs the integrations' own tests with DeepScale and with DeepSpeed.", prog="tests/downstream/run.sh")
    parser.add_argument("folder", nargs="?", default=str(ROOT / "build" / "downstream"), help="environments, inputs, logs and results")
    parser.add_argument("--only", default="", metavar="NAME", help=f"suites whose name contains this: {names}")
    parser.add_argument("--ours-only", action="store_true", help="without DeepSpeed; its results of an earlier, complete run in the same folder are used")
    parser.add_argument("--quick", action="store_true", help="a choice of tests, a few minutes")
    args = parser.parse_args()
    chosen = [suite for suite in SUITES if args.only in suite.name]
    if not chosen:
        parser.error(f"--only {args.only}: no suite has such a name; there are {names}")
    try:
        plan = make_plan(args)
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    results, problems = run_all(chosen, plan)
    text, good = summary(results)
    print("\n" + text)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 0 if good and not problems else 1


def _interrupted(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # on its way out execute() ends what it started


if __name__ == "__main__":
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, _interrupted)
    sys.exit(main())
