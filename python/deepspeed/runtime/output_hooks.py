"""loss.backward() without the engine: outputs of the engine's forward notice that a backward pass begins.

The first output whose gradient arrives starts the core's micro-step, and a callback at the end of the pass finishes it. The
gradient is divided by the accumulation steps where it enters: an output that is computed from another output of the same forward
gets a gradient that was divided already.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepspeed.runtime.zero.parameter_offload import tensors_of


class OutputWatcher:
    """Watches the outputs of one engine."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._active = False  # a backward pass of the user's is under way

    def watch(self, output: Any) -> None:
        outputs = [output] if type(output) is Tensor else list(tensors_of(output))
        outputs = [t for t in outputs if t.requires_grad and t.grad_fn is not None]
        if not outputs:
            return
        divided: set[int] = set()
        # The hook of a lone output needs no node; holding its own would be a cycle that keeps the graph until the collector runs.
        nodes = [t.grad_fn for t in outputs] if len(outputs) > 1 else []
        for index, tensor in enumerate(outputs):
            tensor.register_hook(_hook(self, nodes, index, divided))

    def on_gradient(self, grad: Tensor, nodes: list, index: int, divided: set[int]) -> Tensor | None:
        engine = self.engine
        if engine._engine_backward_depth > 0 or engine._core is None or grad is None:
            return None
        if not self._active:
            self._begin(grad)
            divided.clear()
        steps = engine._config.gradient_accumulation_steps if engine._config.managed_gradient_accumulation else 1
        if steps == 1 or index in divided:
            return None
        if len(nodes) > 1:
            divided.update(_reachable(nodes, index))
        return grad / steps

    def _begin(self, grad: Tensor) -> None:
        engine = self.engine
        self._active = True
        engine._unmanaged_backwards += 1
        engine._core.set_boundary(engine._reduces_now())
        engine._core.backward_seed(grad.new_zeros(()), 1.0)
        torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _end(self) -> None:
        self._active = False
        engine = self.engine
        expected, engine._manual_backward_expected = engine._manual_backward_expected, False
        if engine._wrapper.needs_scaler() and not expected:
            engine._core.zero_grad()
            engine._core.finish_backward()
            raise RuntimeError("Loss scaling is required for this configuration, but backward() was called directly without scaling the "
                               "loss. Use engine.backward(loss), or engine.scale(loss).backward()")
        engine._finish_backward()


def _hook(watcher: OutputWatcher, nodes: list, index: int, divided: set[int]):

    def on_gradient(grad: Tensor) -> Tensor | None:
        return watcher.on_gradient(grad, nodes, index, divided)

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
