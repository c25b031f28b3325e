"""docs/from_deepspeed.md: its programs and commands run and print what it says; its figures are those of bench/README.md."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from common import built_program
from documents import run_page

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "from_deepspeed.md").read_text()


NUMBER = r"\d+(?:\.\d+)?"
BENCHMARKS = (ROOT / "bench" / "README.md").read_text()
FOUR = " / ".join([f"({NUMBER})"] * 4)
# For each row of the page: how the row of bench/README.md begins, and what is taken from its cells for DeepScale and for DeepSpeed.
MEASURED = (
    ("`train.py`, share of the limit's speed", (f"^{FOUR}$", f"DeepSpeed {FOUR}")),
    ("`overhead.py`, step time over plain torch's", (f"^{FOUR}$", f"DeepSpeed {FOUR}")),
    ("`memory.py`, largest peak", (f"^({NUMBER})$", f"DeepSpeed ({NUMBER}) to ({NUMBER})")),
    ("`startup.py --quick` (busy machine), seconds: import over `import torch` / launcher over two bare Pythons",
     (f"^({NUMBER}) / ({NUMBER})", f"DeepSpeed ({NUMBER}) / ({NUMBER})")),
    ("`checkpoint.py`, DeepSpeed's layout, 1 / 2 ranks", ("1", fr"save {NUMBER} x / ({NUMBER}) x our time, its load {NUMBER} x / ({NUMBER}) x")),
)


def measured(label: str, pattern: str) -> list[str]:
    """What the pattern's groups match in the row's cell of ours ("^...") or of its opponents; a number is a ratio's unit."""
    if re.fullmatch(NUMBER, pattern):
        return [pattern]
    lines = [line for line in BENCHMARKS.splitlines() if line.startswith(f"| {label}")]
    assert len(lines) == 1, label
    ours, opponents = (cell.strip() for cell in lines[0].split(" | ")[1:3])
    found = re.search(pattern, ours if pattern.startswith("^") else opponents)
    assert found, f"{label}: {pattern}"
    return list(found.groups())


def test_the_page_runs(tmp_path):
    if built_program("deepspeed") is None:
        pytest.skip("no deepspeed program was built")
    run_page(PAGE, tmp_path)


def test_only_pip_is_left_to_the_reader():
    by_hand = "".join(re.findall(r"^```bash by hand\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    assert by_hand and all(line.startswith("pip ") for line in by_hand.splitlines())
    assert not re.findall(r"^    \S", PAGE.split("\n```")[0], re.MULTILINE), "a command outside of a block is not run"


def test_figures_are_those_of_the_benchmarks():
    """Every number of the five rows: of ours, of DeepSpeed's, in order."""
    speed = PAGE.partition("## Speed and memory")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| \w.*$", speed, re.MULTILINE)]
    assert len(rows) == len(MEASURED) == 5
    for (what, *cells), (label, columns) in zip(rows, MEASURED):
        for cell, found in zip(cells, columns, strict=True):
            assert re.findall(NUMBER, cell) == measured(label, found), what
