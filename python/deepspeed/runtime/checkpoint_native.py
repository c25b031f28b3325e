"""The native checkpoint format: every rank writes its slices of masters, optimizer states and weights as safetensors, a manifest says
which slice of which tensor stands where. An engine of any stage, number of ranks and memory tier reads what it needs by slices.

Names in the manifest: `fp32/<parameter>` is what the optimizer updates (in the dtype of the masters), `<state>/<parameter>` its states
under the names of torch's optimizers, `module/<name>` weights without a master copy (frozen, or of an engine that does not train) and
buffers. What is no tensor is in common.pt, and what differs between ranks in rank_<r>.pt, both read without running code.
"""
from __future__ import annotations

import concurrent.futures
import os
from typing import Any, Iterator

import torch
from torch import Tensor

from deepspeed import _C
from deepspeed._C import CheckpointError
from deepspeed.checkpoint.safe_load import load_file
from deepspeed.runtime import fragment_state
from deepspeed.runtime.agreement import Together
from deepspeed.runtime.base_optimizer import adopt_loss_scaler
from deepspeed.runtime.checkpoint_load import CheckpointLoader, modules_with_extra_state, set_extra_state
from deepspeed.runtime.checkpoint_restore import (PARTS_ARE_LOADED, CheckpointMisfit, check_states_fit, places_of_groups, put_scalars,
                                                  reset_optimizer, restore_groups)
from deepspeed.runtime.checkpoint_state import StateReader, optimizer_groups, param_groups, scaler_entries
from deepspeed.runtime.fragment_batch import FragmentBatch
from deepspeed.runtime.native_recipe import stored_name
from deepspeed.runtime.random_states import rank_file
from deepspeed.runtime.zero.parameter import is_sharded, slot_of

COMMON = "common.pt"

Slice = tuple[str, list[int], int, int, torch.dtype, Any]


