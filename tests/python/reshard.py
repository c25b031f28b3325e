"""The matrix of checkpoints: saved at (stage, number of ranks, tier), resumed at another; the next ten losses are compared with the
run that went on. Called by tests/reshard.sh; ranks are reshard_worker.py, started once per number of ranks.

Same number of ranks: the losses have the same bits. Another one: fp32 losses differ by 1e-6 at most, relative (sums are made in
another order); recipes of 16 bits or with discontinuous updates by what TOLERANCE says. Counters must always be equal.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Callable

from common import built_program
from reshard_worker import DAMAGES, in_groups, key_of

STAGES, WORLDS, TIERS = (0, 1, 2, 3), (1, 2, 3, 4), ("host", "file")
# Of another number of ranks. fp16: with 3 ranks a gradient overflows one step earlier than with 1 and 2, because a rank's mean is over
# fewer rows, and the step that is skipped is another one (losses then differ by 1.7e-2; by 3e-5 between 1 and 2 ranks).
TOLERANCE = {"bf16": 5e-3, "bf16-only": 2e-2, "fp16": 3e-2, "muon": 1e-3}
FP32_TOLERANCE = 1e-6
# Their states cannot be in files: torch computes them, whole matrices are needed, or memory has a copy. Offloaded to the host instead.
IN_MEMORY = ("nadam", "amsgrad", "muon", "bf16-only", "hpz")
WITH_ZERO = ("bf16-only",)  # no stage 0
# The recipes beside the matrix, each on a ring of pairs.
RECIPES = ("bf16", "bf16-only", "fp16", "accumulate", "mics", "hpz", "ratio", "own-random", "client-adamw", "client-sgd", "nadam", "amsgrad",
           "lion", "muon", "adagrad")
NOT_UNIVERSAL = ("own-random",)  # universal checkpoints are of no rank
WORKER = Path(__file__).with_name("reshard_worker.py")
IDENTICAL, CLOSE, WRONG = "identical", "close", "wrong"


def order_of_sums(case: dict) -> bool:
    """What decides, beside the number of ranks, in which order gradients are added: only the same order gives the same bits."""
    if case["recipe"] == "accumulate":  # stages 0 and 1 add micro-batches before ranks, 2 and 3 after
        return case["stage"] < 2
    return case["recipe"] == "mics" and in_groups(case) and case["world"] > 2  # groups first


def tolerance(recipe: str) -> float:
    return TOLERANCE.get(recipe, FP32_TOLERANCE)


def cases(worlds: tuple[int, ...], tiers: tuple[str, ...], recipe: str = "adamw") -> list[dict]:
    if recipe in IN_MEMORY:
        tiers = tuple("cpu" if tier == "file" else tier for tier in tiers)
    return [{"stage": stage, "world": world, "tier": tier, "recipe": recipe}
            for world in worlds for stage in STAGES for tier in tiers
            if not (stage == 0 and (tier == "cpu" or recipe in WITH_ZERO))]  # nothing is offloaded to the host there


class Launch:
    """One run of the worker with so many ranks. It saves, sleeps until others have saved, and resumes."""

    def __init__(self, world: int, job: dict, folder: Path, limit_s: float) -> None:
        self.world, self.job, self.limit_s, self.seconds = world, job, limit_s, 0.0
        self.path, self.log = folder / f"{world}-ranks.json", folder / f"{world}-ranks.log"
        for leftover in folder.glob(f"{world}-ranks.json*"):
            leftover.unlink()
        self.path.write_text(json.dumps(job))
        command = [built_program("deepspeed"), "--num_gpus", str(world), "--no_local_rank", str(WORKER), str(self.path)]
        with open(self.log, "w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"})

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        """Until it is ready, or has ended, or takes too long: then it is ended."""
        begin, before = time.monotonic(), len(self.answers())
        while not ready() and self.process.poll() is None:
            time.sleep(0.05)
            if time.monotonic() - begin > self.limit_s:
                print(f"--- {self.world} ranks: no end of what they {what} after {self.limit_s:.0f} s", flush=True)
                self.end()
        took = time.monotonic() - begin
        self.seconds += took
        print(f"   {self.world} ranks: {what} {len(self.answers()) - before}, {took:.1f} s", file=sys.stderr, flush=True)

    def saved(self) -> None:
        self._wait("save", Path(f"{self.path}.saved").exists)

    def resume(self) -> None:
        Path(f"{self.path}.go").touch()
        self._wait("resume", lambda: False)
        if self.process.returncode != 0:
            print(f"--- {self.world} ranks: status {self.process.returncode} after {len(self.answers())} jobs\n{self.log.read_text()[-3000:]}",
                  flush=True)

    def end(self) -> None:
        """The launcher ends its ranks."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)

    def answers(self) -> list[dict]:
        results = Path(f"{self.path}.results")
        lines = results.read_text().split("\n")[:-1] if results.exists() else []
        return [json.loads(line) for line in lines]


