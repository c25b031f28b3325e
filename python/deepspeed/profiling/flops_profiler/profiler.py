"""The flops profiler: operations, multiply-accumulates, parameters and time of one forward, for the model and each of its modules.

    profiler = FlopsProfiler(model)
    profiler.start_profile()
    model(batch)
    profiler.print_model_profile()
    profiler.end_profile()

or get_model_profile(model, input_shape) for one forward of a model by itself, or the section `flops_profiler` of the configuration, with
which the engine prints the profile of one of its steps. What is counted: docs/monitoring.md.
"""
from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, Callable, Iterator, Sequence, TextIO

import torch
import torch.nn as nn

from deepspeed.profiling.flops_profiler import report
from deepspeed.profiling.flops_profiler.counting import (ForwardCounter, forget_figures, get_module_duration, get_module_flops, get_module_macs,
                                                         reset_figures)
from deepspeed.profiling.flops_profiler.text import (DEFAULT_PRECISION, bytes_to_string, duration_to_string, flops_to_string, macs_to_string,
                                                     number_to_string, params_to_string)
from deepspeed.utils.logging import logger

_LINE = "-" * 78


class FlopsProfiler:
    """Profiles forwards of `model` between start_profile() and stop_profile(); figures stay readable until end_profile().

    ds_engine: the engine that trains the model; its sizes and timers are then in the printed profile.
    recompute_fwd_factor: forwards that backward repeats, 1.0 where every layer's activations are computed anew."""

    def __init__(self, model: nn.Module, ds_engine: Any = None, recompute_fwd_factor: float = 0.0) -> None:
        self.model = model
        self.ds_engine = ds_engine
        self.recompute_fwd_factor = recompute_fwd_factor
        self.started = False
        self.flops = self.macs = self.params = 0  # as printed last
        self._counter = ForwardCounter(model)

    def start_profile(self, ignore_list: Sequence[type[nn.Module]] | None = None) -> None:
        """Counts from zero. Modules of the types `ignore_list` are not looked at; what they call counts for the module around them."""
        logger.info("Flops profiler started")
        self._counter.remove()
        self.reset_profile()
        self._counter.install(ignore_list)
        self.started = True

    def resume_profile(self) -> None:
        """Counts on after stop_profile()."""
        self._check_started()
        self._counter.remove()
        self._counter.install()

    def stop_profile(self) -> None:
        """Stops counting."""
        self._counter.remove()

    def reset_profile(self) -> None:
        """Sets all figures to zero."""
        reset_figures(self.model)

    def end_profile(self) -> None:
        """Stops counting and takes the figures off the modules."""
        if not self.started:
            return
        self.stop_profile()
        self.started = False
        forget_figures(self.model)
        logger.info("Flops profiler finished")

    def _check_started(self) -> None:
        if not self.started:
            raise RuntimeError("there is no profile: call start_profile() and run the model first; end_profile() forgets it")

    def _total(self, figure_of: Callable[[nn.Module], Any], text_of: Callable[[Any], str], as_string: bool) -> Any:
        self._check_started()
        figure = figure_of(self.model)
        return text_of(figure) if as_string else figure

    def get_total_flops(self, as_string: bool = False) -> int | str:
        """Floating-point operations of the forwards since start_profile()."""
        return self._total(get_module_flops, number_to_string, as_string)

    def get_total_macs(self, as_string: bool = False) -> int | str:
        """Multiply-accumulate operations."""
        return self._total(get_module_macs, macs_to_string, as_string)

    def get_total_duration(self, as_string: bool = False) -> float | str:
        """Seconds in the model's forward."""
        return self._total(get_module_duration, duration_to_string, as_string)

    def get_total_params(self, as_string: bool = False) -> int | str:
        """Parameters that this rank uses; all of them where ZeRO shards them."""
        return self._total(lambda model: model.__params__ + model.__expert_params__, params_to_string, as_string)

    def print_model_profile(self, profile_step: int = 1, module_depth: int = -1, top_modules: int = 1, detailed: bool = True,
                            output_file: str | None = None) -> None:
        """Prints the whole profile, to `output_file` if there is one. Does nothing before start_profile().

        Raises OSError naming flops_profiler.output_file when that cannot be written."""
        if not self.started:
            return
        self.flops, self.macs, self.params = self.get_total_flops(), self.get_total_macs(), self.get_total_params()
        with _opened(output_file) as file:
            print(report.summary(self.model, self.ds_engine, profile_step, self.recompute_fwd_factor, self._latencies()), file=file)
            print("\n----------------------------- Aggregated Profile per GPU -----------------------------", file=file)
            print(report.aggregated(self.model, module_depth, top_modules), file=file)
            if detailed:
                print("\n------------------------------ Detailed Profile per GPU ------------------------------", file=file)
                print(report.tree(self.model), file=file)
            print(_LINE, file=file, flush=True)

    def print_model_aggregated_profile(self, module_depth: int = -1, top_modules: int = 1) -> None:
        """Prints the classes of modules with the most parameters, MACs and time at each depth down to module_depth (-1: all)."""
        self._check_started()
        print(report.aggregated(self.model, module_depth, top_modules))

    def _latencies(self) -> report.Latencies | None:
        """What the engine's timers say of its current step; None where it does not time."""
        milliseconds = self.ds_engine.step_milliseconds() if self.ds_engine is not None else None
        if milliseconds is None:
            return None
        forward, backward, step, micro_steps = milliseconds
        return report.Latencies(forward / micro_steps / 1e3, backward / micro_steps / 1e3, step / 1e3, micro_steps)


