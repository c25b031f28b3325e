"""The optimizer's state of one rank as checkpoint files store it, built from whole values one parameter at a time."""
from __future__ import annotations

from collections import OrderedDict
from typing import Any, Callable

import torch
from torch import Tensor

from deepspeed.checkpoint.constants import (BASE_OPTIMIZER_STATE, CLIP_GRAD, DS_VERSION, FP32_FLAT_GROUPS, GROUP_PADDINGS, LOSS_SCALER,
                                            OPTIMIZER_STATE_DICT, PARAM_ALIGNMENT_PADDINGS, PARAM_SLICE_MAPPINGS, PARTITION_COUNT,
                                            SINGLE_PARTITION_OF_FP32_GROUPS, ZERO_STAGE)
from deepspeed.runtime import fragment_state
from deepspeed.runtime.base_optimizer import make_loss_scaler
from deepspeed.runtime.checkpoint_layout import Entry, PartitionedGroup, PerParameterGroup, round_robin, sub_groups
from deepspeed.runtime.native_recipe import file_keys
from deepspeed.utils.tensor_fragment import fragment_address


def optimizer_groups(engine: Any) -> list[list[Entry]]:
    """The trained parameters of each optimizer group, in the group's order."""
    index_of = {id(param): index for index, (_, param) in enumerate(engine.core_params)}
    groups = []
    for number, group in enumerate(engine._stepper.model_groups if engine._stepper is not None else []):
        entries = []
        for param in group:
            index = index_of[id(param)]
            shape = tuple(getattr(param, "ds_shape", param.shape))
            entries.append(Entry(index, engine.core_params[index][0], shape, torch.Size(shape).numel(), number))
        groups.append(entries)
    return groups


def file_groups(engine: Any) -> list[list[Entry]]:
    """The groups in which this engine's files store parameters."""
    groups, layout = optimizer_groups(engine), engine._config.checkpoint_layout
    ranks = engine.dp_world_size
    if layout == "per_parameter":
        return [sub for group in groups for sub in sub_groups(group, ranks, engine.zero_sub_group_size())]
    if layout == "partitioned" and engine.zero_round_robin_gradients():
        return [round_robin(group, ranks) for group in groups]
    return groups


class StateReader:
    """Whole values of masters and optimizer states, whoever keeps them. All reads are collective."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.native = engine._stepper.native
        self.keys = list(engine._core.state_keys()) if self.native else _common_keys(engine)
        self.exists = engine._core.get_step() > 0 if self.native else bool(self.keys)

    def names(self, group: int) -> dict[str, str]:
        """State names here -> state names in files, for the parameters of one optimizer group."""
        if not self.native:
            return {key: key for key in self.keys}
        optimizer = self.engine.basic_optimizer
        return file_keys(optimizer, optimizer.param_groups[group], self.keys)

    def full(self, index: int, key: str) -> Tensor | None:
        """fp32, flat, on the CPU."""
        if key == "fp32" or self.native:
            value = self.engine._core.read_full(index, key)
        else:
            value = fragment_state.read_full_state(self.engine, index, key)
        return None if value is None else value.reshape(-1).to("cpu", torch.float32)

    def scalars(self, entries: list[Entry]) -> dict[str, Any]:
        """State entries that are the same for a whole group, above all the step count."""
        if self.native:
            return {"step": _step_value(self.engine)}
        for entry in entries:
            state = fragment_state.local_state(self.engine, entry.index)
            if state:
                return {key: value for key, value in state.items() if key not in self.keys}
        return {}


def _step_value(engine: Any) -> Any:
    """torch's optimizers keep the step in a tensor, ours in an integer."""
    step = engine._core.get_step()
    is_torch = type(engine.basic_optimizer).__module__.startswith("torch.")
    return torch.tensor(float(step)) if is_torch else step


def _common_keys(engine: Any) -> list[str]:
    """Names of per-element states that any rank has, in one order."""
    import torch.distributed as dist
    mine: set[str] = set()
    for fragment in engine._stepper.fragments:
        for key, value in engine.basic_optimizer.state.get(fragment.master, {}).items():
            if isinstance(value, Tensor) and value.dim() > 0 and value.numel() == fragment.length:
                mine.add(key)
    if engine.communicator.size > 1:
        everyone: list[Any] = [None] * engine.communicator.size
        dist.all_gather_object(everyone, sorted(mine), group=engine.data_parallel_group)
        mine = set().union(*everyone)
    return sorted(mine)