class Outcome:
    """One pair: how far the losses are from those of the run that went on."""

    def __init__(self, answer: dict, straight: dict | None) -> None:
        self.saved, self.case, self.damage = (answer["item"][key] for key in ("saved", "case", "damage"))
        self.difference, self.why = 0.0, answer.get("problem", "")
        if straight is None and not self.why:
            self.why = "the run that saved it failed"
        self.compared = not self.why
        if self.compared:
            self._compare(answer, straight)
        if not self.why and answer["losses"] == straight["losses"]:
            self.verdict = IDENTICAL
        elif not self.why and not self._must_be_identical() and self.difference <= tolerance(self.case["recipe"]):
            self.verdict = CLOSE
        else:
            self.verdict = WRONG

    def _compare(self, answer: dict, straight: dict) -> None:
        if answer["counters"] != straight["counters"]:
            self.why = f"counters {answer['counters']}, expected {straight['counters']}"
            return
        got, expected = ([float.fromhex(loss) for loss in run["losses"]] for run in (answer, straight))
        # Infinite or no numbers at all are no agreement.
        self.difference = max((abs(a - b) / abs(b) if a - b == a - b else float("inf")) for a, b in zip(got, expected, strict=True))

    def _must_be_identical(self) -> bool:
        return self.saved["world"] == self.case["world"] and order_of_sums(self.saved) == order_of_sums(self.case)

    def __str__(self) -> str:
        damaged = f", with damage to {self.damage}" if self.damage else ""
        return f"{key_of(self.saved)} -> {key_of(self.case)}{damaged}: {self.why or f'losses differ by {self.difference:.1e}'}"


# ---------------------------------------------------------------- which pairs
def matrix(chosen: list[dict], quick: bool) -> list[tuple[dict, dict]]:
    """All pairs; quick: every configuration saves and resumes, at every distance between worlds."""
    pairs = [(saved, case) for saved in chosen for case in chosen]
    if not quick:
        return pairs
    return [pair for number, pair in enumerate(pairs) if number % 5 == 0 or pair[0] == pair[1]]


def ring(chosen: list[dict]) -> list[tuple[dict, dict]]:
    """Every configuration resumes itself, the next one of the same number of ranks, and the one after that of the next number."""
    pairs = []
    for place, case in enumerate(chosen):
        same = [other for other in chosen if other["world"] == case["world"]]
        pairs += [(case, case), (same[(same.index(case) + 1) % len(same)], case)]
        if case["recipe"] != "own-random":
            pairs.append((chosen[(place + len(same) + 2) % len(chosen)], case))
    return pairs


def damaged(chosen: list[dict]) -> list[tuple[dict, dict, str]]:
    """Every damage, resumed by as many ranks as saved and by another number."""
    pairs = []
    for number, damage in enumerate(DAMAGES):
        same = [case for case in chosen if case["world"] == 2]
        other = [case for case in chosen if case["world"] == 3]
        pairs += [(same[number % len(same)], same[(number + 3) % len(same)], damage), (other[number % len(other)], same[number % len(same)], damage)]
    return pairs


# ---------------------------------------------------------------- report
def label(case: dict) -> str:
    return f"{case['world']}:s{case['stage']}{case['tier'][0]}"


def print_table(chosen: list[dict], outcomes: list[Outcome]) -> None:
    """Rows: saved at, columns: resumed at, as RANKS:sSTAGEt (t: h in memory, c offloaded to it, f in files)."""
    cells = {(key_of(o.saved), key_of(o.case)): {IDENTICAL: "=", CLOSE: f"{o.difference:.0e}", WRONG: "WRONG"}[o.verdict] for o in outcomes}
    print("saved \\ resumed " + " ".join(f"{label(case):>6}" for case in chosen))
    for row in chosen:
        print(f"{label(row):>15} " + " ".join(f"{cells.get((key_of(row), key_of(case)), '.'):>6}" for case in chosen))


def summary(name: str, outcomes: list[Outcome]) -> str:
    count = Counter(outcome.verdict for outcome in outcomes)
    worst = max((o.difference for o in outcomes if o.verdict == CLOSE), default=0.0)
    recipe = outcomes[0].case["recipe"] if outcomes else "adamw"
    return (f"{name}{len(outcomes)} pairs: {count[IDENTICAL]} bit-identical, {count[CLOSE]} within {tolerance(recipe):.0e} "
            f"(largest {worst:.1e}), {count[WRONG]} wrong")


def check_straight(straight: dict[str, dict], chosen: list[dict]) -> int:
    """The runs that went on, of one number of ranks, have the same bits whatever the stage and tier. Returns how many do not."""
    wrong = 0
    for case in chosen:
        first = next(other for other in chosen if other["world"] == case["world"] and
                     order_of_sums(other) == order_of_sums(case))
        mine, theirs = straight.get(key_of(case)), straight.get(key_of(first))
        if mine is None or theirs is None:
            wrong += 1
        elif mine["before"] + mine["losses"] != theirs["before"] + theirs["losses"]:
            print(f"WRONG: {key_of(case)} did not train as {key_of(first)}")
            wrong += 1
    return wrong


