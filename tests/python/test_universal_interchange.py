"""Universal checkpoints between real DeepSpeed and this project, both ways, and the two converters compared file by file.

Needs DEEPSCALE_REFERENCE_PYTHON: the interpreter of an environment with DeepSpeed 0.19.8. Skipped without it.
"""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from test_interchange import REFERENCE, compare, run

pytestmark = pytest.mark.skipif(not REFERENCE, reason="DEEPSCALE_REFERENCE_PYTHON names no interpreter with DeepSpeed")


def convert(python: str, source: Path, target: Path) -> None:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"}
    if python == REFERENCE:
        environment.pop("PYTHONPATH", None)
    command = [python, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(source), "--output_folder", str(target),
               "--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def values(directory: Path) -> dict[str, torch.Tensor]:
    """Every state of every parameter, flat, with the step."""
    found = {}
    for path in sorted((directory / "zero").rglob("*.pt")):
        if path.name == "optimizer_state.pt":
            continue
        stored = torch.load(path, weights_only=False)
        found[str(path.relative_to(directory))] = torch.as_tensor(stored["param"] if isinstance(stored, dict) else stored).float().reshape(-1)
    return found


CASES = [(stage, world, "fp32") for stage in (1, 2, 3) for world in (1, 2)] + [(stage, 2, "bf16") for stage in (1, 3)]


@pytest.mark.parametrize("stage,world,dtype", CASES)
def test_both_ways(stage, world, dtype, tmp_path):
    job = {"stage": stage, "dtype": dtype, "optimizer": "AdamW", "steps": 4, "load": False, "save": True}
    theirs_dir, ours_dir = tmp_path / "theirs", tmp_path / "ours"
    run(REFERENCE, world, {**job, "directory": str(theirs_dir)})
    run(sys.executable, world, {**job, "directory": str(ours_dir)})
    convert(REFERENCE, theirs_dir / "step", theirs_dir / "universal")
    convert(sys.executable, ours_dir / "step", ours_dir / "universal")
    resume = {**job, "load": True, "save": False, "universal": True}
    for directory in (theirs_dir, ours_dir):
        compare(run(sys.executable, world, {**resume, "directory": str(directory)}),
                run(REFERENCE, world, {**resume, "directory": str(directory)}), dtype)


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_the_converters_agree_on_the_same_checkpoints(stage, tmp_path):
    job = {"stage": stage, "dtype": "bf16", "optimizer": "AdamW", "steps": 2, "load": False, "save": True}
    for python, owner in ((REFERENCE, "theirs"), (sys.executable, "ours")):
        run(python, 2, {**job, "directory": str(tmp_path / owner)})
        convert(REFERENCE, tmp_path / owner / "step", tmp_path / owner / "by_them")
        convert(sys.executable, tmp_path / owner / "step", tmp_path / owner / "by_us")
        by_them, by_us = values(tmp_path / owner / "by_them"), values(tmp_path / owner / "by_us")
        assert len(by_them) >= 3 * 7
        for name, value in by_them.items():
            assert torch.equal(by_us[name], value), (owner, name)
        # Of stage 3 they leave out the steps, frozen parameters and buffers.
        extra = {name.split("/")[-1] if name.endswith("step.pt") else name for name in set(by_us) - set(by_them)}
        assert extra <= {"step.pt", "zero/frozen.weight/fp32.pt", "zero/frozen.bias/fp32.pt", "zero/table/fp32.pt", "zero/head.weight/fp32.pt"}


@pytest.mark.parametrize("saved,loaded,world", [(1, 3, 2), (3, 2, 1), (2, 1, 2), (3, 1, 2), (2, 3, 1)])
def test_real_deepspeed_loads_our_conversion_at_another_stage_and_number_of_ranks(saved, loaded, world, tmp_path):
    job = {"stage": saved, "dtype": "fp32", "optimizer": "AdamW", "steps": 4, "load": False, "save": True, "directory": str(tmp_path)}
    run(sys.executable, 2, job)
    convert(sys.executable, tmp_path / "step", tmp_path / "universal")
    resume = {**job, "stage": loaded, "load": True, "save": False, "universal": True}
    compare(run(sys.executable, world, resume), run(REFERENCE, world, resume), "fp32")


def test_real_deepspeed_loads_what_an_engine_wrote_itself(tmp_path):
    job = {"stage": 2, "dtype": "bf16", "optimizer": "AdamW", "steps": 4, "load": False, "save": True, "save_universal": True,
           "directory": str(tmp_path)}
    run(sys.executable, 2, job)
    for stage in (1, 3):
        resume = {**job, "stage": stage, "load": True, "save": False, "universal": True}
        compare(run(sys.executable, 2, resume), run(REFERENCE, 2, resume), "bf16")


@pytest.mark.parametrize("stage", (1, 3))
def test_real_deepspeeds_conversion_loads_here_at_every_stage(stage, tmp_path):
    job = {"stage": stage, "dtype": "fp32", "optimizer": "AdamW", "steps": 4, "load": False, "save": True, "directory": str(tmp_path)}
    run(REFERENCE, 2, job)
    convert(REFERENCE, tmp_path / "step", tmp_path / "universal")
    resume = {**job, "load": True, "save": False, "universal": True}
    expected = run(REFERENCE, 2, resume)
    for other in (0, 1, 2, 3):
        compare(run(sys.executable, 2, {**resume, "stage": other}), expected, "fp32")
