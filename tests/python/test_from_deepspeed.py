"""docs/from_deepspeed.md: its programs and commands run and print what it says; its figures are those of bench/README.md."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from common import built_program
from documents import run_page

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "from_deepspeed.md").read_text()


def test_the_page_runs(tmp_path):
    if built_program("deepspeed") is None:
        pytest.skip("no deepspeed program was built")
    run_page(PAGE, tmp_path)


def test_only_pip_is_left_to_the_reader():
    by_hand = "".join(re.findall(r"^```bash by hand\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    assert by_hand and all(line.startswith("pip ") for line in by_hand.splitlines())
    assert not re.findall(r"^    \S", PAGE.split("\n```")[0], re.MULTILINE), "a command outside of a block is not run"


def test_figures_are_those_of_the_benchmarks():
    measured = (ROOT / "bench" / "README.md").read_text()
    rows = re.findall(r"^\| (?:training|a step|peak).*$", PAGE, re.MULTILINE)
    assert len(rows) == 3
    for row in rows:
        for cell in row.split("|")[2:4]:
            assert cell.strip() in measured, cell
