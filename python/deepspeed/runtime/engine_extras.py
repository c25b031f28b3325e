"""What the engine offers beside training itself: data loader, facts about the last step, compile, moving states."""
from __future__ import annotations

from typing import Any, Callable, Mapping

import torch
from torch import Tensor

from deepspeed.runtime.dataloader import DeepSpeedDataLoader, sampler_for
from deepspeed.runtime.zero.parameter import slot_of
from deepspeed.utils.logging import log_dist


class EngineExtras:
    """Mixin of the engine."""

    # ---- data
    @staticmethod
    def is_map_style_dataset(obj: Any) -> bool:
        return hasattr(obj, "__getitem__") and hasattr(obj, "__len__")

    @staticmethod
    def is_iterable_style_dataset(obj: Any) -> bool:
        return isinstance(obj, torch.utils.data.IterableDataset)

    def deepspeed_io(self, dataset: Any, batch_size: int | None = None, route: str = "train", pin_memory: bool = True,
                     data_sampler: Any = None, collate_fn: Callable | None = None,
                     num_local_io_workers: int | None = None) -> DeepSpeedDataLoader:
        """A loader of this rank's share of a dataset, in micro-batches; shuffled when training."""
        if not (self.is_map_style_dataset(dataset) or self.is_iterable_style_dataset(dataset)):
            raise ValueError(f"Training data must be a torch Dataset, got {type(dataset).__name__}")
        world, rank = self.communicator.size, self.communicator.rank
        if data_sampler is None and self.is_map_style_dataset(dataset):
            data_sampler = sampler_for(dataset, route, world, rank)
        return DeepSpeedDataLoader(dataset=dataset, batch_size=batch_size or self.train_micro_batch_size_per_gpu(), pin_memory=pin_memory,
                                   local_rank=self.local_rank, tput_timer=self.tput_timer if route == "train" else None,
                                   collate_fn=collate_fn or self.collate_fn, num_local_io_workers=num_local_io_workers,
                                   data_sampler=data_sampler, data_parallel_world_size=world, data_parallel_rank=rank,
                                   dataloader_drop_last=self.dataloader_drop_last())

    def set_dataloader(self, loader: Any) -> None:
        self.training_dataloader = loader

    def set_data_post_process_func(self, post_process_func: Callable) -> None:
        """A function of the data pipeline: see `data_efficiency` in docs/config.md."""
        if self.training_dataloader is not None:
            self.training_dataloader.post_process_func = post_process_func

    def set_custom_curriculum_learning_schedule(self, schedule_func_dict: dict) -> None:
        """A schedule of curriculum learning: see `data_efficiency` in docs/config.md."""
        if self.training_dataloader is not None and self.curriculum_learning_enabled():
            self.training_dataloader.data_sampler.set_custom_curriculum_learning_schedule(schedule_func_dict)

    def _to_half(self, value: Any) -> Any:
        """Floating tensors inside `value` as half."""
        if isinstance(value, Tensor):
            return value.half() if value.is_floating_point() else value
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._to_half(item) for item in value))
        if isinstance(value, (tuple, list)):
            return type(value)(self._to_half(item) for item in value)
        if isinstance(value, Mapping) and hasattr(value, "copy"):
            made = value.copy()
            for key in made:
                made[key] = self._to_half(made[key])
            return made
        return value

    # ---- the last step
    def get_global_grad_norm(self) -> float | None:
        """L2 norm of all gradients of the last step before clipping, unscaled; inf after an overflow; None before the first."""
        norm = self._core.grad_norm if self._core is not None else None
        return None if norm is None or norm != norm else norm

    def _of_groups(self, key: str) -> list:
        return [group.get(key, 0.0) for group in self.optimizer.param_groups] if self.basic_optimizer is not None else []

    def get_lr(self) -> list:
        """Learning rates of the parameter groups."""
        return self._of_groups("lr")

    def get_type(self) -> list:
        """The groups' `type` entries."""
        return self._of_groups("type")

    def get_mom(self) -> list:
        """Momentum (SGD, RMSprop) or betas of the parameter groups."""
        return self._of_groups("momentum" if self.optimizer_name() in ("SGD", "RMSprop") else "betas")

    def get_data_parallel_rank(self) -> int:
        return self.communicator.rank

    def get_model_parallel_rank(self) -> int:
        return 0 if self.mpu is None else self.mpu.get_model_parallel_rank()

    get_tensor_parallel_rank = get_model_parallel_rank

    def get_sequence_parallel_group(self) -> Any:
        return self.seq_parallel_group

    def allreduce_gradients(self, bucket_size: int | None = None) -> None:
        """Gradients are reduced by backward() and step(); kept for callers of older loops."""

    def memory_bytes(self) -> dict[str, int]:
        """Bytes that this rank holds, by kind."""
        return self.live_core("memory_bytes").memory_bytes()

    def memory_plan(self) -> dict[str, Any] | None:
        """What was planned before anything was allocated: the keys of `ds_plan --json`. None with DEEPSCALE_MEMORY_PLAN=off."""
        return self._memory_plan

    def file_tier_facts(self) -> dict[str, dict[str, Any]]:
        """What the files of "optimizer" and "parameters" (as far as they are in files) did on this rank: bytes, seconds, settings."""
        return self.live_core("file_tier_facts").file_tier_facts()

    # ---- compile
    def compile(self, backend: str | None = None, compile_kwargs: dict | None = None, schedule: Any = None,
                compiled_autograd_enabled: bool = False) -> None:
        """torch.compile of the wrapped module."""
        if schedule is not None or self.is_deepcompile_enabled():
            raise NotImplementedError("engine.compile with DeepCompile passes is not built yet")
        if self.is_compiled:
            return
        options = dict(compile_kwargs or {})
        if backend is not None:
            options["backend"] = backend
        self.module.compile(**options)
        self.__dict__["_compiled"] = True

    @property
    def is_compiled(self) -> bool:
        """Whether compile() was called."""
        return self.__dict__.get("_compiled", False)

    def register_compile_pass(self, pass_name: str, pass_fn: Callable, contract: Any = None) -> None:
        """A pass of DeepCompile: not built yet."""
        raise NotImplementedError("register_compile_pass: DeepCompile is not built yet")

    # ---- memory
    def empty_partition_cache(self) -> None:
        """Releases what caches of gathered parameters hold; units release theirs after each use."""

    def offload_states(self, include: Any = None, device: Any = "cpu", pin_memory: bool = True, non_blocking: bool = False) -> None:
        """Moves states off the device. On the CPU they are where they should be."""
        if self.device.type != "cpu":
            raise NotImplementedError("engine.offload_states on this device is not built yet")

    def reload_states(self, non_blocking: bool = False) -> None:
        """Brings back what offload_states() moved."""
        if self.device.type != "cpu":
            raise NotImplementedError("engine.reload_states on this device is not built yet")

    # ---- facts
    mesh_device: Any = None  # meshes are refused by initialize()
    loaded_checkpoint_dp_world_size: int | None = None  # until a checkpoint is loaded

    @property
    def num_experts(self) -> list[int]:
        """Experts by layer; there are no expert layers yet."""
        return []

    @property
    def param_names(self) -> dict[Tensor, str]:
        """{parameter: dotted name}"""
        return {param: name for name, param in self.module.named_parameters()}

    def checkpoint_writer_enabled(self) -> bool:
        """Whether files are written by a process of their own: configurations that ask for one are refused."""
        return False

    def all_gather_scalar(self, value: Tensor, dp_group: Any) -> list[Tensor]:
        """Every rank's value. Collective over the group."""
        from deepspeed import comm
        gathered = [torch.zeros_like(value) for _ in range(comm.get_world_size(dp_group))]
        comm.all_gather(gathered, value, group=dp_group)
        return gathered

    def dump_state_now(self) -> None:
        """Logs the configuration and the core's description on rank 0."""
        log_dist("DeepSpeedEngine configuration:", ranks=[0])
        if self.global_rank == 0:
            self._config.print("DeepSpeedEngine configuration")
        log_dist(self.live_core("dump_state_now").description(), ranks=[0])

    def parameter_count(self) -> int:
        """Elements of the whole model."""
        return sum(slot_of(p).shape.numel() if slot_of(p) is not None else p.numel() for p in self.module.parameters())
