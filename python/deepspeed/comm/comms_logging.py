"""The communications logger: how long each kind of collective took at each message size, and what bandwidth that is.

Message bytes are those of one rank's piece: the tensor of all_reduce, broadcast and point-to-point, the input of
all_gather and all_to_all, the output of reduce_scatter. With n ranks and time t the algorithm's bandwidth is size/t and
the bus's is what the busiest link had to carry; averages are means without the lowest and highest tenth.
"""
from __future__ import annotations

import time
from typing import Any, Callable, Sequence

import torch
import torch.distributed as dist

from deepspeed.comm import communicators
from deepspeed.utils.logging import log_dist

COLUMN_WIDTH = 20
_OF_ENGINES = {"all_reduce", "reduce_scatter_tensor", "all_gather_into_tensor", "broadcast", "all_to_all_single", "barrier"}
TRIM = 0.1


def bandwidths(operation: str, size: int, latency_ms: float, ranks: int) -> tuple[int, float, float]:
    """(bytes that count, algorithm bandwidth, bus bandwidth), bandwidths in Gbps."""
    share = (ranks - 1) / ranks if ranks > 0 else 0.0
    algorithm = bus = 1.0
    if "all_to_all" in operation:
        bus = share
    elif "all_gather" in operation or "allgather" in operation or "reduce_scatter" in operation:
        size *= ranks
        bus = share
    elif "all_reduce" in operation:
        algorithm, bus = 2.0, 2.0 * share
    gbps = size * 8 / (latency_ms * 1e6) if latency_ms > 0 else 0.0
    return size, gbps * algorithm, gbps * bus


def trimmed_mean(values: Sequence[float], trim: float = TRIM) -> float:
    if not values:
        return 0.0
    cut = int(len(values) * trim)
    kept = sorted(values)[cut:len(values) - cut]
    return sum(kept) / len(kept)


