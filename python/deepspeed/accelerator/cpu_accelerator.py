"""The CPU as a device: one device per process, memory numbers are those of the process."""
from __future__ import annotations

import os
from typing import Any

import torch

from .abstract_accelerator import DeepSpeedAccelerator


def _status_bytes(field: str) -> int:
    """A size of /proc/self/status in bytes; 0 where that file does not exist."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _meminfo_bytes(field: str) -> int:
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def host_memory_bytes() -> tuple[int, int]:
    """(in all, available) of the machine; zeros where the system does not say."""
    return _meminfo_bytes("MemTotal"), _meminfo_bytes("MemAvailable")


def _numa_nodes() -> int:
    """NUMA nodes with CPUs, at least 1."""
    try:
        with open("/sys/devices/system/node/has_cpu") as file:
            return max(1, sum(1 + int(part.split("-")[-1]) - int(part.split("-")[0])
                              for part in file.read().strip().split(",") if part))
    except (OSError, ValueError):
        return 1


class CPU_Accelerator(DeepSpeedAccelerator):
    """The CPU: no streams, and the process's resident memory in the place of a device's."""

    _name = "cpu"
    _communication_backend_name = "gloo"
    _visible_devices_env = "CPU_VISIBLE_DEVICES"

    def __init__(self) -> None:
        super().__init__()
        self.max_mem = 0

    def is_synchronized_device(self) -> bool:
        return True

    def device_name(self, device_index: int | None = None) -> str:
        return "cpu"

    def device(self, device_index: int | None = None):
        return None

    def set_device(self, device_index: int) -> None:
        return None

    def current_device(self) -> str:
        return "cpu"

    def current_device_name(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        """LOCAL_SIZE where a launcher set it, otherwise the number of NUMA nodes."""
        size = int(os.environ.get("LOCAL_SIZE", 0))
        return size if size > 0 else _numa_nodes()

    def synchronize(self, device_index: int | None = None) -> None:
        return None

    def is_available(self) -> bool:
        return True

    # ---- streams do not exist
    @property
    def Stream(self):
        return None

    @property
    def Event(self):
        return None

    def stream(self, stream: Any):
        import contextlib
        return contextlib.nullcontext()

    def current_stream(self, device_index: int | None = None) -> None:
        return None

    def default_stream(self, device_index: int | None = None) -> None:
        return None

    # ---- memory: the resident set of the process
    def empty_cache(self) -> None:
        return None

    def get_rss(self) -> int:
        rss = _status_bytes("VmRSS")
        self.max_mem = max(self.max_mem, rss)
        return rss

    def reset_rss(self) -> int:
        self.max_mem = 0
        return self.get_rss()

    def memory_allocated(self, device_index: int | None = None) -> int:
        return self.get_rss()

    def max_memory_allocated(self, device_index: int | None = None) -> int:
        self.get_rss()
        return self.max_mem

    def reset_max_memory_allocated(self, device_index: int | None = None) -> None:
        self.reset_rss()

    memory_cached = memory_reserved = memory_allocated
    max_memory_cached = max_memory_reserved = max_memory_allocated
    reset_max_memory_cached = reset_peak_memory_stats = reset_max_memory_allocated

    def memory_stats(self, device_index: int | None = None) -> dict[str, int]:
        rss = self.get_rss()
        return {"allocated_bytes.all.current": rss, "allocated_bytes.all.peak": self.max_mem}

    def total_memory(self, device_index: int | None = None) -> int:
        return _meminfo_bytes("MemTotal")

    def available_memory(self, device_index: int | None = None) -> int:
        return _meminfo_bytes("MemAvailable")

    def _typed(self, dtype: torch.dtype):
        return {torch.bfloat16: torch.BFloat16Tensor, torch.uint8: torch.ByteTensor, torch.double: torch.DoubleTensor,
                torch.float: torch.FloatTensor, torch.half: torch.HalfTensor, torch.int: torch.IntTensor,
                torch.long: torch.LongTensor}[dtype]

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return False
