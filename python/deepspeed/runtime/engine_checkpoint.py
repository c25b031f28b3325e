"""Saving and loading of checkpoints: the engine's methods. Formats are in checkpoint_state.py and checkpoint_restore.py."""
from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections import OrderedDict
from typing import Any, Callable

import torch
from torch import Tensor

from deepspeed import _C
from deepspeed._C import CheckpointError
from deepspeed.checkpoint.constants import (BF16_ZERO_FILE_PREFIX, BUFFER_NAMES, CHECKPOINT_PARALLEL_DIMS, CHECKPOINT_PP_DEGREE,
                                            CHECKPOINT_TP_DEGREE, DS_VERSION, FROZEN_PARAM_FRAGMENTS, FROZEN_PARAM_SHAPES,
                                            MODEL_FILE_SUFFIX, MODEL_STATE_KEYS, OPTIM_FILE_SUFFIX, OPTIMIZER_STATE_DICT, PARAM_SHAPES,
                                            SHARED_PARAMS, TOLD_TO_CLIENTS, ZERO_FILE_PREFIX)
from deepspeed.checkpoint.safe_load import why_not_loaded
from deepspeed.checkpoint.utils import private_copies
from deepspeed.runtime import pretrained
from deepspeed.runtime.agreement import Together, same_everywhere, text_of_rank_0, warn_of_other_place
from deepspeed.runtime.checkpoint_folder import CheckpointSave, load_named, load_newest, restore_replaced
from deepspeed.runtime.checkpoint_native import COMMON, NativeState, tensor_file
from deepspeed.runtime.checkpoint_state import file_groups, optimizer_state
from deepspeed.runtime.data_position import saved_position
from deepspeed.runtime.random_states import random_states, rank_file
from deepspeed.runtime.zero.parameter import is_sharded, slot_of
from deepspeed.utils.logging import logger


def model_file(directory: str, rank: int | None) -> str:
    """rank None: the one file of a model whose parameters are whole."""
    prefix = "" if rank is None else f"{ZERO_FILE_PREFIX}{rank}_"
    return os.path.join(directory, f"{prefix}mp_rank_00{MODEL_FILE_SUFFIX}")


def optimizer_file(directory: str, rank: int, bf16: bool) -> str:
    return os.path.join(directory, f"{BF16_ZERO_FILE_PREFIX if bf16 else ZERO_FILE_PREFIX}{rank}_mp_rank_00{OPTIM_FILE_SUFFIX}")