@contextlib.contextmanager
def _opened(path: str | None) -> Iterator[TextIO]:
    """The file at `path`, in a folder that is made if needed; the standard output without one."""
    if not path:
        yield sys.stdout
        return
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        file = open(path, "w", encoding="utf-8")
    except OSError as error:
        raise type(error)(error.errno, f"flops_profiler.output_file cannot be written ({error.strerror}): name another file", path) from error
    with file:
        yield file


def get_model_profile(model: nn.Module, input_shape: tuple[int, ...] | None = None, args: Sequence[Any] = (),
                      kwargs: dict[str, Any] | None = None, print_profile: bool = True, detailed: bool = True, module_depth: int = -1,
                      top_modules: int = 1, warm_up: int = 1, as_string: bool = True, output_file: str | None = None,
                      ignore_modules: Sequence[type[nn.Module]] | None = None, mode: str = "forward") -> tuple[Any, Any, Any]:
    """(flops, macs, params) of one forward in evaluation mode, as text or as numbers.

    Args:
        input_shape: of the one tensor that the model takes (of its parameters' dtype and device); instead of args and kwargs.
        warm_up: forwards before the one that is measured.
        ignore_modules: types of modules that are not looked at.
        mode: "forward", or "generate" to profile model.generate().
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if mode not in ("forward", "generate"):
        raise ValueError(f'mode must be "forward" or "generate", got {mode!r}')
    if input_shape is not None:
        args = [_input_of(model, input_shape)]
    kwargs = kwargs or {}
    if not args and not kwargs:
        raise ValueError("get_model_profile needs an input: pass input_shape, args or kwargs")
    run = model if mode == "forward" else model.generate
    profiler, training = FlopsProfiler(model), {module: module.training for module in model.modules()}
    model.eval()
    try:
        for _ in range(warm_up):
            run(*args, **kwargs)
        profiler.start_profile(ignore_list=ignore_modules)
        run(*args, **kwargs)
        profiler.stop_profile()
        figures = profiler.get_total_flops(as_string), profiler.get_total_macs(as_string), profiler.get_total_params(as_string)
        if print_profile:
            profiler.print_model_profile(profile_step=warm_up, module_depth=module_depth, top_modules=top_modules, detailed=detailed,
                                         output_file=output_file)
    finally:
        profiler.end_profile()
        for module, was_training in training.items():
            module.training = was_training
    return figures


def _input_of(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    if not isinstance(shape, tuple) or not shape:
        raise ValueError(f"input_shape must be a tuple with at least one size, got {shape!r}")
    param = next(model.parameters(), None)
    return torch.ones(shape) if param is None else torch.ones(shape, dtype=param.dtype, device=param.device)