# ---------------------------------------------------------------- the whole
def execute(layout: str, folder: Path, limit_s: float, saves: list[dict],
            pairs: list[tuple[dict, dict, str | None]]) -> tuple[dict[str, dict], list[Outcome]]:
    """The runs that went on, by case, and the outcome of every pair."""
    straight: dict[str, dict] = {}
    outcomes: list[Outcome] = []
    launches: list[Launch] = []
    try:
        for world in sorted({case["world"] for case in saves}):
            job = {"folder": str(folder), "format": layout, "save": [case for case in saves if case["world"] == world],
                   "resume": [{"saved": a, "case": b, "damage": damage} for a, b, damage in pairs if b["world"] == world]}
            launches.append(Launch(world, job, folder, limit_s))
            launches[-1].saved()
            straight |= {key_of(answer["item"]): answer for answer in launches[-1].answers()}
        for launched in launches:
            launched.resume()
            answers = [answer for answer in launched.answers() if answer["kind"] == "resume"]
            outcomes += [Outcome(answer, straight.get(key_of(answer["item"]["saved"]))) for answer in answers]
            outcomes += [Outcome({"item": item, "problem": "not reached: the run failed"}, None) for item in launched.job["resume"][len(answers):]]
    finally:
        for launched in launches:
            launched.end()
    return straight, outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/reshard.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a subset of the pairs, for continuous integration")
    parser.add_argument("--break", dest="broken", action="store_true", help="damages every resumed run; succeeds when all of them are reported")
    parser.add_argument("--format", default="native", choices=("native", "deepspeed", "universal"), help="layout of the checkpoints")
    parser.add_argument("--tiers", default="host,file", help="of host, cpu, file")
    parser.add_argument("--worlds", default="1,2,3,4", help="numbers of ranks")
    parser.add_argument("--recipes", default=None, help="recipes beside the matrix (default: all; quick: none), or none")
    parser.add_argument("--no-matrix", action="store_true", help="the recipes alone")
    parser.add_argument("--keep", default=None, help="folder to work in, which stays")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for what one launch saves, and for what it resumes")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # launches are ended on the way out
    worlds, tiers = tuple(int(w) for w in options.worlds.split(",")), tuple(options.tiers.split(","))
    recipes = options.recipes.split(",") if options.recipes else () if options.quick else RECIPES
    if options.format == "universal" and not options.recipes:
        recipes = [recipe for recipe in recipes if recipe not in NOT_UNIVERSAL]
    recipes = [recipe for recipe in recipes if recipe != "none"]

    chosen = [] if options.no_matrix else cases(worlds, tiers)
    rings = {recipe: cases(worlds, tiers, recipe) for recipe in recipes}
    pairs: list = [(a, b, None) for a, b in matrix(chosen, options.quick)]
    for recipe in recipes:
        pairs += [(a, b, None) for a, b in ring(rings[recipe])]
    if options.broken:
        kinds = list(DAMAGES)
        pairs = [(a, b, kinds[number % len(kinds)]) for number, (a, b, _) in enumerate(pairs)]
    elif chosen and {2, 3} <= set(worlds):
        pairs += damaged(chosen)
    folder = Path(options.keep or tempfile.mkdtemp(prefix="reshard-"))
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    try:
        saves = chosen + [case for ring_cases in rings.values() for case in ring_cases]
        straight, outcomes = execute(options.format, folder, options.timeout, saves, pairs)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    return report(options, chosen, rings, straight, outcomes, time.monotonic() - begin)


def report(options: argparse.Namespace, chosen: list[dict], rings: dict[str, list[dict]], straight: dict[str, dict],
           outcomes: list[Outcome], seconds: float) -> int:
    sound, hurt = [o for o in outcomes if not o.damage], [o for o in outcomes if o.damage]
    wrong = [o for o in sound if o.verdict == WRONG]
    unseen = [o for o in hurt if o.verdict != WRONG or not o.compared]
    if chosen and sound:
        print_table(chosen, [o for o in sound if o.case["recipe"] == "adamw"])
    if "cpu" in options.tiers:
        print("excluded: stage 0 with offload_optimizer.device cpu, which has no effect there")
    for problem in wrong[:20]:
        print(f"WRONG: {problem}")
    for miss in unseen[:20]:
        print(f"NOT REPORTED: {miss}")
    odd = sum(check_straight(straight, group) for group in [chosen, *rings.values()])
    for recipe in rings:
        print(summary(f"{recipe}: ", [o for o in sound if o.case["recipe"] == recipe]))
    print(f"{len(hurt)} damaged: {len(hurt) - len(unseen)} reported")
    print(summary(f"{options.format}, {seconds:.0f} s: ", [o for o in sound if o.case["recipe"] == "adamw"]))
    return 1 if wrong or unseen or odd else 0


if __name__ == "__main__":
    sys.exit(main())
