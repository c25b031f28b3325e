"""The layout of universal checkpoints: one folder per parameter, with whole tensors that any number of ranks reads by slices.

    <root>/latest_universal                  text: the folder that was written last
    <root>/<folder>/zero/<parameter>/<state>.pt   fp32 (the value) and one file per optimizer state (exp_avg, exp_avg_sq, ...): a
                                             dictionary {"param": tensor, "cat_dim": 0, ...}, or (older stage 3 files) a flat tensor
    <root>/<folder>/zero/<parameter>/step.pt      the step count: a tensor or a number
    <root>/<folder>/zero/optimizer_state.pt       what is not a tensor per parameter: loss scale, parameter groups
    <root>/<folder>/*_model_states.pt             buffers, counters, scheduler, the client's state

optimizer_state.pt written here also has an entry `universal_states`: for every trained parameter the names of its files, so that a
file that was lost is found to be missing, and the states that are numbers.
"""
from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Any

import torch

from deepspeed._C import CheckpointError
from deepspeed.checkpoint.constants import OPTIMIZER_STATE_DICT, PARAM_GROUPS

LATEST_UNIVERSAL = "latest_universal"
ZERO_FOLDER = "zero"
STEP = "step"
UNIVERSAL_STATES = "universal_states"
# Light model-state files are written under both names, because engines look for the one of their own ZeRO stage.
WHOLE_MODEL_FILE = "mp_rank_00_model_states.pt"
SHARDED_MODEL_FILE = "zero_pp_rank_0_mp_rank_00_model_states.pt"


@dataclass
class SubparamShape:
    """A parameter that holds several: their common shape, in which the sizes along `partition_dim` are listed one by one."""

    patterns: list[str]
    shape: tuple
    partition_dim: int


def parameter_folder(directory: str, name: str) -> str:
    """Where the files of one parameter are. CheckpointError for a name that would lead out of the checkpoint."""
    root = os.path.join(directory, ZERO_FOLDER)
    folder = os.path.normpath(os.path.join(root, name))
    if not name or os.path.isabs(name) or not folder.startswith(os.path.normpath(root) + os.sep):
        raise CheckpointError(f"parameter name {name!r} cannot be the name of a folder in {root}")
    return folder


def state_file(directory: str, name: str, key: str) -> str:
    if os.path.basename(key) != key or key in ("", ".", ".."):
        raise CheckpointError(f"optimizer state {key!r} of {name} cannot be the name of a file")
    return os.path.join(parameter_folder(directory, name), f"{key}.pt")


def optimizer_state_file(directory: str) -> str:
    return os.path.join(directory, ZERO_FOLDER, "optimizer_state.pt")


def is_universal(directory: str) -> bool:
    return os.path.isfile(optimizer_state_file(directory))


def common_state(plain: dict[str, Any], param_groups: list[dict], step: Any, states: dict[str, dict]) -> dict[str, Any]:
    """The contents of optimizer_state.pt: engines of stage 1 and 2 read the groups at the top, those of stage 3 one level below,
    where they also look for the step."""
    below = {"state": {} if step is None else {0: {STEP: step}}, PARAM_GROUPS: param_groups}
    return {**plain, PARAM_GROUPS: param_groups, OPTIMIZER_STATE_DICT: below, UNIVERSAL_STATES: states}


def write(value: Any, path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    torch.save(value, path)


def begin(output: str) -> str:
    """A new folder, to be moved to `output` when it is complete. Only universal checkpoints and empty folders may be written over."""
    usable = not os.path.exists(output) or (os.path.isdir(output) and (not os.listdir(output) or os.path.isdir(os.path.join(output, ZERO_FOLDER))))
    if not usable or not os.path.basename(output):
        raise CheckpointError(f"{output} exists and is not a universal checkpoint: choose another folder, or remove it")
    partial = f"{output}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(os.path.join(partial, ZERO_FOLDER))
    return partial


def move(partial: str, output: str) -> None:
    """Under its name, in place of what was there; then named by latest_universal."""
    old = f"{output}.replaced"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.exists(output):
        os.rename(output, old)
    os.rename(partial, output)
    root, folder = os.path.split(output)
    latest = os.path.join(root, LATEST_UNIVERSAL)
    with open(f"{latest}.partial", "w") as file:
        file.write(folder)
    os.replace(f"{latest}.partial", latest)
    shutil.rmtree(old, ignore_errors=True)