def _flat(reader: StateReader, entries: list[Entry], layout: Any, rank: int, key: str) -> Tensor | None:
    """This rank's flat tensor of one group and key; zeros where a parameter has no such state. Collective."""
    flat = torch.zeros(layout.partition_numel)
    found = False
    for position, entry in enumerate(entries):
        value = reader.full(entry.index, key)
        if value is None:
            continue
        found = True
        for piece in layout.pieces(position):
            if piece.rank == rank:
                flat[piece.start:piece.start + piece.length] = value[piece.offset:piece.offset + piece.length]
    return flat if found else None


def _base_state(engine: Any, reader: StateReader, groups: list[list[Entry]], layouts: list[Any], rank: int,
                indices: Callable[[int], list[int]]) -> dict:
    """A torch optimizer's state dictionary over one flat tensor per file group."""
    state: dict[int, dict[str, Any]] = {}
    if reader.exists:
        for number, (entries, layout) in enumerate(zip(groups, layouts)):
            tensors = {name: _flat(reader, entries, layout, rank, key) for key, name in reader.names(entries[0].group).items()}
            state[number] = {**reader.scalars(entries), **{key: value for key, value in tensors.items() if value is not None}}
    return {"state": state, "param_groups": param_groups(engine, indices)}


def param_groups(engine: Any, indices: Callable[[int], list[int]]) -> list[dict]:
    step = engine._core.get_step() if engine._stepper.native else None
    made = []
    for number, group in enumerate(engine.basic_optimizer.param_groups):
        plain = {key: value for key, value in group.items() if key != "params"}
        if "step" in plain and step is not None:
            plain["step"] = step
        made.append({**plain, "params": indices(number)})
    return made


def scaler_entries(engine: Any) -> dict[str, Any]:
    return {LOSS_SCALER: make_loss_scaler(engine), "dynamic_loss_scale": engine._wrapper.dynamic_loss_scale,
            "overflow": engine._wrapper.overflow}


def optimizer_state(engine: Any) -> dict:
    """This rank's optimizer state in the layout of the engine's configuration. Collective."""
    return _WRITERS[engine._config.checkpoint_layout](engine)


@torch.no_grad()
def _partitioned(engine: Any) -> dict:
    from deepspeed import __version__
    reader, groups, rank = StateReader(engine), file_groups(engine), engine.communicator.rank
    layouts = [PartitionedGroup([e.numel for e in entries], engine.dp_world_size) for entries in groups]
    masters, mappings = [], []
    for entries, layout in zip(groups, layouts):
        flat = _flat(reader, entries, layout, rank, "fp32")
        masters.append(flat[:layout.partition_numel - layout.padding(rank)].clone())
        mappings.append(OrderedDict((entry.name, fragment_address(piece.length, piece.start)) for position, entry in enumerate(entries)
                                    for piece in layout.pieces(position) if piece.rank == rank))
    return {**scaler_entries(engine), CLIP_GRAD: engine.gradient_clipping(),
            BASE_OPTIMIZER_STATE: _base_state(engine, reader, groups, layouts, rank, lambda number: [number]),
            SINGLE_PARTITION_OF_FP32_GROUPS: masters, ZERO_STAGE: engine.zero_optimization_stage(),
            GROUP_PADDINGS: [layout.padding(rank) for layout in layouts],
            PARAM_ALIGNMENT_PADDINGS: [[0] * len(entries) for entries in groups],
            PARTITION_COUNT: [engine.dp_world_size] * len(groups), DS_VERSION: __version__, PARAM_SLICE_MAPPINGS: mappings}


@torch.no_grad()
def _per_parameter(engine: Any) -> dict:
    reader, rank, ranks = StateReader(engine), engine.communicator.rank, engine.dp_world_size
    numbers: list[list[int]] = []
    groups: list[list[Entry]] = []
    for group in optimizer_groups(engine):
        subs = sub_groups(group, ranks, engine.zero_sub_group_size())
        numbers.append(list(range(len(groups), len(groups) + len(subs))))
        groups += subs
    layouts = [PerParameterGroup([e.numel for e in entries], ranks) for entries in groups]
    return {ZERO_STAGE: engine.zero_optimization_stage(), **scaler_entries(engine), PARTITION_COUNT: ranks,
            OPTIMIZER_STATE_DICT: _base_state(engine, reader, groups, layouts, rank, lambda number: numbers[number]),
            FP32_FLAT_GROUPS: [_flat(reader, entries, layout, rank, "fp32") for entries, layout in zip(groups, layouts)]}


