"""Where a run stands in its training data: what samplers go on with, and what checkpoints keep of it.

The order of a pass over a dataset is a function of the sampler's seed and epoch, so a place in it is one number: how many samples all ranks
together were handed (batches that workers prepared ahead do not count). That holds for any number of ranks: rank r of W takes samples r,
r + W, r + 2 W, ... of what is left. Samplers whose order only they know are run again from the random state that their pass began with, and
what was handed out is left out: that needs as many ranks as before.

In checkpoints this stands under the key `data_sampler`, which DeepSpeed reserves and reads with curriculum learning alone.
"""
from __future__ import annotations

import itertools
from typing import Any, Iterator

import torch
from torch import Tensor
from torch.utils.data import BatchSampler
from torch.utils.data.distributed import DistributedSampler

from deepspeed.utils.logging import log_dist, logger

_FORMAT = "data_position"


def is_shared(sampler: Any) -> bool:
    """Whether ranks take turns in one order that the seed gives. A subclass may do anything."""
    return type(sampler) is DistributedSampler


def share_of(sampler: DistributedSampler, start: int) -> list[int]:
    """What this rank is handed when the first `start` samples of the pass are gone. Padded as DistributedSampler pads: from the beginning."""
    if start == 0:
        return list(sampler)
    whole = DistributedSampler(sampler.dataset, num_replicas=1, rank=0, shuffle=sampler.shuffle, seed=sampler.seed)
    whole.set_epoch(sampler.epoch)
    order = list(whole)
    left, ranks = order[start:], sampler.num_replicas
    if sampler.drop_last:
        left = left[:len(left) // ranks * ranks]
    else:
        left += list(itertools.islice(itertools.cycle(order), -len(left) % ranks))
    return left[sampler.rank::ranks]


class Resumable:
    """A sampler, or batch sampler, for torch's DataLoader whose next pass may begin behind its beginning."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.start = 0  # samples of all ranks where it is_shared(), else what this rank's sampler gave (samples or batches)
        self.begin_state: Tensor | None = None  # random numbers with which the pass began
        self._again: Tensor | None = None  # ... and with which it is to be run again

    def __len__(self) -> int:
        return len(self.inner)

    def go_to(self, start: int, begin_state: Tensor | None) -> None:
        """Where the next pass begins."""
        self.start, self._again, self.begin_state = start, begin_state, None

    def __iter__(self) -> Iterator[Any]:
        yield from self._indices()  # not before the first is asked for: random numbers are drawn then

    def _generator(self) -> torch.Generator | None:
        drawing = self.inner.sampler if isinstance(self.inner, BatchSampler) else self.inner
        return getattr(drawing, "generator", None)

    def random_state(self) -> Tensor | None:
        """With which the running pass can be run again, or the next one begins; None where torch's generator will tell."""
        own = self._generator()
        state = own.get_state() if self.begin_state is None and own is not None else self.begin_state
        return None if state is None else state.clone()

    def _indices(self) -> Iterator[Any]:
        again, self._again = self._again, None
        if is_shared(self.inner):
            return iter(share_of(self.inner, self.start))
        own = self._generator()
        if again is None:
            self.begin_state = torch.get_rng_state() if own is None else own.get_state()
            return itertools.islice(iter(self.inner), self.start, None)
        return self._run_again(again, own)

    def _run_again(self, again: Tensor, own: torch.Generator | None) -> Iterator[Any]:
        """Without a generator of their own, samplers draw from torch's before their first index: that is undone, as the run that goes on has
        its own state."""
        self.begin_state, now = again, torch.get_rng_state()
        (torch.set_rng_state if own is None else own.set_state)(again)
        left = itertools.islice(iter(self.inner), self.start, None)
        first = list(itertools.islice(left, 1))
        if own is None:
            torch.set_rng_state(now)
        return itertools.chain(first, left)


def plain(value: Any) -> bool:
    """Whether checkpoint files, which cannot run code, may hold it."""
    if isinstance(value, dict):
        return all(plain(key) and plain(item) for key, item in value.items())
    if type(value) in (list, tuple):
        return all(plain(item) for item in value)
    return value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str, bytes)


# ---------------------------------------------------------------- checkpoints
def saved_position(engine: Any) -> dict | None:
    """Of all ranks' loaders; None where no rank has one that knows its place. Collective."""
    from deepspeed.runtime.agreement import any_rank
    loader = engine.training_dataloader
    state = loader.state_dict() if hasattr(loader, "state_dict") else None
    if state is not None and not plain(state):
        logger.warning(f"the state of the data loader ({type(loader).__name__}.state_dict()) is not saved: a checkpoint holds tensors, numbers, "
                       "text, lists and dictionaries of these alone, so that loading cannot run code")
        state = None
    if not any_rank(engine, state is not None, "data loaders"):
        return None
    everyone: list[Any] = [state]
    if engine.communicator.size > 1:
        import torch.distributed as dist
        everyone = [None] * engine.communicator.size
        dist.all_gather_object(everyone, state, group=engine.data_parallel_group)
    return {"format": _FORMAT, "ranks": everyone}


def restore_position(engine: Any, saved: Any) -> None:
    """Puts the engine's loader where saved_position() found it. Other programs' entries, and none, change nothing."""
    loader = engine.training_dataloader
    ranks = saved.get("ranks") if isinstance(saved, dict) and saved.get("format") == _FORMAT else None
    if not isinstance(ranks, list) or not ranks or not hasattr(loader, "load_state_dict"):
        return
    rank, size = engine.communicator.rank, engine.communicator.size
    from deepspeed.runtime.dataloader import DeepSpeedDataLoader, RepeatingLoader
    if len(ranks) != size and not isinstance(loader, (DeepSpeedDataLoader, RepeatingLoader)):
        log_dist(f"the data loader ({type(loader).__name__}) starts anew: its state is of {len(ranks)} ranks, and there are {size}", ranks=[0])
        return
    state = ranks[rank] if len(ranks) == size else ranks[0]
    if state is not None:
        loader.load_state_dict(state)
        if state.get("position"):
            log_dist(f"training data goes on where the checkpoint was saved ({state['position']} {state['kind']} into a pass); with "
                     "checkpoint.load_data_position false it would begin anew", ranks=[0])
