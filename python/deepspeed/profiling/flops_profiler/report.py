"""The printed profile: a summary of the whole model, the largest modules at each depth, and the model's tree with each module's share."""
from __future__ import annotations

from typing import Any, Callable, NamedTuple

import torch.nn as nn

from deepspeed.profiling.flops_profiler.counting import get_module_duration, get_module_flops, get_module_macs
from deepspeed.profiling.flops_profiler.text import (DEFAULT_PRECISION, duration_to_string, flops_to_string, macs_to_string, number_to_string,
                                                     params_to_string)

_NOTATIONS = """\
dp_size and mp_size are the numbers of data-parallel and model-parallel ranks; params are parameters, MACs multiply-accumulate operations,
flops floating-point operations (two for each MAC), FLOPS flops per second; latencies are times of the forward (fwd), of the backward (bwd), of
the update (step), and of all three (iter)."""
_ORDER = """\
After each module's name: params and their share of the model's, MACs and share, forward latency and share, FLOPS of the forward. What a module
computes itself, outside its submodules, is in its own figures alone. flops are counted by formula: their rate may exceed what the device can do
where it does less. Latencies are measured with a synchronisation around every module: their sum is longer than an undisturbed forward."""


class Latencies(NamedTuple):
    """Seconds of one optimizer step, measured by the engine's timers."""

    forward: float  # of one micro-step
    backward: float  # likewise
    step: float
    micro_steps: int

    @property
    def iteration(self) -> float:
        return self.micro_steps * (self.forward + self.backward) + self.step


class Share(NamedTuple):
    """A module's figures, with everything below it."""

    params: int
    macs: int
    flops: int
    duration: float


def share_of(module: nn.Module) -> Share:
    return Share(module.__params__ + module.__expert_params__, get_module_macs(module), get_module_flops(module), get_module_duration(module))


def _rate(flops: float, seconds: float) -> str:
    return flops_to_string(flops / seconds if seconds > 0 else 0)


def _percent(part: float, whole: float) -> str:
    return f"{round(100 * part / whole, DEFAULT_PRECISION) if whole else 0:g}%"


# ---------------------------------------------------------------- summary

def summary(model: nn.Module, engine: Any, profile_step: int, recompute_fwd_factor: float, latencies: Latencies | None) -> str:
    """`engine` may be None; `latencies` are None where nobody timed the backward and the step."""
    share = share_of(model)
    rows = _engine_rows(engine) if engine is not None else []
    rows += _param_rows(model, engine, share.params)
    model_ranks = engine.mp_world_size if engine is not None else 1
    rows += [("fwd MACs per GPU: ", macs_to_string(share.macs)), ("fwd flops per GPU: ", number_to_string(share.flops)),
             ("fwd flops of model = fwd flops per GPU * mp_size: ", number_to_string(share.flops * model_ranks))]
    forward = share.duration if latencies is None else latencies.forward
    rows += [("fwd latency: ", duration_to_string(forward)),
             ("fwd FLOPS per GPU = fwd flops per GPU / fwd latency: ", _rate(share.flops, forward))]
    if latencies is not None:
        rows += _step_rows(engine, share.flops, 2 + recompute_fwd_factor, latencies)
    table = "\n".join(f"{label:<70}  {value:<8}" for label, value in rows)
    return ("\n-------------------------- DeepSpeed Flops Profiler --------------------------\n"
            f"Profile Summary at step {profile_step}:\nNotations:\n{_NOTATIONS}\n\n{table}")


def _engine_rows(engine: Any) -> list[tuple[str, Any]]:
    return [("world size: ", engine.world_size), ("data parallel size: ", engine.dp_world_size), ("model parallel size: ", engine.mp_world_size),
            ("batch size per GPU: ", engine.train_micro_batch_size_per_gpu())]


def _param_rows(model: nn.Module, engine: Any, own: int) -> list[tuple[str, Any]]:
    rows = [("params per GPU: ", params_to_string(own))]
    model_ranks = engine.mp_world_size if engine is not None else 1
    shared, experts = model.__params__ * model_ranks, model.__model_expert_params__
    if not experts:
        return [*rows, ("params of model = params per GPU * mp_size: ", params_to_string(shared))]
    return [*rows, ("params of model: ", params_to_string(shared + experts)), ("   non-expert params of model: ", params_to_string(shared)),
            ("   expert params of model: ", params_to_string(experts))]


