"""The layout of universal checkpoints: one folder per parameter, with whole tensors that any number of ranks reads by slices.

    <root>/latest_universal                  text: the folder that was written last
    <root>/<folder>/zero/<parameter>/<state>.pt   fp32 (the value) and one file per optimizer state (exp_avg, exp_avg_sq, ...): a
                                             dictionary {"param": tensor, "cat_dim": 0, ...}, or (older stage 3 files) a flat tensor
    <root>/<folder>/zero/<parameter>/step.pt      the step count: a tensor or a number
    <root>/<folder>/zero/optimizer_state.pt       what is not a tensor per parameter: loss scale, parameter groups
    <root>/<folder>/*_model_states.pt             buffers, counters, scheduler, the client's state

optimizer_state.pt written here also has an entry `universal_states`: for every trained parameter the names of its files, so that a
file that was lost is found to be missing, and the states that are numbers.

A folder is written as <root>/.<folder>.saving and gets its name when it is complete and on the disk. What had the name before is
<root>/.<folder>.replaced for a moment; a run that is killed then has not lost it: begin() and load_checkpoint() give it its name back.
"""
from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Any

import torch

from deepspeed import _C
from deepspeed._C import CheckpointError
from deepspeed.checkpoint.constants import OPTIMIZER_STATE_DICT, PARAM_GROUPS
from deepspeed.checkpoint.on_disk import make_folders, replace_text, sync_folder, sync_tree
from deepspeed.checkpoint.utils import private_copies

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
    """`value` in a file of torch.save's format: of tensors only what they show, not the buffers that they are views of."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    torch.save(private_copies(value), path)


def begin(output: str) -> str:
    """A new folder, to be moved to `output` when it is complete. Only universal checkpoints and empty folders may be written over."""
    root, name = os.path.split(output)
    _C.restore_replaced(root)
    usable = not os.path.exists(output) or (os.path.isdir(output) and (not os.listdir(output) or os.path.isdir(os.path.join(output, ZERO_FOLDER))))
    if not usable or not name:
        raise CheckpointError(f"{output} exists and is not a universal checkpoint: choose another folder, or remove it")
    partial = _C.saving_folder(root, name)
    shutil.rmtree(partial, ignore_errors=True)
    make_folders(root)
    os.makedirs(os.path.join(partial, ZERO_FOLDER))
    return partial


def abandon(partial: str) -> None:
    """After a save that failed. Nothing of this may hide why."""
    shutil.rmtree(partial, ignore_errors=True)


def move(partial: str, output: str) -> None:
    """Under its name, in place of what was there; then named by latest_universal. Everything is on the disk before the next step. By one
    rank; where ranks of several machines wrote the files, each machine has called sync_tree() for its own."""
    sync_tree(partial)
    root, folder = os.path.split(output)
    old = _hidden(output, "replaced")
    if os.path.exists(output):
        _remove_hidden(output, old)
        os.rename(output, old)
    try:
        os.rename(partial, output)
    except OSError:
        if os.path.exists(old) and not os.path.exists(output):
            os.rename(old, output)
        raise
    sync_folder(root)
    replace_text(os.path.join(root, LATEST_UNIVERSAL), folder)
    _remove_hidden(output, old)


def _hidden(output: str, state: str) -> str:
    """Beside the folder. Of these names restore_replaced() of the core gives .NAME.replaced, where NAME is missing, its name back, and saves
    of checkpoints remove what is an hour old (src/checkpoint/tag_folder.h)."""
    root, folder = os.path.split(output)
    return os.path.join(root, f".{folder}.{state}")


def _remove_hidden(output: str, old: str) -> None:
    """Under another name first: half of it must never get the name back."""
    removed = _hidden(output, "removed")
    shutil.rmtree(removed, ignore_errors=True)
    if os.path.exists(old):
        os.rename(old, removed)
        shutil.rmtree(removed, ignore_errors=True)
