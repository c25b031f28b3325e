"""docs/tutorials: every program and command of them runs, and prints what the page says."""
from __future__ import annotations

from pathlib import Path

import pytest

from common import built_program
from documents import blocks, missing_packages, run_page

TUTORIALS = sorted((Path(__file__).resolve().parents[2] / "docs" / "tutorials").glob("*.md"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial(path, tmp_path):
    page = path.read_text()
    missing = missing_packages(page)
    if missing:
        pytest.skip(f"needs the packages {', '.join(missing)} (pip install {' '.join(missing)})")
    if built_program("deepspeed") is None:
        pytest.skip("no deepspeed program was built")
    run_page(page, tmp_path)


def test_there_are_tutorials():
    assert {path.stem for path in TUTORIALS} >= {"engine", "transformers", "accelerate", "peft", "lightning", "trl"}
    assert all(blocks(path.read_text()) for path in TUTORIALS)


PAGE = """
```python hello.py
print("one")
print("two")
```
```bash
python hello.py
```
```text
one
two
```
"""


def test_a_page_that_is_right(tmp_path):
    run_page(PAGE, tmp_path)


@pytest.mark.parametrize("change", [("\none\ntwo\n", "\ntwo\none\n"), ("\ntwo\n```\n", "\nthree\n```\n"), ('print("two")', "raise SystemExit(3)")])
def test_a_page_that_is_wrong_fails(change, tmp_path):
    assert change[0] in PAGE
    with pytest.raises(AssertionError):
        run_page(PAGE.replace(*change), tmp_path)


def test_blocks_that_nothing_runs_are_refused():
    for page in ("```json\n{}\n```\n", "```text\nx\n```\n", "```sh\nls\n```\n"):
        with pytest.raises(ValueError):
            blocks(page)


def test_packages_that_are_missing():
    assert missing_packages("<!-- needs: json no_such_package -->\n") == ["no_such_package"]