class CheckpointMethods:
    """Mixin of the engine."""

    # ---- saving
    def save_checkpoint(self, save_dir: Any, tag: Any = None, client_state: dict | None = None, save_latest: bool = True,
                        exclude_frozen_parameters: bool = False) -> bool:
        """Saves model, optimizer, scheduler, counters, random numbers and `client_state` under save_dir/tag. Collective: all ranks must call.

        tag: "global_step<n>" when it is None; a name, or a path below save_dir. save_latest: save_dir/latest names it afterwards, for load_checkpoint
        without a tag. exclude_frozen_parameters: only what is trained, and buffers. Raises on all ranks what the disk says, and TypeError for
        a client_state that cannot be pickled; a save beside
        training (`checkpoint.async_save`) that failed is raised here, before anything is saved, or by wait_for_checkpoint()."""
        self.live_core("save_checkpoint").check_whole()
        if self.mp_world_size > 1:
            raise NotImplementedError(f"save_checkpoint with mpu= of {self.mp_world_size} model-parallel ranks is not built yet: their files would have the "
                                      "same names. Save each rank's module by torch.save, or train without model parallelism")
        save_dir = _path_text(save_dir, "save_dir")
        client_state = self._checked_client_state(client_state, self.global_rank == 0 or self._config.checkpoint.format != "native")
        tag = str(f"global_step{self.global_steps}" if tag is None else tag)
        _check_path(tag)
        self._check_tag(tag)
        tag = text_of_rank_0(self, tag, "checkpoint tag")  # a checkpoint is one folder
        self.wait_for_checkpoint()
        saving = CheckpointSave(self, save_dir, tag, save_latest)
        if self._config.checkpoint.format == "native":
            self._save_native(saving, client_state, exclude_frozen_parameters)
        else:
            self._save_model_states(saving, client_state, exclude_frozen_parameters)
            if self._config.shards_optimizer and self._stepper is not None:
                self._save_optimizer_states(saving)
        saving.write(rank_file(self.communicator.rank), {"random": random_states()})
        self._running_save = saving.start()
        return True

    def wait_for_checkpoint(self) -> None:
        """Returns when a checkpoint that is being written beside training (`checkpoint.async_save`) is valid. Raises what went wrong, on
        all ranks. Collective."""
        running, self._running_save = self._running_save, None
        if running is not None:
            running.wait()

    def _look_at_checkpoint(self) -> None:
        """At every step: a save that has failed meanwhile is reported once."""
        if self._running_save is not None:
            self._running_save.report()

    def _save_native(self, saving: CheckpointSave, client_state: dict, exclude_frozen: bool) -> None:
        state = NativeState(self, exclude_frozen)
        common = {**self._counters(), "shared_params": self._shared_params(), **state.common(), **client_state}
        if state.rank == 0:
            saving.write(COMMON, private_copies(common))
        with saving.together.attempt():
            saving.tensors(tensor_file(state.rank), state.slices())

    def _counters(self) -> dict:
        """What every layout has of a run. Collective."""
        from deepspeed import __version__
        return {"lr_scheduler": self.lr_scheduler.state_dict() if self.lr_scheduler is not None else None,
                "data_sampler": saved_position(self), "random_ltd": None, "skipped_steps": self.skipped_steps, "global_steps": self.global_steps,
                "global_samples": self.global_samples, "dp_world_size": self.dp_world_size, "mp_world_size": self.mp_world_size,
                CHECKPOINT_PARALLEL_DIMS: {CHECKPOINT_PP_DEGREE: 1, CHECKPOINT_TP_DEGREE: self.mp_world_size}, "ds_config": self.config,
                DS_VERSION: __version__}

    def _save_model_states(self, saving: Any, client_state: dict, exclude_frozen: bool, with_optimizer: bool = True) -> None:
        sharded, trains = self._config.shards_parameters, self._stepper is not None
        in_model_file = trains and with_optimizer and not self._config.shards_optimizer
        optimizer_state = self.optimizer.state_dict() if in_model_file else None
        frozen = self._config.shards_gradients and not exclude_frozen
        shapes = self._param_shapes() if trains else None
        state = {
            "module": self.module_state_dict(exclude_frozen_parameters=exclude_frozen), BUFFER_NAMES: self._get_buffer_names(),
            "optimizer": optimizer_state, PARAM_SHAPES: shapes, FROZEN_PARAM_SHAPES: self._frozen(_shape_of) if frozen else None,
            SHARED_PARAMS: self._shared_params() if trains else None,
            FROZEN_PARAM_FRAGMENTS: self._frozen(self._frozen_piece) if frozen else None,
            **self._counters(), **client_state,
        }
        if sharded:
            state["module"] = self._placeholders(state["module"])
        rank = self.communicator.rank
        if sharded or rank == 0:
            saving.write(model_file("", rank if sharded else None), private_copies(state))

    def _placeholders(self, state: dict) -> dict:
        """A model state without values of parameters: they are in the optimizer files, as pieces."""
        owned = {name: param for name, param in self.module.named_parameters(remove_duplicate=False)}
        return OrderedDict((name, torch.empty(0, dtype=value.dtype) if name in owned and slot_of(owned[name]) is not None else value)
                           for name, value in state.items())

    def _save_optimizer_states(self, saving: CheckpointSave) -> None:
        from deepspeed import __version__
        state = {OPTIMIZER_STATE_DICT: optimizer_state(self, placed=True), "ds_config": self.config, DS_VERSION: __version__}
        saving.write(optimizer_file("", self.communicator.rank, self.bfloat16_enabled()), state)
        if self.global_rank == 0:
            with saving.together.attempt():
                self._copy_recovery_script(saving.save_dir)

    def _copy_recovery_script(self, save_path: str) -> None:
        from deepspeed.utils import zero_to_fp32, zero_to_torch
        for script in (zero_to_fp32, zero_to_torch):
            target = os.path.join(save_path, os.path.basename(script.__file__))
            shutil.copyfile(script.__file__, target)
            os.chmod(target, os.stat(target).st_mode | stat.S_IEXEC)

    def _param_shapes(self) -> list[OrderedDict]:
        return [OrderedDict((entry.name, torch.Size(entry.shape)) for entry in entries) for entries in file_groups(self)]

    _get_zero_param_shapes = _param_shapes

    def _frozen(self, value_of: Callable[[int, Any], Any]) -> OrderedDict:
        trained = {entry.index for entries in file_groups(self) for entry in entries}
        return OrderedDict((name, value_of(index, param)) for index, (name, param) in enumerate(self.core_params) if index not in trained)

    def _frozen_piece(self, index: int, param: Any) -> Tensor:
        """Sharded: this rank's equal piece, padded; else the whole parameter."""
        if not self._config.shards_parameters:
            return param.detach().cpu()
        slot, ranks, rank = slot_of(param), self.communicator.size, self.communicator.rank
        whole = (slot.unit.read_full(slot.index) if is_sharded(param) else param.detach()).reshape(-1).cpu()
        size = -(-whole.numel() // ranks)
        piece = torch.zeros(size, dtype=whole.dtype)
        mine = whole[rank * size:(rank + 1) * size]
        piece[:mine.numel()] = mine
        return piece

    def _get_buffer_names(self) -> list[str]:
        names = []
        for prefix, part in self.module.named_modules():
            names += [f"{prefix}.{name}" if prefix else name for name, buffer in part._buffers.items()
                      if buffer is not None and name not in part._non_persistent_buffers_set]
        return names

    def _shared_params(self) -> dict[str, str]:
        """Alias name -> name under which the parameter is stored."""
        first: dict[int, str] = {}
        aliases = {}
        for name, param in self.module.named_parameters(remove_duplicate=False):
            if id(param) in first:
                aliases[name] = first[id(param)]
            else:
                first[id(param)] = name
        return aliases

    def _checked_client_state(self, client_state: dict | None, writes: bool) -> dict:
        """What is to be saved of it. writes: whether this rank's is. Raises on all ranks. Collective."""
        together = Together(self, "save_checkpoint(client_state)", CheckpointError)
        checked: dict = {}
        with together.attempt():
            checked = _own_client_state(client_state)
            for key, value in checked.items() if writes else ():
                try:
                    why = why_not_loaded(value)
                except TypeError as problem:
                    raise TypeError(f"client_state[{key!r}]: {problem}") from problem
                if why is not None and self.global_rank == 0:
                    logger.warning(f"client_state[{key!r}] is saved, but this checkpoint will not load: {why}")
        together.agree()
        return checked

    def _check_tag(self, tag: str) -> None:
        """All ranks must save under one tag."""
        if not self.checkpoint_tag_validation_enabled() or self.communicator.size == 1:
            return
        if same_everywhere(self, int.from_bytes(hashlib.sha1(tag.encode()).digest()[:7], "big"), "checkpoint tag"):
            return
        message = (f"[rank={self.global_rank}] The checkpoint tag name '{tag}' is not consistent across all ranks. Including rank unique "
                   "information in checkpoint tag could cause issues when restoring with different world sizes.")
        if self.checkpoint_tag_validation_fail():
            raise AssertionError(message)
        logger.warning(message)

    # ---- model weights alone
    def module_state_dict(self, destination: Any = None, prefix: str = "", keep_vars: bool = False,
                          exclude_frozen_parameters: bool = False) -> dict:
        """The module's state dictionary, without frozen parameters when asked to."""
        state = self.module.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars) if destination is not None else \
            self.module.state_dict(prefix=prefix, keep_vars=keep_vars)
        if exclude_frozen_parameters:
            for name, param in self.module.named_parameters(remove_duplicate=False):
                if not param.requires_grad:
                    state.pop(prefix + name, None)
        return state

    def load_module_state_dict(self, checkpoint: dict, strict: bool = True, custom_load_fn: Callable | None = None,
                               fetch_z3_params: bool = False) -> None:
        """checkpoint["module"] into the model; optimizer masters follow."""
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters
        core = self.live_core("load_module_state_dict")
        with GatheredParameters(self.module.parameters() if fetch_z3_params else [], modifier_rank=0):
            if custom_load_fn is not None:
                custom_load_fn(src=checkpoint["module"], dst=self.module)
            else:
                self.module.load_state_dict(checkpoint["module"], strict=strict)
        core.refresh_from_parameters()

    def _zero3_consolidated_16bit_state_dict(self, exclude_frozen_parameters: bool = False) -> dict | None:
        """The whole model on the CPU of rank 0, None on other ranks. Collective, one parameter at a time."""
        if not self._config.shards_parameters:
            raise ValueError("this function requires ZeRO-3 mode")
        keep = self.global_rank == 0
        state: OrderedDict | None = OrderedDict() if keep else None
        done: dict[int, Tensor] = {}
        buffers = set(self._get_buffer_names())
        params = dict(self.module.named_parameters(remove_duplicate=False))
        for name, value in self.module.state_dict(keep_vars=True).items():
            param = params.get(name)
            if param is None:
                if keep and name in buffers:
                    state[name] = value.detach().cpu().clone()
                continue
            if exclude_frozen_parameters and not param.requires_grad:
                continue
            if id(param) not in done:
                slot = slot_of(param)
                whole = slot.unit.read_full(slot.index) if is_sharded(param) else param.detach().clone()
                done[id(param)] = whole.cpu() if keep else torch.empty(0)
            if keep:
                state[name] = done[id(param)]
        return state

    def _consolidated_16bit_state_dict(self, exclude_frozen_parameters: bool = False) -> dict | None:
        if self._config.shards_parameters:
            return self._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters)
        raise ValueError("consolidated_16bit_state_dict is only applicable to cases where weights are partitioned, including Zero Stage 3 "
                         "and tensor parallelism.")

    def save_16bit_model(self, save_dir: Any, save_filename: str = "pytorch_model.bin", exclude_frozen_parameters: bool = False,
                         max_shard_size: str | int | None = None) -> bool:
        """One plain state dictionary in the model's dtype. False when parameters are sharded and gathering was not configured.

        With a name that ends with .safetensors: in that format, in parts with an index where it is larger than max_shard_size ("5GB")."""
        self.live_core("save_16bit_model")
        if max_shard_size is not None and not save_filename.endswith(".safetensors"):
            raise ValueError(f"save_16bit_model(max_shard_size={max_shard_size!r}) writes parts in the safetensors format alone, and save_filename "
                             f"is {save_filename!r}: name it model.safetensors")
        path = os.path.join(_path_text(save_dir, "save_dir"), save_filename)
        if not self._config.shards_parameters:
            state = self.module_state_dict(exclude_frozen_parameters=exclude_frozen_parameters)
        elif self.zero_gather_16bit_weights_on_model_save():
            state = self._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters)
        else:
            if self.global_rank == 0:
                logger.warning(f"Did not save the model {path} because zero_optimization.stage3_gather_16bit_weights_on_model_save is false: "
                               "set it to true, or call save_checkpoint()")
            return False
        together = Together(self, f"save_16bit_model({path})", CheckpointError)
        if self.global_rank == 0:
            logger.info(f"Saving model weights to {path}")
            with together.attempt():
                if save_filename.endswith(".safetensors"):
                    pretrained.write_safetensors(state, self._shared_params(), path, max_shard_size)
                else:
                    pretrained.write_torch_file(private_copies(state), path)
        together.agree()
        return True

    def load_16bit_model(self, path: Any, strict: bool = True) -> None:
        """Weights alone, from what save_16bit_model() or Transformers' save_pretrained() wrote (a folder or a file), under any stage; values
        that the optimizer updates follow. Collective. CheckpointError names what is missing or damaged; nothing is changed then."""
        pretrained.load_weights(self, path, strict)

    def save_universal_checkpoint(self, save_dir: Any, tag: Any = None, client_state: dict | None = None) -> bool:
        """A universal checkpoint in save_dir/tag, named by save_dir/latest_universal. Collective; one parameter in memory at a time."""
        from deepspeed.runtime.universal_save import save_universal
        return save_universal(self, _path_text(save_dir, "save_dir"), tag, self._checked_client_state(client_state, True))

    def save_fp16_model(self, save_dir: Any, save_filename: str = "pytorch_model.bin") -> bool:
        """save_16bit_model by its older name."""
        return self.save_16bit_model(save_dir, save_filename)

    # ---- loading
    def load_checkpoint(self, load_dir: Any, tag: Any = None, load_module_strict: bool = True, load_optimizer_states: bool = True,
                        load_lr_scheduler_states: bool = True, load_module_only: bool = False,
                        custom_load_fn: Callable | None = None) -> tuple[str | None, dict | None]:
        """(path of what was loaded, the client's state), or (None, None) when there is no `latest`. Collective.

        load_module_strict: weights that are missing or unknown are errors. load_optimizer_states: masters, states, their step, random numbers and the
        position of the data; load_module_only: weights alone. custom_load_fn(src, dst): puts the whole model's state dictionary into the module.

        Raises CheckpointError naming the file when a file is missing, cut off or of another model; nothing is changed then, except that damage among
        the tensors of a native checkpoint is seen while they are read: the engine then refuses to train until another one is loaded."""
        self.live_core("load_checkpoint")
        load_dir = _path_text(load_dir, "load_dir")
        self.wait_for_checkpoint()
        warn_of_other_place(self, os.path.join(load_dir, "" if tag is None else str(tag)))
        options = {"strict": load_module_strict, "optimizer": load_optimizer_states and not load_module_only,
                   "scheduler": load_lr_scheduler_states and not load_module_only, "module_only": load_module_only,
                   "custom_load_fn": custom_load_fn}
        restore_replaced(self, load_dir, tag)
        if self.load_universal_checkpoint():
            from deepspeed.runtime.universal_load import load_universal
            return load_universal(self, load_dir, tag, **options)
        if tag is not None:
            return load_named(self, load_dir, str(tag), options)
        # As rank 0 sees it: other machines may not see the same files.
        latest = text_of_rank_0(self, _read_latest(load_dir) if self.global_rank == 0 else None, "latest checkpoint")
        return (None, None) if latest is None else load_newest(self, load_dir, latest, options)


