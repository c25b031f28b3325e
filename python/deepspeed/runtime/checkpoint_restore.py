"""Puts checkpoint files back into an engine. Fragments (parameter, offset, length) are the only idea: a rank asks for the values
of its own fragments, whatever stage and number of ranks wrote the files.

Everything but the bytes of masters and states is checked before the first value is stored, so a bad checkpoint leaves the engine as it was.
When those bytes turn out to be damaged, the error says so and the engine refuses to step until a load succeeds.
"""
from __future__ import annotations

import os
from typing import Any, Iterable, Sequence

import torch
from torch import Tensor

from deepspeed._C import CheckpointError
from deepspeed.checkpoint.constants import (BASE_OPTIMIZER_STATE, BASE_OPTIMIZER_STATE_STEP, FP32_FLAT_GROUPS, FP32_GROUPS, LOSS_SCALER,
                                            OPTIMIZER_STATE_DICT, PARAM_ALIGNMENT_PADDINGS, PARTITION_COUNT,
                                            SINGLE_PARTITION_OF_FP32_GROUPS)
from deepspeed.checkpoint.verified_bytes import VerifiedBytes
from deepspeed.runtime.agreement import Together
from deepspeed.runtime.base_optimizer import adopt_loss_scaler
from deepspeed.runtime.checkpoint_layout import PartitionedGroup, PerParameterGroup
from deepspeed.runtime.fragment_batch import FragmentBatch
from deepspeed.runtime.native_recipe import file_keys, stored_name

PARTS_ARE_LOADED = " The engine holds parts of it: load another checkpoint before going on."

Names = Sequence[Sequence[tuple[str, Iterable[int]]]]


