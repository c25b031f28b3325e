"""What a machine allows, for benchmarks whose limit is a drive or a memory size: memory limits of a process, bandwidths. Linux."""

from __future__ import annotations

import contextlib
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
from typing import Callable

MIB = 2**20
HUGE_PAGE = 2 * MIB


def private_bytes(pid: int | str = "self") -> int:
    """Private and shared memory of a process now, without files."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(n) * 1024 for n in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+)", status))


class MemoryLimit:
    """A limit on the memory of other processes: a control group (version 2 or 1), or (kind "RLIMIT_DATA") word that none could be made.

    A control group counts the page cache too, as far as it cannot be given back; RLIMIT_DATA private memory alone. For the parent of
    the processes: a context manager that removes the group at its end. What a parent that was killed left is removed by the next one."""

    ROOTS = (("cgroup v2", "/sys/fs/cgroup", "memory.max"), ("cgroup v1", "/sys/fs/cgroup/memory", "memory.limit_in_bytes"))

    def __init__(self, size: int, name: str = "limit") -> None:
        self.size, self.folder, self.kind = size, None, "RLIMIT_DATA"
        for kind, root, key in self.ROOTS:
            folder = Path(root, f"deepscale_bench_{os.getpid()}_{name}")
            try:
                if not Path(root, "cgroup.procs").exists():
                    continue  # no control groups are mounted there
                self._remove_abandoned(Path(root))
                folder.mkdir()
            except OSError:
                continue
            try:
                with open(folder / key, "r+") as file:  # exists where the group can limit memory
                    file.write(str(size))
            except OSError:
                folder.rmdir()
                continue
            self.folder, self.kind = folder, kind
            break

    @staticmethod
    def _remove_abandoned(root: Path) -> None:
        for folder in root.glob("deepscale_bench_*_*"):
            if not Path("/proc", folder.name.split("_")[2]).exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()  # no group of living processes can be

    def apply(self, pids: list[int], limit_data: Callable[[int], object]) -> None:
        """limit_data: has the processes call limit_data() of this module with the bytes, where there is no control group."""
        if self.folder is None:
            limit_data(self.size)
            return
        for pid in pids:
            (self.folder / "cgroup.procs").write_text(str(pid))

    def highest(self) -> int | None:
        """The group's own peak, page cache included."""
        for key in ("memory.peak", "memory.max_usage_in_bytes"):
            try:
                return int((self.folder / key).read_text())
            except (OSError, TypeError):
                pass
        return None

    def close(self) -> None:
        """Removes the group. Its processes have been ended; the kernel counts them for a moment more."""
        for _ in range(50):
            try:
                if self.folder:
                    self.folder.rmdir()
                self.folder = None
                return
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.1)

    def __enter__(self) -> MemoryLimit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def limit_data(size: int) -> None:
    """What may stand in the place of a control group, for this process."""
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


class PeakMemory:
    """Largest private_bytes() of a process since the start, sampled by a thread until close()."""

    def __init__(self, pid: int | str = "self", interval_s: float = 0.01) -> None:
        self.peak = 0
        self._pid, self._interval, self._running = pid, interval_s, True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._running:
            try:
                self.peak = max(self.peak, private_bytes(self._pid))
            except OSError:
                return  # it has ended
            time.sleep(self._interval)

    def close(self) -> None:
        self._running = False
        self._thread.join()


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
