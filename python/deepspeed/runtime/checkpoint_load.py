"""Loading of one tag: find and open all files, check them against the model on every rank, then store.

The files of any stage and number of ranks serve any engine: what is whole in them is taken whole, what is in pieces is read by
ranges.
"""
from __future__ import annotations

import glob
import os
import re
from typing import Any, Callable, Container

import torch
import torch.nn as nn
from torch import Tensor

from deepspeed._C import CheckpointError
from deepspeed.checkpoint.constants import (FROZEN_PARAM_FRAGMENTS, FROZEN_PARAM_SHAPES, MODEL_FILE_SUFFIX, MODEL_STATE_KEYS,
                                            OPTIM_FILE_SUFFIX, OPTIMIZER_STATE_DICT, PARAM_SHAPES, SHARED_PARAMS, TOLD_TO_CLIENTS)
from deepspeed.checkpoint.safe_load import has_manifest, load_file
from deepspeed.checkpoint.verified_bytes import VerifiedBytes
from deepspeed.runtime.agreement import Together
from deepspeed.runtime.checkpoint_restore import CheckpointMisfit, StateFiles, check_files, reset_optimizer, restore
from deepspeed.runtime.checkpoint_state import optimizer_groups
from deepspeed.runtime.data_position import restore_position
from deepspeed.runtime.random_states import rank_file, restore_random_states
from deepspeed.runtime.zero.parameter import slot_of

_EXTRA_STATE = "_extra_state"
_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_")


def _by_rank(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern), key=lambda path: int(_RANK.search(os.path.basename(path)).group(1)))


def _in_order(paths: list[str], what: str, directory: str) -> list[str]:
    numbers = [int(_RANK.search(os.path.basename(path)).group(1)) for path in paths]
    missing = sorted(set(range(max(numbers, default=-1) + 1)) - set(numbers))
    if missing:
        raise CheckpointError(f"checkpoint {directory}: the {what} file of rank {missing[0]} is missing "
                              f"(beside {os.path.basename(paths[0])}): the checkpoint is not complete")
    return paths


def _what_is_there(directory: str) -> str:
    folder = os.path.dirname(directory.rstrip("/"))
    if not os.path.isdir(folder):
        return f"there is no folder {folder} either"
    tags = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    return f"{folder} has {', '.join(tags[:8])}{' ...' if len(tags) > 8 else ''}" if tags else f"{folder} has no checkpoints"


def modules_with_extra_state(module: nn.Module) -> dict[str, nn.Module]:
    """Names in state_dict() of what modules give by get_extra_state(), which may be anything, and whose they are."""
    return {f"{prefix}.{_EXTRA_STATE}" if prefix else _EXTRA_STATE: part for prefix, part in module.named_modules()
            if type(part).get_extra_state is not nn.Module.get_extra_state}


def set_extra_state(module: nn.Module, saved: dict[str, Any]) -> None:
    for name, part in modules_with_extra_state(module).items():
        if name in saved:
            part.set_extra_state(saved[name])


