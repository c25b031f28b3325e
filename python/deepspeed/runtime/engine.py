"""The training engine: a module around the user's module that scales, reduces, clips and steps through the core.

The engine counts micro-steps, decides where accumulation ends, keeps schedules and timers, and passes everything else on: names
it does not know are the module's.
"""
from __future__ import annotations

import contextlib
import copy
import gc
import os
import weakref
from functools import partial
from typing import Any, Callable, Iterator

import torch
import torch.nn as nn
from torch import Tensor

from deepspeed._lazy import resolve
from deepspeed.accelerator import get_accelerator
from deepspeed.inference.decode import restore_linears, stream_linears
from deepspeed.moe.utils import is_moe_param
from deepspeed.runtime import engine_build, memory_plan, precision
from deepspeed.runtime.base_optimizer import DeepSpeedOptimizer, FragmentStepper, ZeROOptimizer
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.engine_checkpoint import CheckpointMethods
from deepspeed.runtime.engine_config import ConfigGetters
from deepspeed.runtime.engine_extras import EngineExtras
from deepspeed.runtime.engine_reports import EngineReports
from deepspeed.runtime.lr_schedules import scheduler_class
from deepspeed.runtime.module_watch import ModuleWatch
from deepspeed.runtime.optimizer_config import DeepSpeedOptimizerCallable, DeepSpeedSchedulerCallable  # noqa: F401  (by their old path)
from deepspeed.runtime.optimizer_config import clean_groups, optimizer_from_client, optimizer_from_config
from deepspeed.runtime.output_hooks import OutputWatcher
from deepspeed.runtime.plain_optimizer import attach_step
from deepspeed.runtime.section_params import construct, given
from deepspeed.runtime.summary import print_summary
from deepspeed.runtime.utils import see_memory_usage
from deepspeed.runtime.zero.parameter import is_sharded
from deepspeed.runtime.zero.parameter_offload import HOW_TO_USE_OUTSIDE_FORWARD, DeepSpeedZeRoOffload, speaks_of_released
from deepspeed.runtime.zero.plan_groups import data_communicator, plan_groups
from deepspeed.runtime.zero.small_parameters import HiddenSmallParameters
from deepspeed.utils import groups as group_roles
from deepspeed.utils.logging import log_dist, warning_once


NO_OPTIMIZER = ("must provide optimizer during init in order to use {}: pass optimizer= to deepspeed.initialize(), or add a section `optimizer` with "
                "`type` and `params` to the configuration")


