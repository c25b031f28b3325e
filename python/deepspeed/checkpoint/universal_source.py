"""A checkpoint folder of one tag, of any ZeRO stage and number of ranks, read parameter by parameter without an engine.

Files are mapped, not loaded: what is in memory is the parameter that was asked for.
"""
from __future__ import annotations

import os
import re
from typing import Any, Callable, Iterable

import torch
from torch import Tensor

from deepspeed._C import CheckpointError
from deepspeed.checkpoint.constants import (BASE_OPTIMIZER_STATE, BUFFER_NAMES, FP32_FLAT_GROUPS, FP32_GROUPS, FROZEN_PARAM_FRAGMENTS,
                                            FROZEN_PARAM_SHAPES, MODEL_FILE_SUFFIX, OPTIM_FILE_SUFFIX, OPTIMIZER_STATE_DICT,
                                            PARAM_SHAPES, PARAM_SLICE_MAPPINGS, SHARED_PARAMS, SINGLE_PARTITION_OF_FP32_GROUPS)
from deepspeed.checkpoint.safe_load import check_folder, load_file
from deepspeed.checkpoint.universal_checkpoint import SHARDED_MODEL_FILE, STEP, WHOLE_MODEL_FILE
from deepspeed.runtime.checkpoint_restore import StateFiles

_MODEL = re.compile(rf"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+){re.escape(MODEL_FILE_SUFFIX)}")
_OPTIMIZER = re.compile(rf"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+){re.escape(OPTIM_FILE_SUFFIX)}")
_OTHER_LAYOUT = re.compile(r"layer_\d+.*_states\.pt|expp_rank_\d+_.*_states\.pt|mp_rank_\d+_\d+_.*_states\.pt")
# What is a tensor per rank, and so not common to all.
_PER_RANK = (BASE_OPTIMIZER_STATE, OPTIMIZER_STATE_DICT, PARAM_SLICE_MAPPINGS, SINGLE_PARTITION_OF_FP32_GROUPS, FP32_FLAT_GROUPS, FP32_GROUPS,
             "fp32_groups_flat", "state", "param_groups")


def _grid(directory: str, pattern: re.Pattern, what: str) -> list[list[str]]:
    """Paths by tensor-parallel rank and data-parallel rank. CheckpointError when one is missing or there twice."""
    found: dict[tuple[int, int], str] = {}
    for name in sorted(os.listdir(directory)):
        match = pattern.fullmatch(name)
        if match is None:
            continue
        place = (int(match.group(2)), int(match.group(1) or 0))
        if place in found:
            raise CheckpointError(f"checkpoint {directory}: {os.path.basename(found[place])} and {name} are of the same rank: one of them is "
                                  "left over from an earlier checkpoint; remove it")
        found[place] = os.path.join(directory, name)
    size = [max((place[axis] for place in found), default=-1) + 1 for axis in range(2)]
    missing = [place for place in ((tp, dp) for tp in range(size[0]) for dp in range(size[1])) if place not in found]
    if missing:
        raise CheckpointError(f"checkpoint {directory}: the {what} file of data-parallel rank {missing[0][1]}, tensor-parallel rank "
                              f"{missing[0][0]} is missing: the checkpoint is not complete")
    return [[found[tp, dp] for dp in range(size[1])] for tp in range(size[0])]