class StateFiles:
    """The optimizer states of all ranks of one checkpoint, readable by parameter and range."""

    def __init__(self, ranks: list[dict], names: Names, paths: list[str], numbers: list[list[int]] | None = None,
                 verified: VerifiedBytes | None = None) -> None:
        """verified: reads the files' bytes without their mapping, where it knows them."""
        self.ranks, self.paths, self._bytes = ranks, paths, verified
        self.numbers = numbers or []  # of files with states by parameter: what number each parameter has
        self.groups = [[(name, tuple(shape)) for name, shape in group] for group in names]
        self.place = {name: (number, position) for number, group in enumerate(self.groups) for position, (name, _) in enumerate(group)}
        first = ranks[0]
        self.per_parameter = FP32_FLAT_GROUPS in first
        self.partitioned = SINGLE_PARTITION_OF_FP32_GROUPS in first
        self.flat_groups = self.per_parameter or self.partitioned or "fp32_groups_flat" in first
        self.base = [self._base(rank) for rank in ranks]
        self._check_count()
        numels = [[torch.Size(shape).numel() for _, shape in group] for group in self.groups]
        kind = PerParameterGroup if self.per_parameter else PartitionedGroup
        self.layouts = [kind(group, len(ranks)) for group in numels]
        if not (self.per_parameter or self.partitioned):
            for layout in self.layouts:
                layout.partition_numel = layout.total

    def _base(self, state: dict) -> Any:
        """The torch optimizer's state dictionary (or its older list form)."""
        if self.partitioned:
            return state[BASE_OPTIMIZER_STATE]
        return state[OPTIMIZER_STATE_DICT] if OPTIMIZER_STATE_DICT in state else state

    def _check_count(self) -> None:
        if not (self.per_parameter or self.partitioned):
            return
        for state, path in zip(self.ranks, self.paths):
            count = state.get(PARTITION_COUNT, len(self.ranks))
            count = max(count) if isinstance(count, (list, tuple)) else count
            if count != len(self.ranks):
                raise CheckpointError(f"{path} belongs to a checkpoint of {count} ranks, but {len(self.ranks)} optimizer files were found: "
                                      "files are missing, or of another run")
            if any(any(group) for group in state.get(PARAM_ALIGNMENT_PADDINGS) or []):
                raise CheckpointError(f"{path} was saved with zero_optimization.parameter_alignment, which is not supported here")

    # ---- access
    def has(self, name: str) -> bool:
        return name in self.place

    def shape(self, name: str) -> tuple[int, ...]:
        number, position = self.place[name]
        return self.groups[number][position][1]

    def _group_state(self, rank: int, number: int) -> dict:
        base = self.base[rank]
        if isinstance(base, (list, tuple)):  # without padding, one entry per group
            return base[number] if number < len(base) else {}
        ids = [i for group in base.get("param_groups", []) for i in group["params"]]
        return base.get("state", {}).get(ids[number], {}) if number < len(ids) else {}

    def _parameter_state(self, name: str) -> dict:
        number, position = self.place[name]
        return self.base[0].get("state", {}).get(self.numbers[number][position], {})

    def state_of(self, name: str) -> dict:
        """The stored state (of rank 0) in which a parameter's states stand."""
        return self._group_state(0, self.place[name][0]) if self.flat_groups else self._parameter_state(name)

    def _flat(self, rank: int, number: int, key: str) -> Tensor | None:
        if key != "fp32":
            found = self._group_state(rank, number).get(key)
            return found if isinstance(found, Tensor) else None
        for where in (FP32_FLAT_GROUPS, SINGLE_PARTITION_OF_FP32_GROUPS, "fp32_groups_flat"):
            if where in self.ranks[rank]:
                return self.ranks[rank][where][number]
        return None

    @property
    def has_masters(self) -> bool:
        """Whether fp32 values are stored. A property of the files, the same on every rank whatever pieces it holds."""
        return self.flat_groups or FP32_GROUPS in self.ranks[0]

    def _whole(self, name: str, key: str) -> Tensor | None:
        number, position = self.place[name]
        if key == "fp32":
            groups = self.ranks[0].get(FP32_GROUPS)
            return None if groups is None else groups[number][position]
        found = self._parameter_state(name).get(key)
        return found if isinstance(found, Tensor) else None

    def check(self, name: str, key: str) -> None:
        """CheckpointError when a stored tensor is too short for the parameters it should hold."""
        number, position = self.place[name]
        if not self.flat_groups:
            found = self._whole(name, key)
            if found is None and key == "fp32" and self.has_masters:
                raise CheckpointError(f"{self.paths[0]}: {FP32_GROUPS} has no value of {name}: the file is damaged")
            if found is not None and found.numel() != torch.Size(self.shape(name)).numel():
                raise CheckpointError(f"{self.paths[0]}: {key} of {name} has {found.numel()} elements, expected shape {list(self.shape(name))}")
            return
        for piece in self.layouts[number].pieces(position):
            flat = self._flat(piece.rank, number, key)
            if flat is None and key == "fp32":
                raise CheckpointError(f"{self.paths[piece.rank]}: there are no fp32 values of parameter group {number}: the file is damaged")
            if flat is not None and flat.numel() < piece.start + piece.length:
                raise CheckpointError(f"{self.paths[piece.rank]}: {key} of parameter group {number} has {flat.numel()} elements, but {name} "
                                      f"needs {piece.start + piece.length}: the file is of another model or cut off")

    def locate(self, name: str, key: str, offset: int, length: int) -> list[tuple] | None:
        """Where elements [offset, offset + length) of a flattened parameter's state stand: (number of the file, flat tensor in it, first
        element there, elements, first element of the `length`) for each piece. None where the files have none."""
        if not self.flat_groups:
            whole = self._whole(name, key)
            return None if whole is None else [(0, whole.reshape(-1), offset, length, 0)]
        number, position = self.place[name]
        parts = []
        for piece in self.layouts[number].pieces(position, offset, length):
            flat = self._flat(piece.rank, number, key)
            if flat is None:
                return None
            parts.append((piece.rank, flat.reshape(-1), piece.start, piece.length, piece.offset - offset))
        return parts

    def read(self, name: str, key: str, offset: int, length: int) -> Tensor | None:
        """Elements [offset, offset + length) of a flattened parameter's state, fp32; None where the files have none."""
        parts = self.locate(name, key, offset, length)
        if parts is None:
            return None
        if len(parts) == 1:  # in place: what is stored is copied once, from the file to where it goes
            _, flat, start, count, _ = parts[0]
            return flat[start:start + count].float()
        out = torch.empty(length)
        for _, flat, start, count, at in parts:
            out[at:at + count] = flat[start:start + count]
        return out

    def read_into(self, wanted: list[tuple[list[tuple], Tensor]]) -> None:
        """What locate() returned, and fp32 tensors to fill."""
        direct = []
        for parts, target in wanted:
            for file, flat, start, count, at in parts:
                piece = target[at:at + count]
                same = self._bytes is not None and flat.dtype == target.dtype
                begin = self._bytes.place_of(self.paths[file], flat) if same else None
                if begin is None:
                    piece.copy_(flat[start:start + count])
                else:
                    direct.append((self.paths[file], begin + start * flat.element_size(), piece))
        if direct:
            self._bytes.read(direct)

    def read_whole(self, name: str, key: str = "fp32") -> Tensor | None:
        shape = self.shape(name)
        value = self.read(name, key, 0, torch.Size(shape).numel())
        return None if value is None else value.view(shape)

    def step(self) -> int | None:
        """The step count, wherever the optimizer kept it."""
        stored = self.ranks[0].get(BASE_OPTIMIZER_STATE_STEP)
        candidates = [stored] if stored is not None else []
        base = self.base[0]
        states = base if isinstance(base, (list, tuple)) else [*base.get("state", {}).values(), *base.get("param_groups", [])]
        candidates += [state["step"] for state in states if "step" in state]
        # Some optimizers count only on the last parameter of a group.
        return max(int(step) for step in candidates) if candidates else None

    def has_states(self) -> bool:
        """Whether any optimizer state is stored: a checkpoint from before the first step has none."""
        base = self.base[0]
        return any(base if isinstance(base, (list, tuple)) else base.get("state", {}).values())

    def param_groups(self) -> list[dict]:
        return self.base[0].get("param_groups", []) if isinstance(self.base[0], dict) else []


