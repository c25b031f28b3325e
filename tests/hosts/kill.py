"""Kills processes of runs one by one; see tests/kill.sh. Usage: kill.py LAUNCHER N [SECONDS]. Linux only (reads /proc)."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

RANKS = 2
# A rank that ends only when it is killed would hide a launcher that asks politely and waits for ever; so rank 1 ignores polite
# signals and has a helper in a session of its own, and rank 0 is an ordinary program.
ORDINARY = "#!/bin/sh\necho $$ > {folder}/rank$RANK\nif [ $RANK = 0 ]; then exec sleep 600; fi\n"
STUBBORN = "setsid sh -c 'trap \"\" TERM INT HUP; echo $$ > {folder}/helper; while :; do sleep 1; done' &\nexec sleep 600\n"


class Process(NamedTuple):
    pid: int
    parent: int
    start: int  # with the number: the same process
    command: str


def processes() -> dict[int, Process]:
    """Living processes (no zombies) by number."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text()
            command = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        fields = stat[stat.rindex(")") + 2:].split()
        if fields[0] not in "ZX":
            found[int(entry)] = Process(int(entry), int(fields[1]), int(fields[19]), command)
    return found


def descendants(root: int) -> list[Process]:
    table = processes()
    found = [table[root]] if root in table else []
    for process in found:
        found += [child for child in table.values() if child.parent == process.pid and child not in found]
    return found


class Case(NamedTuple):
    multi: bool
    role: str
    signal: int

    @property
    def name(self) -> str:
        return f"{'agents' if self.multi else 'local'}: {self.role} {signal.Signals(self.signal).name}"

    def expected(self) -> tuple[int, str]:
        """Exit code as a shell shows it, and a text that the report must hold."""
        code = 128 + self.signal
        killed = self.signal == signal.SIGKILL
        if self.role == "rank":
            return code, "rank 0 (local rank 0"
        if self.role == "launcher":
            return code, "" if killed else f"stop requested by signal {int(self.signal)}"
        if self.role == "supervisor":
            return code, "killed by signal 9" if killed else f"stop requested by signal {int(self.signal)}"
        if self.role == "agent":
            # Its guard gone, the agent's supervisor ends its ranks in good order, as after a SIGTERM.
            seen = signal.SIGTERM if killed else self.signal
            return 128 + seen, f"host localhost: it was stopped by signal {int(seen)}"
        return (1, "host localhost is lost") if killed else (code, f"host localhost: it was stopped by signal {int(self.signal)}")


class Run:
    """A started run whose processes are all there."""

    def __init__(self, launcher: str, folder: Path, multi: bool) -> None:
        for name in ("rank0", "rank1", "helper"):
            (folder / name).unlink(missing_ok=True)
        self.error = folder / "stderr"
        options = ["--num_gpus", str(RANKS), "--no_python"] + (["--force_multi"] if multi else [])
        with open(self.error, "w") as error:
            self.process = subprocess.Popen([launcher, *options, str(folder / "rank.sh")], stdout=error, stderr=error,
                                            stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        wanted = [folder / name for name in ("rank0", "rank1", "helper")]
        while not all(path.exists() and path.read_text().strip() for path in wanted):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError("the ranks did not start: " + self.error.read_text())
            time.sleep(0.005)
        self.ranks = [int((folder / f"rank{rank}").read_text()) for rank in range(RANKS)]
        helper = int((folder / "helper").read_text())
        self.everything = [*descendants(self.process.pid), processes()[helper]]

    def victim(self, role: str) -> int:
        """launcher > supervisor > [agent > agent's supervisor >] ranks"""
        table = processes()
        path = [table[self.ranks[0]].parent]
        while path[-1] != self.process.pid:
            path.append(table[path[-1]].parent)
        path.reverse()
        roles = ["launcher", "supervisor", "agent", "agent's supervisor"]
        return self.ranks[0] if role == "rank" else path[roles.index(role)]


def alive(wanted: list[Process]) -> list[Process]:
    table = processes()
    return [process for process in wanted if process.pid in table and table[process.pid].start == process.start]


def attempt(launcher: str, folder: Path, case: Case, limit_s: float) -> tuple[list[str], float]:
    """Problems that were found, and the seconds until everything was gone."""
    run = Run(launcher, folder, case.multi)
    killed_at = time.monotonic()
    os.kill(run.victim(case.role), case.signal)
    problems = []
    while (left := alive(run.everything)) and time.monotonic() < killed_at + limit_s:
        run.process.poll()  # a zombie is not alive, but only its parent can collect it
        time.sleep(0.005)
    took = time.monotonic() - killed_at
    if left:
        problems.append(f"alive after {took:.2f} s: " + "; ".join(f"{process.pid} {process.command}" for process in left))
        for process in left:
            os.kill(process.pid, signal.SIGKILL)
    code = run.process.wait()
    shell_code = 128 - code if code < 0 else code
    expected_code, expected_text = case.expected()
    if shell_code != expected_code:
        problems.append(f"exit code {shell_code}, expected {expected_code}")
    text = run.error.read_text()
    if expected_text not in text:
        problems.append(f"the report lacks \"{expected_text}\": {text}")
    return problems, took


def main(launcher: str, count: int, limit_s: float) -> int:
    cases = [Case(multi, role, number)
             for multi in (False, True)
             for role in ("launcher", "supervisor", "agent", "agent's supervisor", "rank")
             for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
             if multi or "agent" not in role]
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "rank.sh"
        script.write_text((ORDINARY + STUBBORN).format(folder=folder))
        script.chmod(0o755)
        for case in cases:
            outcomes = [attempt(launcher, folder, case, limit_s) for _ in range(count)]
            problems = [problem for found, _ in outcomes for problem in found]
            slowest = max(took for _, took in outcomes)
            bad += bool(problems)
            print(f"{'FAILED' if problems else 'ok':7s} {case.name:40s} {count} times, all gone after at most {slowest:.2f} s")
            for problem in problems[:3]:
                print(f"        {problem}")
            sys.stdout.flush()
    print(f"{len(cases) - bad} passed, {bad} failed")
    return int(bad > 0)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or not sys.argv[2].isdigit() or int(sys.argv[2]) < 1:
        sys.exit("usage: kill.py LAUNCHER N [SECONDS]")
    sys.exit(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) == 4 else 2.0))