class CheckpointLoader:
    """The files of one tag, for one engine."""

    def __init__(self, engine: Any, directory: str) -> None:
        self.engine, self.directory = engine, directory
        self.model_paths: list[str] = []
        self.models: list[dict] = []
        self.files: StateFiles | None = None
        self._random: dict | None = None  # this rank's
        self._values: dict[str, Tensor | None] = {}  # of the module, as _check_module() found them

    def load(self, *, strict: bool, optimizer: bool, scheduler: bool, module_only: bool,
             custom_load_fn: Callable | None) -> tuple[str, dict]:
        engine = self.engine
        together = Together(engine, f"load_checkpoint({self.directory})", CheckpointError, " Nothing was changed.", one_class=True)
        with together.attempt():
            self._open(optimizer)
            self._check(strict, optimizer, custom_load_fn is None)
        together.agree()
        # Gradients of the weights that go, and where they stood in an accumulation window.
        engine.zero_grad()
        engine.micro_steps = engine._unmanaged_backwards = 0
        if custom_load_fn is not None:
            engine.load_module_state_dict({"module": self._whole_module()}, custom_load_fn=custom_load_fn,
                                          fetch_z3_params=engine.parameter_offload is not None)
        self._store(optimizer, custom_load_fn is None)
        if self._random is not None and optimizer:
            restore_random_states(self._random["random"])
        return self._finish(optimizer, scheduler, module_only)

    def _check(self, strict: bool, optimizer: bool, module: bool) -> None:
        """CheckpointError for anything that would stop _store() half way. module: whether it stores the model itself."""
        self._values = self._check_module(strict) if module else {}
        if optimizer and self.files is not None and self.engine._stepper is not None:
            check_files(self.engine, self.files, True)

    def _store(self, optimizer: bool, module: bool) -> None:
        """Collective."""
        engine = self.engine
        if module:
            self._store_module(self._values, self._follow_masters(optimizer))
        if engine._stepper is None:
            return
        if optimizer and self.files is not None:
            restore(engine, self.files, True, engine.zero_load_from_fp32_weights())
        else:
            if optimizer:
                reset_optimizer(engine)
            engine._core.refresh_from_parameters()
            if optimizer:
                engine._core.end_load()

    def _follow_masters(self, optimizer: bool) -> set[int]:
        """Parameters whose weights restore() makes from their masters, so that they need not be read."""
        engine = self.engine
        if engine._stepper is None or not optimizer or self.files is None or not self.files.has_masters or not engine.zero_load_from_fp32_weights():
            return set()
        return {entry.index for group in optimizer_groups(engine) for entry in group}

    # ---- opening
    def _open(self, optimizer: bool) -> None:
        if not os.path.isdir(self.directory):
            raise CheckpointError(f"checkpoint directory {self.directory} does not exist: check load_dir and tag; {_what_is_there(self.directory)}")
        whole = os.path.join(self.directory, f"mp_rank_00{MODEL_FILE_SUFFIX}")
        pieces = _by_rank(os.path.join(self.directory, f"zero_pp_rank_*_mp_rank_00{MODEL_FILE_SUFFIX}"))
        self.model_paths = [whole] if os.path.isfile(whole) or not pieces else _in_order(pieces, "model", self.directory)
        self.models = [load_file(path) for path in self.model_paths]
        first = self.models[0]
        for key in ("module", "global_steps", "dp_world_size"):
            if key not in first:
                raise CheckpointError(f"{self.model_paths[0]} has no entry {key!r}: it is not a model-state file")
        if len(self.model_paths) > 1 and len(self.model_paths) != first["dp_world_size"]:
            raise CheckpointError(f"checkpoint {self.directory} was saved by {first['dp_world_size']} ranks, but has "
                                  f"{len(self.model_paths)} model files: files are missing")
        if self._in_pieces() or optimizer:
            self._open_optimizer()
        self._random = self._rank_state()

    def _rank_state(self) -> dict | None:
        """Of this rank, when as many ranks saved as now load. DeepSpeed's own checkpoints have none."""
        path = os.path.join(self.directory, rank_file(self.engine.communicator.rank))
        same = self.models[0]["dp_world_size"] == self.engine.communicator.size
        return load_file(path) if same and has_manifest(self.directory) and os.path.isfile(path) else None

    def _in_pieces(self) -> bool:
        """Whether parameters themselves are only in the optimizer files."""
        return len(self.model_paths) > 1 or os.path.basename(self.model_paths[0]).startswith("zero_pp_rank_")

    def _open_optimizer(self) -> None:
        engine, first = self.engine, self.models[0]
        if first.get("optimizer") is not None:
            if engine._stepper is None:
                return
            names = [[(e.name, e.shape) for e in group] for group in optimizer_groups(engine)]
            verified = self._verified()
            if verified is not None:
                verified.add(self.model_paths[0], first)
            self.files = StateFiles([first["optimizer"]], names, [self.model_paths[0]], engine._file_numbers.trained, verified)
            return
        paths = _by_rank(os.path.join(self.directory, f"*zero_pp_rank_*_mp_rank_00{OPTIM_FILE_SUFFIX}"))
        if not paths:
            if self._in_pieces() and first.get(PARAM_SHAPES) is None:
                return  # saved by an engine without optimizer
            if first.get(PARAM_SHAPES) is None:
                return
            raise CheckpointError(f"checkpoint {self.directory} has no optimizer files (*{OPTIM_FILE_SUFFIX}): they are missing; to load the "
                                  "model's weights alone pass load_optimizer_states=False")
        _in_order(paths, "optimizer", self.directory)
        if len(paths) != first["dp_world_size"]:
            raise CheckpointError(f"checkpoint {self.directory} was saved by {first['dp_world_size']} ranks, but has {len(paths)} optimizer "
                                  "files: files are missing")
        states, verified = [], self._verified()
        for path in paths:
            loaded = load_file(path)
            if verified is not None:
                verified.add(path, loaded)
            if OPTIMIZER_STATE_DICT not in loaded:
                raise CheckpointError(f"{path} has no entry {OPTIMIZER_STATE_DICT!r}: it is not an optimizer-state file")
            states.append(loaded[OPTIMIZER_STATE_DICT])
        shapes = first[PARAM_SHAPES] or []
        self.files = StateFiles(states, [list(group.items()) for group in shapes], paths, verified=verified)

    def _verified(self) -> VerifiedBytes | None:
        """For folders with a manifest; DeepSpeed's have none."""
        return VerifiedBytes(self.directory) if has_manifest(self.directory) else None

    # ---- the module
    def _saved_value(self, name: str) -> Tensor | None:
        """A whole parameter from pieces; None when the files have none of it."""
        first = self.models[0]
        name = (first.get(SHARED_PARAMS) or {}).get(name, name)
        if self.files is not None and self.files.has(name):
            return self.files.read_whole(name)
        shapes = first.get(FROZEN_PARAM_SHAPES) or {}
        if name not in shapes:
            return None
        pieces = torch.cat([model[FROZEN_PARAM_FRAGMENTS][name].reshape(-1) for model in self.models])
        return pieces[:shapes[name].numel()].view(shapes[name])

    def _whole_module(self) -> dict:
        """The saved model with whole parameters."""
        module = dict(self.models[0]["module"])
        if self._in_pieces():
            for name in module:
                value = self._saved_value(name) if module[name].numel() == 0 else None
                if value is not None:
                    module[name] = value.to(module[name].dtype)
        return module

    def _check_module(self, strict: bool) -> dict[str, Tensor | None]:
        """Names to store -> whole values (None: in pieces, read when stored). CheckpointError when the model does not fit."""
        saved, in_pieces = self.models[0]["module"], self._in_pieces()
        params = dict(self.engine.module.named_parameters(remove_duplicate=False))
        current = self.engine.module.state_dict(keep_vars=True)
        missing, wrong = [], []
        values: dict[str, Tensor | None] = {}
        extra = modules_with_extra_state(self.engine.module)
        for name, here in current.items():
            if not isinstance(here, Tensor) or name in extra:
                continue
            shape = tuple(getattr(here, "ds_shape", here.shape)) if name in params else tuple(here.shape)
            value = saved.get(name)
            if value is None and not (in_pieces and self._shape_in_pieces(name) is not None):
                missing.append(name)
                continue
            found = self._shape_in_pieces(name) if in_pieces and name in params else tuple(value.shape)
            if found is None:
                missing.append(name)
            elif found != shape:
                wrong.append(f"{name}: {list(found)} in the checkpoint, {list(shape)} in the model")
            else:
                values[name] = None if in_pieces and name in params else value
        missing += sorted(set(extra) - set(saved))
        unexpected = sorted(set(saved) - set(current))
        if wrong:
            raise CheckpointMisfit(f"{self.model_paths[0]}: shapes differ: {'; '.join(wrong[:5])}")
        if strict and (missing or unexpected):
            raise CheckpointMisfit(f"{self.model_paths[0]} does not fit the model: missing {missing[:5]}, unexpected {unexpected[:5]}; "
                                   "load_module_strict=False loads what fits")
        return values

    def _shape_in_pieces(self, name: str) -> tuple[int, ...] | None:
        first = self.models[0]
        name = (first.get(SHARED_PARAMS) or {}).get(name, name)
        if self.files is not None and self.files.has(name):
            return tuple(self.files.shape(name))
        shape = (first.get(FROZEN_PARAM_SHAPES) or {}).get(name)
        return None if shape is None else tuple(shape)

    @torch.no_grad()
    def _store_module(self, values: dict[str, Tensor | None], follow: Container[int] = ()) -> None:
        """Collective: all ranks hold the same names in the same order. follow: parameters that get their values otherwise."""
        engine = self.engine
        index_of = {id(param): index for index, (_, param) in enumerate(engine.core_params)}
        params = dict(engine.module.named_parameters(remove_duplicate=False))
        current = engine.module.state_dict(keep_vars=True)
        done: set[int] = set()
        for name, value in values.items():
            here = params.get(name)
            if here is None:
                current[name].copy_(value)
                continue
            if id(here) in done or index_of.get(id(here)) in follow:
                continue
            done.add(id(here))
            value = value if value is not None else self._saved_value(name)
            slot = slot_of(here)
            if slot is not None and slot.unit is not None:
                slot.unit.write_full(slot.index, value, -1)
            elif slot is not None and index_of.get(id(here)) is not None:
                here.detach().copy_(value)
        set_extra_state(engine.module, self.models[0]["module"])

    # ---- the rest
    def _finish(self, optimizer: bool, scheduler: bool, module_only: bool) -> tuple[str, dict]:
        engine, first = self.engine, self.models[0]
        if not module_only:
            if scheduler and engine.lr_scheduler is not None:
                self._load_scheduler(first.get("lr_scheduler"))
            engine.global_steps = first["global_steps"]
            engine.global_samples = first.get("global_samples", engine.global_steps * engine.train_batch_size())
            engine.skipped_steps = first.get("skipped_steps", 0)
            if optimizer and engine._config.checkpoint.load_data_position:
                restore_position(engine, first.get("data_sampler"))
        engine.loaded_checkpoint_dp_world_size = first["dp_world_size"]
        engine.loaded_checkpoint_mp_world_size = first.get("mp_world_size", 1)
        rank = min(engine.communicator.rank, len(self.model_paths) - 1)
        client = {key: value for key, value in self.models[rank].items() if key not in MODEL_STATE_KEYS or key in TOLD_TO_CLIENTS}
        return self.model_paths[rank], client

    def _load_scheduler(self, saved: dict | None) -> None:
        scheduler = self.engine.lr_scheduler
        if saved is None and scheduler is self.engine._first_scheduler:
            saved = self.engine._first_scheduler_state
        if saved is not None:
            scheduler.load_state_dict(self._rates_by_place(scheduler, saved))

    def _rates_by_place(self, scheduler: Any, saved: dict) -> dict:
        """The state of one of torch's schedulers that knew only the groups that train something, for one that knows all: those are at
        their places then, and the others as they are here."""
        stepper, mine = self.engine._stepper, getattr(scheduler, "base_lrs", None)
        rates = saved.get("base_lrs") if isinstance(saved, dict) else None
        if stepper is None or not isinstance(mine, list) or not isinstance(rates, list) or len(rates) in (len(mine), 0):
            return saved
        if len(rates) != len(stepper.places) or len(mine) != len(self.engine.basic_optimizer.param_groups):
            raise CheckpointMisfit(f"the checkpoint's scheduler has rates of {len(rates)} parameter groups, this one of {len(mine)}: build optimizer and "
                                   "scheduler as they were, or pass load_lr_scheduler_states=False")
        changed = dict(saved)
        for key in ("base_lrs", "_last_lr", "lr_lambdas"):  # functions are saved as None
            here, there = getattr(scheduler, key, None), saved.get(key)
            if isinstance(here, list) and isinstance(there, list) and len(there) == len(rates) and len(here) == len(mine):
                changed[key] = [None] * len(mine) if key == "lr_lambdas" else list(here)
                for place, value in zip(stepper.places, there):
                    changed[key][place] = value
        return changed
