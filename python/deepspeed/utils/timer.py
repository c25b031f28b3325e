"""Wall-clock timers by name, and the throughput line."""
from __future__ import annotations

import time
from statistics import mean
from typing import Any, Callable, Sequence

FORWARD_MICRO_TIMER = "fwd_microstep"
FORWARD_GLOBAL_TIMER = "fwd"
BACKWARD_MICRO_TIMER = "bwd_microstep"
BACKWARD_GLOBAL_TIMER = "bwd"
BACKWARD_INNER_MICRO_TIMER = "bwd_inner_microstep"
BACKWARD_INNER_GLOBAL_TIMER = "bwd_inner"
BACKWARD_REDUCE_MICRO_TIMER = "bwd_allreduce_microstep"
BACKWARD_REDUCE_GLOBAL_TIMER = "bwd_allreduce"
STEP_MICRO_TIMER = "step_microstep"
STEP_GLOBAL_TIMER = "step"


def trim_mean(data: Sequence[float], trim_percent: float) -> float:
    """Mean without the `trim_percent` smallest and largest values; 0 of nothing."""
    if not (0.0 <= trim_percent <= 1.0):
        raise AssertionError(f"trim_percent must be in [0, 1], got {trim_percent}")
    if not data:
        return 0
    cut = int(round(len(data) * trim_percent))
    return mean(sorted(data)[cut:len(data) - cut])


def _synchronize() -> None:
    from deepspeed.accelerator import get_accelerator
    get_accelerator().synchronize()


def _memory_gb() -> tuple[float, float]:
    from deepspeed.accelerator import get_accelerator
    accelerator = get_accelerator()
    return round(accelerator.memory_allocated() / 1024**3, 2), round(accelerator.max_memory_allocated() / 1024**3, 2)


class SynchronizedWallClockTimer:
    """A set of named timers; the device is synchronised at each start and stop."""

    class Timer:
        """One timer: accumulates elapsed milliseconds until they are read with reset."""

        def __init__(self, name: str) -> None:
            self.name_ = name
            self.started_ = False
            self._begin = 0.0
            self._elapsed_ms = 0.0
            self.records: list[float] = []

        def start(self) -> None:
            if self.started_:
                raise AssertionError(f"timer {self.name_!r} has already been started")
            _synchronize()
            self._begin = time.perf_counter()
            self.started_ = True

        def stop(self, reset: bool = False, record: bool = False) -> None:
            if not self.started_:
                raise AssertionError(f"timer {self.name_!r} is not started")
            _synchronize()
            passed = (time.perf_counter() - self._begin) * 1000.0
            self._elapsed_ms = passed if reset else self._elapsed_ms + passed
            self.started_ = False
            if record:
                self.records.append(passed)

        def reset(self) -> None:
            self.started_ = False
            self._elapsed_ms = 0.0

        def elapsed(self, reset: bool = True) -> float:
            """Milliseconds so far; a running timer goes on running."""
            running = self.started_
            if running:
                self.stop()
            passed = self._elapsed_ms
            if reset:
                self.reset()
            if running:
                self.start()
            return passed

        def mean(self) -> float:
            return trim_mean(self.records, 0.1)

    def __init__(self) -> None:
        self.timers: dict[str, SynchronizedWallClockTimer.Timer] = {}

    def get_timers(self) -> dict:
        return self.timers

    def __call__(self, name: str) -> "SynchronizedWallClockTimer.Timer":
        if name not in self.timers:
            self.timers[name] = self.Timer(name)
        return self.timers[name]

    @staticmethod
    def memory_usage() -> str:
        now, peak = _memory_gb()
        return f" | mem_allocated: {now} GB | max_mem_allocated: {peak} GB"

    def log(self, names: Sequence[str], normalizer: float = 1.0, reset: bool = True, memory_breakdown: bool = False,
            ranks: Sequence[int] | None = None) -> None:
        """Prints one line with the named timers. Printed whatever the log level: the caller asked for it by configuration."""
        from .logging import _rank
        parts = [f"{name}: {self.timers[name].elapsed(reset=reset) / normalizer:.2f}" for name in names if name in self.timers]
        rank = _rank()
        if rank < 0 or rank in (ranks or [0]):
            memory = self.memory_usage() if memory_breakdown else ""
            print(f"[Rank {max(rank, 0)}] time (ms) | " + " | ".join(parts) + memory, flush=True)

    def get_mean(self, names: Sequence[str], normalizer: float = 1.0, reset: bool = True) -> dict[str, float]:
        if normalizer <= 0.0:
            raise AssertionError(f"normalizer must be positive, got {normalizer}")
        means = {}
        for name in names:
            if name in self.timers:
                means[name] = self.timers[name].mean() / normalizer
                if reset:
                    self.timers[name].reset()
        return means