class CheckpointMisfit(CheckpointError):
    """A checkpoint that is whole, but of another model or optimizer: no other one is tried in its place."""


def check_files(engine: Any, files: StateFiles, load_optimizer_states: bool) -> None:
    """CheckpointError for anything that would stop restore() half way."""
    from deepspeed.runtime.checkpoint_state import optimizer_groups
    for group in optimizer_groups(engine):
        for entry in group:
            if not files.has(entry.name):
                raise CheckpointMisfit(f"{files.paths[0]}: the checkpoint has no optimizer state for parameter {entry.name}: it is of another "
                                      "model, or the parameter was frozen when it was saved")
            if tuple(files.shape(entry.name)) != entry.shape:
                raise CheckpointMisfit(f"{files.paths[0]}: parameter {entry.name} has shape {list(files.shape(entry.name))} in the checkpoint and "
                                      f"{list(entry.shape)} in the model")
            files.check(entry.name, "fp32")
            if load_optimizer_states:
                stored = files.state_of(entry.name)
                wanted = list(_wanted_keys(engine, entry.group, stored).values())
                for key in wanted:
                    files.check(entry.name, key)
                check_states_fit(files.paths[0], entry.name, wanted, [name for name, value in stored.items() if is_state(value)])
    saved = files.param_groups()
    if load_optimizer_states and saved:
        places_of_groups(engine, saved, files.paths[0])


def is_state(value: Any) -> bool:
    """Whether an optimizer's entry is a value per element, and no step count or flag."""
    return isinstance(value, Tensor) and value.dim() > 0


def check_states_fit(where: str, name: str, wanted: Sequence[str], stored: Sequence[str]) -> None:
    """A parameter without any state was never updated; one with other states was updated by another optimizer."""
    missing, unknown = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    what = f", but not {', '.join(missing)}, which this optimizer needs" if missing else f"; this optimizer has no {', '.join(unknown)}"
    if stored and (missing or unknown):
        raise CheckpointMisfit(f"{where} has {', '.join(sorted(stored))} of parameter {name}{what}: it was saved with another one; "
                               "load_optimizer_states=False loads the weights alone")


def _wanted_keys(engine: Any, group: int, stored: dict) -> dict[str, str]:
    """State names of the engine -> names in the files."""
    if engine._stepper.native:
        names = file_keys(engine.basic_optimizer, engine._stepper.groups[group], list(engine._core.state_keys()))
        return {key: stored_name(name, stored) for key, name in names.items()}
    return {key: key for key, value in stored.items() if is_state(value)}