class ModelFiles:
    """The model-state files of a folder, and all of a model that is not in optimizer files."""

    def __init__(self, directory: str) -> None:
        if not os.path.isdir(directory):
            raise CheckpointError(f"checkpoint directory {directory} does not exist")
        check_folder(directory, "load it into an engine, of any stage and number of ranks, and call save_universal_checkpoint()")
        self.directory = directory
        other = sorted(name for name in os.listdir(directory) if _OTHER_LAYOUT.fullmatch(name))
        if other:
            raise CheckpointError(f"checkpoint {directory} holds {other[0]}: checkpoints of pipelines and of mixtures of experts cannot be "
                                  "converted here")
        self.paths = _grid(directory, _MODEL, "model")
        if not self.paths:
            raise CheckpointError(f"checkpoint {directory} has no model files (*{MODEL_FILE_SUFFIX}): give the folder of one tag, such as "
                                  "global_step100")
        self.ranks = [[load_file(path) for path in paths] for paths in self.paths]
        for paths, models in zip(self.paths, self.ranks):
            for path, model in zip(paths, models):
                if "module" not in model or "dp_world_size" not in model:
                    raise CheckpointError(f"{path} is not a model-state file")
        self.first: dict = self.ranks[0][0]
        self.sharded = os.path.basename(self.paths[0][0]).startswith("zero_pp_rank_")

    def aliases(self) -> dict[str, str]:
        return dict(self.first.get(SHARED_PARAMS) or {})

    def buffers(self) -> dict[str, Tensor]:
        return {name: self.first["module"][name] for name in self.first.get(BUFFER_NAMES, ()) if name in self.first["module"]}

    def untrained(self, trained: Iterable[str]) -> dict[str, Callable[[], list[Tensor]]]:
        """Readers of the whole values of all other parameters: one tensor per tensor-parallel rank."""
        shapes = self.first.get(FROZEN_PARAM_SHAPES) or {}
        known = {*trained, *self.first.get(BUFFER_NAMES, ()), *self.aliases()}
        names = list(shapes) if self.sharded or shapes else [name for name, value in self.first["module"].items()
                                                             if name not in known and isinstance(value, Tensor)]
        return {name: lambda name=name: [self._untrained(models, name) for models in self.ranks] for name in names}

    def _untrained(self, models: list[dict], name: str) -> Tensor:
        if not self.sharded:
            return models[0]["module"][name]
        shape = torch.Size(models[0][FROZEN_PARAM_SHAPES][name])
        return torch.cat([model[FROZEN_PARAM_FRAGMENTS][name].reshape(-1) for model in models])[:shape.numel()].view(shape)

    def light(self, trained: Iterable[str]) -> tuple[str, dict[str, Any]]:
        """(file name, contents) of a model-state file for engines of the other kind of stage, which look for another name: without
        trained parameters."""
        trained = set(trained)
        untrained = {name: read()[0].clone() for name, read in self.untrained(trained).items()}
        aliases = self.aliases()
        module = {name: torch.empty(0, dtype=value.dtype) if name in trained else value.clone()
                  for name, value in self.first["module"].items() if isinstance(value, Tensor) and name not in aliases}
        shapes = {name: value.shape for name, value in untrained.items()}
        state = {**self.first, "module": {**module, **untrained}, "optimizer": None, FROZEN_PARAM_SHAPES: shapes,
                 FROZEN_PARAM_FRAGMENTS: untrained}
        return (WHOLE_MODEL_FILE if self.sharded else SHARDED_MODEL_FILE), state


class UniversalSource:
    """What a universal checkpoint needs to know of another one. `files`: one StateFiles per tensor-parallel rank."""

    def __init__(self, directory: str) -> None:
        self.model = ModelFiles(directory)
        self.directory = directory
        self.files = self._state_files()
        self.names = [name for group in self.files[0].groups for name, _ in group]
        self._check()

    # ---- opening
    def _state_files(self) -> list[StateFiles]:
        model = self.model
        if model.first.get("optimizer") is not None:
            return [_without_sharding(models[0], paths[0]) for models, paths in zip(model.ranks, model.paths)]
        optimizers = _grid(self.directory, _OPTIMIZER, "optimizer")
        if not optimizers:
            raise CheckpointError(f"checkpoint {self.directory} has no optimizer files (*{OPTIM_FILE_SUFFIX}): they are missing, or it was saved "
                                  "without an optimizer")
        if len(optimizers) != len(model.paths):
            raise CheckpointError(f"checkpoint {self.directory} has model files of {len(model.paths)} tensor-parallel ranks and optimizer "
                                  f"files of {len(optimizers)}: files are missing")
        made = []
        for paths, models, model_paths in zip(optimizers, model.ranks, model.paths):
            ranks = models[0]["dp_world_size"]
            if len(paths) != ranks or (model.sharded and len(model_paths) != ranks):
                raise CheckpointError(f"checkpoint {self.directory} was saved by {ranks} data-parallel ranks, but has {len(paths)} optimizer "
                                      f"and {len(model_paths)} model files: files are missing")
            if not models[0].get(PARAM_SHAPES):
                raise CheckpointError(f"{model_paths[0]} has no entry {PARAM_SHAPES!r}: it is not of a sharded checkpoint")
            made.append(StateFiles([_optimizer_state(path) for path in paths], [list(group.items()) for group in models[0][PARAM_SHAPES]], paths))
        return made

    def _check(self) -> None:
        """CheckpointError for everything that would stop a conversion half way."""
        for files in self.files:
            if [name for group in files.groups for name, _ in group] != self.names:
                raise CheckpointError(f"{files.paths[0]}: the tensor-parallel ranks do not have the same parameters")
            _check_mappings(files)
            for name in self.names:
                for key in self.keys(name):
                    if key != "fp32" or files.has_masters:
                        files.check(name, key)

    # ---- access
    @property
    def tp_degree(self) -> int:
        return len(self.files)

    def keys(self, name: str) -> list[str]:
        """The value's key and those of the states that are as large as the parameter."""
        return ["fp32", *(key for key, value in self.files[0].state_of(name).items() if self._by_element(name, key, value))]

    def scalars(self, name: str) -> dict[str, Any]:
        return {key: value for key, value in self.files[0].state_of(name).items() if not self._by_element(name, key, value)}

    def _by_element(self, name: str, key: str, value: Any) -> bool:
        if not isinstance(value, Tensor) or key == STEP:
            return False
        return value.dim() > 0 or (not self.files[0].flat_groups and len(self.files[0].shape(name)) == 0)

    def slices(self, name: str, key: str) -> list[Tensor]:
        """One shaped fp32 tensor per tensor-parallel rank."""
        values = []
        for files, models in zip(self.files, self.model.ranks):
            in_model = key == "fp32" and not files.has_masters
            value = models[0]["module"][name].float() if in_model else files.read_whole(name, key)
            if value is None:
                raise CheckpointError(f"{files.paths[0]}: there is no {key} of {name}: the file is damaged")
            values.append(value)
        return values

    def step(self) -> Any:
        """As stored: a tensor or a number; None before the first step."""
        stored = (self.scalars(name).get(STEP) for name in self.names)
        return next((step for step in stored if step is not None), self.files[0].step())

    def common(self) -> dict[str, Any]:
        """The entries of an optimizer file that are not values of parameters."""
        return {key: value for key, value in self.files[0].ranks[0].items() if key not in _PER_RANK}

    def param_groups(self) -> list[dict]:
        return self.files[0].param_groups()


