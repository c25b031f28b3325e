"""What people look at while an engine trains: timer lines, throughput, memory, events of the monitors, the flops profile, profiler ranges.

Nothing here changes training. What is not switched on costs next to nothing: a phase without timers and without a profiler is two checks.
"""
from __future__ import annotations

from typing import Any, Callable

from torch import Tensor
from torch.autograd import profiler

from deepspeed.accelerator import get_accelerator
from deepspeed.comm.comm import comms_logger
from deepspeed.monitor.monitor import MonitorMaster
from deepspeed.profiling.flops_profiler.profiler import FlopsProfiler
from deepspeed.runtime.utils import see_memory_usage
from deepspeed.utils.logging import log_dist
from deepspeed.utils.nvtx import open_range
from deepspeed.utils.timer import (BACKWARD_GLOBAL_TIMER, BACKWARD_INNER_GLOBAL_TIMER, BACKWARD_INNER_MICRO_TIMER, BACKWARD_MICRO_TIMER,
                                   BACKWARD_REDUCE_GLOBAL_TIMER, BACKWARD_REDUCE_MICRO_TIMER, FORWARD_GLOBAL_TIMER, FORWARD_MICRO_TIMER,
                                   STEP_GLOBAL_TIMER, STEP_MICRO_TIMER, NoopTimer, SynchronizedWallClockTimer, ThroughputTimer)

# Of a whole accumulation window, and of one micro-step, in the order of their lines.
_WINDOW_TIMERS = (FORWARD_GLOBAL_TIMER, BACKWARD_GLOBAL_TIMER, BACKWARD_INNER_GLOBAL_TIMER, BACKWARD_REDUCE_GLOBAL_TIMER, STEP_GLOBAL_TIMER)
_MICRO_TIMERS = (FORWARD_MICRO_TIMER, BACKWARD_MICRO_TIMER, BACKWARD_INNER_MICRO_TIMER, BACKWARD_REDUCE_MICRO_TIMER, STEP_MICRO_TIMER)
_TITLES = ("DeepSpeedEngine.forward", "DeepSpeedEngine.backward", None, "DeepSpeedEngine.allreduce_gradients", "DeepSpeedEngine.step")
_TIME_EVENTS = ("forward", "backward", "backward_inner", "backward_allreduce", "step")


class Phase:
    """A part of the step: its timers and its range in profilers. A context manager; it may be entered again inside itself, when the inner
    part is timed with the outer."""

    def __init__(self, timers: list[Any], title: str | None) -> None:
        self._timers, self._title = timers, title
        self._unwatched = not timers and get_accelerator().is_synchronized_device()  # but for torch.profiler
        self._open: list[Callable[[], None] | None] = []

    def __enter__(self) -> None:
        if self._unwatched and not profiler._is_profiler_enabled:
            self._open.append(None)
            return
        self.begin_timers()
        if self._title is not None:
            self._open[-1] = open_range(self._title)

    def begin_timers(self) -> None:
        """Enters without a range, for a phase that may end on another thread than it began on."""
        if not self._open:
            for timer in self._timers:
                timer.start()
        self._open.append(None)

    def __exit__(self, *_exception: Any) -> None:
        close = self._open.pop()
        if close is not None:
            close()
        if not self._open:
            for timer in self._timers:
                timer.stop()

    def end(self) -> None:
        """Leaves it, however often it was entered; also what an exception left open."""
        while self._open:
            self.__exit__()


class Phases:
    """The phases of one engine's step."""

    def __init__(self, timers: Any, names: list[tuple[str, ...]]) -> None:
        """names: tuples of the five timers' names, parallel to _TITLES; one for each set of timers that runs."""
        made = [Phase([timers(name) for name in of_phase], title)
                for of_phase, title in zip(zip(*names) if names else [()] * len(_TITLES), _TITLES, strict=True)]
        self.forward, self.backward, self.inner, self.reduce, self.step = made


