"""Runs the fenced blocks of a page of documentation, in their order and in one folder.

    ```python NAME      becomes the file NAME; so do json, yaml and toml blocks with a name
    ```python           is run as a program
    ```bash             is run; the page fails with its first command that fails
    ```text             is what the bash or python block before it printed: its lines occur in that order, each somewhere in a line

`<!-- needs: transformers peft -->` anywhere in the page names packages that it cannot run without. ```bash by hand` is shown and not
run, ```cpp and ```cmake are for other tests.
"""
from __future__ import annotations

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from common import built_program, free_port

FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
FILES, RUN, ELSEWHERE = ("python", "json", "yaml", "toml"), ("python", "bash"), ("cpp", "cmake")
TIMEOUT_S = 240


@dataclass
class Block:
    """What to run or write, and lines that running it prints."""

    language: str
    name: str
    body: str
    prints: list[str] = field(default_factory=list)


def blocks(page: str) -> list[Block]:
    """The page's blocks; text blocks are with the block before them. Raises ValueError for a block that nothing would run."""
    found: list[Block] = []
    for match in FENCE.finditer(page):
        language, _, name = match["info"].partition(" ")
        if language == "text":
            if not found or found[-1].language not in RUN:
                raise ValueError(f"a text block follows nothing that prints: {match['body']!r}")
            found[-1].prints = match["body"].splitlines()
        elif language in ELSEWHERE or name == "by hand":
            continue
        elif language in RUN or (language in FILES and name):
            found.append(Block(language, name, match["body"]))
        else:
            raise ValueError(f"a block of {match['info']!r} is neither run nor written")
    return found


def missing_packages(page: str) -> list[str]:
    """Packages that the page needs and this interpreter does not have."""
    needed = re.findall(r"<!-- needs: (.*?) -->", page)
    return [name for name in " ".join(needed).split() if importlib.util.find_spec(name) is None]


def environment(folder: Path) -> dict[str, str]:
    """Variables under which `python`, `deepspeed` and other programs of a page are those that are tested."""
    programs = folder / ".programs"
    programs.mkdir()
    # A script and not a link: a virtual environment is found by the place of its interpreter.
    _script(programs / "python", f'exec {shlex.quote(sys.executable)} "$@"')
    launcher = built_program("deepspeed")
    folders = [str(programs), str(Path(sys.executable).parent)]
    if launcher is not None:
        # A port of its own: its default may be taken while the ranks start, by another test.
        _script(programs / "deepspeed", f'exec {shlex.quote(launcher)} --master_port {free_port()} "$@"')
        folders.insert(1, str(Path(launcher).parent))
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")}
    return {**kept, "PATH": os.pathsep.join([*folders, os.environ["PATH"]]), "DEEPSCALE_PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
            "MASTER_PORT": str(free_port()), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false", "HF_HOME": str(folder / ".huggingface")}


def _script(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def run_page(page: str, folder: Path) -> None:
    """Runs it. Raises AssertionError with the output of what failed."""
    variables = environment(folder)
    for block in blocks(page):
        if block.name:
            (folder / block.name).write_text(block.body)
            continue
        command = ["bash", "-euo", "pipefail", "-c", block.body] if block.language == "bash" else [sys.executable, "-c", block.body]
        status, output = _run(command, folder, variables)
        assert status == 0, f"exit status {status}\n{block.body}\n{output}"
        _compare(block, output)


def _run(command: list[str], folder: Path, variables: dict[str, str]) -> tuple[int, str]:
    process = subprocess.Popen(command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, errors="replace", start_new_session=True)
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # the launcher ends its ranks
        output, _ = process.communicate(timeout=30)
        return -1, output
    return process.returncode, output


def _compare(block: Block, output: str) -> None:
    lines = iter(output.splitlines())
    for expected in block.prints:
        assert any(expected.strip() in line for line in lines), f"expected {expected!r} in the output of\n{block.body}\nwhich is\n{output}"
