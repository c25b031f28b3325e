"""docs/cpp.md: what it shows of C++ and CMake stands in the examples, which are compiled and run by ctest and CI; its commands name programs
and options that exist."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from documents import FENCE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "cpp.md").read_text()
PIECES = [(match["info"].split(" ", 1)[1], piece) for match in FENCE.finditer(PAGE) if match["info"].split()[0] in ("cpp", "cmake")
          for piece in match["body"].split("// ...\n")]


@pytest.mark.parametrize("path, piece", PIECES, ids=range(len(PIECES)))
def test_pieces_are_of_the_examples(path, piece):
    assert piece in (ROOT / path).read_text(), f"docs/cpp.md differs from {path}:\n{piece}"


def test_every_block_names_its_example():
    assert all(" " in match["info"] for match in FENCE.finditer(PAGE) if match["info"].split()[0] in ("cpp", "cmake"))
    assert len(PIECES) >= 6


def test_what_the_page_names_in_the_interface_is_in_the_headers():
    headers = "".join(path.read_text() for path in (ROOT / "include" / "deepscale").glob("*.h"))
    named = set(re.findall(r"`(?:deepscale::|engine->)(\w+)", PAGE)) | set(re.findall(r"`(?:InitializeOptions|SaveOptions)::(\w+)`", PAGE))
    missing = [name for name in named if not re.search(rf"\b{name}\b", headers)]
    assert not missing and len(named) > 8, (missing, named)


def test_options_of_the_commands_exist():
    """Of examples/gpt/train.py and gpt_cpp; the launcher's are tested with it."""
    programs = (ROOT / "examples/gpt/train.py").read_text() + (ROOT / "examples/gpt_cpp/main.cpp").read_text()
    command = PAGE.split("## The GPT example")[1].split("```bash")[1].split("```")[0]
    options = set(re.findall(r"(--\w+)", command)) - {"--num_gpus", "--no_python", "--deepspeed_config"}
    assert options and all(option in programs for option in options), options
