"""What a machine allows, for benchmarks whose limit is a drive or a memory size: memory limits of a process, bandwidths. Linux."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import resource
import shutil
import subprocess
import threading
import time
from pathlib import Path

MIB = 2**20
HUGE_PAGE = 2 * MIB


def private_bytes(pid: int | str = "self") -> int:
    """Private and shared memory of a process now, without files."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(n) * 1024 for n in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+)", status))


class MemoryLimit:
    """A memory limit for this process and its children: a control group (version 1 or 2), or RLIMIT_DATA where none can be made.

    A control group counts the page cache too, as far as it cannot be given back; RLIMIT_DATA private memory alone."""

    def __init__(self, name: str, limit_bytes: int) -> None:
        self.kind, self._folder = "RLIMIT_DATA", None
        for parent, limit_file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
            folder = Path(parent) / f"deepscale-{name}-{os.getpid()}"
            try:
                folder.mkdir()
                (folder / limit_file).write_text(str(limit_bytes))
                (folder / "cgroup.procs").write_text(str(os.getpid()))
            except OSError:
                if folder.exists():
                    folder.rmdir()
                continue
            self.kind, self._folder = f"control group {folder}", folder
            return
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


class PeakMemory:
    """Largest private_bytes() since the start, sampled by a thread."""

    def __init__(self, interval_s: float = 0.02) -> None:
        self.peak = 0
        self._interval = interval_s
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, private_bytes())
            time.sleep(self._interval)


def bytes_read() -> int:
    """Bytes that this process has had read from storage."""
    return int(re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)[1])


def _read_directly(path: str, offset: int, length: int, block: int, threads: int) -> float:
    """Bytes per second of O_DIRECT reads by threads."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    places = iter(range(offset, offset + length - block + 1, block))
    lock = threading.Lock()

    def work() -> None:
        memory = mmap.mmap(-1, block + 2 * HUGE_PAGE)
        memory.madvise(mmap.MADV_HUGEPAGE)  # with ordinary pages many drives reach half of what they can
        start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE
        buffer = memoryview(memory)[start:start + block]
        buffer[:] = bytes(block)
        while True:
            with lock:
                place = next(places, None)
            if place is None:
                return
            os.preadv(descriptor, [buffer], place)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - start
    os.close(descriptor)
    return (length // block * block) / elapsed


def _fio(path: str, offset: int, length: int, block: str, depth: int) -> float:
    run = subprocess.run(["fio", "--name=r", f"--filename={path}", "--rw=read", f"--bs={block}", f"--iodepth={depth}", "--ioengine=io_uring",
                          "--direct=1", "--readonly", f"--offset={offset}", f"--size={length}", "--output-format=terse"],
                         capture_output=True, text=True, check=True)
    return int(run.stdout.split(";")[6]) * 1024.0


class DriveReads:
    """Read bandwidth of the drive behind `files`, past the page cache. Every measurement reads another part of them."""

    def __init__(self, files: list[Path], part_bytes: int = 1024 * MIB) -> None:
        self._parts = [(str(f), begin, min(part_bytes, f.stat().st_size // MIB * MIB - begin))
                       for f in files for begin in range(0, f.stat().st_size // MIB * MIB, part_bytes)]
        self._parts = [part for part in self._parts if part[2] >= min(part_bytes, 64 * MIB)] or self._parts
        self._next = 0
        self._handle = self._buffer = None

    def _by_handle(self, path: str, offset: int, length: int) -> float:
        """Our own handle, which reads into huge pages: where those matter, fio's ordinary ones hide half of the drive."""
        import torch

        from deepspeed.ops.aio import aio_handle
        if self._handle is None:
            self._handle = aio_handle(MIB, 64, False, True, 1)
            self._buffer = self._handle.new_cpu_locked_tensor(max(part[2] for part in self._parts), torch.empty(0, dtype=torch.uint8))
        start = time.perf_counter()
        self._handle.sync_pread(self._buffer[:length], path, offset)
        return length / (time.perf_counter() - start)

    def _part(self) -> tuple[str, int, int]:
        self._next += 1
        return self._parts[self._next % len(self._parts)]

    def measure(self) -> float:
        """Bytes per second: the best of fio with io_uring (where it is installed), of threads, and of our own handle."""
        found = [_read_directly(*self._part(), 4 * MIB, 8), self._by_handle(*self._part())]
        if shutil.which("fio"):
            found += [_fio(*self._part(), block, depth) for block, depth in (("1M", 64), ("4M", 16))]
        return max(found)