@torch.no_grad()
def _whole(engine: Any) -> dict:
    """torch's own format: whole states by parameter."""
    reader, groups = StateReader(engine), optimizer_groups(engine)
    state: dict[int, dict[str, Any]] = {}
    numbers = engine._file_numbers.trained
    for own, entries in zip(numbers, groups):
        for number, entry in zip(own, entries):
            tensors = {name: reader.full(entry.index, key) for key, name in reader.names(entry.group).items()} if reader.exists else {}
            tensors = {key: value.view(entry.shape) for key, value in tensors.items() if value is not None}
            if tensors:
                state[number] = {**reader.scalars([entry]), **tensors}
    return {"state": state, "param_groups": param_groups(engine, lambda number: engine._file_numbers.all[number])}


@torch.no_grad()
def _whole_flat(engine: Any) -> dict:
    """16-bit training without sharding: fp32 values beside the optimizer's state, flat by group for fused optimizers."""
    reader, groups = StateReader(engine), optimizer_groups(engine)
    made = _scale_history(engine)
    made[CLIP_GRAD] = engine.gradient_clipping()
    if type(engine.basic_optimizer).__name__ != "FusedAdam":
        made[OPTIMIZER_STATE_DICT] = _whole(engine)
        made["fp32_groups"] = [[reader.full(e.index, "fp32").view(e.shape) for e in entries] for entries in groups]
        return made
    layouts = [PartitionedGroup([e.numel for e in entries], 1) for entries in groups]
    for layout in layouts:
        layout.partition_numel = layout.total  # nothing is padded here
    made[OPTIMIZER_STATE_DICT] = _base_state(engine, reader, groups, layouts, 0, lambda number: [number])
    made["fp32_groups_flat"] = [_flat(reader, entries, layout, 0, "fp32") for entries, layout in zip(groups, layouts)]
    return made


def _scale_history(engine: Any) -> dict:
    scaler = make_loss_scaler(engine)
    if not engine.fp16_enabled():
        return {}
    history = {"dynamic_loss_scale": scaler.dynamic, "cur_scale": scaler.cur_scale, "cur_iter": getattr(scaler, "cur_iter", 0)}
    if scaler.dynamic:
        history.update(last_overflow_iter=scaler.last_overflow_iter, scale_factor=scaler.scale_factor, scale_window=scaler.scale_window)
    return history


_WRITERS: dict[str, Callable[[Any], dict]] = {"partitioned": _partitioned, "per_parameter": _per_parameter, "whole": _whole,
                                              "whole_flat": _whole_flat}


@torch.no_grad()
def flat_masters(engine: Any) -> list[Tensor]:
    """This rank's fp32 master values, one flat tensor per file group (padding included). Collective."""
    reader, groups = StateReader(engine), file_groups(engine)
    kind = PerParameterGroup if engine._config.checkpoint_layout == "per_parameter" else PartitionedGroup
    layouts = [kind([e.numel for e in entries], engine.dp_world_size) for entries in groups]
    return [_flat(reader, entries, layout, engine.communicator.rank, "fp32") for entries, layout in zip(groups, layouts)]


def restore_optimizer(engine: Any, states: Any, load_optimizer_states: bool = True, load_from_fp32_weights: bool = True) -> None:
    """Puts back what optimizer_state() returned: one dictionary, or one per rank."""
    from deepspeed.runtime.checkpoint_restore import StateFiles, restore
    listed = states if isinstance(states, (list, tuple)) else None
    if listed is None:
        if engine.communicator.size > 1 and engine._config.checkpoint_layout in ("partitioned", "per_parameter"):
            import torch.distributed as dist
            listed = [None] * engine.communicator.size
            dist.all_gather_object(listed, states, group=engine.data_parallel_group)
        else:
            listed = [states]
    names = [[(e.name, e.shape) for e in entries] for entries in file_groups(engine)]
    files = StateFiles(list(listed), names, ["optimizer.load_state_dict()"] * len(listed), engine._file_numbers.trained)
    restore(engine, files, load_optimizer_states, load_from_fp32_weights)
