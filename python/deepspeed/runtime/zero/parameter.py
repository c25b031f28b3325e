"""Sharded parameters as Python sees them: the unit that holds each one, and the `ds_*` names that frameworks read.

A parameter that ZeRO manages becomes a ZeroParameter in place (its class is exchanged; autograd and modules keep the object).
All it carries is a slot: where its values are, and which engine trains it. While its unit is released its data is an empty
tensor of shape [0].
"""
from __future__ import annotations

import itertools
import weakref
from enum import Enum
from typing import Any, Iterable

import torch
import torch.nn as nn

from deepspeed import _C


class ZeroParamType(Enum):
    """How a parameter is held."""

    NORMAL = 1
    PARTITIONED = 2
    REMOTE = 3


class ZeroParamStatus(Enum):
    """Whether a parameter's full values are there."""

    AVAILABLE = 1
    NOT_AVAILABLE = 2
    INFLIGHT = 3


_ids = itertools.count()


def _nothing() -> None:
    return None


class ParamSlot:
    """Where one parameter's values are. Copies and pickles of a parameter do not take it along."""

    def __init__(self) -> None:
        self.ds_id: int | None = None  # only of parameters that ZeRO-3 manages
        self.shape = torch.Size()
        self.unit: Any = None  # _C.ParamUnit; None: the parameter is whole on every rank
        self.index = -1  # in the unit
        self.group: Any = None  # process group over which it is sharded
        self.communicator: Any = None
        self.groups: Any = None  # _C.PlanGroups of its unit
        self.engine: Any = None  # weak reference to the engine that trains it
        self.engine_index = -1
        self.active_sub_modules: set = set()
        self.context_depth = 0  # GatheredParameters contexts that hold it

    def __reduce__(self):
        return _nothing, ()

    def __deepcopy__(self, _memo) -> None:
        return None


class HeapTrimmer:
    """Gives the heap's holes back now and then while large parameters leave it: between the small ones that stay, the holes would add up
    to the size of the model."""

    _EVERY_BYTES = 64 << 20

    def __init__(self) -> None:
        self._left_bytes = 0  # since the heap was trimmed

    def left(self, size: int) -> None:
        """So many bytes have left the heap."""
        self._left_bytes += size
        if self._left_bytes >= self._EVERY_BYTES:
            _C.trim_heap()
            self._left_bytes = 0


def slot_of(param: torch.Tensor) -> ParamSlot | None:
    """The slot of a managed parameter, or None. (isinstance of nn.Parameter is slow, and this runs at every access.)"""
    return param.__dict__.get("_ds_slot")


def ensure_slot(param: nn.Parameter) -> ParamSlot:
    slot = slot_of(param)
    if slot is None:
        slot = ParamSlot()
        slot.shape = param.shape
        param._ds_slot = slot
    return slot


def bind_engine(param: nn.Parameter, engine: Any, index: int) -> None:
    """Lets full-value access (safe_get_full_*) find the engine of a parameter."""
    slot = ensure_slot(param)
    slot.engine, slot.engine_index = weakref.ref(engine), index