class NoopTimer:
    """Timers that do nothing, for engines that do not measure."""

    class Timer:

        def start(self) -> None: ...

        def reset(self) -> None: ...

        def stop(self, **_kwargs) -> None: ...

        def elapsed(self, **_kwargs) -> float:
            return 0

        def mean(self) -> float:
            return 0

    def __init__(self) -> None:
        self.timer = self.Timer()

    def __call__(self, name: str) -> "NoopTimer.Timer":
        return self.timer

    def get_timers(self) -> dict:
        return {}

    def log(self, *_args, **_kwargs) -> None: ...

    def get_mean(self, *_args, **_kwargs) -> None: ...


class ThroughputTimer:
    """Samples per second over global steps; the first `start_step` steps are not counted."""

    def __init__(self, config: Any, batch_size: int | None, start_step: int = 2, steps_per_output: float | None = None,
                 monitor_memory: bool = False, logging_fn: Callable[[str], None] | None = None) -> None:
        from .logging import logger
        self.config = config
        self.batch_size = batch_size or 1
        self.start_step = start_step
        self.steps_per_output = steps_per_output
        self.logging = logging_fn or logger.info
        self.epoch_count = self.micro_step_count = self.global_step_count = 0
        self.total_elapsed_time = self.step_elapsed_time = 0.0
        self.started = False
        self._begin: float | None = None

    def update_epoch_count(self) -> None:
        self.epoch_count += 1
        self.micro_step_count = 0

    def start(self) -> None:
        if not self.config.enabled:
            return
        self.started = True
        if self.global_step_count >= self.start_step:
            self._begin = self._now()

    def stop(self, global_step: bool = False, report_speed: bool = True) -> None:
        if not self.config.enabled or not self.started:
            return
        self.started = False
        self.micro_step_count += 1
        self.global_step_count += int(global_step)
        if self._begin is None:
            return
        passed = self._now() - self._begin
        self._begin = None
        self.total_elapsed_time += passed
        self.step_elapsed_time += passed
        if global_step:
            if report_speed and self._at_output():
                self._report()
            self.step_elapsed_time = 0.0

    def _now(self) -> float:
        if self.config.synchronized:
            _synchronize()
        return time.perf_counter()

    def _at_output(self) -> bool:
        return self.steps_per_output is not None and self.global_step_count % self.steps_per_output == 0

    def _report(self) -> None:
        now, peak = _memory_gb()
        current = self.batch_size / (self.step_elapsed_time + 1e-6)
        self.logging(f"epoch={self.epoch_count}/micro_step={self.micro_step_count}/global_step={self.global_step_count}, "
                     f"RunningAvgSamplesPerSec={self.avg_samples_per_sec()}, CurrSamplesPerSec={current}, "
                     f"MemAllocated={now}GB, MaxMemAllocated={peak}GB")

    def avg_samples_per_sec(self) -> float:
        counted = self.global_step_count - self.start_step
        if counted <= 0 or self.total_elapsed_time == 0:
            return float("-inf")
        return self.batch_size * counted / self.total_elapsed_time
