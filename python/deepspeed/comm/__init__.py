"""Collectives with torch.distributed's names, a communications logger, and the start of a run.

CPU tensors of ranks on one machine travel through the core's shared memory when every rank calls and waits at once; all
else is torch.distributed's. Names that are not listed here are torch.distributed's own.
"""
from __future__ import annotations

import importlib
from typing import Any

import torch.distributed as _torch_distributed

from deepspeed.comm.comm import *  # noqa: F401,F403
from deepspeed.comm.comm import __all__ as _comm_names
from deepspeed.comm.communicators import get_communicator
from deepspeed.comm.discovery import (in_aml, in_aws_sm, in_dlts, mpi_discovery, patch_aml_env_for_torch_nccl_backend,
                                      patch_aws_sm_env_for_torch_nccl_backend)
from deepspeed.comm.init import default_pg_timeout, destroy_process_group, init_distributed

__all__ = [*_comm_names, "default_pg_timeout", "destroy_process_group", "get_communicator", "in_aml", "in_aws_sm", "in_dlts",
           "init_distributed", "mpi_discovery", "patch_aml_env_for_torch_nccl_backend", "patch_aws_sm_env_for_torch_nccl_backend"]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if name in ("constants", "reduce_op"):  # modules that torch.distributed does not have, or has another thing for
        return importlib.import_module(f"deepspeed.comm.{name}")
    try:
        return getattr(_torch_distributed, name)
    except AttributeError:
        raise AttributeError(f"module 'deepspeed.comm' has no attribute {name!r}") from None
