"""The one wrapper around the core's optimizer. The classes that users see (by stage and precision) are thin subclasses.

It holds no arithmetic: step() hands the groups' hyper-parameters to the core, or, for optimizers that the core does not know,
lets the torch optimizer step over this rank's fragments between the core's two half steps.
"""
from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from deepspeed.runtime.client_state import put_into_core, put_into_fragments, take_state
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler, LossScalerBase
from deepspeed.runtime.native_recipe import hyper_parameters
from deepspeed.runtime.optimizer_states import core_keys


class DeepSpeedOptimizer:
    """Base of everything that initialize() returns as an optimizer, except plain fp32 ones."""


class FragmentStepper:
    """Makes one optimizer step on the core, natively or through a torch optimizer over fragments."""

    def __init__(self, core: Any, optimizer: torch.optim.Optimizer, native: bool, core_params: Sequence[tuple[str, Tensor]]) -> None:
        self.core, self.optimizer, self.native = core, optimizer, native
        self.places = [place for place, group in enumerate(optimizer.param_groups) if group["params"]]
        self.model_groups = [list(group["params"]) for group in self.groups]
        self.own_step = optimizer.step  # before anybody replaces it on the object
        self.fragments: list[Any] = []
        taken = take_state(optimizer, core_params, native)
        self._client_state = [(core_params[index][1], state) for index, state in taken.items()]
        if native:
            put_into_core(core, optimizer, self.groups, self.model_groups, core_params, taken)
        else:
            self._put_fragments_into_groups()
            put_into_fragments(optimizer, self.fragments, core_params, taken)

    @property
    def groups(self) -> list[dict]:
        """The optimizer's groups that train something, numbered as the core numbers them. The others stay in the optimizer, empty: a
        learning-rate scheduler that was made before initialize() sets as many rates as it found groups."""
        groups = self.optimizer.param_groups
        return [groups[place] for place in self.places]

    def _put_fragments_into_groups(self) -> None:
        self.fragments = self.core.fragments()
        for index, group in enumerate(self.groups):
            group["params"] = [f.master for f in self.fragments if f.group == index and f.length > 0]

    def release(self) -> None:
        """Gives the torch optimizer the model's parameters back, and its state where no step was made. Others were of the
        fragments and go."""
        if not self.native:
            for group, params in zip(self.groups, self.model_groups):
                group["params"] = params
            self.optimizer.state.clear()
        self.optimizer.state.update(self._client_state)

    def step(self) -> bool:
        """Whether the update was made; False after non-finite gradients."""
        self._client_state = []
        if self.native:
            applied = self.core.step([hyper_parameters(group) for group in self.groups])
        else:
            applied = self._step_in_python()
        # torch's schedulers warn when they are stepped before an optimizer; this was the optimizer's step.
        self.optimizer._opt_called = True
        return applied

    def _step_in_python(self) -> bool:
        applied = self.core.prepare_step()
        if applied:
            for mine, current in zip(self.fragments, self.core.fragments()):
                mine.master.grad = current.grad if mine.length > 0 else None
            self.own_step()
            for mine in self.fragments:
                mine.master.grad = None
        self.core.finish_step(applied)
        return applied


