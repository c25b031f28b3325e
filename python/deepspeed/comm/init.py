"""init_distributed: one call that gives a process its world, however it was started."""
from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from deepspeed.comm import communicators, discovery, rendezvous
from deepspeed.utils.logging import logger

# DEEPSPEED_TIMEOUT: minutes.
default_pg_timeout = timedelta(minutes=float(os.environ.get("DEEPSPEED_TIMEOUT") or 10))


def init_distributed(dist_backend: str | None = None, auto_mpi_discovery: bool = True, distributed_port: int = 29500,
                     verbose: bool = True, timeout: timedelta = default_pg_timeout, init_method: str | None = None,
                     dist_init_required: bool | None = None, config: Any = None, rank: int = -1, world_size: int = -1) -> None:
    """Sets up torch.distributed once; later calls, and calls in a program that set it up itself, change nothing.

    Args:
        dist_backend: torch's backend; None: the accelerator's. One that cannot run here is replaced by one that can.
        auto_mpi_discovery: ask MPI, Slurm and cloud services when RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR or MASTER_PORT
            is missing. A process that knows nothing about others is a world of one.
        distributed_port: MASTER_PORT where none is set.
        timeout: how long a rank may be late; the environment's DEEPSPEED_TIMEOUT (minutes) sets the default.
        init_method: torch's URL ("tcp://host:port", "file:///path"); needs rank and world_size, here or in the environment.
        dist_init_required: False: fail instead of setting up.
        config: configuration whose `comms_logger` section is to be used.
    """
    if config is not None:
        from deepspeed.comm.comm import configure
        configure(config)
    if dist.is_initialized():
        return
    if dist_init_required is False:
        raise RuntimeError("torch.distributed is not initialized and dist_init_required is False: call "
                           "deepspeed.init_distributed() or torch.distributed.init_process_group() first, or pass True")
    if isinstance(timeout, (int, float)):
        timeout = timedelta(minutes=timeout)
    if init_method is None and rank < 0:
        discovery.discover(distributed_port, auto_mpi_discovery, verbose)
    rank = int(os.environ.get("RANK", -1)) if rank < 0 else rank
    world_size = int(os.environ.get("WORLD_SIZE", -1)) if world_size < 0 else world_size
    if rank < 0 or world_size < 1:
        raise RuntimeError(f"init_distributed(init_method={init_method!r}): rank and world_size are neither given nor set as "
                           "RANK and WORLD_SIZE")
    backend = choose_backend(dist_backend, announce=rank == 0)
    _init_process_group(backend, init_method, rank, world_size, timeout)
    if verbose:
        logger.info("Rank %d of %d: torch.distributed is set up with backend %s", rank, world_size, backend)


def _init_process_group(backend: str, init_method: str | None, rank: int, world_size: int, timeout: timedelta) -> None:
    if init_method is None and world_size == 1:
        # A world of one needs no port, so it cannot collide with another one.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return
    if init_method is None and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        dist.init_process_group(backend, timeout=timeout)  # torchrun serves a store of its own
        return
    if init_method is None:
        store = rendezvous.meet(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), rank, world_size, timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        return
    dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=world_size, timeout=timeout)


def choose_backend(wanted: str | None, *, announce: bool = True) -> str:
    """`wanted` where it can run, else the accelerator's, else Gloo."""
    from deepspeed.accelerator import get_accelerator
    candidates = [get_accelerator().communication_backend_name(), "gloo", "mpi"]
    if wanted is None:
        return next(name for name in candidates if backend_is_usable(name))
    if backend_is_usable(wanted):
        return wanted
    chosen = next(name for name in candidates if backend_is_usable(name))
    if announce:
        logger.warning("init_distributed: backend '%s' cannot run here (%s); using '%s'", wanted,
                       "no device for it" if dist.is_backend_available(_plain(wanted)) else "torch is built without it", chosen)
    return chosen


def _plain(backend: str) -> str:
    return backend.rpartition(":")[2].lower()


def backend_is_usable(backend: str) -> bool:
    """Whether torch has the backend and this machine a device for it. "cpu:gloo,cuda:nccl" needs all of its parts."""
    if "," in backend:
        return all(backend_is_usable(part) for part in backend.split(","))
    name = _plain(backend)
    if not dist.is_backend_available(name):
        return False
    return name != "nccl" or torch.cuda.is_available()


def destroy_process_group(group: dist.ProcessGroup | None = None) -> None:
    """torch.distributed's, after dropping the core's communicators over the group (or all groups)."""
    communicators.forget(group)
    dist.destroy_process_group(group)