@torch.no_grad()
def restore(engine: Any, files: StateFiles, load_optimizer_states: bool, load_from_fp32_weights: bool) -> None:
    """Masters, states, step, hyper-parameters and loss scale. Collective (the model's parameters follow their masters)."""
    from deepspeed.runtime.checkpoint_state import optimizer_groups
    core, use_masters = engine._core, load_from_fp32_weights and files.has_masters
    entries = [entry for group in optimizer_groups(engine) for entry in group]
    where = f"loading {os.path.dirname(files.paths[0]) or files.paths[0]}"
    together = Together(engine, where, CheckpointError)
    with together.attempt():
        check_files(engine, files, load_optimizer_states)
        sources = {entry.index: _sources(engine, files, entry, use_masters, load_optimizer_states) for entry in entries}
    together.agree()
    together = Together(engine, where, CheckpointError, PARTS_ARE_LOADED, one_class=True)
    core.begin_load()
    with together.attempt():
        if load_optimizer_states:
            every = set(core.state_keys()) if engine._stepper.native else None
            reset_optimizer(engine, every is not None and all(found is None or every <= set(found) for found in sources.values()))
        batch = FragmentBatch(engine, files.read_into)
        for entry in entries:
            length = core.fragment_of(entry.index)[1]
            for key, source in (sources[entry.index] or {}).items():
                batch.add(entry.index, key, (source,), length, torch.float32)
            if length > 0 and load_optimizer_states and not engine._stepper.native:
                stored = files.state_of(entry.name)
                put_scalars(engine, entry.index, {key: value for key, value in stored.items() if not is_state(value)})
        batch.flush()
    together.agree()
    if load_optimizer_states:
        restore_groups(engine, files.param_groups())
        if engine._stepper.native and files.has_states():
            core.set_step(files.step() or 0)
    _restore_scaler(engine, files.ranks[engine.communicator.rank if len(files.ranks) > engine.communicator.rank else 0])
    if use_masters:
        core.refresh_parameters()
    else:
        core.refresh_from_parameters()
    core.end_load(load_optimizer_states)


@torch.no_grad()
def reset_optimizer(engine: Any, states_follow: bool = False) -> None:
    """States, step count and loss scale as they were before the first step, until the core's end_load(). states_follow: the caller
    writes every state of every parameter, whose old values need not be cleared."""
    if engine._stepper.native:
        engine._core.reset_optimizer(states_follow)
    else:
        engine.basic_optimizer.state.clear()
    engine._core.load_scaler_state(engine._first_scaler_state)


def _sources(engine: Any, files: StateFiles, entry: Any, masters: bool, states: bool) -> dict[str, Any] | None:
    """The engine's names of what is to be read of a parameter -> where this rank's fragment stands. None when it has no fragment."""
    offset, length = engine._core.fragment_of(entry.index)
    if length == 0:
        return None
    wanted = {"fp32": "fp32"} if masters else {}
    if states:
        wanted |= _wanted_keys(engine, entry.group, files.state_of(entry.name))
    found = {here: files.locate(entry.name, key, offset, length) for here, key in wanted.items()}
    return {here: source for here, source in found.items() if source is not None}


def put_scalars(engine: Any, index: int, scalars: dict) -> None:
    """Step counters and the like of a torch optimizer, as many objects as parameters."""
    from deepspeed.runtime.fragment_state import fragment_of
    fragment = fragment_of(engine, index)
    if fragment is None:
        return
    for key, value in scalars.items():
        engine.basic_optimizer.state[fragment.master][key] = value.clone() if isinstance(value, Tensor) else value


def places_of_groups(engine: Any, saved_groups: list[dict], where: str) -> list[int]:
    """Where the optimizer has the groups of a file: all that were given parameters, or those that train something, which is what files of
    fused optimizers and older ones have. CheckpointMisfit for another number of groups."""
    given, trained = list(engine._file_numbers.all), engine._stepper.places
    for places in (given, trained):
        if len(saved_groups) == len(places):
            return places
    raise CheckpointMisfit(f"{where}: the checkpoint has {len(saved_groups)} parameter groups, the optimizer {len(given)}: build the optimizer with "
                           "the same groups")


def restore_groups(engine: Any, saved_groups: list[dict]) -> None:
    """Hyper-parameters."""
    if not saved_groups:
        return
    for place, saved in zip(places_of_groups(engine, saved_groups, "the checkpoint"), saved_groups):
        engine.basic_optimizer.param_groups[place].update({key: value for key, value in saved.items() if key != "params"})


def _restore_scaler(engine: Any, state: dict) -> None:
    if LOSS_SCALER in state:
        adopt_loss_scaler(engine, state[LOSS_SCALER])
    elif "cur_scale" in state:
        from types import SimpleNamespace
        adopt_loss_scaler(engine, SimpleNamespace(cur_scale=state["cur_scale"], cur_iter=state.get("cur_iter", 0),
                                                  last_overflow_iter=state.get("last_overflow_iter", -1)))
