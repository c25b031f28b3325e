"""The data loader that initialize() returns, and one that never ends."""
from __future__ import annotations

from typing import Any, Callable, Iterator

from torch.utils.data import BatchSampler, DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler


class RepeatingLoader:
    """Wraps an iterable and starts it again when it ends."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.data_iter = iter(loader)

    def __iter__(self) -> "RepeatingLoader":
        return self

    def __next__(self) -> Any:
        try:
            return next(self.data_iter)
        except StopIteration:
            self.data_iter = iter(self.loader)
            return next(self.data_iter)


class DeepSpeedDataLoader:
    """Batches of one data-parallel rank. Starts the throughput timer when a batch is asked for."""

    def __init__(self, dataset: Any, batch_size: int, pin_memory: bool = False, local_rank: int = 0, tput_timer: Any = None,
                 collate_fn: Callable | None = None, num_local_io_workers: int | None = None, data_sampler: Any = None,
                 data_parallel_world_size: int = 1, data_parallel_rank: int = 0, dataloader_drop_last: bool = False,
                 deepspeed_dataloader_config: dict | None = None) -> None:
        self.dataset, self.batch_size, self.tput_timer = dataset, batch_size, tput_timer
        self.post_process_func: Callable | None = None
        self.data_sampler = data_sampler
        if isinstance(dataset, IterableDataset):
            options: dict[str, Any] = {"batch_size": batch_size, "drop_last": dataloader_drop_last}
        else:
            if data_sampler is None:
                # Every rank must draw its own samples; the order is that of a seed which all ranks share.
                self.data_sampler = DistributedSampler(dataset, num_replicas=data_parallel_world_size, rank=data_parallel_rank)
            if isinstance(self.data_sampler, BatchSampler):
                options = {"batch_sampler": self.data_sampler}
            else:
                options = {"batch_size": batch_size, "sampler": self.data_sampler, "drop_last": dataloader_drop_last}
        import torch
        self.dataloader = DataLoader(dataset, pin_memory=pin_memory and torch.cuda.is_available(), collate_fn=collate_fn,
                                     num_workers=num_local_io_workers or 0, **options)
        self.data: Iterator | None = None

    @property
    def len(self) -> int:
        return len(self.dataloader)

    def __len__(self) -> int:
        return len(self.dataloader)

    def __iter__(self) -> "DeepSpeedDataLoader":
        self.data = iter(self.dataloader)
        return self

    def __next__(self) -> Any:
        if self.data is None:
            self.data = iter(self.dataloader)
        if self.tput_timer is not None:
            self.tput_timer.start()
        batch = next(self.data)
        return self.post_process_func(batch, getattr(self.data_sampler, "state_dict", dict)()) \
            if self.post_process_func is not None else batch


def sampler_for(dataset: Any, route: str, world_size: int, rank: int) -> Any:
    """Evaluation and prediction read in order; training shuffles (the loader's default)."""
    if route in ("eval", "predict"):
        return DistributedSampler(dataset, num_replicas=world_size, rank=rank, shuffle=False)
    return None


__all__ = ["DeepSpeedDataLoader", "RepeatingLoader", "sampler_for"]
