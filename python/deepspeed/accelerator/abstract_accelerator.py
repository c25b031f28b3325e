"""What is the same on every device: random numbers, tensor types, operator builders, defaults of optional features."""
from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch


class DeepSpeedAccelerator:
    """Interface of a device family. Subclasses give names, memory, streams and synchronisation."""

    _name: str = ""
    _communication_backend_name: str = ""
    _visible_devices_env: str = ""

    def __init__(self) -> None:
        self._compile_backend = "inductor"

    # ---- names and devices
    def device_name(self, device_index: int | None = None) -> str:
        return self._name if device_index is None else f"{self._name}:{device_index}"

    def device(self, device_index: int | None = None):
        raise NotImplementedError

    def current_device_name(self) -> str:
        return f"{self._name}:{self.current_device()}"

    def current_device(self):
        raise NotImplementedError

    def device_count(self) -> int:
        raise NotImplementedError

    def is_available(self) -> bool:
        raise NotImplementedError

    def communication_backend_name(self) -> str:
        return self._communication_backend_name

    def is_triton_supported(self) -> bool:
        return False

    def is_fp64_supported(self) -> bool:
        return True

    def is_bf16_supported(self) -> bool:
        return True

    def is_fp16_supported(self) -> bool:
        return True

    def supported_dtypes(self) -> list[torch.dtype]:
        supported = [torch.float]
        if self.is_fp16_supported():
            supported.append(torch.half)
        if self.is_bf16_supported():
            supported.append(torch.bfloat16)
        return supported

    # ---- timing and dependency behaviour
    def is_synchronized_device(self) -> bool:
        """Whether work is finished when a call returns."""
        return False

    def use_host_timers(self) -> bool:
        return self.is_synchronized_device()

    def resolves_data_dependency(self) -> bool:
        return self.is_synchronized_device()

    def handles_memory_backpressure(self) -> bool:
        return self.is_synchronized_device()

    # ---- random numbers
    def random(self):
        return torch.random

    def set_rng_state(self, new_state: torch.Tensor, device_index: int | None = None) -> None:
        torch.set_rng_state(new_state)

    def get_rng_state(self, device_index: int | None = None) -> torch.Tensor:
        return torch.get_rng_state()

    def manual_seed(self, seed: int):
        return torch.manual_seed(seed)

    def manual_seed_all(self, seed: int):
        return torch.manual_seed(seed)

    def initial_seed(self) -> int:
        return torch.initial_seed()

    def default_generator(self, device_index: int | None = None) -> torch.Generator:
        return torch.default_generator

    # ---- tensors
    def _typed(self, dtype: torch.dtype):
        return functools.partial(torch.tensor, dtype=dtype, device=self._name)

    @property
    def BFloat16Tensor(self):
        return self._typed(torch.bfloat16)

    @property
    def ByteTensor(self):
        return self._typed(torch.uint8)

    @property
    def DoubleTensor(self):
        return self._typed(torch.double)

    @property
    def FloatTensor(self):
        return self._typed(torch.float)

    @property
    def HalfTensor(self):
        return self._typed(torch.half)

    @property
    def IntTensor(self):
        return self._typed(torch.int)

    @property
    def LongTensor(self):
        return self._typed(torch.long)

    def pin_memory(self, tensor: torch.Tensor, make_copy: bool = True, match_shape: bool = True) -> torch.Tensor:
        return tensor

    def unpin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.is_pinned()

    def pin_empty(self, *size: Any, **kwargs: Any) -> torch.Tensor:
        return self.pin_memory(torch.empty(*size, **kwargs))

    def pin_empty_like(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.pin_memory(torch.empty_like(tensor, device="cpu"))

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == self._name

    # ---- profiling ranges and deferred calls
    def range_push(self, msg: str, domain: Any = None, category: Any = None) -> None:
        return None

    def range_pop(self, domain: Any = None) -> None:
        return None

    def lazy_call(self, callback):
        return callback()

    def export_envs(self) -> list[str]:
        return []

    def visible_devices_envs(self) -> list[str]:
        return [self._visible_devices_env]

    def set_visible_devices_envs(self, current_env: dict, local_accelerator_ids: list) -> None:
        for name in self.visible_devices_envs():
            current_env[name] = ",".join(map(str, local_accelerator_ids))

    # ---- captured graphs (only where the device has them)
    def create_graph(self):
        return None

    def capture_to_graph(self, graph, pool=None, stream=None):
        return contextlib.nullcontext()

    def replay_graph(self, graph) -> None:
        return None

    # ---- operators: always prebuilt here
    def op_builder_dir(self) -> str:
        return "deepspeed.ops.op_builder"

    def create_op_builder(self, class_name: str):
        builder = self.get_op_builder(class_name)
        return builder() if builder is not None else None

    def get_op_builder(self, class_name: str):
        from deepspeed.ops import op_builder
        return getattr(op_builder, class_name, None)

    def build_extension(self):
        from torch.utils.cpp_extension import BuildExtension
        return BuildExtension

    # ---- torch.compile
    def get_compile_backend(self) -> str:
        return self._compile_backend

    def set_compile_backend(self, backend: str) -> None:
        import torch._dynamo as dynamo
        known = dynamo.list_backends(exclude_tags=())
        if backend not in known:
            raise ValueError(f"compile backend {backend!r} is not one of {known}")
        self._compile_backend = backend