def tensor_file(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


# ---------------------------------------------------------------- saving
class NativeState:
    """What one rank writes of an engine. Making it is collective."""

    def __init__(self, engine: Any, exclude_frozen: bool) -> None:
        self.engine = engine
        self.trains = engine._stepper is not None
        self.rank, self.ranks = engine.communicator.rank, engine.communicator.size
        self._reader = StateReader(engine) if self.trains else None
        self._entries = {e.index: e for group in optimizer_groups(engine) for e in group}
        self._exclude_frozen = exclude_frozen
        self.in_files = bool(engine._core.file_tier_facts())
        self._everyone = self._exchange()

    def _exchange(self) -> list[dict]:
        """Each rank's fragments, and the states of a torch optimizer that are no tensors of a parameter's size."""
        mine: dict[str, Any] = {"ranges": {index: tuple(self.engine._core.fragment_of(index)) for index in self._entries}, "scalars": {}}
        if self.trains and not self.engine._stepper.native:
            for index, entry in self._entries.items():
                state = fragment_state.local_state(self.engine, index)
                mine["scalars"][entry.name] = {key: value for key, value in state.items() if key not in self._reader.keys}
        if self.ranks == 1:
            return [mine]
        import torch.distributed as dist
        everyone: list[Any] = [None] * self.ranks
        dist.all_gather_object(everyone, mine, group=self.engine.data_parallel_group)
        return everyone

    def _share(self, index: int) -> tuple[int, int]:
        """[begin, end) of the parameter that this rank writes: ranks that hold the same fragment write a part of it each."""
        held = [rank["ranges"][index] for rank in self._everyone]
        offset, length = held[self.rank]
        owners = [rank for rank, fragment in enumerate(held) if fragment == held[self.rank]]
        place = owners.index(self.rank)
        return offset + length * place // len(owners), offset + length * (place + 1) // len(owners)

    def slices(self) -> list[Slice]:
        return [*self._trained(), *self._weights()]

    def _trained(self) -> Iterator[Slice]:
        dtypes: dict[str, torch.dtype] = {}
        for index, entry in self._entries.items():
            begin, end = self._share(index)
            if begin == end:
                continue
            offset = self._everyone[self.rank]["ranges"][index][0]
            keys = {"fp32": "fp32", **(self._reader.names(entry.group) if self._reader.exists else {})}
            for key, name in keys.items():
                if key not in dtypes:
                    first = self._local(index, key)
                    if first is None:
                        continue
                    dtypes[key] = first.dtype
                elif not self._has(index, key):
                    continue
                def read(index: int = index, key: str = key, begin: int = begin - offset, end: int = end - offset) -> Tensor:
                    return self._local(index, key).reshape(-1)[begin:end]
                # States in files are loaded when the writer gets there, one after the other.
                source = read if self.in_files else read()
                yield f"{name}/{entry.name}", list(entry.shape), begin, end - begin, dtypes[key], source

    def _local(self, index: int, key: str) -> Tensor | None:
        return local_value(self.engine, index, key)

    def _has(self, index: int, key: str) -> bool:
        return self.engine._stepper.native or self._local(index, key) is not None

    def _weights(self) -> Iterator[Slice]:
        """Parameters without a master copy, and buffers. Those that are whole on every rank: each writes a part."""
        for index, (name, param) in enumerate(self.engine.core_params):
            if index in self._entries or self._exclude_frozen and not param.requires_grad:
                continue
            yield from self._weight(name, param)
        wanted = set(self.engine._get_buffer_names())
        for name, value in self.engine.module.state_dict(keep_vars=True).items():
            if name in wanted and self.rank == 0:
                value = value.detach().cpu()
                yield f"module/{name}", list(value.shape), 0, value.numel(), value.dtype, value.clone()

    def _weight(self, name: str, param: Any) -> Iterator[Slice]:
        shape = list(getattr(param, "ds_shape", param.shape))
        if is_sharded(param):
            slot = slot_of(param)
            group = self.engine._config.zero_config.mics_shard_size
            if 0 < group <= self.rank:
                return  # the first group writes: what the others hold is the same
            offset, piece = slot.unit.local_piece(slot.index)
            if piece.numel() > 0:
                yield f"module/{name}", shape, offset, piece.numel(), piece.dtype, piece
            return
        numel = param.numel()
        begin, end = numel * self.rank // self.ranks, numel * (self.rank + 1) // self.ranks
        if begin < end:
            yield f"module/{name}", shape, begin, end - begin, param.dtype, param.detach().reshape(-1)[begin:end]

    # ---- what is no tensor
    def common(self) -> dict:
        """Of rank 0. Collective where the optimizer's description is."""
        extra = {name: module.get_extra_state() for name, module in modules_with_extra_state(self.engine.module).items()}
        if not self.trains:
            return {"optimizer": None, "module": extra}
        engine = self.engine
        scalars: dict[str, dict] = {}
        for rank in self._everyone:
            for name, state in rank["scalars"].items():
                scalars.setdefault(name, {}).update(state)
        return {"optimizer": {"param_groups": param_groups(engine, lambda number: [e.name for e in optimizer_groups(engine)[number]]),
                              "step": engine._core.get_step() if engine._stepper.native else None,
                              "has_states": self._reader.exists, "scalars": scalars, **scaler_entries(engine)}, "module": extra}


def local_value(engine: Any, index: int, key: str) -> Tensor | None:
    """This rank's fragment of a master ("fp32") or state; shares the engine's memory where that is ordinary memory."""
    if engine._stepper.native:
        return engine._core.read_local(index, key)
    fragment = fragment_state.fragment_of(engine, index)
    if fragment is None:
        return None
    return fragment.master.detach() if key == "fp32" else fragment_state.local_state(engine, index).get(key)


# ---------------------------------------------------------------- loading
class NativeLoader(CheckpointLoader):
    """A checkpoint in the native format, for one engine."""

    def _open(self, optimizer: bool) -> None:
        self.tensors = _C.CheckpointTensors(self.directory)
        self.model_paths = [os.path.join(self.directory, COMMON)]
        self.tensors.check_file(COMMON)
        self.models = [load_file(self.model_paths[0])]
        self._random = self._rank_state()
        self.optimizer = self.models[0].get("optimizer") if optimizer else None
        self.aliases = self.models[0].get("shared_params") or {}

    def _rank_state(self) -> dict | None:
        if self.models[0]["dp_world_size"] == self.engine.communicator.size:
            self.tensors.check_file(rank_file(self.engine.communicator.rank))
        return super()._rank_state()

    # ---- what is there
    def _stored(self, name: str) -> tuple[str, torch.Size, torch.dtype] | None:
        """Name in the manifest, shape and dtype of a weight's value: its master where there is one."""
        name = self.aliases.get(name, name)
        for prefix in ("fp32/", "module/"):
            found = self.tensors.find(prefix + name)
            if found is not None:
                return prefix + name, torch.Size(found[0]), found[1]
        return None

    def _check(self, strict: bool, optimizer: bool, module: bool) -> None:
        params = dict(self.engine.module.named_parameters(remove_duplicate=False))
        extra = modules_with_extra_state(self.engine.module)
        missing, wrong, known = [], [], set()
        for name, here in self.engine.module.state_dict(keep_vars=True).items():
            if not isinstance(here, Tensor) or name in extra:
                continue
            stored = self._stored(name)
            if stored is None:
                shape = getattr(here, "ds_shape", here.shape) if name in params else here.shape
                if torch.Size(shape).numel() > 0:  # there are no empty slices
                    missing.append(name)
                continue
            known.add(stored[0].split("/", 1)[1])
            shape = getattr(here, "ds_shape", here.shape) if name in params else here.shape
            if stored[1] != shape:
                wrong.append(f"{name}: {list(stored[1])} in the checkpoint, {list(shape)} in the model")
        saved = {name.split("/", 1)[1] for name in self.tensors.names()}
        unexpected = sorted(saved - known)
        where = f"checkpoint {self.directory}"
        if wrong:
            raise CheckpointMisfit(f"{where}: shapes differ: {'; '.join(wrong[:5])}")
        if strict and (missing or unexpected):
            raise CheckpointMisfit(f"{where} does not fit the model: missing {missing[:5]}, unexpected {unexpected[:5]}; "
                                   "load_module_strict=False loads what fits")
        groups = self.optimizer["param_groups"] if self.optimizer else None
        if groups is not None and self.engine._stepper is not None:
            places_of_groups(self.engine, groups, where)
        if groups is not None and self.engine._stepper is not None and self.engine._stepper.native and self.optimizer["has_states"]:
            self._check_states(where)

    def _check_states(self, where: str) -> None:
        reader = StateReader(self.engine)
        for entry in [entry for group in optimizer_groups(self.engine) for entry in group]:
            check_states_fit(where, entry.name, list(self._names_of_states(entry, reader).values()), self._state_names(entry.name))

    # ---- values
    @torch.no_grad()
    def _store(self, optimizer: bool, module: bool) -> None:
        engine = self.engine
        together = self._together()
        trained = {e.index: e for group in optimizer_groups(engine) for e in group}
        if engine._stepper is not None:
            engine._core.begin_load()
        with together.attempt():
            if engine._stepper is not None and optimizer:
                reset_optimizer(engine, self._has_all_states(trained))
            self._read_fragments(trained, masters=module, states=optimizer and self._in_one_pass)
        if module:
            self._store_whole(trained, together)
            set_extra_state(engine.module, self.models[0].get("module") or {})
        self._follow(module, together, trained if optimizer and not self._in_one_pass else {})
        if engine._stepper is None:
            return
        if optimizer and self.optimizer is not None:
            restore_groups(engine, self.optimizer["param_groups"])
            if engine._stepper.native:
                engine._core.set_step(self._step())
            if "loss_scaler" in self.optimizer:
                adopt_loss_scaler(engine, self.optimizer["loss_scaler"])
        engine._core.end_load(optimizer)

    @property
    def _in_one_pass(self) -> bool:
        """Masters and states of a parameter are read one after the other: in files they are neighbours, and what follows masters on a GPU
        takes no time of this processor. Else masters come first, and what follows from them is done while states are read."""
        return self.engine._stepper is None or bool(self.engine._core.file_tier_facts()) or self.engine.device.type != "cpu"

    def _follow(self, module: bool, together: Together, trained: dict[int, Any]) -> None:
        """Agrees, then weights from the masters that were read, or masters from weights. Beside that, states of `trained` are read: no
        rank waits for the masters of another one before it goes on reading."""
        core = self.engine._core

        def follow() -> None:
            together.agree()
            if self.engine._stepper is not None:
                (core.refresh_parameters if module else core.refresh_from_parameters)()

        if not trained or together.failed:
            follow()
            return
        states = self._together()
        with concurrent.futures.ThreadPoolExecutor(1, "weights") as beside:
            following = beside.submit(follow)
            with states.attempt():
                self._read_fragments(trained, masters=False, states=True)
            following.result()
        states.agree()

    def _together(self) -> Together:
        return Together(self.engine, f"load_checkpoint({self.directory})", CheckpointError, PARTS_ARE_LOADED, one_class=True)

    def _read_fragments(self, trained: dict[int, Any], masters: bool, states: bool) -> None:
        """This rank's pieces of masters and states, straight into the engine's memory where that is possible."""
        engine = self.engine
        reader = StateReader(engine) if trained and engine._stepper.native else None
        batch = FragmentBatch(engine, self.tensors.read)
        for index, entry in trained.items():
            offset, length = engine._core.fragment_of(index)
            if length == 0:
                continue
            for key, name in self._wanted(entry, reader, masters, states).items():
                batch.add(index, key, (name, offset), length, self.tensors.find(name)[1])
            if states:
                self._put_scalars(index, entry)
        batch.flush()

    def _step(self) -> int:
        """The step count, whether the core computed the optimizer that saved it or torch did."""
        if self.optimizer["step"] is not None:
            return self.optimizer["step"]
        return max((int(state["step"]) for state in self.optimizer["scalars"].values() if "step" in state), default=0)

    def _wanted(self, entry: Any, reader: StateReader | None, masters: bool, states: bool) -> dict[str, str]:
        """The engine's names of what is to be read of a parameter -> names in the manifest."""
        wanted = {}
        if masters and (stored := self._stored(entry.name)) is not None:
            wanted["fp32"] = stored[0]
        if states and self.optimizer is not None and self.optimizer["has_states"]:
            stored = self._state_names(entry.name)
            wanted |= {key: f"{name}/{entry.name}" for key, name in self._names_of_states(entry, reader).items() if name in stored}
        return wanted

    def _has_all_states(self, trained: dict[int, Any]) -> bool:
        if not self.engine._stepper.native or self.optimizer is None or not self.optimizer["has_states"]:
            return False
        reader = StateReader(self.engine)
        names = {entry.name: self._names_of_states(entry, reader) for entry in trained.values()}
        return all(set(keys) == set(reader.keys) and set(keys.values()) <= set(self._state_names(name)) for name, keys in names.items())

    def _names_of_states(self, entry: Any, reader: StateReader | None) -> dict[str, str]:
        """The optimizer's names of a parameter's states -> names in the manifest. reader: of an optimizer that the core computes."""
        stored = self._state_names(entry.name)
        names = reader.names(entry.group) if reader is not None else {key: key for key in stored}
        return {key: stored_name(name, stored) for key, name in names.items()}

    def _state_names(self, param: str) -> list[str]:
        if not hasattr(self, "_by_param"):
            self._by_param: dict[str, list[str]] = {}
            for name in self.tensors.names():
                key, owner = name.split("/", 1)
                if key not in ("fp32", "module"):
                    self._by_param.setdefault(owner, []).append(key)
        return self._by_param.get(param, [])

    def _put_scalars(self, index: int, entry: Any) -> None:
        """Step counters and the like of a torch optimizer, as many objects as parameters."""
        if self.optimizer is None or self.engine._stepper.native:
            return
        scalars = self.optimizer["scalars"].get(entry.name, {})
        if self.optimizer["step"] is not None and self.optimizer["has_states"]:  # saved by the same optimizer, computed by the core
            scalars = {"step": torch.tensor(float(self.optimizer["step"])), **scalars}
        put_scalars(self.engine, index, scalars)

    def _store_whole(self, trained: dict[int, Any], together: Together) -> None:
        """Weights without master here, and buffers: whole values, stored by calls in which all ranks take part."""
        params = dict(self.engine.module.named_parameters(remove_duplicate=False))
        index_of = {id(param): index for index, (_, param) in enumerate(self.engine.core_params)}
        done: set[int] = set()
        extra = modules_with_extra_state(self.engine.module)
        for name, here in self.engine.module.state_dict(keep_vars=True).items():
            param = params.get(name)
            stored = self._stored(name) if isinstance(here, Tensor) and name not in extra else None
            if stored is None or param is not None and (id(param) in done or index_of.get(id(param)) in trained):
                continue
            value = torch.zeros(stored[1], dtype=stored[2])
            with together.attempt():
                self.tensors.read([(stored[0], 0, value)])
            if param is None:
                here.copy_(value)
                continue
            done.add(id(param))
            slot = slot_of(param)
            if slot is not None and slot.unit is not None:
                slot.unit.write_full(slot.index, value, -1)
            else:
                param.detach().copy_(value)

    def _whole_module(self) -> dict:
        module = {}
        for name, here in self.engine.module.state_dict(keep_vars=True).items():
            stored = self._stored(name) if isinstance(here, Tensor) else None
            if stored is not None:
                value = torch.empty(stored[1], dtype=stored[2])
                self.tensors.read([(stored[0], 0, value)])
                module[name] = value.to(here.dtype)
        return module
