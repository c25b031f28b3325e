"""Binding of local ranks to cores with numactl."""
from __future__ import annotations

import os
import shutil


def parse_range(rng: str) -> list[int]:
    """Cores of "5" or "3-7"."""
    first, _, last = rng.partition("-")
    begin = int(first)
    end = int(last) if last else begin
    if end < begin:
        raise ValueError(f"core range {rng!r}: the end is before the start")
    return list(range(begin, end + 1))


def parse_range_list(range_str: str) -> list[int]:
    """Cores of "0-3,8,10-11", ascending and without repetition."""
    cores: list[int] = []
    for part in range_str.split(","):
        found = parse_range(part.strip())
        if cores and found[0] <= cores[-1]:
            raise ValueError(f"core list {range_str!r}: ranges must be ascending and must not overlap")
        cores.extend(found)
    return cores


def get_numa_cores() -> list[list[int]]:
    """Cores of every NUMA node; an empty list for a node of memory only; [] where the system does not say."""
    root = "/sys/devices/system/node"
    nodes: list[list[int]] = []
    while os.path.isfile(path := f"{root}/node{len(nodes)}/cpulist"):
        with open(path) as file:
            text = file.read().strip()
        nodes.append(parse_range_list(text) if text else [])
    return nodes


def _physical_cores() -> int:
    first_threads = set()
    root = "/sys/devices/system/cpu"
    for core in range(os.cpu_count() or 1):
        try:
            with open(f"{root}/cpu{core}/topology/thread_siblings_list") as file:
                first_threads.add(file.read().strip())
        except OSError:
            first_threads.add(str(core))
    return len(first_threads)


def _as_ranges(cores: list[int]) -> str:
    parts: list[str] = []
    start = previous = cores[0]
    for core in [*cores[1:], None]:
        if core is not None and core == previous + 1:
            previous = core
            continue
        parts.append(str(start) if start == previous else f"{start}-{previous}")
        if core is not None:
            start = previous = core
    return ",".join(parts)


def _memory_option(cores: list[int], nodes: list[list[int]]) -> list[str]:
    """Which memory a rank on `cores` should use: its node's, or the core-less node paired with it."""
    with_cores = [i for i, node in enumerate(nodes) if node]
    without_cores = [i for i, node in enumerate(nodes) if not node]
    for index in with_cores:
        if not set(cores) <= set(nodes[index]):
            continue
        if without_cores and len(without_cores) == len(with_cores):
            # One fast memory node beside each node of cores: prefer it, but let memory overflow.
            return ["-p", str(without_cores[with_cores.index(index)])]
        same = [i for i in with_cores if nodes[i] == nodes[index]]
        return ["-m", ",".join(map(str, same))]
    return []


def get_numactl_cmd(bind_core_list: str | None, num_local_procs: int, local_rank: int) -> tuple[int, list[str]]:
    """(cores per rank, numactl command line) for one local rank."""
    if shutil.which("numactl") is None:
        raise ValueError("numactl is not installed: install it, or leave out --bind_cores_to_rank")
    if "KMP_AFFINITY" in os.environ:
        raise ValueError("KMP_AFFINITY conflicts with numactl, because it limits the cores that numactl can set: unset it")
    cores = parse_range_list(bind_core_list) if bind_core_list is not None else list(range(_physical_cores()))
    per_rank = len(cores) // num_local_procs
    if per_rank < 1:
        raise ValueError(f"{len(cores)} cores cannot be given to {num_local_procs} ranks: each needs at least one")
    mine = cores[per_rank * local_rank:per_rank * (local_rank + 1)]
    return per_rank, ["numactl", *_memory_option(mine, get_numa_cores()), "-C", _as_ranges(mine)]
