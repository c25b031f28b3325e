"""What the suites need beside their tests: an interpreter with the integrations, the reference, checkouts, models. Each is used where
it is given and made in the folder of the run where it is not."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from suites import Suite

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
REFERENCE = "deepspeed==0.19.8"
# What the reference compiles at its first use, which would otherwise count into the first tests' time.
WARM_UP = ("import torch; from deepspeed.ops.op_builder.cpu import CPUAdamBuilder, FusedAdamBuilder, ShareMemCommBuilder;"
           "[builder().load(verbose=False) for builder in (ShareMemCommBuilder, CPUAdamBuilder, FusedAdamBuilder)]")


class Missing(Exception):
    """Something that cannot be made here; the message says what to do."""


def _quietly(command: list[str], what: str, limit_s: float, **options) -> None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s, stdin=subprocess.DEVNULL, **options)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{what}: {error}") from None
    if run.returncode != 0:
        raise Missing(f"{what} failed ({run.returncode}): {(run.stderr.strip().splitlines() or ['no message'])[-1][:300]}")


def interpreter(folder: Path) -> Path:
    """DEEPSCALE_DOWNSTREAM_PYTHON, or a virtual environment in `folder` with the packages of requirements.txt."""
    given = os.environ.get("DEEPSCALE_DOWNSTREAM_PYTHON")
    if given:
        if not os.access(given, os.X_OK):
            raise Missing(f"DEEPSCALE_DOWNSTREAM_PYTHON={given}: no such program; give an interpreter with the packages of {HERE / 'requirements.txt'}")
        return Path(given).absolute()  # not resolved: a virtual environment's link says where its packages are
    place = folder / "venv"
    wanted = (HERE / "requirements.txt").read_text(encoding="utf-8")
    stamp = place / "requirements.txt"
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted):
        print(f"installing the integrations into {place} (some 6 GB) ...", flush=True)
        _quietly([sys.executable, "-m", "venv", str(place)], "python -m venv", 300)
        _quietly([str(place / "bin" / "pip"), "install", "-r", str(HERE / "requirements.txt")], "pip install", 3600)
        stamp.write_text(wanted, encoding="utf-8")
    return place / "bin" / "python"


def reference(folder: Path, python: Path) -> Path:
    """DEEPSCALE_REFERENCE_PATH, or REFERENCE installed into `folder` without its operators."""
    given = os.environ.get("DEEPSCALE_REFERENCE_PATH")
    place = Path(given).expanduser().resolve() if given else folder / "reference"
    if not (place / "deepspeed" / "__init__.py").is_file():
        if given:
            raise Missing(f"DEEPSCALE_REFERENCE_PATH={given}: there is no deepspeed in it; pip install --no-deps --target {given} {REFERENCE}")
        print(f"installing {REFERENCE} into {place} ...", flush=True)
        _quietly([str(python), "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--target", str(place), REFERENCE],
                 f"pip install {REFERENCE}", 1800, env={**os.environ, "DS_BUILD_OPS": "0"})
    return place


def warm_up(python: Path, environment: dict[str, str]) -> None:
    """Lets the reference compile its operators."""
    print("compiling the reference's operators, where that was not done yet ...", flush=True)
    _quietly([str(python), "-c", WARM_UP], "compiling the reference's operators", 3600, env=environment)


def _clone(suite: Suite, place: Path) -> None:
    if shutil.which("git") is None:
        raise Missing(f"no checkout of {suite.url} and no git: set DEEPSCALE_DOWNSTREAM to a folder that has it as {suite.checkout}")
    print(f"cloning {suite.url} at {suite.tag} ...", flush=True)
    unfinished = place.with_name(place.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", suite.tag, suite.url, str(unfinished)]
    _quietly(command, f"no checkout of {suite.url} (DEEPSCALE_DOWNSTREAM names a folder that has it as {suite.checkout}); git clone", 1800,
             env={**os.environ, "GIT_TERMINAL_PROMPT": "0"})
    unfinished.rename(place)


def checkout(suite: Suite, folder: Path) -> Path:
    """The suite's checkout, below DEEPSCALE_DOWNSTREAM or cloned into `folder`."""
    given = os.environ.get("DEEPSCALE_DOWNSTREAM")
    base = Path(given).expanduser().resolve() if given else folder / "checkouts"
    place = base / suite.checkout
    if not place.is_dir():
        if given:
            raise Missing(f"DEEPSCALE_DOWNSTREAM={given} has no folder {suite.checkout}: put a checkout of {suite.url} at {suite.tag} there")
        _clone(suite, place)
    missing = suite.missing(base)
    if missing:
        raise Missing(f"{place} has no {missing[0]}: use a checkout of {suite.url} at {suite.tag}")
    return place


def inputs(folder: Path, python: Path) -> Path:
    """Models and data, made once per folder; beside their place first, so that an interrupted run leaves nothing half made."""
    place, unfinished = folder / "inputs", folder / "inputs.unfinished"
    recipe = (HERE / "make_models.py").read_text(encoding="utf-8")
    if (place / "recipe.py").is_file() and (place / "recipe.py").read_text(encoding="utf-8") == recipe:
        return place
    print("making tiny models and data ...", flush=True)
    for old in (place, unfinished):
        shutil.rmtree(old, ignore_errors=True)
    _quietly([str(python), str(HERE / "make_models.py"), str(unfinished)], "make_models.py", 900)
    (unfinished / "recipe.py").write_text(recipe, encoding="utf-8")
    unfinished.rename(place)
    return place