class DeepSpeedEngine(ConfigGetters, CheckpointMethods, EngineExtras, EngineReports, nn.Module):
    """Wraps a module for training under one configuration. Made by deepspeed.initialize()."""

    def __init__(self, args: Any, model: nn.Module, optimizer: Any = None, model_parameters: Any = None, training_data: Any = None,
                 lr_scheduler: Any = None, mpu: Any = None, dist_init_required: bool | None = None, collate_fn: Any = None,
                 config: Any = None, config_class: DeepSpeedConfig | None = None, mesh_device: Any = None,
                 dont_change_device: bool = False) -> None:
        super().__init__()
        self.config = config
        self._config = config_class or DeepSpeedConfig(config, mpu, mesh_device)
        self.mpu, self.collate_fn, self.client_optimizer, self.client_lr_scheduler = mpu, collate_fn, optimizer, lr_scheduler
        self.optimizer: Any = None
        self.basic_optimizer: torch.optim.Optimizer | None = None
        self._detach_optimizer: Callable[[], None] | None = None
        self.lr_scheduler: Any = None
        self.training_dataloader: Any = None
        self.parameter_offload: DeepSpeedZeRoOffload | None = None
        self._core: Any = None
        self._hidden_small: Any = None
        self._stepper: FragmentStepper | None = None
        self._wrapper: ZeROOptimizer | None = None
        self._ended = "it was never built"
        self._running_save: Any = None
        self._saves_apart = False  # ranks had no folder in common when they saved last
        self._save_image: Any = None
        self._save_memory: Any = None
        self._resume_gc: Callable[[], Any] | None = None
        self._reset_counters()
        self._set_ranks(args)
        self._adopt_module(model)
        if model_parameters is not None and not isinstance(model_parameters, (list, dict, Tensor)):
            model_parameters = list(model_parameters)
        self._check_combination(model_parameters)
        self._memory_plan = memory_plan.announce(self.module, self._config, optimizer, self._trains, self.communicator, self.device)
        self._prepare_module(dont_change_device)
        self._make_reports()
        if training_data is not None:
            self.training_dataloader = self.deepspeed_io(training_data)
        try:
            self._make_optimizer(model_parameters)
            self._make_scheduler()
            self._keep_first_states()
        except BaseException:
            self._end("building it failed")  # whoever catches this may try again with the same module and optimizer
            raise
        if not self._trains and self._config.shards_parameters:  # elsewhere the model stays the user's own, class by class
            stream_linears(self.module)
        self._outputs = OutputWatcher(self)
        self._resume_gc = self._pause_gc()
        print_summary(self)
        if self._config.dump_state:
            self.dump_state_now()

    # ------------------------------------------------------------------ construction
    def _reset_counters(self) -> None:
        self.global_steps = self.global_samples = self.micro_steps = self.skipped_steps = 0
        self.inside_no_sync_ctxt = False
        self._forced_boundary: bool | None = None
        self._coalescing = self._in_step = self._step_applied = False
        self._unmanaged_backwards = 0
        self._engine_backward_depth = 0
        self._manual_backward_expected = False

    def _set_ranks(self, args: Any) -> None:
        import torch.distributed as dist
        if self.mpu is not None:
            group_roles.set_mpu(self.mpu)
        accelerator = get_accelerator()
        self.global_rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.local_rank = int(os.environ.get("LOCAL_RANK", getattr(args, "local_rank", None) or 0))
        device_rank = getattr(args, "device_rank", None)
        index = device_rank if device_rank is not None and device_rank >= 0 else self.local_rank
        if accelerator.device_name() != "cpu":
            accelerator.set_device(index)
        self.device = torch.device(accelerator.device_name(index))
        self.dist_backend = accelerator.communication_backend_name()
        self._set_group_roles()
        self._process_group = self.seq_data_parallel_group if self.mpu is not None else None
        self.communicator = data_communicator(self._process_group)
        self.dp_world_size = self.seq_dp_world_size = self.communicator.size

    def _set_group_roles(self) -> None:
        """From this engine's own mpu: `groups` answers for the mpu that was given last, which may be another engine's."""
        ask = partial(group_roles.ask, self.mpu)
        self.mp_world_size = ask("get_model_parallel_world_size", "get_tensor_model_parallel_world_size") or 1
        self.data_parallel_group = ask("get_data_parallel_group") or group_roles._world_group()
        self.seq_data_parallel_group = ask("get_sequence_data_parallel_group") or self.data_parallel_group
        self.seq_parallel_group = ask("get_sequence_parallel_group")
        self.sequence_parallel_size = ask("get_sequence_parallel_world_size") or 1

    def _adopt_module(self, model: nn.Module) -> None:
        # Both: registered as a submodule, and found without nn.Module's attribute search.
        self._modules["module"] = model
        self.__dict__["module"] = model

    def _check_combination(self, model_parameters: Any) -> None:
        if isinstance(self.client_lr_scheduler, torch.optim.lr_scheduler.LRScheduler):
            if not isinstance(self.client_optimizer, torch.optim.Optimizer):
                raise AssertionError(f"Client Optimizer (type = {type(self.client_optimizer)}) is not instantiated but Client LR Scheduler is "
                                     "instantiated: pass the scheduler's optimizer too, or a function from an optimizer to a scheduler")
        engine_build.check_section_types(self._config, self.client_optimizer, self.client_lr_scheduler)
        self.has_moe_layers = False
        experts = [name for name, param in self.module.named_parameters() if is_moe_param(param)]
        if experts and self.communicator.size > 1:
            raise NotImplementedError(f"{len(experts)} parameters are marked as experts (allreduce = False), the first is {experts[0]}: mixture of "
                                      f"experts is not built yet, and their gradients would be averaged over all {self.communicator.size} "
                                      "ranks: train on one rank, or remove the mark where every rank has the same parameter")
        self._trains = self.client_optimizer is not None or (self._config.optimizer_name is not None and model_parameters != [])

    def _prepare_module(self, dont_change_device: bool) -> None:
        config = self._config
        engine_build.detach_earlier_engines(self.module)
        on_host = config.offload_device("param") in ("cpu", "nvme")
        if not config.shards_parameters:
            engine_build.make_whole(self.module, config)
        if not dont_change_device:
            precision.move_module(self.module, torch.device("cpu") if on_host else self.device, is_sharded)
        precision.cast_module(self.module, config, is_sharded)
        engine_build.quantize_layers(self.module, config, self._trains)
        self._autocast = config.torch_autocast.enabled
        engine_build.broadcast_buffers(self.module, self.communicator)
        self._plan_groups = plan_groups(self.communicator, config, self._process_group)
        if config.shards_parameters:
            engine_build.shard_model(self.module, config, self._plan_groups, self.communicator, self.data_parallel_group)

    def _make_optimizer(self, model_parameters: Any) -> None:
        config = self._config
        if self._trains:
            client = self.client_optimizer
            self.basic_optimizer = optimizer_from_config(config, model_parameters, self.module) if client is None else \
                optimizer_from_client(client, config, model_parameters, self.module)
            self._file_numbers = clean_groups(self.basic_optimizer, self.module)
        self._core, native = engine_build.make_core(self, self._plan_groups)
        if config.shards_parameters:  # also when every parameter is small enough to stay whole: callers look for the object
            self.parameter_offload = DeepSpeedZeRoOffload(self.module, self._core)
        self._module_watch = ModuleWatch(self.module, self.core_params)
        if self.basic_optimizer is None:
            self.optimizer = self.parameter_offload
            return
        self._stepper = FragmentStepper(self._core, self.basic_optimizer, native, self.core_params)
        wrapper_class = resolve_class(config.optimizer_class_path)
        self._wrapper = wrapper_class(self, self._stepper)
        if config.shards_parameters:
            self._hidden_small = HiddenSmallParameters(self.module)
        # Plain fp32 training shows the torch optimizer itself, with the core behind its step().
        if config.optimizer_class_path:
            self.optimizer = self._wrapper
        else:
            self.optimizer, self._detach_optimizer = self.basic_optimizer, attach_step(self.basic_optimizer, self._wrapper)

    def _make_scheduler(self) -> None:
        client, config = self.client_lr_scheduler, self._config
        if client is not None:
            self.lr_scheduler = client(self.basic_optimizer) if callable(client) and not hasattr(client, "step") else client
            if not hasattr(self.lr_scheduler, "step"):
                dummy = ". Accelerate's DummyScheduler stands for the configuration's section `scheduler`: add it, or pass a real scheduler" \
                    if type(client).__name__ == "DummyScheduler" else ""
                raise ValueError("lr_scheduler must be a scheduler with a step() method, or a function from an optimizer to one; "
                                 f"found {self.lr_scheduler!r} from {client!r}{dummy}")
        elif config.scheduler_name is not None and self.basic_optimizer is not None:
            self.lr_scheduler = construct("scheduler", scheduler_class(config.scheduler_name), self.basic_optimizer,
                                          given(config.scheduler_params))
        elif config.scheduler_name is not None:
            warning_once(f"scheduler ({config.scheduler_name}) has no effect: there is no optimizer whose rates it would set. Add the section optimizer, "
                         "pass an optimizer, or remove the section")

    def _pause_gc(self) -> Callable[[], Any] | None:
        """Stops the automatic collector where configured. Returns what lets it run again, at the latest when the engine goes."""
        if not self._config.disable_python_gc or not gc.isenabled():
            return None
        gc.disable()
        return weakref.finalize(self, gc.enable)

    def _keep_first_states(self) -> None:
        """What load_checkpoint() goes back to where a checkpoint holds nothing."""
        self._first_scaler_state = self._core.scaler_state()
        self._first_scheduler = self.lr_scheduler  # users may exchange it
        # Schedulers of the client's own need not have a state dictionary.
        known = self.client_lr_scheduler is None or isinstance(self.lr_scheduler, torch.optim.lr_scheduler.LRScheduler)
        self._first_scheduler_state = copy.copy(self.lr_scheduler.state_dict()) if known and self.lr_scheduler is not None else None

    # ------------------------------------------------------------------ nn.Module
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("an engine cannot be copied or pickled: it holds communicators and this rank's shards. Save it with "
                        "save_checkpoint(), its weights with save_16bit_model(), or copy engine.module")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = self.__dict__.get("module")
            if module is not None and hasattr(module, name):
                return getattr(module, name)
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'") from None

    def train(self, mode: bool = True) -> "DeepSpeedEngine":
        self.training = mode
        self.module.train(mode)
        return self

    def eval(self) -> "DeepSpeedEngine":
        return self.train(False)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Runs the module. Its floating inputs become half under fp16.auto_cast."""
        if self._core is None and self._config.shards_parameters:
            self.live_core("forward")
        self._before_forward()
        try:
            with self._phases.forward:
                if self.training:
                    self.tput_timer.start()
                output = self._run_module(inputs, kwargs)
                if self._stepper is not None and torch.is_grad_enabled():
                    self._outputs.watch(output)
                return output
        finally:
            self._after_forward()

    def _run_module(self, inputs: tuple, kwargs: dict) -> Any:
        if self._config.fp16.auto_cast:
            inputs, kwargs = self._to_half(inputs), self._to_half(kwargs)
        if self._autocast:
            with torch.autocast(self.device.type, dtype=self.torch_autocast_dtype()):
                return self.module(*inputs, **kwargs)
        return self.module(*inputs, **kwargs)

    # ------------------------------------------------------------------ backward
    def backward(self, loss: Tensor, retain_graph: bool = False, scale_wrt_gas: bool = True) -> Tensor:
        """Backward of a scalar loss, divided by the accumulation steps and multiplied by the loss scale. Returns loss / steps."""
        self.live_core("backward")
        if self._stepper is None:
            raise AssertionError(NO_OPTIMIZER.format("backward"))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise AssertionError("loss must be a scalar tensor: reduce it first, for instance by .mean(); to pass output gradients use "
                                 "tensor.backward(grad)")
        divide_by = self._config.gradient_accumulation_steps if scale_wrt_gas and self._config.managed_gradient_accumulation else 1
        self._unmanaged_backwards += 1
        see_memory_usage("Engine before backward", force=self._config.memory_breakdown)
        with self._phases.backward:
            self._run_backward(loss, float(divide_by), retain_graph)
        see_memory_usage("Engine after backward", force=self._config.memory_breakdown)
        self._note_loss(loss)
        return loss.detach() / divide_by if divide_by != 1 else loss.detach()

    def _run_backward(self, loss: Tensor, divide_by: float, retain_graph: bool) -> None:
        # Gradients are averaged over all ranks; those that share a sequence each have a part of its gradient, which is to be summed.
        seed = self._core.backward_seed(loss, divide_by / self.sequence_parallel_size)
        self._engine_backward_depth += 1
        try:
            with self._phases.inner:
                loss.backward(seed, retain_graph=retain_graph)
        except RuntimeError as error:
            if self.parameter_offload is not None and speaks_of_released(error):
                raise RuntimeError(f"backward met a parameter that was released: {error}. {HOW_TO_USE_OUTSIDE_FORWARD}") from error
            raise
        finally:
            self._engine_backward_depth -= 1
        self._finish_backward()

    def _finish_backward(self) -> None:
        self._outputs.forget()
        if self._hidden_small is not None:
            self._hidden_small.show()
        with self._phases.reduce:
            self._core.finish_backward()

    def scale(self, loss: Tensor) -> Tensor:
        """loss times the loss scale, for a loss.backward() of one's own."""
        self.live_core("scale")
        if self._stepper is None:
            raise AssertionError(NO_OPTIMIZER.format("scale"))
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise AssertionError("loss must be a scalar tensor with grad_fn. For non-scalar tensors, use tensor.backward(grad)")
        self._manual_backward_expected = True
        return loss * self._core.loss_scale

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients, also those that were taken over or reduced already, which module.zero_grad() leaves alone."""
        self.live_core("zero_grad").zero_grad()
        for param in self.module.parameters():
            param.grad = None

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes inside accumulate without communication; step() is not allowed inside."""
        if self._config.shards_gradients:
            raise AssertionError("no_sync context manager is incompatible with gradient partitioning logic of ZeRO stage "
                                 f"{self.zero_optimization_stage()}")
        if self.inside_no_sync_ctxt:
            raise AssertionError("no_sync context manager reentry is unsupported")
        self.inside_no_sync_ctxt = True
        try:
            yield
        finally:
            self.inside_no_sync_ctxt = False

    @contextlib.contextmanager
    def coalesce_grad_reduction(self) -> Iterator[None]:
        """Backward passes inside count as one for what is reduced at the boundary, which is at the end of the block."""
        if self.inside_no_sync_ctxt:
            raise AssertionError("coalesce_grad_reduction cannot be used inside no_sync")
        if self._coalescing:
            raise AssertionError("coalesce_grad_reduction reentry is unsupported")
        self._coalescing = True
        try:
            yield
        finally:
            self._coalescing = False

    # ------------------------------------------------------------------ step
    def is_gradient_accumulation_boundary(self) -> bool:
        """Whether the current micro-step ends an accumulation window."""
        if not self._config.managed_gradient_accumulation:
            return self._in_step
        if self._forced_boundary is not None:
            return self._forced_boundary
        return (self.micro_steps + 1) % self._config.gradient_accumulation_steps == 0

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Decides by hand from now on whether micro-steps end a window."""
        self._forced_boundary = is_boundary

    def step(self, lr_kwargs: dict | None = None) -> None:
        """Counts a micro-step; at a boundary: clip, update, schedule."""
        self.live_core("step")
        if self.inside_no_sync_ctxt:
            raise AssertionError("It is illegal to call Engine.step() inside no_sync context manager")
        if self._stepper is None:
            raise AssertionError(NO_OPTIMIZER.format("step"))
        see_memory_usage("Engine before step", force=self._config.memory_breakdown)
        profiled = self._profiles()
        self._in_step, self._step_applied = True, False
        boundary, steps_before = self.is_gradient_accumulation_boundary(), self.global_steps
        try:
            with self._phases.step:
                if boundary:
                    self._take_model_step(lr_kwargs)
                self.tput_timer.stop(global_step=boundary, report_speed=self.global_rank == 0)
        finally:
            self._in_step = False
            # A scheduler that fails does so after the update: the window's gradients are used up.
            if not boundary or self.global_steps > steps_before:
                self.micro_steps += 1
        self._after_step(boundary, profiled)

    def _take_model_step(self, lr_kwargs: dict | None) -> None:
        self._look_at_checkpoint()
        self.optimizer.step()
        self._step_applied = not self._wrapper.overflow
        try:
            if not self._step_applied:
                self.skipped_steps += 1
            elif self.lr_scheduler is not None:
                self._step_scheduler(lr_kwargs)
        finally:
            self.global_steps += 1
            self.global_samples += self._samples_of_step()
        every = self._config.steps_per_print
        if every is not None and self.global_steps % every == 0:
            log_dist(f"step={self.global_steps}, skipped={self.skipped_steps}, lr={self.get_lr()}, mom={self.get_mom()}", ranks=[0])
        if self._config.disable_python_gc:
            gc.collect()

    def _step_scheduler(self, lr_kwargs: dict | None) -> None:
        try:
            self.lr_scheduler.step(**(lr_kwargs or {}))
        except TypeError:
            # Schedulers of Megatron count samples and want to know how many this step added.
            self.lr_scheduler.step(self.train_batch_size())

    def _samples_of_step(self) -> int:
        if self._config.managed_gradient_accumulation:
            return self._config.train_batch_size
        micro = self._config.train_batch_size // self._config.gradient_accumulation_steps
        counted, self._unmanaged_backwards = self._unmanaged_backwards, 0
        return micro * counted

    def was_step_applied(self) -> bool:
        """False when the last step() was not at a boundary or met non-finite gradients."""
        return self._step_applied

    # ------------------------------------------------------------------ end
    @property
    def is_live(self) -> bool:
        """False once the engine has let go of its module."""
        return self._core is not None

    def live_core(self, asked: str) -> Any:
        """The core, for what was asked of this engine. RuntimeError once the engine has let go of its module."""
        if self._core is None:
            raise RuntimeError(f"{asked}: this engine was destroyed ({self._ended}) and no longer trains its module: use the engine that "
                               "deepspeed.initialize() returned last, or call initialize() again")
        return self._core

    def destroy(self) -> None:
        """Takes the engine off the module: hooks go. Sharded parameters stay so: gather them, or give the model to another engine."""
        self._end("engine.destroy() was called")

    def _end(self, reason: str) -> None:
        if self._core is None:
            return
        core, self._core = self._core, None
        self._ended = reason
        if self._hidden_small is not None:
            self._hidden_small.end()
        if self._running_save is not None:
            self._running_save.finish()
        # The copy and the buffers of saves beside training, as large as the state; a save that is over holds them too.
        self._running_save = self._save_image = self._save_memory = None
        if self.parameter_offload is not None:
            self.parameter_offload.destroy()
        if self._resume_gc is not None:
            self._resume_gc()
        if self._stepper is not None:
            self._stepper.release()
        if self._detach_optimizer is not None:
            self._detach_optimizer()
        core.destroy()
        restore_linears(self.module)
        engine_build.release_parameters(self)
        self._stepper = self._wrapper = None


def resolve_class(path: str | None) -> type:
    """The optimizer class for a dotted path; the plain wrapper without one."""
    if path is None:
        return ZeROOptimizer
    module, _, name = path.rpartition(".")
    return resolve(f"{module}:{name}")


__all__ = ["DeepSpeedEngine", "DeepSpeedOptimizer"]
