"""What ds_io and ds_nvme_tune measure: one tensor from or to one file, in several ways (`ENGINES`)."""
from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from dataclasses import dataclass
from typing import Any, Iterator

import torch

ENGINES = ("aio_handle", "aio_basic", "torch_io", "torch_fastio")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size_of(text: str) -> int:
    """Bytes of "4096", "64M", "1.5G" (powers of 1024; a B behind it changes nothing)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:I?B)?", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"must be a number of bytes such as 4096, 64M or 2G, found {text!r}")
    return size


def size_text(size: int) -> str:
    for unit in ("G", "M", "K"):
        if size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


@dataclass(frozen=True)
class Settings:
    """Of one measurement. `device`: where the tensor is, "cpu" or "cuda:0"."""

    io_size: int
    block_size: int = 1 << 20
    queue_depth: int = 32
    single_submit: bool = False
    sequential_requests: bool = False
    io_parallel: int = 1
    validate: bool = False
    engine: str = "aio_handle"
    device: str = "cpu"
    fast_io_size: int = 64 << 20
    slow_bounce_buffer: bool = False
    torch_legacy_save: bool = False
    use_accelerator_pin_memory: bool = False


class Transfer:
    """A tensor of io_size bytes, and what moves it. One thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        from deepspeed.ops.aio import aio_handle
        self._handle = aio_handle(settings.block_size, settings.queue_depth, settings.single_submit,
                                  not settings.sequential_requests, settings.io_parallel)
        self.tensor = self._tensor()
        # Contents that a disk cannot take for a run of zeros.
        self.tensor.copy_(torch.arange(settings.io_size, dtype=torch.int32).mul_(73).remainder_(251).to(torch.uint8))
        self._fast_buffer = self._pinned(settings.fast_io_size) if settings.engine == "torch_fastio" else None

    def _pinned(self, size: int) -> torch.Tensor:
        return self._handle.new_cpu_locked_tensor(size, torch.empty(0, dtype=torch.uint8))

    def _tensor(self) -> torch.Tensor:
        settings = self.settings
        if settings.device != "cpu" or settings.engine == "torch_io":
            return torch.empty(settings.io_size, dtype=torch.uint8, device=settings.device)
        if settings.use_accelerator_pin_memory:
            from deepspeed.accelerator import get_accelerator
            return get_accelerator().pin_memory(torch.empty(settings.io_size, dtype=torch.uint8))
        return self._pinned(settings.io_size)

    def write(self, path: str) -> None:
        settings = self.settings
        if settings.engine == "torch_io":
            torch.save(self.tensor, path, _use_new_zipfile_serialization=not settings.torch_legacy_save)
        elif settings.engine == "torch_fastio":
            from deepspeed.io import FastFileWriter, FastFileWriterConfig
            with FastFileWriter(path, FastFileWriterConfig(self._handle, self._fast_buffer)) as writer:
                torch.save(self.tensor, writer, _use_new_zipfile_serialization=not settings.torch_legacy_save)
        elif settings.engine == "aio_basic":
            from deepspeed.ops.aio import aio_write
            aio_write(self.tensor, path, settings.block_size, settings.queue_depth, settings.single_submit,
                      not settings.sequential_requests, settings.validate)
        else:
            with self._bounced(copy_in=True) as buffer:
                self._handle.pwrite(buffer, path, settings.validate, True)
                self._handle.wait()

    def start_write(self, path: str) -> None:
        """With aio_handle: wait() ends it."""
        self._handle.async_pwrite(self.tensor, path)

    def start_read(self, path: str) -> None:
        self._handle.async_pread(self.tensor, path)

    def wait(self) -> None:
        self._handle.wait()

    def read(self, path: str) -> None:
        settings = self.settings
        if settings.engine in ("torch_io", "torch_fastio"):
            self.tensor.copy_(torch.load(path, map_location=settings.device, weights_only=True))
        elif settings.engine == "aio_basic":
            from deepspeed.ops.aio import aio_read
            aio_read(self.tensor, path, settings.block_size, settings.queue_depth, settings.single_submit,
                     not settings.sequential_requests, settings.validate)
        else:
            with self._bounced(copy_in=False) as buffer:
                self._handle.pread(buffer, path, settings.validate, True)
                self._handle.wait()

    @contextlib.contextmanager
    def _bounced(self, copy_in: bool) -> Iterator[torch.Tensor]:
        """The tensor, or with slow_bounce_buffer pinned memory that is made for this transfer and copied from or to a device."""
        if not self.settings.slow_bounce_buffer or self.tensor.device.type == "cpu":
            yield self.tensor
            return
        buffer = self._pinned(self.settings.io_size)
        if copy_in:
            buffer.copy_(self.tensor)
        yield buffer
        if not copy_in:
            self.tensor.copy_(buffer)


def flush_page_cache() -> None:
    """Linux, as an administrator. Raises SystemExit that says what is missing."""
    try:
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("1\n")
    except (AttributeError, OSError) as problem:
        raise SystemExit(f"{os.path.basename(sys.argv[0])}: error: --flush_page_cache: {problem}; it needs Linux and an administrator "
                         "(reads past the page cache, which the aio engines do, need no flush)") from None


def engine_line() -> str:
    from deepspeed import _C
    engine, reason = _C.aio_engine()
    return f"asynchronous files: {engine}" + (f" ({reason})" if reason else "")


def check_folder(program: str, folder: str) -> str:
    if not os.path.isdir(folder):
        raise SystemExit(f"{program}: error: {folder} is not a folder; make it first")
    if not os.access(folder, os.W_OK):
        raise SystemExit(f"{program}: error: the folder {folder} cannot be written; choose another one or change its permissions")
    return folder


def refuse_gds(program: str, wanted: Any, flag: str) -> None:
    if wanted:
        raise SystemExit(f"{program}: error: {flag}: GPUDirect Storage is not built; --gpu alone measures tensors on a GPU through "
                         "pinned memory of the host")