class EngineReports:
    """Mixin of the engine."""

    def _make_reports(self) -> None:
        config = self._config
        self._timing = config.wall_clock_breakdown or config.flops_profiler.enabled
        self.timers = SynchronizedWallClockTimer() if self._timing else NoopTimer()
        self._phases = Phases(self.timers, [_WINDOW_TIMERS] * self._timing + [_MICRO_TIMERS] * config.wall_clock_breakdown)
        self.tput_timer = ThroughputTimer(config.timers.throughput, config.train_batch_size, steps_per_output=config.steps_per_print,
                                          logging_fn=lambda message: log_dist(message, ranks=[0]))
        self.engine_timers_cache: dict[str, float] = {}
        self.monitor = MonitorMaster(config.monitor_config)
        self.summary_events: list[tuple[str, Any, int]] = []
        self.flops_profiler = FlopsProfiler(self.module, self, config.flops_profiler.recompute_fwd_factor) if config.flops_profiler.enabled \
            else None
        self._profiled_micro_step = -1
        self._window_steps = 0  # calls of step() since the last boundary
        self._window_losses: list[Tensor] = []

    # ---- around the parts of a step
    def _before_forward(self) -> None:
        see_memory_usage("Engine before forward", force=self._config.memory_breakdown)
        if self._profiles() and self.training:
            # One micro-step is profiled, however many forwards it has; of several the last.
            anew = self._profiled_micro_step != self.micro_steps
            self.flops_profiler.start_profile() if anew else self.flops_profiler.resume_profile()
            self._profiled_micro_step = self.micro_steps

    def _after_forward(self) -> None:
        if self.flops_profiler is not None:
            self.flops_profiler.stop_profile()
        see_memory_usage("Engine after forward", force=self._config.memory_breakdown)

    def _note_loss(self, loss: Tensor) -> None:
        """For the mean of the window. Not read before its end: that would wait for the device."""
        if self.monitor.enabled and self.global_rank == 0:
            self._window_losses.append(loss.detach())

    def _after_step(self, boundary: bool, profiled: bool) -> None:
        """`profiled`: this step's forward was."""
        self._window_steps += 1
        if comms_logger.enabled:
            comms_logger.collect()
        if boundary and self.monitor.enabled and self.global_rank == 0:
            self._write_events()
        if boundary and profiled:
            self._print_profile()
        if self._timing:
            self._log_timers(boundary)
        if boundary:
            self._window_steps = 0
            self._window_losses.clear()
        see_memory_usage("Engine after step", force=self._config.memory_breakdown)

    # ---- timers
    def get_wall_clock_timers(self) -> dict[str, float]:
        """Milliseconds by timer of the last step that was timed."""
        return self.engine_timers_cache

    def step_milliseconds(self) -> tuple[float, float, float, int] | None:
        """(forward, backward, step, micro-steps) of the window so far; None where nothing is timed."""
        if not self._timing:
            return None
        forward, backward, step = (self.timers(name).elapsed(reset=False)
                                   for name in (FORWARD_GLOBAL_TIMER, BACKWARD_GLOBAL_TIMER, STEP_GLOBAL_TIMER))
        return forward, backward, step, max(1, self._window_steps)

    def _log_timers(self, boundary: bool) -> None:
        micro = _MICRO_TIMERS if self._config.wall_clock_breakdown else ()
        self.engine_timers_cache = {name: self.timers(name).elapsed(reset=False) for name in (*_WINDOW_TIMERS, *micro)}
        if self._config.gradient_accumulation_steps > 1:
            self.timers.log(micro)
        for name in micro:  # of windows of one micro-step the line would say the same twice
            self.timers(name).reset()
        if boundary:
            self.timers.log(_WINDOW_TIMERS, memory_breakdown=self._config.memory_breakdown)

    # ---- events
    def _write_events(self) -> None:
        """At a boundary, on rank 0: labels "Train/Samples/...", at the number of samples after the step."""
        values: list[tuple[str, Any]] = []
        if self._window_losses:
            values.append(("train_loss", sum(float(loss) for loss in self._window_losses) / len(self._window_losses)))
        values += [("lr", lr) for lr in self.get_lr()[:1]]
        if self._config.fp16.enabled:
            values.append(("loss_scale", self._core.loss_scale))
        if self._timing:
            values += [(f"elapsed_time_ms_{part}", self.timers(name).elapsed(reset=False))
                       for part, name in zip(_TIME_EVENTS, _WINDOW_TIMERS, strict=True)]
        self.summary_events = [(f"Train/Samples/{name}", value, self.global_samples) for name, value in values]
        self.monitor.write_events(self.summary_events)

    # ---- flops
    def _profiles(self) -> bool:
        """Whether the step that is under way is the one to profile."""
        return self.flops_profiler is not None and self.global_rank == 0 and self.global_steps == self._config.flops_profiler.profile_step

    def _print_profile(self) -> None:
        section = self._config.flops_profiler
        self.flops_profiler.print_model_profile(profile_step=self.global_steps, module_depth=section.module_depth,
                                                top_modules=section.top_modules, detailed=section.detailed, output_file=section.output_file)
        self.flops_profiler.end_profile()
