"""File-like writers for torch.save. A file is whole, with every byte in it, when close() has returned; close() raises OSError when
it is not."""
from __future__ import annotations

import io
import os
import time
from dataclasses import dataclass
from typing import Any, Mapping

import numpy
import torch


class BaseFileWriter:
    """What the writers share: counters, and use in a `with` statement."""

    def __init__(self, file_path: str | os.PathLike[str]) -> None:
        self.file_path = os.fspath(file_path)
        self.closed = False
        self._bytes = 0
        self._writes = 0
        self._seconds = 0.0

    def __enter__(self) -> "BaseFileWriter":
        return self

    def __exit__(self, exc_type: object, exc_value: object, traceback: object) -> None:
        self.close()

    def write(self, buffer: Any) -> int:
        """Takes bytes or whatever has their interface. Returns how many."""
        if self.closed:
            raise ValueError(f"{self.file_path} is closed")
        view = memoryview(buffer).cast("B")
        begin = time.perf_counter()
        self._put(view)
        self._seconds += time.perf_counter() - begin
        self._bytes += view.nbytes
        self._writes += 1
        return view.nbytes

    def flush(self) -> None:
        """Nothing has to be flushed before close()."""

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        begin = time.perf_counter()
        self._end()
        self._seconds += time.perf_counter() - begin

    def statistics(self) -> Mapping[str, float]:
        return {"write_count": self._writes, "write_bytes": self._bytes, "write_seconds": self._seconds}

    def _put(self, view: memoryview) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


class MockFileWriter(BaseFileWriter):
    """Counts, and writes nothing."""

    def _put(self, view: memoryview) -> None:
        pass

    def _end(self) -> None:
        pass


class PyFileWriter(BaseFileWriter):
    """Python's own file."""

    def __init__(self, file_path: str | os.PathLike[str]) -> None:
        super().__init__(file_path)
        self._file = open(self.file_path, "wb")

    def fileno(self) -> int:
        return self._file.fileno()

    def flush(self) -> None:
        self._file.flush()

    def _put(self, view: memoryview) -> None:
        self._file.write(view)

    def _end(self) -> None:
        self._file.close()


@dataclass
class FastFileWriterConfig:
    """dnvme_handle: an aio_handle that nobody else waits for meanwhile. pinned_tensor: a uint8 tensor of it, at least 8 KiB; with
    double_buffer one half is filled while the other one is written. A file that several writers fill is not built."""

    dnvme_handle: Any
    pinned_tensor: torch.Tensor
    double_buffer: bool = True
    num_parallel_writers: int = 1
    writer_rank: int = 0
    global_rank: int = 0


class FastFileWriter(BaseFileWriter):
    """Gathers bytes in pinned memory and writes them past the page cache."""

    _PAGE = 4096

    def __init__(self, file_path: str | os.PathLike[str], config: FastFileWriterConfig) -> None:
        super().__init__(file_path)
        if config.num_parallel_writers != 1 or config.writer_rank != 0:
            raise NotImplementedError("FastFileWriter: several writers of one file (num_parallel_writers "
                                      f"{config.num_parallel_writers}) are not built; give every rank a file of its own")
        if config.pinned_tensor.device.type != "cpu" or not config.pinned_tensor.is_contiguous():
            raise ValueError("FastFileWriter: pinned_tensor must be a contiguous CPU tensor, found one on "
                             f"{config.pinned_tensor.device}")
        memory = config.pinned_tensor.flatten().view(torch.uint8)
        parts = 2 if config.double_buffer else 1
        size = memory.numel() // parts // self._PAGE * self._PAGE
        if size == 0:
            raise ValueError(f"FastFileWriter: pinned_tensor has {memory.numel()} bytes, at least {parts * self._PAGE} are needed")
        self._handle = config.dnvme_handle
        self._buffers = [memory[index * size:(index + 1) * size] for index in range(parts)]
        self._size, self._filled, self._offset, self._writing = size, 0, 0, False
        open(self.file_path, "wb").close()  # an older, longer file leaves no tail

    def fileno(self) -> int:
        """torch.save asks, and calls write() when there is none."""
        raise io.UnsupportedOperation(f"{self.file_path}: its writer has no descriptor")

    def _put(self, view: memoryview) -> None:
        taken = 0
        while taken < view.nbytes:
            part = min(view.nbytes - taken, self._size - self._filled)
            self._buffers[0].numpy()[self._filled:self._filled + part] = numpy.frombuffer(view[taken:taken + part], numpy.uint8)
            self._filled += part
            taken += part
            if self._filled == self._size:
                self._write_out()

    def _write_out(self) -> None:
        """Begins to write the buffer that is being filled, and goes on with one that is not being written."""
        self._wait()
        self._handle.async_pwrite(self._buffers[0][:self._filled], self.file_path, self._offset)
        self._writing = True
        self._offset += self._filled
        self._filled = 0
        if len(self._buffers) == 1:
            self._wait()
        self._buffers.reverse()

    def _wait(self) -> None:
        if self._writing:
            self._writing = False
            self._handle.wait()

    def _end(self) -> None:
        if self._filled > 0:
            self._write_out()
        self._wait()
