"""NVIDIA (and ROCm) devices through torch.cuda."""
from __future__ import annotations

import functools
from typing import Any

import torch

from .abstract_accelerator import DeepSpeedAccelerator


def _torchs(name: str) -> Any:
    """A method that torch.cuda has under the same name and with the same arguments."""

    def method(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(torch.cuda, name)(*args, **kwargs)

    method.__name__, method.__doc__ = name, getattr(DeepSpeedAccelerator, name).__doc__
    return method


class CUDA_Accelerator(DeepSpeedAccelerator):
    """A CUDA device as torch sees it."""

    _name = "cuda"
    _communication_backend_name = "nccl"
    _visible_devices_env = "CUDA_VISIBLE_DEVICES"

    synchronize, set_device, stream = _torchs("synchronize"), _torchs("set_device"), _torchs("stream")
    current_stream, default_stream = _torchs("current_stream"), _torchs("default_stream")
    empty_cache, memory_stats = _torchs("empty_cache"), _torchs("memory_stats")
    memory_allocated, max_memory_allocated = _torchs("memory_allocated"), _torchs("max_memory_allocated")
    memory_reserved, max_memory_reserved = _torchs("memory_reserved"), _torchs("max_memory_reserved")
    reset_peak_memory_stats = _torchs("reset_peak_memory_stats")

    def device(self, device_index: int | None = None):
        return torch.cuda.device(device_index)

    def current_device(self) -> int:
        return torch.cuda.current_device()

    def device_count(self) -> int:
        return torch.cuda.device_count()

    def is_available(self) -> bool:
        return torch.cuda.is_available()

    def manual_seed(self, seed: int):
        return torch.cuda.manual_seed(seed)

    def manual_seed_all(self, seed: int):
        return torch.cuda.manual_seed_all(seed)

    def initial_seed(self) -> int:
        return torch.cuda.initial_seed()

    def set_rng_state(self, new_state: torch.Tensor, device_index: int | None = None) -> None:
        torch.cuda.set_rng_state(new_state, "cuda" if device_index is None else device_index)

    def get_rng_state(self, device_index: int | None = None) -> torch.Tensor:
        return torch.cuda.get_rng_state("cuda" if device_index is None else device_index)

    def default_generator(self, device_index: int | None = None) -> torch.Generator:
        return torch.cuda.default_generators[device_index if device_index is not None else self.current_device()]

    @property
    def Stream(self):
        return torch.cuda.Stream

    @property
    def Event(self):
        return torch.cuda.Event

    def memory_cached(self, device_index: int | None = None) -> int:
        return torch.cuda.memory_reserved(device_index)

    def max_memory_cached(self, device_index: int | None = None) -> int:
        return torch.cuda.max_memory_reserved(device_index)

    def reset_max_memory_allocated(self, device_index: int | None = None) -> None:
        torch.cuda.reset_peak_memory_stats(device_index)

    reset_max_memory_cached = reset_max_memory_allocated

    def total_memory(self, device_index: int | None = None) -> int:
        return torch.cuda.get_device_properties(self.current_device() if device_index is None else device_index).total_memory

    def available_memory(self, device_index: int | None = None) -> int:
        free, _ = torch.cuda.mem_get_info(device_index)
        return free + self.memory_reserved(device_index) - self.memory_allocated(device_index)

    def is_bf16_supported(self) -> bool:
        return torch.cuda.is_bf16_supported()

    def is_fp16_supported(self) -> bool:
        return torch.cuda.get_device_capability()[0] >= 7 or torch.version.hip is not None

    def is_triton_supported(self) -> bool:
        return torch.cuda.get_device_capability()[0] >= 8

    def range_push(self, msg: str, domain: Any = None, category: Any = None) -> None:
        torch.cuda.nvtx.range_push(msg)

    def range_pop(self, domain: Any = None) -> None:
        torch.cuda.nvtx.range_pop()

    def lazy_call(self, callback):
        return torch.cuda._lazy_call(callback)

    def create_graph(self):
        return torch.cuda.CUDAGraph()

    def capture_to_graph(self, graph, pool=None, stream=None):
        return torch.cuda.graph(graph, pool, stream)

    def replay_graph(self, graph) -> None:
        graph.replay()

    def _typed(self, dtype: torch.dtype):
        return functools.partial(torch.tensor, dtype=dtype, device="cuda")

    def pin_memory(self, tensor: torch.Tensor, make_copy: bool = True, match_shape: bool = True) -> torch.Tensor:
        return tensor.pin_memory()

    def export_envs(self) -> list[str]:
        return ["NCCL"]
