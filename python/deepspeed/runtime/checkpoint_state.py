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
from deepspeed.runtime.checkpoint_exchange import Exchange, Move, moves_of
from deepspeed.runtime.checkpoint_layout import Entry, PartitionedGroup, PerParameterGroup, round_robin, sub_groups
from deepspeed.runtime.checkpoint_pickle import PlacedTensor
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
        return file_keys(self.engine.basic_optimizer, self.engine._stepper.groups[group], self.keys)

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


class FlatStates:
    """This rank's flat tensors of the groups of a layout. Making it is collective."""

    def __init__(self, engine: Any, reader: StateReader, groups: list[list[Entry]], layouts: list[Any], placed: bool = False) -> None:
        """placed: as PlacedTensor, which stand where the engine keeps them until they are written; else as tensors."""
        self.engine, self.reader, self.groups, self.layouts, self.placed = engine, reader, groups, layouts, placed
        self.rank = engine.communicator.rank
        self._in_files = bool(engine._core.file_tier_facts())
        self._exchange = Exchange(engine)
        self._last: tuple[int, str, Tensor] | None = None
        self._moves = self._all_moves() if reader.native else {}

    def _all_moves(self) -> dict[int, list[Move]]:
        """By parameter: which rank gives what to whom. The same on all ranks; parameters that are missing are read whole."""
        engine, ranks = self.engine, self.engine.communicator.size
        mine = {entry.index: tuple(engine._core.fragment_of(entry.index)) for entries in self.groups for entry in entries}
        everyone: list[Any] = [mine]
        if ranks > 1:
            import torch.distributed as dist
            everyone = [None] * ranks
            dist.all_gather_object(everyone, mine, group=engine.data_parallel_group)
        moves = {}
        for entries, layout in zip(self.groups, self.layouts):
            for position, entry in enumerate(entries):
                found = moves_of(entry.index, layout.pieces(position), [rank[entry.index] for rank in everyone])
                if found is not None:
                    moves[entry.index] = found
        return moves

    def flat(self, number: int, key: str, numel: int | None = None) -> Tensor | PlacedTensor | None:
        """Of one group, zeros where a parameter has no such state; the first `numel` elements. Collective."""
        entries, layout = self.groups[number], self.layouts[number]
        pieces: list[tuple[int, int, Any]] = []
        found = False
        for position, entry in enumerate(entries):
            if entry.index in self._moves:
                found = True
                pieces += [(move.start, move.length, self._own(key, move)) for move in self._moves[entry.index] if move.src == move.dst == self.rank]
            elif (value := self.reader.full(entry.index, key)) is not None:
                found = True
                pieces += [(piece.start, piece.length, value[piece.offset:piece.offset + piece.length].clone())
                           for piece in layout.pieces(position) if piece.rank == self.rank]
        moves = [move for entry in entries for move in self._moves.get(entry.index, [])]
        pieces += self._exchange.run(moves, lambda move: self._local(key, move))
        return self._joined(pieces, layout.partition_numel if numel is None else numel) if found else None

    def _own(self, key: str, move: Move) -> Any:
        return (lambda: self._local(key, move)) if self._in_files else self._local(key, move)

    def _local(self, key: str, move: Move) -> Tensor:
        """fp32; shares the engine's memory where it has such values in memory."""
        begin = move.offset - self.engine._core.fragment_of(move.index)[0]
        if self._last is None or self._last[:2] != (move.index, key):  # states in files are read whole: not for every piece
            self._last = (move.index, key, self.engine._core.read_local(move.index, key).reshape(-1))
        return self._last[2][begin:begin + move.length].to(torch.float32)

    def _joined(self, pieces: list[tuple[int, int, Any]], numel: int) -> Tensor | PlacedTensor:
        pieces = sorted(pieces, key=lambda piece: piece[0])
        if not self.placed:
            flat = torch.zeros(numel)
            for start, length, source in pieces:
                flat[start:start + length] = source if isinstance(source, Tensor) else source()
            return flat
        parts, end = [], 0
        for start, length, source in [*pieces, (numel, 0, None)]:
            if start > end:
                parts.append((start - end, torch.zeros(start - end)))
            if source is not None:
                parts.append((length, source))
            end = start + length
        return PlacedTensor(torch.float32, parts)


def _base_state(engine: Any, states: FlatStates, indices: Callable[[int], list[int]]) -> dict:
    """A torch optimizer's state dictionary over one flat tensor per file group."""
    state: dict[int, dict[str, Any]] = {}
    if states.reader.exists:
        for number, entries in enumerate(states.groups):
            tensors = {name: states.flat(number, key) for key, name in states.reader.names(entries[0].group).items()}
            state[number] = {**states.reader.scalars(entries), **{key: value for key, value in tensors.items() if value is not None}}
    return {"state": state, "param_groups": param_groups(engine, indices)}