def _own_client_state(client_state: dict | None) -> dict:
    client_state = {} if client_state is None else client_state
    if not isinstance(client_state, dict):
        raise ValueError(f"client_state must be a dictionary, got {type(client_state).__name__}: {client_state!r:.80}")
    client_state = {key: value for key, value in client_state.items() if key not in TOLD_TO_CLIENTS}  # from a loaded one: written anew
    reserved = sorted(set(client_state) & set(MODEL_STATE_KEYS))
    if reserved:
        raise KeyError(f"client_state contains reserved checkpoint keys: {', '.join(reserved)}: rename them")
    return client_state


def _path_text(path: Any, name: str) -> str:
    """What a caller gave as the folder `name`, as text."""
    if not path or not isinstance(path, (str, bytes, os.PathLike)):
        raise ValueError(f"{name} must be a non-empty string, got {path!r}")
    return os.fsdecode(path)


def _check_path(tag: str) -> None:
    """The name of a folder below save_dir, or a path to one."""
    if os.path.isabs(tag) or ".." in tag.replace("\\", "/").split("/") or not tag.isprintable():
        raise ValueError(f"a checkpoint's tag is the name of a folder in save_dir, or a path to one below it, got {tag!r}: pass the folder as "
                         "save_dir and its last part as tag")
    if os.path.basename(tag) == "latest":
        raise ValueError("a checkpoint cannot have the tag 'latest': the file of this name says which one is the newest; choose another tag")


def _read_latest(load_dir: str) -> str | None:
    """None: there is none; "": it is damaged."""
    latest = _C.read_latest(load_dir)
    if latest is None:
        there = "" if os.path.isdir(load_dir) else f"; there is no directory {load_dir}"
        logger.warning(f"Unable to find latest file at {os.path.join(load_dir, 'latest')}: nothing was loaded; pass an explicit tag, or check "
                       f"the directory{there}")
    return latest


def _shape_of(_index: int, param: Any) -> torch.Size:
    return getattr(param, "ds_shape", param.shape)
