"""What two runs of the same tests say, test by test."""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

OUTCOMES = ("passed", "failed", "skipped")


@dataclass(frozen=True)
class Outcome:
    test: str
    outcome: str  # one of OUTCOMES
    reason: str
    seconds: float


def read_outcomes(file: Path) -> dict[str, Outcome]:
    """Of the lines that one_process_each wrote, by test. A run that was interrupted leaves fewer."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    read = [json.loads(line) for line in lines]
    return {one["id"]: Outcome(one["id"], one["outcome"], one["reason"], one["seconds"]) for one in read}


def worse(ours: dict[str, Outcome], theirs: dict[str, Outcome]) -> list[Outcome]:
    """Tests that the reference passes and ours do not: failed, skipped, or without a result."""
    missing = "no result: the run ended before this test"
    return [ours.get(test, Outcome(test, "failed", missing, 0.0)) for test, outcome in theirs.items()
            if outcome.outcome == "passed" and (test not in ours or ours[test].outcome != "passed")]


def counts(outcomes: dict[str, Outcome]) -> list[str]:
    return [str(sum(one.outcome == outcome for one in outcomes.values())) for outcome in OUTCOMES]


def first_line(reason: str, width: int = 160) -> str:
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return lines[0][:width] if lines else ""


def table(rows: list[list[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("---" if number == 0 else "---:" for number in range(len(rows[0]))) + "|")
    return "\n".join(lines)


def summary(results: dict[str, tuple[dict[str, Outcome], dict[str, Outcome] | None]]) -> tuple[str, bool]:
    """The tables and lists for {suite: (ours, the reference's or None)}, and whether all was compared and nothing is worse than the reference."""
    rows = [["suite", "DeepScale: passed", "failed", "skipped", "DeepSpeed: passed", "failed", "skipped", "only DeepScale passes",
             "only DeepSpeed passes"]]
    parts, good = [], True
    for suite, (ours, theirs) in results.items():
        if theirs is None:
            good = False
            rows.append([suite, *counts(ours), "-", "-", "-", "-", "-"])
            continue
        lost, won = worse(ours, theirs), worse(theirs, ours)
        rows.append([suite, *counts(ours), *counts(theirs), str(len(won)), str(len(lost))])
        good = good and not lost
        parts += [f"DeepSpeed passes, DeepScale does not: {one.test}\n    {one.outcome}: {first_line(one.reason)}" for one in lost]
    for suite, (ours, theirs) in results.items():
        parts += [f"fails{' with both' if theirs is not None else ''}: {one.test}\n    {first_line(one.reason)}" for one in ours.values()
                  if one.outcome == "failed" and (theirs is None or theirs.get(one.test, one).outcome == "failed")]
    return "\n".join([table(rows), "", *parts]), good