def param_groups(engine: Any, indices: Callable[[int], list] | None) -> list[dict]:
    """The optimizer's groups as files have them. indices: what stands for a trained group's parameters, frozen ones have none; None: the
    numbers of all parameters."""
    step = engine._core.get_step() if engine._stepper.native else None
    number_of = {place: number for number, place in enumerate(engine._stepper.places)}
    made = []
    for place, numbers in engine._file_numbers.all.items():
        plain = {key: value for key, value in engine.basic_optimizer.param_groups[place].items() if key != "params"}
        if "step" in plain and step is not None:
            plain["step"] = step
        own = numbers if indices is None else indices(number_of[place]) if place in number_of else []
        made.append({**plain, "params": own})
    return made


def scaler_entries(engine: Any) -> dict[str, Any]:
    return {LOSS_SCALER: make_loss_scaler(engine), "dynamic_loss_scale": engine._wrapper.dynamic_loss_scale,
            "overflow": engine._wrapper.overflow}


def optimizer_state(engine: Any, placed: bool = False) -> dict:
    """This rank's optimizer state in the layout of the engine's configuration. Collective. placed: see FlatStates."""
    return _WRITERS[engine._config.checkpoint_layout](engine, placed)


@torch.no_grad()
def _partitioned(engine: Any, placed: bool) -> dict:
    from deepspeed import __version__
    reader, groups, rank = StateReader(engine), file_groups(engine), engine.communicator.rank
    layouts = [PartitionedGroup([e.numel for e in entries], engine.dp_world_size) for entries in groups]
    states = FlatStates(engine, reader, groups, layouts, placed)
    masters = [states.flat(number, "fp32", layout.partition_numel - layout.padding(rank)) for number, layout in enumerate(layouts)]
    mappings = [OrderedDict((entry.name, fragment_address(piece.length, piece.start)) for position, entry in enumerate(entries)
                            for piece in layout.pieces(position) if piece.rank == rank) for entries, layout in zip(groups, layouts)]
    return {**scaler_entries(engine), CLIP_GRAD: engine.gradient_clipping(),
            BASE_OPTIMIZER_STATE: _base_state(engine, states, lambda number: [number]),
            SINGLE_PARTITION_OF_FP32_GROUPS: masters, ZERO_STAGE: engine.zero_optimization_stage(),
            GROUP_PADDINGS: [layout.padding(rank) for layout in layouts],
            PARAM_ALIGNMENT_PADDINGS: [[0] * len(entries) for entries in groups],
            PARTITION_COUNT: [engine.dp_world_size] * len(groups), DS_VERSION: __version__, PARAM_SLICE_MAPPINGS: mappings}


@torch.no_grad()
def _per_parameter(engine: Any, placed: bool) -> dict:
    reader, ranks = StateReader(engine), engine.dp_world_size
    numbers: list[list[int]] = []
    groups: list[list[Entry]] = []
    for group in optimizer_groups(engine):
        subs = sub_groups(group, ranks, engine.zero_sub_group_size())
        numbers.append(list(range(len(groups), len(groups) + len(subs))))
        groups += subs
    layouts = [PerParameterGroup([e.numel for e in entries], ranks) for entries in groups]
    states = FlatStates(engine, reader, groups, layouts, placed)
    return {ZERO_STAGE: engine.zero_optimization_stage(), **scaler_entries(engine), PARTITION_COUNT: ranks,
            OPTIMIZER_STATE_DICT: _base_state(engine, states, lambda number: numbers[number]),
            FP32_FLAT_GROUPS: [states.flat(number, "fp32") for number in range(len(groups))]}


@torch.no_grad()
def _whole(engine: Any, placed: bool = False) -> dict:
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
    return {"state": state, "param_groups": param_groups(engine, None)}


@torch.no_grad()
def _whole_flat(engine: Any, placed: bool = False) -> dict:
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
    states = FlatStates(engine, reader, groups, layouts, placed)
    made[OPTIMIZER_STATE_DICT] = _base_state(engine, states, lambda number: [number])
    made["fp32_groups_flat"] = [states.flat(number, "fp32") for number in range(len(groups))]
    return made


def _scale_history(engine: Any) -> dict:
    scaler = make_loss_scaler(engine)
    if not engine.fp16_enabled():
        return {}
    history = {"dynamic_loss_scale": scaler.dynamic, "cur_scale": scaler.cur_scale, "cur_iter": getattr(scaler, "cur_iter", 0)}
    if scaler.dynamic:
        history.update(last_overflow_iter=scaler.last_overflow_iter, scale_factor=scaler.scale_factor, scale_window=scaler.scale_window)
    return history


_WRITERS: dict[str, Callable[[Any, bool], dict]] = {"partitioned": _partitioned, "per_parameter": _per_parameter, "whole": _whole,
                                              "whole_flat": _whole_flat}


@torch.no_grad()
def flat_masters(engine: Any) -> list[Tensor]:
    """This rank's fp32 master values, one flat tensor per file group (padding included). Collective."""
    reader, groups = StateReader(engine), file_groups(engine)
    kind = PerParameterGroup if engine._config.checkpoint_layout == "per_parameter" else PartitionedGroup
    layouts = [kind([e.numel for e in entries], engine.dp_world_size) for entries in groups]
    states = FlatStates(engine, reader, groups, layouts)
    return [states.flat(number, "fp32") for number in range(len(groups))]


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
