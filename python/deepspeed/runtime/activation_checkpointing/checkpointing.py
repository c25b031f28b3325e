"""Activation checkpointing: a function's inner activations are not kept but computed again in backward.

The recomputation sees the random states of the first run: those of the CPU and the device (by torch), and those of the tracker
below, which tensor-parallel layers use for dropout that differs by rank.
"""
from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator

import torch
from torch.utils.checkpoint import checkpoint as _torch_checkpoint

from deepspeed.accelerator import get_accelerator

_MODEL_PARALLEL_RNG_TRACKER_NAME = "model-parallel-rng"

mpu: Any = None
num_layers: int | None = None
PARTITION_ACTIVATIONS = False
CPU_CHECKPOINT = False
CONTIGUOUS_CHECKPOINTING = False
SYNCHRONIZE = False
PROFILE_TIME = False
deepspeed_checkpointing_enabled = False


class CudaRNGStatesTracker:
    """Named random states of the device; fork(name) runs a block under one of them."""

    def __init__(self) -> None:
        self.states_: dict[str, torch.Tensor] = {}
        self.seeds_: set[int] = set()

    def reset(self) -> None:
        """Forgets all states."""
        self.states_ = {}
        self.seeds_ = set()

    def get_states(self) -> dict[str, torch.Tensor]:
        """A copy of {name: state}."""
        return dict(self.states_)

    def set_states(self, states: dict[str, torch.Tensor]) -> None:
        """Takes {name: state} as its own."""
        self.states_ = dict(states)

    def add(self, name: str, seed: int) -> None:
        """A new state that begins at `seed`."""
        if seed in self.seeds_:
            raise Exception(f"seed {seed} already exists in the tracker: every state needs its own")
        if name in self.states_:
            raise Exception(f"cuda rng state {name} already exists")
        self.seeds_.add(seed)
        accelerator = get_accelerator()
        outside = accelerator.get_rng_state()
        accelerator.manual_seed(seed)
        self.states_[name] = accelerator.get_rng_state()
        accelerator.set_rng_state(outside)

    @contextlib.contextmanager
    def fork(self, name: str = _MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
        """A block of code under the state of that name, which goes on from there at the next fork."""
        if name not in self.states_:
            raise Exception(f"cuda rng state {name} is not added")
        accelerator = get_accelerator()
        outside = accelerator.get_rng_state()
        accelerator.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = accelerator.get_rng_state()
            accelerator.set_rng_state(outside)


_CUDA_RNG_STATE_TRACKER = CudaRNGStatesTracker()


def get_cuda_rng_tracker() -> CudaRNGStatesTracker:
    """The tracker of random states; one per process."""
    return _CUDA_RNG_STATE_TRACKER


def _tensor_parallel_rank() -> int:
    for name in ("get_tensor_model_parallel_rank", "get_model_parallel_rank"):
        if hasattr(mpu, name):
            return getattr(mpu, name)()
    return 0


def model_parallel_cuda_manual_seed(seed: int) -> None:
    """Default random state: `seed` on every rank; the tracker's: different by tensor-parallel rank."""
    _CUDA_RNG_STATE_TRACKER.reset()
    get_accelerator().manual_seed(seed)
    _CUDA_RNG_STATE_TRACKER.add(_MODEL_PARALLEL_RNG_TRACKER_NAME, seed + 2718 + _tensor_parallel_rank())


def model_parallel_reconfigure_tp_seed(seed: int) -> None:
    """Sets the tracker's state again after the tensor-parallel rank changed."""
    with get_cuda_rng_tracker().fork():
        get_accelerator().manual_seed(seed + 2718 + _tensor_parallel_rank())


class _SameTrackerStates:
    """Runs a function; from the second run on under the tracker states of the first."""

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.first: dict[str, torch.Tensor] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tracker = get_cuda_rng_tracker()
        if self.first is None:
            self.first = tracker.get_states()
            return self.function(*args, **kwargs)
        outside = tracker.get_states()
        tracker.set_states(self.first)
        try:
            return self.function(*args, **kwargs)
        finally:
            tracker.set_states(outside)


def _run(function: Callable, args: tuple, kwargs: dict) -> Any:
    if SYNCHRONIZE:
        get_accelerator().synchronize()
    output = _torch_checkpoint(_SameTrackerStates(function), *args, use_reentrant=False, **kwargs)
    if SYNCHRONIZE:
        get_accelerator().synchronize()
    return output


def checkpoint(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs), computed again in backward instead of keeping its activations."""
    return _run(function, args, kwargs)


def non_reentrant_checkpoint(function: Callable, *args: Any) -> Any:
    """checkpoint(): both run in the surrounding autograd graph."""
    return _run(function, args, {})


def partition_activations_in_checkpoint(partition_activation: bool) -> None:
    """Whether model-parallel ranks are to keep a part of each activation."""
    global PARTITION_ACTIVATIONS
    PARTITION_ACTIVATIONS = partition_activation


def set_num_layers(nlayers: int) -> None:
    """Number of checkpointed layers, for configurations that ask for it."""
    global num_layers
    num_layers = nlayers


def reset() -> None:
    """Frees what a forward without backward left behind: nothing is kept between passes."""


def configure(mpu_: Any, deepspeed_config: Any = None, partition_activations: bool | None = None,
              contiguous_checkpointing: bool | None = None, num_checkpoints: int | None = None, checkpoint_in_cpu: bool | None = None,
              synchronize: bool | None = None, profile: bool | None = None) -> None:
    """Options of checkpoint(), from a configuration and (stronger) from the arguments."""
    global mpu, num_layers, PARTITION_ACTIVATIONS, CONTIGUOUS_CHECKPOINTING, CPU_CHECKPOINT, SYNCHRONIZE, PROFILE_TIME
    global deepspeed_checkpointing_enabled
    if mpu_ is not None:
        mpu = mpu_
    if deepspeed_config is not None:
        _configure_from(deepspeed_config)
    PARTITION_ACTIVATIONS = PARTITION_ACTIVATIONS if partition_activations is None else partition_activations
    CONTIGUOUS_CHECKPOINTING = CONTIGUOUS_CHECKPOINTING if contiguous_checkpointing is None else contiguous_checkpointing
    num_layers = num_layers if num_checkpoints is None else num_checkpoints
    CPU_CHECKPOINT = CPU_CHECKPOINT if checkpoint_in_cpu is None else checkpoint_in_cpu
    SYNCHRONIZE = SYNCHRONIZE if synchronize is None else synchronize
    PROFILE_TIME = PROFILE_TIME if profile is None else profile
    if CONTIGUOUS_CHECKPOINTING:
        if not PARTITION_ACTIVATIONS:
            raise AssertionError("Contiguous Checkpointing is only available with partitioned activations. Set partitioned activations to true")
        if num_layers is None:
            raise AssertionError("Must specify the number of layers with contiguous memory checkpointing")
    _refuse_what_is_missing()
    deepspeed_checkpointing_enabled = True


def _configure_from(config: Any) -> None:
    global num_layers, PARTITION_ACTIVATIONS, CONTIGUOUS_CHECKPOINTING, CPU_CHECKPOINT, SYNCHRONIZE, PROFILE_TIME
    from deepspeed.runtime.config import DeepSpeedConfig
    parsed = config if isinstance(config, DeepSpeedConfig) else DeepSpeedConfig(config, mpu, check_batch=False)
    section = parsed.activation_checkpointing
    PARTITION_ACTIVATIONS, CONTIGUOUS_CHECKPOINTING = section.partition_activations, section.contiguous_memory_optimization
    num_layers, CPU_CHECKPOINT = section.number_checkpoints, section.cpu_checkpointing
    SYNCHRONIZE, PROFILE_TIME = section.synchronize_checkpoint_boundary, section.profile


def _refuse_what_is_missing() -> None:
    """Partitioning needs model-parallel ranks, and moving to the CPU a device: without them both mean nothing to do."""
    if CPU_CHECKPOINT and get_accelerator().device_name() != "cpu":
        raise NotImplementedError("activation_checkpointing.cpu_checkpointing on this device is not built yet")
    sizes = [getattr(mpu, name)() for name in ("get_tensor_model_parallel_world_size", "get_model_parallel_world_size") if hasattr(mpu, name)]
    if PARTITION_ACTIVATIONS and sizes and max(sizes) > 1:
        raise NotImplementedError("activation_checkpointing.partition_activations over model-parallel ranks is not built yet")


def is_configured() -> bool:
    """Whether configure() was called."""
    return deepspeed_checkpointing_enabled
