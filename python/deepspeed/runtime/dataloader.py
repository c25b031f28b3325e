"""The data loader that initialize() returns, and one that never ends. Both can be put where an earlier run stood."""
from __future__ import annotations

import contextlib
import itertools
from typing import Any, Callable, Iterator

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from deepspeed.runtime.data_position import Resumable, is_shared
from deepspeed.utils.logging import logger


class RepeatingLoader:
    """Wraps an iterable and starts it again when it ends."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.data_iter = iter(loader)
        self._handed = 0  # in the running pass

    def __iter__(self) -> "RepeatingLoader":
        return self

    def __next__(self) -> Any:
        try:
            batch = next(self.data_iter)
        except StopIteration:
            self.data_iter, self._handed = iter(self.loader), 0
            batch = next(self.data_iter)
        self._handed += 1
        return batch

    def state_dict(self) -> dict:
        """Of the loader inside, where it keeps one; else how many batches of the running pass were handed out."""
        inner = self.loader.state_dict() if hasattr(self.loader, "state_dict") else None
        return {"kind": "repeating", "batches": self._handed, "loader": inner}

    def load_state_dict(self, state: dict) -> None:
        _expect(state, "repeating")
        if state["loader"] is not None and hasattr(self.loader, "load_state_dict"):
            self.loader.load_state_dict(state["loader"])
            self.data_iter, self._handed = iter(self.loader), state["batches"]
            return
        self.data_iter, self._handed = iter(self.loader), 0
        for _ in range(state["batches"]):
            next(self)


class DeepSpeedDataLoader:
    """Batches of one data-parallel rank. Starts the throughput timer when a batch is asked for.

    state_dict() says how far the running pass is, load_state_dict() goes there: the next batch is the one that would have followed, whether
    it is asked for by a new loop or by one that runs. Ranks and batch sizes may have changed where samples come from the loader's own sampler
    or a torch DistributedSampler."""

    def __init__(self, dataset: Any, batch_size: int, pin_memory: bool = False, local_rank: int = 0, tput_timer: Any = None,
                 collate_fn: Callable | None = None, num_local_io_workers: int | None = None, data_sampler: Any = None,
                 data_parallel_world_size: int = 1, data_parallel_rank: int = 0, dataloader_drop_last: bool = False,
                 deepspeed_dataloader_config: dict | None = None) -> None:
        self.dataset, self.batch_size, self.tput_timer = dataset, batch_size, tput_timer
        self.post_process_func: Callable | None = None
        self.data_sampler = data_sampler
        self._resumable: Resumable | None = None
        if isinstance(dataset, IterableDataset):
            options: dict[str, Any] = {"batch_size": batch_size, "drop_last": dataloader_drop_last}
        else:
            if data_sampler is None:
                # Every rank must draw its own samples; the order is that of a seed which all ranks share.
                self.data_sampler = DistributedSampler(dataset, num_replicas=data_parallel_world_size, rank=data_parallel_rank)
            self._resumable = Resumable(self.data_sampler)
            if isinstance(self.data_sampler, BatchSampler):
                options = {"batch_sampler": self._resumable}
            else:
                options = {"batch_size": batch_size, "sampler": self._resumable, "drop_last": dataloader_drop_last}
        self.dataloader = DataLoader(dataset, pin_memory=pin_memory and torch.cuda.is_available(), collate_fn=collate_fn,
                                     num_workers=num_local_io_workers or 0, **options)
        self.data: Iterator | None = None
        self._ranks = data_parallel_world_size
        self._start = 0  # where the running pass began, in samples of all ranks, or in batches
        self._handed = 0  # batches since then
        self._pending: dict | None = None  # a loaded state of which no batch was handed out yet

    @property
    def len(self) -> int:
        return len(self.dataloader)

    def __len__(self) -> int:
        return len(self.dataloader)

    def __iter__(self) -> "DeepSpeedDataLoader":
        self._begin()
        return self

    def __next__(self) -> Any:
        if self.data is None:
            self._begin()
        if self.tput_timer is not None:
            self.tput_timer.start()
        try:
            batch = next(self.data)
        except StopIteration:
            self.data, self._pending = None, None
            if self._resumable is not None:
                self._resumable.go_to(0, None)
            raise
        self._handed += 1
        self._pending = None
        return self.post_process_func(batch, getattr(self.data_sampler, "state_dict", dict)()) \
            if self.post_process_func is not None else batch

    # ---- a place in the data
    def _begin(self) -> None:
        """A pass: from its beginning, or from where a loaded state says."""
        state = self._pending
        if state is not None and state["epoch"] != getattr(self.data_sampler, "epoch", None):
            state = self._pending = None  # set_epoch() of another epoch since
        self._start, self._handed = (0, 0) if state is None else (state["position"], 0)
        kept = _kept_random_numbers() if state is not None and state["begun"] else contextlib.nullcontext()
        with kept:  # the earlier run drew the seed of its workers when its pass began
            if self._resumable is not None:
                self._resumable.go_to(self._start, None if state is None else state["random"])
            self.data = iter(self.dataloader)
            if self._resumable is None:
                self._skip(self._start)

    def _skip(self, batches: int) -> None:
        """Datasets without an index cannot begin elsewhere than at their beginning."""
        for _ in itertools.islice(self.data, batches):
            pass

    def _position(self) -> int:
        """In the running pass: samples of all ranks where ranks take turns, else what the sampler was asked for on this rank."""
        if self._resumable is None or isinstance(self.data_sampler, BatchSampler):
            return self._start + self._handed
        count = self._handed * self.batch_size
        if is_shared(self.data_sampler):
            return min(self._start + count * self.data_sampler.num_replicas, len(self.dataset))
        return self._start + count

    def _facts(self) -> dict:
        """What the order of a pass follows from; a state is of use where they are the same."""
        sampler = self.data_sampler
        kind = "iterable" if self._resumable is None else "batches" if isinstance(sampler, BatchSampler) else "samples"
        facts: dict[str, Any] = {"kind": kind, "shared": is_shared(sampler), "dataset": None if kind == "iterable" else len(self.dataset)}
        if facts["shared"]:
            return {**facts, "seed": sampler.seed, "shuffle": sampler.shuffle}
        return {**facts, "ranks": self._ranks, **({"batch_size": self.batch_size} if kind == "iterable" else {})}

    def state_dict(self) -> dict:
        """Where the running pass stands. Of this rank; with a shared order the same on all ranks."""
        if self._pending is not None and self._handed == 0:
            return dict(self._pending)
        begun = self.data is not None
        return {**self._facts(), "epoch": getattr(self.data_sampler, "epoch", None), "position": self._position() if begun else 0,
                "begun": begun, "random": self._resumable.random_state() if self._resumable is not None else None}

    def load_state_dict(self, state: dict) -> None:
        facts = self._facts()
        _expect(state, *("iterable", "batches", "samples"))
        self.data, self._pending, self._start, self._handed = None, None, 0, 0
        differs = [f"{key} {state.get(key)!r} there, {value!r} here" for key, value in facts.items() if state.get(key) != value]
        if differs:
            logger.warning(f"the data loader starts anew: its saved position is of other data ({'; '.join(differs)})")
            return
        position = state.get("position")
        if type(position) is not int or position < 0 or not {"epoch", "begun", "random"} <= set(state):
            raise ValueError(f"load_state_dict() of a data loader: position {position!r}, expected what state_dict() returned")
        if state["epoch"] is not None and hasattr(self.data_sampler, "set_epoch"):
            self.data_sampler.set_epoch(state["epoch"])
        self._pending = dict(state)


def _expect(state: Any, *kinds: str) -> None:
    found = state.get("kind") if isinstance(state, dict) else type(state).__name__
    if found not in kinds:
        raise ValueError(f"load_state_dict() of a data loader: found the state of {found!r}, expected {' or '.join(map(repr, kinds))}: pass what "
                         "state_dict() of such a loader returned")


@contextlib.contextmanager
def _kept_random_numbers() -> Iterator[None]:
    """What is drawn inside is not missing afterwards."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def sampler_for(dataset: Any, route: str, world_size: int, rank: int) -> Any:
    """Evaluation and prediction read in order; training shuffles (the loader's default)."""
    if route in ("eval", "predict"):
        return DistributedSampler(dataset, num_replicas=world_size, rank=rank, shuffle=False)
    return None


__all__ = ["DeepSpeedDataLoader", "RepeatingLoader", "sampler_for"]