def _optimizer_state(path: str) -> dict:
    loaded = load_file(path)
    if not isinstance(loaded.get(OPTIMIZER_STATE_DICT), dict):
        raise CheckpointError(f"{path} has no entry {OPTIMIZER_STATE_DICT!r}: it is not an optimizer-state file")
    return loaded[OPTIMIZER_STATE_DICT]


def _check_mappings(files: StateFiles) -> None:
    """Files of stages 1 and 2 also say themselves where every parameter stands: both must agree."""
    for rank, state in enumerate(files.ranks):
        for number, mapping in enumerate(state.get(PARAM_SLICE_MAPPINGS) or []):
            if not files.partitioned or number >= len(files.groups):
                return
            expected = {files.groups[number][position][0]: (piece.start, piece.length) for position in range(len(files.groups[number]))
                        for piece in files.layouts[number].pieces(position) if piece.rank == rank}
            found = {name: (address.start, address.numel) for name, address in mapping.items() if address.numel > 0}
            wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
            if wrong:
                raise CheckpointError(f"{files.paths[rank]}: {wrong[0]} stands at {found.get(wrong[0])} (start, elements), but at "
                                      f"{expected.get(wrong[0])} by the shapes in the model file: the files are not of one checkpoint")


def _without_sharding(model: dict, path: str) -> StateFiles:
    """The states of stage 0 go by number; which parameters these are is listed, or follows when all parameters are trained."""
    state = model["optimizer"]
    base = state[OPTIMIZER_STATE_DICT] if OPTIMIZER_STATE_DICT in state else state
    numbers = [list(group["params"]) for group in base.get("param_groups", [])]
    flat = "fp32_groups_flat" in state
    if model.get(PARAM_SHAPES):
        groups = [list(group.items()) for group in model[PARAM_SHAPES]]
        if not flat and base.get("state"):
            numbers = [[number for number in group if number in base["state"]] for group in numbers]  # frozen ones have none
    else:
        groups = [[] if flat else _all_parameters(model, numbers, base.get("state", {}))]
    if not flat and base.get("state") and [len(group) for group in groups] != [len(group) for group in numbers]:
        raise CheckpointError(f"{path}: the file does not say which parameters its optimizer states belong to (stage 0, with parameters in "
                              "several groups or frozen ones): load it into an engine and save there, with ZeRO or as universal checkpoint")
    if not any(groups):
        raise CheckpointError(f"{path}: the file does not say where its parameters stand: load it into an engine and save there")
    return StateFiles([state], groups, [path], numbers)


def _all_parameters(model: dict, numbers: list[list[int]], states: dict) -> list[tuple[str, Any]]:
    """Names and shapes in the order of the model, when that is the only order that fits; else nothing."""
    seen: set[int] = set()
    found = []
    for name, value in model["module"].items():
        if isinstance(value, Tensor) and name not in model.get(BUFFER_NAMES, ()) and value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            found.append((name, value.shape))
    fits = len(numbers) == 1 and len(numbers[0]) == len(found)
    for number, (_, shape) in zip(numbers[0] if fits else [], found):
        fits = fits and all(tuple(value.shape) == tuple(shape) for value in states.get(number, {}).values()
                            if isinstance(value, Tensor) and value.dim() > 0)
    return found if fits else []
