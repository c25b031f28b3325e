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
        """The device's name as torch knows it: "cpu", "cuda", "cuda:1"."""
        return self._name if device_index is None else f"{self._name}:{device_index}"

    def device(self, device_index: int | None = None):
        """A context in which the device is the current one."""
        raise NotImplementedError

    def current_device_name(self) -> str:
        """The current device's name, with its index where there are several."""
        return f"{self._name}:{self.current_device()}"

    def current_device(self):
        """The current device, usable as a torch device."""
        raise NotImplementedError

    def device_count(self) -> int:
        """Number of devices that this machine offers."""
        raise NotImplementedError

    def is_available(self) -> bool:
        """Whether there is such a device."""
        raise NotImplementedError

    def communication_backend_name(self) -> str:
        """The backend of torch.distributed that fits."""
        return self._communication_backend_name

    def is_triton_supported(self) -> bool:
        """Whether Triton's kernels run."""
        return False

    def is_fp64_supported(self) -> bool:
        """Whether it computes in double precision."""
        return True

    def is_bf16_supported(self) -> bool:
        """Whether it computes in bfloat16."""
        return True

    def is_fp16_supported(self) -> bool:
        """Whether it computes in half precision."""
        return True

    def supported_dtypes(self) -> list[torch.dtype]:
        """Element types that it computes in."""
        supported = [torch.float]
        if self.is_fp16_supported():
            supported.append(torch.half)
        if self.is_bf16_supported():
            supported.append(torch.bfloat16)
        return supported

    # ---- what only the device knows
    def set_device(self, device_index: int) -> None:
        """Makes a device the current one."""
        raise NotImplementedError

    def synchronize(self, device_index: int | None = None) -> None:
        """Returns when the device has done what it was given."""
        raise NotImplementedError

    @property
    def Stream(self) -> Any:
        """The class of its streams; None where there are none."""
        raise NotImplementedError

    @property
    def Event(self) -> Any:
        """The class of its events; None where there are none."""
        raise NotImplementedError

    def stream(self, stream: Any) -> Any:
        """A context in which work goes to `stream`."""
        raise NotImplementedError

    def current_stream(self, device_index: int | None = None) -> Any:
        """The stream that work goes to; None where there are none."""
        raise NotImplementedError

    def default_stream(self, device_index: int | None = None) -> Any:
        """The stream that work goes to unless told otherwise; None where there are none."""
        raise NotImplementedError

    def empty_cache(self) -> None:
        """Gives memory that is kept for later back."""
        raise NotImplementedError

    def memory_allocated(self, device_index: int | None = None) -> int:
        """Bytes in use now."""
        raise NotImplementedError

    def max_memory_allocated(self, device_index: int | None = None) -> int:
        """Bytes in use at most since the last reset."""
        raise NotImplementedError

    def reset_max_memory_allocated(self, device_index: int | None = None) -> None:
        """The maximum starts anew."""
        raise NotImplementedError

    def memory_reserved(self, device_index: int | None = None) -> int:
        """Bytes in use or kept for later."""
        raise NotImplementedError

    def max_memory_reserved(self, device_index: int | None = None) -> int:
        """The most of these since the last reset."""
        raise NotImplementedError

    def memory_cached(self, device_index: int | None = None) -> int:
        """memory_reserved by its older name."""
        raise NotImplementedError

    def max_memory_cached(self, device_index: int | None = None) -> int:
        """max_memory_reserved by its older name."""
        raise NotImplementedError

    def reset_max_memory_cached(self, device_index: int | None = None) -> None:
        """That maximum starts anew."""
        raise NotImplementedError

    def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
        """All maxima start anew."""
        raise NotImplementedError

    def memory_stats(self, device_index: int | None = None) -> dict[str, int]:
        """Figures by the names that torch gives them."""
        raise NotImplementedError

    def total_memory(self, device_index: int | None = None) -> int:
        """Bytes that the device has."""
        raise NotImplementedError

    def available_memory(self, device_index: int | None = None) -> int:
        """Bytes that are free."""
        raise NotImplementedError

    # ---- timing and dependency behaviour
    def is_synchronized_device(self) -> bool:
        """Whether work is finished when a call returns."""
        return False

    def use_host_timers(self) -> bool:
        """Whether the host's clock measures its work."""
        return self.is_synchronized_device()

    def resolves_data_dependency(self) -> bool:
        """Whether its work runs in the order of the calls."""
        return self.is_synchronized_device()

    def handles_memory_backpressure(self) -> bool:
        """Whether calls wait for memory instead of failing."""
        return self.is_synchronized_device()

    # ---- random numbers
    def random(self):
        """The module with its functions for random numbers."""
        return torch.random

    def set_rng_state(self, new_state: torch.Tensor, device_index: int | None = None) -> None:
        """Sets the state of its random numbers."""
        torch.set_rng_state(new_state)

    def get_rng_state(self, device_index: int | None = None) -> torch.Tensor:
        """State of its random numbers."""
        return torch.get_rng_state()

    def manual_seed(self, seed: int):
        """Seeds the current device's random numbers."""
        return torch.manual_seed(seed)

    def manual_seed_all(self, seed: int):
        """Seeds all devices' random numbers."""
        return torch.manual_seed(seed)

    def initial_seed(self) -> int:
        """The seed that its random numbers began with."""
        return torch.initial_seed()

    def default_generator(self, device_index: int | None = None) -> torch.Generator:
        """Its generator of random numbers."""
        return torch.default_generator

    # ---- tensors
    def _typed(self, dtype: torch.dtype):
        return functools.partial(torch.tensor, dtype=dtype, device=self._name)

    @property
    def BFloat16Tensor(self):
        """Makes bfloat16 tensors."""
        return self._typed(torch.bfloat16)

    @property
    def ByteTensor(self):
        """Makes uint8 tensors."""
        return self._typed(torch.uint8)

    @property
    def DoubleTensor(self):
        """Makes float64 tensors."""
        return self._typed(torch.double)

    @property
    def FloatTensor(self):
        """Makes float32 tensors."""
        return self._typed(torch.float)

    @property
    def HalfTensor(self):
        """Makes float16 tensors."""
        return self._typed(torch.half)

    @property
    def IntTensor(self):
        """Makes int32 tensors."""
        return self._typed(torch.int)

    @property
    def LongTensor(self):
        """Makes int64 tensors."""
        return self._typed(torch.long)

    def pin_memory(self, tensor: torch.Tensor, make_copy: bool = True, match_shape: bool = True) -> torch.Tensor:
        """A copy in memory of the host that the device copies from without help; the tensor itself where that means nothing."""
        return tensor

    def unpin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """Takes back pin_memory()."""
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is in such memory."""
        return tensor.is_pinned()

    def pin_empty(self, *size: Any, **kwargs: Any) -> torch.Tensor:
        """torch.empty in such memory."""
        return self.pin_memory(torch.empty(*size, **kwargs))

    def pin_empty_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """torch.empty_like in such memory."""
        return self.pin_memory(torch.empty_like(tensor, device="cpu"))

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is on this kind of device."""
        return tensor.device.type == self._name

    # ---- profiling ranges and deferred calls
    def range_push(self, msg: str, domain: Any = None, category: Any = None) -> None:
        """Begins a named range for the device's profiler."""
        return None

    def range_pop(self, domain: Any = None) -> None:
        """Ends the range that began last."""
        return None

    def lazy_call(self, callback):
        """Calls when the device is ready: here at once."""
        return callback()

    def export_envs(self) -> list[str]:
        """Beginnings of the names of variables that other machines' ranks are to get."""
        return []

    def visible_devices_envs(self) -> list[str]:
        """Variables that say which devices a process sees."""
        return [self._visible_devices_env]

    def set_visible_devices_envs(self, current_env: dict, local_accelerator_ids: list) -> None:
        """Sets those variables in `current_env`."""
        for name in self.visible_devices_envs():
            current_env[name] = ",".join(map(str, local_accelerator_ids))

    # ---- captured graphs (only where the device has them)
    def create_graph(self):
        """An empty graph, or None on devices that cannot record their work."""
        return None

    def capture_to_graph(self, graph, pool=None, stream=None):
        """A context that records the device's work."""
        return contextlib.nullcontext()

    def replay_graph(self, graph) -> None:
        """Repeats what was recorded."""
        return None

    # ---- operators: always prebuilt here
    def op_builder_dir(self) -> str:
        """Where the operator builders are."""
        return "deepspeed.ops.op_builder"

    def create_op_builder(self, class_name: str):
        """An operator builder by its class name; None for a name that nobody has."""
        builder = self.get_op_builder(class_name)
        return builder() if builder is not None else None

    def get_op_builder(self, class_name: str):
        """The class of an operator builder by name; None for a name that nobody has."""
        from deepspeed.ops import op_builder
        return getattr(op_builder, class_name, None)

    def build_extension(self):
        """torch's command for building extensions, for programs with extensions of their own."""
        from torch.utils.cpp_extension import BuildExtension
        return BuildExtension

    # ---- torch.compile
    def get_compile_backend(self) -> str:
        """The backend that torch.compile uses for this device."""
        return self._compile_backend

    def set_compile_backend(self, backend: str) -> None:
        """Sets it. Raises ValueError for a name that torch does not know."""
        import torch._dynamo as dynamo
        known = dynamo.list_backends(exclude_tags=())
        if backend not in known:
            raise ValueError(f"compile backend {backend!r} is not one of {known}")
        self._compile_backend = backend
