"""Meeting of the ranks at MASTER_ADDR:MASTER_PORT, which says who is missing when it takes long."""
from __future__ import annotations

import sys
import threading
import time
from datetime import timedelta
from typing import Callable

import torch.distributed as dist

# A phase of the start that takes longer says what it waits for, and then again in larger steps.
FIRST_WORD_S = 2.0
NEXT_WORDS_S = 10.0
POLL_S = 0.02


class Patience:
    """Prints `text()` on standard error while a phase lasts longer than FIRST_WORD_S."""

    def __init__(self, text: Callable[[], str]) -> None:
        self.text = text
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="deepspeed-start", daemon=True)

    def __enter__(self) -> "Patience":
        self.begin = time.monotonic()
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()

    def _watch(self) -> None:
        wait = FIRST_WORD_S
        while not self.done.wait(wait):
            print(f"deepspeed: {self.text()} ({time.monotonic() - self.begin:.0f} s)", file=sys.stderr, flush=True)
            wait = NEXT_WORDS_S


def meet(address: str, port: int, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """A store that all ranks have reached. Rank 0 serves it and names the ranks that are late; the others name rank 0.

    Raises:
        RuntimeError: not all ranks came within the timeout; names those that did not.
    """
    with Patience(lambda: f"rank {rank} waits for rank 0 at {address}:{port}"):
        store = dist.TCPStore(address, port, world_size, rank == 0, timeout, wait_for_workers=False)
        store.set(f"deepspeed/here/{rank}", "1")
    if rank == 0:
        _wait_for_others(store, f"{address}:{port}", world_size, timeout)
        store.set("deepspeed/all_here", "1")
    else:
        # Rank 0 gives up first and says who is missing.
        store.wait(["deepspeed/all_here"], timeout + timedelta(seconds=5))
    return store


def _wait_for_others(store: dist.Store, place: str, world_size: int, timeout: timedelta) -> None:
    missing = list(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    with Patience(lambda: f"rank 0 waits at {place} for {name_ranks(missing)}"):
        while missing:
            missing[:] = [rank for rank in missing if not store.check([f"deepspeed/here/{rank}"])]
            if missing and time.monotonic() > deadline:
                raise RuntimeError(f"{name_ranks(missing)} of {world_size} did not come to {place} within "
                                   f"{timeout.total_seconds():.0f} s (DEEPSPEED_TIMEOUT, minutes)")
            if missing:
                time.sleep(POLL_S)


def name_ranks(ranks: list[int]) -> str:
    """"rank 3", "ranks 1, 2, 5", "ranks 1, 2, 3, 4, ... (60 in all)"."""
    names = ", ".join(map(str, ranks[:8]))
    if len(ranks) > 8:
        names += f", ... ({len(ranks)} in all)"
    return f"rank{'s' if len(ranks) > 1 else ''} {names}"
