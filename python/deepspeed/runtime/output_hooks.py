"""loss.backward() without the engine: outputs of the engine's forward notice that a backward pass begins.

The first output whose gradient arrives starts the core's micro-step, and a callback at the end of the pass finishes it. The
gradient is divided by the accumulation steps where it enters: an output that is computed from another output of the same forward
gets a gradient that was divided already.
"""
from __future__ import annotations

import weakref
from typing import Any, Callable

import torch
from torch import Tensor

from deepspeed.runtime.zero.parameter_offload import tensors_of

_KEPT_FORWARDS = 4  # forwards before one backward whose graphs are still known


class _Forward:
    """The outputs of one forward: their nodes (until the backward pass), and which of them were divided."""

    def __init__(self, nodes: list) -> None:
        self.nodes = nodes
        self.divided: set[int] = set()


class OutputWatcher:
    """Watches the outputs of one engine."""

    def __init__(self, engine: Any) -> None:
        self._engine = weakref.ref(engine)
        self._active = False  # a backward pass of the user's is under way
        self._forwards: list[_Forward] = []

    def watch(self, output: Any) -> None:
        if self._active:  # an earlier backward pass ended in an exception
            self._active = self._engine()._manual_backward_expected = False
            self._end_phases(self._engine())
            self._engine()._core.finish_backward()
        outputs = [output] if type(output) is Tensor else list(tensors_of(output))
        outputs = [t for t in outputs if t.requires_grad and t.grad_fn is not None]
        if not outputs:
            return
        forward = _Forward([])
        if len(outputs) > 1 and self._divisor() != 1:
            # Kept here, not by the hooks: a hook that holds its own node is a cycle, which keeps the graph until the collector runs.
            forward.nodes = [t.grad_fn for t in outputs]
            self._forwards.append(forward)
            for old in self._forwards[:-_KEPT_FORWARDS]:
                old.nodes = []
            del self._forwards[:-_KEPT_FORWARDS]
        for index, tensor in enumerate(outputs):
            tensor.register_hook(_hook(self, forward, index))

    def forget(self) -> None:
        """A backward pass is over: its graphs are needed no more."""
        for forward in self._forwards:
            forward.nodes = []
        self._forwards.clear()

    def _divisor(self) -> float:
        """Accumulation steps, by the ranks that share a sequence, whose gradients are to be summed and not averaged."""
        engine = self._engine()
        config = engine._config
        return (config.gradient_accumulation_steps if config.managed_gradient_accumulation else 1) / engine.sequence_parallel_size

    def on_gradient(self, grad: Tensor, forward: _Forward, index: int) -> Tensor | None:
        engine = self._engine()
        if engine is None or engine._engine_backward_depth > 0 or engine._core is None or grad is None:
            return None
        if not self._active:
            self._begin(engine)
            forward.divided.clear()
        divisor = self._divisor()
        if divisor == 1 or index in forward.divided:
            return None
        if forward.nodes:
            forward.divided.update(_reachable(forward.nodes, index))
        return grad / divisor

    def _begin(self, engine: Any) -> None:
        self._active = True
        engine._unmanaged_backwards += 1
        engine._phases.backward.begin_timers()
        engine._phases.inner.begin_timers()
        engine._core.begin_backward()
        torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _end(self) -> None:
        self._active = False
        self.forget()
        engine = self._engine()
        engine._phases.inner.end()
        expected, engine._manual_backward_expected = engine._manual_backward_expected, False
        try:
            if engine._wrapper.needs_scaler() and not expected:
                engine._core.zero_grad()
                raise RuntimeError("Loss scaling is required for this configuration, but backward() was called directly without scaling the "
                                   "loss. Use engine.backward(loss), or engine.scale(loss).backward()")
            engine._finish_backward()
        finally:
            self._end_phases(engine)

    @staticmethod
    def _end_phases(engine: Any) -> None:
        engine._phases.inner.end()
        engine._phases.backward.end()


def _hook(watcher: OutputWatcher, forward: _Forward, index: int) -> Callable[[Tensor], Tensor | None]:

    def on_gradient(grad: Tensor) -> Tensor | None:
        return watcher.on_gradient(grad, forward, index)

    return on_gradient


def _reachable(nodes: list, start: int) -> set[int]:
    """Indices of nodes whose gradient comes (also) through nodes[start]."""
    wanted = {node: i for i, node in enumerate(nodes)}
    found: set[int] = set()
    pending, seen = [nodes[start]], {nodes[start]}
    while pending and len(found) < len(nodes) - 1:
        for following, _ in pending.pop().next_functions:
            if following is None or following in seen:
                continue
            seen.add(following)
            pending.append(following)
            if following in wanted and wanted[following] != start:
                found.add(wanted[following])
    return found
