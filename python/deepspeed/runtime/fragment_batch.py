"""Values of fragments from a checkpoint into an engine: many at once, read straight to where they live where that is ordinary memory."""
from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from deepspeed.runtime import fragment_state

_BATCH_BYTES = 256 << 20  # of temporary memory


class FragmentBatch:
    """Collects what a rank's masters and states are read from. read: fills the targets of [(*source, target), ...]."""

    def __init__(self, engine: Any, read: Callable[[list[tuple]], None]) -> None:
        self._engine, self._read = engine, read
        self._in_files = bool(engine._core.file_tier_facts())
        self._wanted: list[tuple] = []
        self._stores: list[Callable[[], None]] = []
        self._waiting = 0

    def add(self, index: int, key: str, source: tuple, length: int, dtype: torch.dtype) -> None:
        """This rank's fragment of parameter `index`, its master ("fp32") or state. dtype: of what is read."""
        target, store = self._destination(index, key, length, dtype)
        self._wanted.append((*source, target))
        if store is None:
            return
        self._stores.append(store)
        self._waiting += target.nbytes
        if self._waiting > _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._wanted:
            self._read(self._wanted)
        for store in self._stores:
            store()
        self._wanted, self._stores, self._waiting = [], [], 0

    def _destination(self, index: int, key: str, length: int, dtype: torch.dtype) -> tuple[Tensor, Callable[[], None] | None]:
        """Where to read to, and what puts it into the engine afterwards (None: it is there)."""
        engine = self._engine
        if engine._stepper.native:
            # SGD's momentum begins as the gradient, unless write_local says that there is one.
            if not self._in_files and key != "momentum_buffer":
                here = engine._core.read_local(index, key)
                if here is not None and here.is_cpu and here.dtype == dtype and here.is_contiguous():
                    return here, None
            value = torch.empty(length, dtype=dtype)
            return value, lambda: engine._core.write_local(index, key, value)
        fragment = fragment_state.fragment_of(engine, index)
        value = torch.empty(length, dtype=dtype)
        if key == "fp32":
            return value, lambda: fragment.master.copy_(value.view(fragment.master.shape))

        def put() -> None:
            held = value.view(fragment.master.shape).to(fragment.master.device)
            engine.basic_optimizer.state[fragment.master][key] = held
        return value, put
