"""Random numbers of a rank in its checkpoint: rank_<r>.pt, beside the files of every layout but the universal one."""
from __future__ import annotations

import random
from typing import Any

import torch


def rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.pt"


def random_states() -> dict[str, Any]:
    """Of the generators that programs use: torch on the CPU and on the devices that it has begun to use, Python, NumPy."""
    import numpy
    kind, keys, *rest = numpy.random.get_state()
    states = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": (kind, torch.from_numpy(keys.astype("int64")), *rest)}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()  # of this rank's device
    return states


def restore_random_states(saved: dict[str, Any]) -> None:
    """Those that are there: a program without Python has torch's alone."""
    import numpy
    torch.set_rng_state(saved["torch"])
    if "cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda"])
    if "python" not in saved:
        return
    version, state, gauss = saved["python"]
    random.setstate((version, tuple(state), gauss))
    kind, keys, *rest = saved["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
