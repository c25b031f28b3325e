"""Loads universal checkpoints (deepspeed/checkpoint/universal_checkpoint.py) into an engine of any stage and number of ranks. Every
rank reads the ranges of its own fragments from the mapped files; nothing is converted."""
from __future__ import annotations

import os
from typing import Any, Callable

import torch
from torch import Tensor

from deepspeed._C import CheckpointError
from deepspeed.checkpoint import universal_checkpoint as universal
from deepspeed.checkpoint.constants import OPTIMIZER_STATE_DICT, PARAM, PARAM_GROUPS, PARAM_SHAPES, SHARED_PARAMS, VOCAB_TENSOR
from deepspeed.checkpoint.safe_load import load_file, load_object
from deepspeed.runtime.agreement import text_of_rank_0
from deepspeed.runtime.checkpoint_load import CheckpointLoader
from deepspeed.utils.logging import logger


class UniversalFiles:
    """The trained parameters of a universal checkpoint, readable by parameter and range. What StateFiles is for files of ranks.

    Files are opened when they are read: a process may not map tens of thousands of them at once."""

    has_masters = True

    def __init__(self, directory: str, saved: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
        """saved: shapes by the model file; wanted: shapes of the engine's parameters."""
        self.directory = directory
        self.common = load_file(universal.optimizer_state_file(directory))
        self.ranks, self.paths = [self.common], [universal.optimizer_state_file(directory)]
        self._saved, self._wanted = saved, wanted
        self._listed: dict[str, dict] | None = self.common.get(universal.UNIVERSAL_STATES)
        self._shapes: dict[str, tuple[int, ...]] = {}

    def _path(self, name: str, key: str) -> str:
        return universal.state_file(self.directory, name, key)

    def _open(self, name: str, key: str) -> tuple[Tensor, dict]:
        path = self._path(name, key)
        stored = load_object(path)
        value = stored.get(PARAM) if isinstance(stored, dict) else stored
        if not isinstance(value, Tensor):
            raise CheckpointError(f"checkpoint file {path} holds no tensor: it is not a file of a universal checkpoint")
        return value, stored if isinstance(stored, dict) else {}

    # ---- what is there
    def has(self, name: str) -> bool:
        return name in (self._listed if self._listed is not None else self._saved)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            value, beside = self._open(name, "fp32")
            shape = tuple(value.shape)
            if not beside and value.numel() == torch.Size(self._saved.get(name, ())).numel():
                shape = tuple(self._saved[name])  # flat
            wanted = self._wanted.get(name, shape)
            if beside.get(VOCAB_TENSOR) and len(wanted) == len(shape) and wanted[1:] == shape[1:] and wanted[0] > shape[0]:
                shape = wanted  # without the padding that this model has
            self._shapes[name] = shape
        return self._shapes[name]

    def _keys(self, name: str) -> list[str]:
        if self._listed is not None:
            return list(self._listed[name]["keys"])
        folder = universal.parameter_folder(self.directory, name)
        return sorted(file.removesuffix(".pt") for file in os.listdir(folder) if file.endswith(".pt") and file != f"{universal.STEP}.pt")

    def state_of(self, name: str) -> dict[str, Any]:
        """Tensors (mapped) and numbers of one parameter's optimizer state."""
        state: dict[str, Any] = {key: self._open(name, key)[0] for key in self._keys(name) if key != "fp32"}
        if self._listed is not None:
            state.update(self._listed[name]["scalars"])
        elif os.path.isfile(self._path(name, universal.STEP)):
            state[universal.STEP] = load_object(self._path(name, universal.STEP))
        elif self.step() is not None and state:
            state[universal.STEP] = torch.tensor(float(self.step()))
        return state

    def has_states(self) -> bool:
        return any(key != "fp32" for name in (self._listed or self._saved) for key in self._keys(name)) or bool(self.step())

    def step(self) -> int | None:
        below = self.common.get(OPTIMIZER_STATE_DICT) or {}
        found = [state[universal.STEP] for state in below.get("state", {}).values() if isinstance(state, dict) and universal.STEP in state]
        found += [group[universal.STEP] for group in self.param_groups() if universal.STEP in group]
        paths = [self._path(name, universal.STEP) for name in (self._listed or self._saved)]
        found += [load_object(path) for path in paths if os.path.isfile(path)][:1]
        return max(int(step) for step in found) if found else None  # some optimizers leave the group's count at 0

    def param_groups(self) -> list[dict]:
        return self.common.get(PARAM_GROUPS) or []

    def check(self, name: str, key: str) -> None:
        """CheckpointError, naming the file, when a value that should be there is not, or has another size."""
        numel = torch.Size(self.shape(name)).numel()
        keys = self._keys(name)
        if key not in keys:
            if len(keys) > 1 or key == "fp32":
                raise CheckpointError(f"checkpoint file {self._path(name, key)} does not exist, but other states of {name} do: the checkpoint is "
                                      "not complete, or of another optimizer")
            return  # a parameter that was never updated
        value, beside = self._open(name, key)
        if value.numel() != numel and not beside.get(VOCAB_TENSOR):
            raise CheckpointError(f"checkpoint file {self._path(name, key)} has {value.numel()} elements, expected shape {list(self.shape(name))}")

    # ---- values
    def locate(self, name: str, key: str, offset: int, length: int) -> tuple | None:
        """What read_into() needs to read these elements; None where there are none."""
        return (name, key, offset, length) if key in self._keys(name) else None

    def read_into(self, wanted: list[tuple[tuple, Tensor]]) -> None:
        """What locate() returned, and fp32 tensors to fill."""
        for source, target in wanted:
            target.copy_(self.read(*source))

    def read(self, name: str, key: str, offset: int, length: int) -> Tensor | None:
        """Elements [offset, offset + length) of a flattened parameter's state, fp32; None where there is none."""
        if key not in self._keys(name):
            return None
        flat = self._open(name, key)[0].reshape(-1)
        out = torch.zeros(length)
        there = flat[offset:offset + length]
        out[:there.numel()] = there
        return out

    def read_whole(self, name: str, key: str = "fp32") -> Tensor | None:
        shape = self.shape(name)
        value = self.read(name, key, 0, torch.Size(shape).numel())
        return None if value is None else value.view(shape)


class UniversalLoader(CheckpointLoader):
    """Trained parameters come from their folders; buffers, frozen parameters and counters from the model files."""

    def _open(self, optimizer: bool) -> None:
        if os.path.isdir(self.directory) and not os.path.isdir(os.path.join(self.directory, universal.ZERO_FOLDER)):
            raise CheckpointError(f"{self.directory} is not a universal checkpoint (it has no folder {universal.ZERO_FOLDER}): convert it with "
                                  "ds_to_universal, or remove checkpoint.load_universal, which other checkpoints do not need here")
        super()._open(optimizer)

    def _in_pieces(self) -> bool:
        return True

    def _open_optimizer(self) -> None:
        wanted = {name: tuple(getattr(param, "ds_shape", param.shape)) for name, param in self.engine.module.named_parameters()}
        saved = {name: tuple(shape) for group in self.models[0].get(PARAM_SHAPES) or [] for name, shape in group.items()}
        self.files = UniversalFiles(self.directory, saved, wanted)

    def _frozen_whole(self, name: str) -> Tensor | None:
        value = self.models[0]["module"].get((self.models[0].get(SHARED_PARAMS) or {}).get(name, name))
        return value if isinstance(value, Tensor) and value.numel() > 0 else None

    def _shape_in_pieces(self, name: str) -> tuple[int, ...] | None:
        found = super()._shape_in_pieces(name)
        value = self._frozen_whole(name) if found is None else None
        return found if value is None else tuple(value.shape)

    def _saved_value(self, name: str) -> Tensor | None:
        original = (self.models[0].get(SHARED_PARAMS) or {}).get(name, name)
        whole = self._frozen_whole(name) if not self.files.has(original) else None
        return whole if whole is not None else super()._saved_value(name)


def load_universal(engine: Any, load_dir: str, tag: Any, *, strict: bool, optimizer: bool, scheduler: bool, module_only: bool,
                   custom_load_fn: Callable | None) -> tuple[str, dict]:
    """engine.load_checkpoint for universal checkpoints; tag None: the one that latest_universal names."""
    if tag is None:
        # As rank 0 sees it: other machines may not see the same files.
        tag = text_of_rank_0(engine, _latest(load_dir) if engine.global_rank == 0 else None, "latest universal checkpoint")
        if tag is None:
            raise ValueError(f"checkpoint.load_universal is on, but {os.path.join(load_dir, universal.LATEST_UNIVERSAL)} does not exist: pass a "
                             "tag, convert a checkpoint with ds_to_universal, or remove checkpoint.load_universal")
    loader = UniversalLoader(engine, os.path.join(load_dir, str(tag)))
    return loader.load(strict=strict, optimizer=optimizer, scheduler=scheduler, module_only=module_only, custom_load_fn=custom_load_fn)


def _latest(load_dir: str) -> str | None:
    try:
        with open(os.path.join(load_dir, universal.LATEST_UNIVERSAL)) as file:
            return file.read().strip()
    except OSError as error:
        logger.warning("%s", error)
        return None