class ZeROOptimizer(DeepSpeedOptimizer):
    """What the engine's optimizer looks like from outside: a torch optimizer's surface plus ZeRO's state."""

    def __init__(self, engine: Any, stepper: FragmentStepper) -> None:
        self._engine = engine
        self._stepper = stepper
        self.optimizer = stepper.optimizer
        self.overflow = False
        self.clip_grad = engine.gradient_clipping()
        self.dynamic_loss_scale = engine.fp16_enabled() and engine.dynamic_loss_scale()
        self.dp_process_group = engine.data_parallel_group
        self.partition_count = [engine.dp_world_size] * len(stepper.model_groups)

    @property
    def _core(self) -> Any:
        return self._engine.live_core("optimizer")

    # ---- the torch optimizer's surface
    @property
    def param_groups(self) -> list[dict]:
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict]) -> None:
        self.optimizer.param_groups = value

    @property
    def defaults(self) -> dict:
        return self.optimizer.defaults

    @property
    def state(self) -> dict:
        """State by parameter: this rank's pieces. Empty once the engine was destroyed: frameworks walk over it in their tear-down."""
        if not self._stepper.native:
            return self.optimizer.state
        return local_states(self._engine) if self._engine.is_live else {}

    @state.setter
    def state(self, value: dict) -> None:
        self.optimizer.state = value

    def step(self, closure: Callable | None = None) -> None:
        """One update from the gradients of all backward passes since the last one. Collective."""
        if closure is not None:
            raise NotImplementedError("closures are not supported: gradients come from engine.backward()")
        self._engine.live_core("optimizer.step")
        self._engine._module_watch.check()
        self.overflow = not self._stepper.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets gradients, also those that were already reduced."""
        self._core.zero_grad()

    def state_dict(self) -> dict:
        """This rank's optimizer state as checkpoints store it."""
        from deepspeed.runtime.checkpoint_state import optimizer_state
        self._engine.live_core("optimizer.state_dict")
        return optimizer_state(self._engine)

    def load_state_dict(self, state_dict: Any = None, load_optimizer_states: bool = True, load_from_fp32_weights: bool = True,
                        state_dict_list: list | None = None, **_unused: Any) -> None:
        """Restores what state_dict() returned on this rank; a list holds one entry per rank."""
        from deepspeed.runtime.checkpoint_state import restore_optimizer
        self._engine.live_core("optimizer.load_state_dict")
        states = state_dict_list if state_dict_list is not None else state_dict
        restore_optimizer(self._engine, states, load_optimizer_states=load_optimizer_states,
                          load_from_fp32_weights=load_from_fp32_weights)

    def add_param_group(self, group: dict) -> None:
        raise NotImplementedError("parameter groups are fixed once the engine exists: put all groups into the optimizer before "
                                  "deepspeed.initialize()")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.optimizer!r})"

    def get_lr(self) -> Any:
        return self.optimizer.param_groups[0]["lr"]

    def set_lr(self, lr: float) -> None:
        """The same rate for all groups."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def is_gradient_accumulation_boundary(self) -> bool:
        return self._engine.is_gradient_accumulation_boundary()

    # ---- loss scale
    @property
    def loss_scale(self) -> float:
        return self._core.loss_scale

    cur_scale = loss_scale

    @property
    def loss_scaler(self) -> LossScalerBase:
        """A description of the core's scaler; changing it changes nothing."""
        return make_loss_scaler(self._engine)

    @property
    def custom_loss_scaler(self) -> bool:
        return False

    def needs_scaler(self) -> bool:
        """Whether the loss must be scaled before backward."""
        return self.dynamic_loss_scale or self._core.loss_scale != 1.0

    def scale_if_loss(self, value: Tensor) -> Tensor:
        return value * self._core.loss_scale

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        self._engine.backward(loss, retain_graph=retain_graph)

    def get_global_norm(self) -> float:
        return self._core.grad_norm

    @property
    def _global_grad_norm(self) -> float:
        return self._core.grad_norm

    # ---- the parameters that it trains
    @property
    def bit16_groups(self) -> list[list[Tensor]]:
        return self._stepper.model_groups

    fp16_groups = bf16_groups = round_robin_bit16_groups = bit16_groups

    @property
    def single_partition_of_fp32_groups(self) -> list[Tensor]:
        """Per group: this rank's fp32 master values, flat."""
        from deepspeed.runtime.checkpoint_state import flat_masters
        self._engine.live_core("fp32 partitions")
        return flat_masters(self._engine)

    fp32_partitioned_groups_flat = fp32_groups_flat = single_partition_of_fp32_groups

    def refresh_fp32_params(self) -> None:
        """Master values from the model's parameters."""
        self._core.refresh_from_parameters()

    _restore_from_bit16_weights = refresh_fp32_params

    def checkpoint_event_prologue(self) -> None: ...

    def checkpoint_event_epilogue(self) -> None: ...

    def empty_partition_cache(self) -> None: ...

    def destroy(self) -> None: ...


def local_states(engine: Any) -> dict[Tensor, dict[str, Any]]:
    """{parameter: {state name: this rank's piece, "step": n}} of the core's own optimizer."""
    core = engine.live_core("optimizer.state")
    step = core.get_step()
    states: dict[Tensor, dict[str, Any]] = {}
    for index, (_, param) in enumerate(engine.core_params):
        pieces = {name: core.read_local(index, key) for name, key in core_keys(engine, index).items()}
        pieces = {key: value for key, value in pieces.items() if value is not None}
        if pieces and step > 0:
            states[param] = {"step": step, **pieces}
    return states


def make_loss_scaler(engine: Any) -> LossScalerBase:
    """The scaler class that describes the core's present scale, as checkpoint files store it."""
    state = engine._core.scaler_state()
    fp16 = engine._config.fp16
    if not (fp16.enabled and fp16.loss_scale == 0):
        return LossScaler(scale=engine._core.loss_scale)
    scaler = DynamicLossScaler(init_scale=engine._core.loss_scale, scale_window=fp16.loss_scale_window, min_scale=fp16.min_loss_scale,
                               delayed_shift=fp16.hysteresis, consecutive_hysteresis=fp16.consecutive_hysteresis,
                               dtype=torch.half)
    scaler.cur_iter = int(state.get("iteration", 0))
    scaler.last_overflow_iter = int(state.get("last_overflow", -1))
    scaler.cur_hysteresis = int(state.get("hysteresis_left", fp16.hysteresis))
    return scaler


def adopt_loss_scaler(engine: Any, scaler: Any) -> None:
    """Puts a stored scaler's state into the core."""
    scale = getattr(scaler, "cur_scale", None)
    if scale is None:
        return
    state = dict(engine._core.scaler_state())
    state.update(scale=float(scale), iteration=float(getattr(scaler, "cur_iter", 0)),
                 last_overflow=float(getattr(scaler, "last_overflow_iter", -1)),
                 hysteresis_left=float(getattr(scaler, "cur_hysteresis", state.get("hysteresis_left", 1))))
    engine._core.load_scaler_state(state)