def size_text(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024 or unit == "GB":
            return f"{size:.2f} {unit}".replace(".00 ", " ")
        size /= 1024
    raise AssertionError


def row(*cells: Any) -> str:
    return "".join(f"{cell:<{COLUMN_WIDTH}}" if isinstance(cell, str) else f"{cell:<{COLUMN_WIDTH}.2f}" for cell in cells)


class CommsLogger:
    """Records of timed collectives: operation -> message bytes -> [count, latencies, algorithm and bus bandwidths]."""

    def __init__(self) -> None:
        self.enabled = False
        self.prof_all = True
        self.prof_ops: list[str] = []
        self.verbose = False
        self.debug = False
        self.comms_dict: dict[str, dict[int, list]] = {}

    def configure(self, section: Any) -> None:
        """Takes the `comms_logger` section (a dictionary or an object with its keys as attributes)."""
        for key in ("enabled", "prof_all", "prof_ops", "verbose", "debug"):
            value = section.get(key) if isinstance(section, dict) else getattr(section, key, None)
            if value is not None:
                setattr(self, key, value)
        communicators.engine_operations.enable(self.enabled and (self.prof_all or not _OF_ENGINES.isdisjoint(self.prof_ops)))

    def wants(self, operation: str, prof: bool) -> bool:
        return self.enabled and (self.prof_all or prof or operation in self.prof_ops)

    def append(self, operation: str, record_name: str, latency_ms: float, message_bytes: int, ranks: int) -> None:
        size, algorithm, bus = bandwidths(operation, message_bytes, latency_ms, ranks)
        record = self.comms_dict.setdefault(record_name, {}).setdefault(size, [0, [], [], []])
        record[0] += 1
        for values, value in zip(record[1:], (latency_ms, algorithm, bus)):
            values.append(value)
        if self.verbose:
            log_dist(f"comm op: {record_name} | time (ms): {latency_ms:.2f} | msg size: {size_text(size)} | "
                     f"algbw (Gbps): {algorithm:.2f} | busbw (Gbps): {bus:.2f}", ranks=[0])

    def timed(self, operation: str, record_name: str, message_bytes: int, ranks: int, run: Callable[[], Any]) -> Any:
        """Runs the collective between two synchronisations of the device and records it."""
        _synchronize()
        start = time.perf_counter()
        result = run()
        if result is not None and hasattr(result, "wait"):
            result.wait()
        _synchronize()
        self.append(operation, record_name, (time.perf_counter() - start) * 1e3, message_bytes, ranks)
        return result

    # ---- what was recorded

    def collect(self) -> None:
        """Adds what engines did since the last time. Engines call it at every step."""
        for operation, size, ranks, latency_ms in communicators.engine_operations.take():
            if self.wants(operation, False):
                self.append(operation, f"{operation} | [Caller Func: engine]" if self.debug else operation, latency_ms, size, ranks)

    def reset(self) -> None:
        communicators.engine_operations.take()
        self.comms_dict.clear()

    def operations(self) -> list[str]:
        self.collect()
        return list(self.comms_dict)

    def has_data(self) -> bool:
        return bool(self.operations())

    def total_operations(self) -> int:
        self.collect()
        return sum(record[0] for sizes in self.comms_dict.values() for record in sizes.values())

    def summary(self) -> dict[str, dict[int, dict[str, Any]]]:
        return {name: {size: {"count": count, "total_latency_ms": sum(latencies), "avg_latency_ms": trimmed_mean(latencies),
                              "tput_avg_gbps": trimmed_mean(algorithm), "busbw_avg_gbps": trimmed_mean(bus),
                              "msg_size_bytes": size, "msg_size_str": size_text(size)}
                       for size, (count, latencies, algorithm, bus) in sorted(sizes.items())}
                for name, sizes in self.comms_dict.items()}

    def stragglers(self) -> dict[str, dict[int, dict[str, Any]]]:
        """How much later than the first rank this one was. Collective: every rank has recorded the same operations."""
        result: dict[str, dict[int, dict[str, Any]]] = {}
        for name, sizes in self.comms_dict.items():
            for size, (count, latencies, _, _) in sorted(sizes.items()):
                own = torch.tensor(latencies, dtype=torch.float64)
                fastest = own.to(_exchange_device())
                if dist.is_initialized():
                    dist.all_reduce(fastest, op=dist.ReduceOp.MIN)
                late = own - fastest.cpu()
                result.setdefault(name, {})[size] = {
                    "count": count, "total_comm_lat_ms": float(fastest.sum()), "total_straggler_ms": float(late.sum()),
                    "avg_comm_lat_ms": trimmed_mean(fastest.tolist()), "avg_straggler_ms": trimmed_mean(late.tolist()),
                    "msg_size_bytes": size, "msg_size_str": size_text(size)}
        return result

    def log_all(self, print_log: bool = True, show_straggler: bool = False, return_dict: bool = False) -> dict | None:
        """Prints the tables on rank 0; show_straggler is collective."""
        self.collect()
        summary = self.summary()
        stragglers = self.stragglers() if show_straggler else None
        moved = communicators.bytes_moved()
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if print_log and rank == 0:
            if not summary and not self.enabled:
                print("nothing was recorded: the communications logger is off; set comms_logger.enabled to true, or call "
                      "deepspeed.comm.configure(enabled=True)")
            print(_summary_table(summary), flush=True)
            if stragglers is not None:
                print(_straggler_table(stragglers), flush=True)
            for description, size in moved.items():
                print(f"sent by rank 0 in all, engines' collectives included: {size_text(size)} ({description})", flush=True)
        if not return_dict:
            return None
        return {"summary": summary, "straggler_analysis": stragglers, "bytes_moved": moved,
                "metadata": {"world_size": ranks, "rank": rank, "timestamp": time.time()}}


def _summary_table(summary: dict) -> str:
    lines = [row("Comm. Op", "Message Size", "Count", "Total Latency(ms)", "Avg Latency(ms)", "tput_avg (Gbps)",
                 "busbw_avg (Gbps)")]
    for name, sizes in summary.items():
        lines.append(name)
        lines += [row("", facts["msg_size_str"], str(facts["count"]), facts["total_latency_ms"], facts["avg_latency_ms"],
                      facts["tput_avg_gbps"], facts["busbw_avg_gbps"]) for facts in sizes.values()]
    return "\n".join(lines)


def _straggler_table(stragglers: dict) -> str:
    lines = ["_______________________________", "Breakdown with straggler effect", "-------------------------------",
             row("Comm. Op", "Message Size", "Count", "Total comm lat(ms)", "Total straggler(ms)", "Avg comm lat(ms)",
                 "Avg straggler(ms)")]
    for name, sizes in stragglers.items():
        lines.append(name)
        lines += [row("", facts["msg_size_str"], str(facts["count"]), facts["total_comm_lat_ms"], facts["total_straggler_ms"],
                      facts["avg_comm_lat_ms"], facts["avg_straggler_ms"]) for facts in sizes.values()]
    return "\n".join(lines)


def _exchange_device() -> str:
    return "cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu"


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