def _step_rows(engine: Any, flops: int, factor: float, latencies: Latencies) -> list[tuple[str, Any]]:
    """`factor`: forwards that one backward is worth; gradients of inputs and of weights are one each."""
    micro_step, whole = latencies.forward + latencies.backward, (factor + 1) * latencies.micro_steps
    samples = engine.train_micro_batch_size_per_gpu() * latencies.micro_steps * engine.dp_world_size
    return [("bwd latency: ", duration_to_string(latencies.backward)),
            (f"bwd FLOPS per GPU = {factor:g} * fwd flops per GPU / bwd latency: ", _rate(factor * flops, latencies.backward)),
            (f"fwd+bwd FLOPS per GPU = {factor + 1:g} * fwd flops per GPU / (fwd+bwd latency): ", _rate((factor + 1) * flops, micro_step)),
            ("step latency: ", duration_to_string(latencies.step)), ("iter latency: ", duration_to_string(latencies.iteration)),
            (f"FLOPS per GPU = {whole:g} * fwd flops per GPU / iter latency: ", _rate(whole * flops, latencies.iteration)),
            ("samples/second: ", round(samples / latencies.iteration, DEFAULT_PRECISION) if latencies.iteration > 0 else 0)]


# ---------------------------------------------------------------- largest modules

def aggregated(model: nn.Module, module_depth: int, top_modules: int) -> str:
    """For each depth down to `module_depth` (-1: all) the `top_modules` classes with the most parameters, MACs and time. Figures of modules
    of one class at one depth are added."""
    depths: list[dict[str, list[float]]] = []
    _collect(model, 0, depths)
    shown = depths if module_depth == -1 else depths[:module_depth + 1]
    lines = [f"Top {top_modules} modules in terms of params, MACs or fwd latency at different model depths:"]
    for depth, classes in enumerate(shown):
        lines += [f"depth {depth}:", f"    params      - {_top(classes, 0, top_modules, params_to_string)}",
                  f"    MACs        - {_top(classes, 1, top_modules, macs_to_string)}",
                  f"    fwd latency - {_top(classes, 2, top_modules, duration_to_string)}"]
    return "\n".join(lines)


def _collect(module: nn.Module, depth: int, depths: list[dict[str, list[float]]]) -> None:
    if depth == len(depths):
        depths.append({})
    share = share_of(module)
    sums = depths[depth].setdefault(type(module).__name__, [0, 0, 0.0])
    for index, value in enumerate((share.params, share.macs, share.duration)):
        sums[index] += value
    for child in module.children():
        _collect(child, depth + 1, depths)


def _top(classes: dict[str, list[float]], index: int, count: int, text: Callable[[float], str]) -> dict[str, str]:
    ordered = sorted(classes.items(), key=lambda item: item[1][index], reverse=True)
    return {name: text(sums[index]) for name, sums in ordered[:count]}


# ---------------------------------------------------------------- tree

def tree(model: nn.Module) -> str:
    """The model as print() shows it, each module with its figures before its own description."""
    return f"{_ORDER}\n\n{_node(model, share_of(model))}"


def _node(module: nn.Module, whole: Share) -> str:
    share = share_of(module)
    facts = [f"{params_to_string(share.params)} = {_percent(share.params, whole.params)} Params",
             f"{macs_to_string(share.macs)} = {_percent(share.macs, whole.macs)} MACs",
             f"{duration_to_string(share.duration)} = {_percent(share.duration, whole.duration)} latency", _rate(share.flops, share.duration)]
    if described := module.extra_repr():
        facts.append(described)
    name = type(module).__name__
    children = [f"  ({key}): " + _node(child, whole).replace("\n", "\n  ") for key, child in module.named_children()]
    if not children:
        return f"{name}({', '.join(facts)})"
    return "\n".join([f"{name}(", f"  {', '.join(facts)}", *children, ")"])