class ZeroParameter(nn.Parameter):
    """A parameter under ZeRO-3. Do not construct: see adopt()."""

    @property
    def data(self) -> torch.Tensor:
        """The values that are here: of shape [0] while the parameter is sharded."""
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        slot = slot_of(self)
        if slot is not None and slot.unit is not None and not slot.unit.gathered and value.numel() > 0:
            engine = slot.engine() if slot.engine is not None else None
            name = engine.core_params[slot.engine_index][0] if engine is not None else f"{slot.index} of {slot.unit.name}"
            raise RuntimeError(f"parameter {name} is sharded: a tensor of shape {list(value.shape)} assigned to its data would be lost at the "
                               "next gather. Store values inside `with deepspeed.zero.GatheredParameters([param], modifier_rank=0):`, of shape "
                               f"{list(slot.shape)}")
        torch.Tensor.data.__set__(self, value)

    def _slot(self, name: str) -> ParamSlot:
        slot = self.__dict__.get("_ds_slot")
        if slot is None or slot.ds_id is None:  # a deep copy: an ordinary parameter of the same class
            raise AttributeError(f"parameter has no attribute {name!r}: it is not managed by ZeRO-3")
        return slot

    @property
    def ds_id(self) -> int:
        return self._slot("ds_id").ds_id

    @property
    def ds_shape(self) -> torch.Size:
        return self._slot("ds_shape").shape

    @property
    def ds_numel(self) -> int:
        return self._slot("ds_numel").shape.numel()

    @property
    def ds_status(self) -> ZeroParamStatus:
        slot = self._slot("ds_status")
        whole = slot.unit is None or slot.unit.gathered or slot.context_depth > 0
        return ZeroParamStatus.AVAILABLE if whole else ZeroParamStatus.NOT_AVAILABLE

    @property
    def ds_persist(self) -> bool:
        return self._slot("ds_persist").unit is None

    @property
    def ds_param_type(self) -> ZeroParamType:
        return ZeroParamType.PARTITIONED if self._slot("ds_param_type").unit is not None else ZeroParamType.NORMAL

    @property
    def ds_tensor(self) -> torch.Tensor:
        """This rank's piece, 1-D."""
        slot = self._slot("ds_tensor")
        if slot.unit is not None:
            return slot.unit.shard(slot.index)
        size = -(-slot.shape.numel() // slot.communicator.size)
        return self.data.reshape(-1)[slot.communicator.rank * size:(slot.communicator.rank + 1) * size]

    @property
    def ds_secondary_tensor(self) -> None:
        self._slot("ds_secondary_tensor")
        return None

    @property
    def ds_process_group(self) -> Any:
        return self._slot("ds_process_group").group

    @property
    def ds_active_sub_modules(self) -> set:
        return self._slot("ds_active_sub_modules").active_sub_modules

    def partition_numel(self) -> int:
        """Elements per rank, padding included."""
        slot = self._slot("partition_numel")
        return -(-slot.shape.numel() // slot.communicator.size)

    partitioned_size = partition_numel

    def all_gather(self, param_list: Iterable[nn.Parameter] | None = None, async_op: bool = False, **_unused: Any) -> None:
        """Makes the full values of this parameter (or of the given ones) available until partition()."""
        for param in self._listed(param_list):
            slot = slot_of(param)
            if slot is not None and slot.unit is not None and not slot.unit.gathered:
                slot.unit.gather()

    def partition(self, param_list: Iterable[nn.Parameter] | None = None, has_been_updated: bool = False, **_unused: Any) -> None:
        """Keeps only this rank's piece. has_been_updated: every rank stores its piece of its own values first."""
        for param in self._listed(param_list):
            slot = slot_of(param)
            if slot is None or slot.unit is None or not slot.unit.gathered:
                continue
            if has_been_updated:
                slot.unit.write_full(slot.index, param.data.clone(), -1)
            slot.unit.release()

    def free(self) -> None:
        self.partition()

    def _listed(self, param_list: Iterable[nn.Parameter] | None) -> list[nn.Parameter]:
        params = [self] if param_list is None else list(param_list)
        # One gather per unit, in an order that is the same on every rank.
        first_of_unit: dict[int, nn.Parameter] = {}
        for param in sorted(params, key=lambda p: getattr(p, "ds_id", -1)):
            slot = slot_of(param)
            if slot is not None:
                first_of_unit.setdefault(id(slot.unit) if slot.unit is not None else id(param), param)
        return list(first_of_unit.values())


def manage(param: nn.Parameter, communicator: Any, group: Any) -> ParamSlot:
    """Gives a parameter its `ds_*` names. It stays whole until adopt()."""
    slot = ensure_slot(param)
    if slot.ds_id is None:
        slot.ds_id = next(_ids)
        slot.shape = param.shape
        if type(param) is nn.Parameter:
            param.__class__ = ZeroParameter
        elif not isinstance(param, ZeroParameter):
            # Subclasses of Parameter keep their own behaviour underneath.
            param.__class__ = type(f"Zero{type(param).__name__}", (ZeroParameter, type(param)), {})
    slot.communicator, slot.group = communicator, group
    return slot


def shard(name: str, names: list[str], params: list[nn.Parameter], groups: Any, dtype: torch.dtype, communicator: Any,
          process_group: Any, tier: Any = None, keep_values: bool = True) -> Any:
    """Puts parameters into one new unit, which shards them, in memory or in files of `tier`. Collective."""
    slots = [manage(param, communicator, process_group) for param in params]
    unit = _C.ParamUnit(name, names, params, groups, dtype, tier, keep_values)
    for index, slot in enumerate(slots):
        slot.unit, slot.index, slot.groups = unit, index, groups
    return unit


@torch.no_grad()
def dissolve(params: Iterable[nn.Parameter]) -> None:
    """Makes whole again all parameters of the units that hold `params`. Collective where memory is not shared."""
    for members in members_of_units(params).values():
        unit = slot_of(members[0]).unit
        values = [(param, unit.read_full(slot_of(param).index)) for param in members]
        for param, value in values:
            slot_of(param).unit, slot_of(param).index = None, -1
            param.data = value


def members_of_units(params: Iterable[nn.Parameter]) -> dict[int, list[nn.Parameter]]:
    """id(unit) -> those of `params` that it holds, in the unit's order; whole parameters are left out."""
    members: dict[int, list[nn.Parameter]] = {}
    for param in params:
        slot = slot_of(param)
        if slot is not None and slot.unit is not None:
            members.setdefault(id(slot.unit), []).append(param)
    for held in members.values():
        held.sort(key=lambda p: slot_of(p).index)
    return members


def is_sharded(param: torch.Tensor) -> bool:
    slot = slot_of(param)
    return slot is not None and slot.unit is not None
