"""torch.distributed's functions with three more keywords (prof, log_name, debug) and a faster way on one machine.

A collective on CPU tensors takes the core's shared memory when every rank of the group is on this machine and the call
waits (async_op=False). A call with async_op=True is torch's, because it must make progress while its caller does
something else; so all ranks pass the same async_op, which torch itself does not demand.
"""
from __future__ import annotations

import functools
import inspect
import os
from typing import Any, Callable, Sequence

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup, ReduceOp, is_available

from deepspeed.comm import communicators
from deepspeed.comm.comms_logging import CommsLogger
from deepspeed.comm.discovery import (in_aml, in_aws_sm, in_dlts, mpi_discovery, patch_aml_env_for_torch_nccl_backend,  # noqa: F401
                                      patch_aws_sm_env_for_torch_nccl_backend)  # noqa: F401  (these and two more by their old path)
from deepspeed.comm.init import destroy_process_group, init_distributed  # noqa: F401

__all__ = [
    "P2POp", "ProcessGroup", "ReduceOp", "all_gather", "all_gather_coalesced", "all_gather_into_tensor", "all_gather_object",
    "all_reduce", "all_reduce_coalesced", "all_to_all", "all_to_all_single", "allgather_fn", "barrier",
    "batch_isend_irecv", "broadcast", "broadcast_object_list", "comms_logger", "configure", "gather",
    "get_all_ranks_from_group", "get_comm_operation_count", "get_global_rank", "get_local_rank", "get_logged_comm_ops",
    "get_rank", "get_world_group", "get_world_size", "has_all_gather_into_tensor", "has_all_reduce_coalesced",
    "has_coalescing_manager", "has_comm_data", "has_reduce_scatter_tensor", "inference_all_reduce", "initialize_mesh_device",
    "irecv", "is_available", "is_initialized", "isend", "log_summary", "monitored_barrier", "new_group", "recv", "reduce",
    "reduce_scatter", "reduce_scatter_fn", "reduce_scatter_tensor", "reset_log", "scatter", "send"
]

comms_logger = CommsLogger()

_OPS = {ReduceOp.SUM: "sum", ReduceOp.AVG: "avg", ReduceOp.MAX: "max", ReduceOp.MIN: "min", ReduceOp.PRODUCT: "product"}
_DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32,
           torch.int64, torch.bool}


# ---------------------------------------------------------------- the world

def is_initialized() -> bool:
    """Whether the job's processes are connected."""
    return dist.is_available() and dist.is_initialized()


def get_rank(group: ProcessGroup | None = None) -> int:
    """This process's rank in `group` (default: in the world)."""
    return dist.get_rank(group)


def get_world_size(group: ProcessGroup | None = None) -> int:
    """Number of ranks in `group` (default: in the world)."""
    return dist.get_world_size(group)


def get_local_rank() -> int:
    """LOCAL_RANK as the launcher set it (0 when it did not)."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK") or 0)


def get_global_rank(group: ProcessGroup | None = None, group_rank: int = 0) -> int:
    """The world's rank of rank `group_rank` of `group`."""
    return dist.get_global_rank(group if group is not None else dist.group.WORLD, group_rank)


def get_world_group() -> ProcessGroup:
    """The group of all ranks."""
    return dist.group.WORLD


def get_all_ranks_from_group(group: ProcessGroup | None = None) -> list[int]:
    """The world's ranks that are in `group`, in its order."""
    return dist.get_process_group_ranks(group if group is not None else dist.group.WORLD)


def new_group(ranks: Sequence[int] | None = None, **options: Any) -> ProcessGroup:
    """A group of the given ranks (default: all). All ranks of the world call it."""
    return dist.new_group(ranks, **options)


def initialize_mesh_device(mesh_shape: Sequence[int], mesh_dim_names: Sequence[str]) -> Any:
    """A torch DeviceMesh over all ranks, on the accelerator."""
    from deepspeed.accelerator import get_accelerator
    device = get_accelerator().device_name().partition(":")[0]
    return dist.device_mesh.init_device_mesh(device, tuple(mesh_shape), mesh_dim_names=tuple(mesh_dim_names))


def has_all_gather_into_tensor() -> bool:
    """Whether all_gather_into_tensor exists: always."""
    return True


def has_reduce_scatter_tensor() -> bool:
    """Whether reduce_scatter_tensor exists: always."""
    return True


def has_all_reduce_coalesced() -> bool:
    """Whether all_reduce_coalesced exists: always."""
    return True


def has_coalescing_manager() -> bool:
    """Whether torch can join several calls into one."""
    return hasattr(dist.distributed_c10d, "_coalescing_manager")


# ---------------------------------------------------------------- the logger

def configure(config: Any = None, enabled: bool | None = None, prof_all: bool | None = None,
              prof_ops: list[str] | None = None, verbose: bool | None = None, debug: bool | None = None, *,
              deepspeed_config: Any = None) -> None:
    """Switches the communications logger: by a configuration (its `comms_logger` section), by keywords, or both."""
    config = deepspeed_config if config is None else config
    if config is not None:
        if isinstance(config, (str, os.PathLike)):
            from deepspeed.runtime.config import DeepSpeedConfig
            config = DeepSpeedConfig(config)
        section = config.get("comms_logger", {}) if isinstance(config, dict) else getattr(config, "comms_logger", None)
        if section is not None:
            comms_logger.configure(section)
    comms_logger.configure({"enabled": enabled, "prof_all": prof_all, "prof_ops": prof_ops, "verbose": verbose,
                            "debug": debug})


def log_summary(show_straggler: bool = False, return_dict: bool = False) -> dict | None:
    """Prints on rank 0 what was recorded. All ranks call it."""
    if is_initialized():
        dist.barrier()
    result = comms_logger.log_all(show_straggler=show_straggler, return_dict=return_dict)
    if is_initialized():
        dist.barrier()
    return result


def reset_log() -> None:
    """Forgets what was recorded."""
    comms_logger.reset()


def has_comm_data() -> bool:
    """Whether anything was recorded."""
    return comms_logger.has_data()


def get_comm_operation_count() -> int:
    """Number of recorded calls."""
    return comms_logger.total_operations()


def get_logged_comm_ops() -> list[str]:
    """Names of the recorded operations."""
    return comms_logger.operations()


def _bytes(message: Any) -> int:
    if isinstance(message, torch.Tensor):
        return message.numel() * message.element_size()
    return sum(_bytes(part) for part in message) if isinstance(message, (list, tuple)) else 0


def _caller() -> str:
    """The function outside this file that called a collective."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame.f_code.co_name if frame is not None else "?"


def _logged(message: str | None = None) -> Callable[[Callable], Callable]:
    """Adds prof, log_name and debug; `message` is the argument whose bytes are the message."""

    def decorate(operation: Callable) -> Callable:
        name = operation.__name__
        signature = inspect.signature(operation)

        @functools.wraps(operation)
        def wrapper(*args: Any, prof: bool = False, log_name: str | None = None, debug: bool = False, **kwargs: Any) -> Any:
            if not comms_logger.enabled:  # the usual case costs nothing
                return operation(*args, **kwargs)
            log_name = log_name or name
            if not comms_logger.wants(log_name, prof):
                return operation(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            record = f"{log_name} | [Caller Func: {_caller()}]" if debug or comms_logger.debug else log_name
            return comms_logger.timed(name, record, _bytes(given.get(message)) if message else 0,
                                      dist.get_world_size(given.get("group")), lambda: operation(*args, **kwargs))

        return wrapper

    return decorate


# ---------------------------------------------------------------- which way a call takes

def _op_name(op: Any) -> str | None:
    """The core's name of a reduction, or None for one that only torch knows."""
    return next((name for known, name in _OPS.items() if op == known), None)


def _core(group: ProcessGroup | None, tensors: Sequence[torch.Tensor], async_op: bool, op: Any = ReduceOp.SUM) -> Any:
    """The core's communicator when this call is to take it, else None. The same on all ranks of the group."""
    if async_op or _op_name(op) is None or not is_initialized() or group is dist.GroupMember.NON_GROUP_MEMBER:
        return None
    if not all(t.device.type == "cpu" and t.layout == torch.strided and t.dtype in _DTYPES for t in tensors):
        return None
    communicator = communicators.get_communicator(group)
    if communicator.shares_memory:
        return communicator
    return communicator if op == ReduceOp.AVG else None  # Gloo has no average


def _read(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous()


def _write(output: torch.Tensor, fill: Callable[[torch.Tensor], Any]) -> None:
    """Calls fill() with a contiguous tensor, whose values end in `output`, and waits for what it returns."""
    target = output.detach()
    flat = target.contiguous()
    fill(flat).wait_released()
    if flat.data_ptr() != target.data_ptr():
        target.copy_(flat)


def _group_rank(group: ProcessGroup | None, global_rank: int | None, group_rank: int | None) -> int:
    if group_rank is not None:
        return group_rank
    return dist.get_group_rank(group if group is not None else dist.group.WORLD, global_rank or 0)


# ---------------------------------------------------------------- collectives

@_logged("tensor")
def all_reduce(tensor: torch.Tensor, op: Any = ReduceOp.SUM, group: ProcessGroup | None = None,
               async_op: bool = False) -> Any:
    """Every rank's `tensor` becomes the reduction of all ranks' tensors."""
    core = _core(group, [tensor], async_op, op)
    if core is None:
        return dist.all_reduce(tensor, op=op, group=group, async_op=async_op)
    _write(tensor, lambda flat: core.all_reduce(flat, _op_name(op), "all_reduce"))
    return None


@_logged("tensor")
def inference_all_reduce(tensor: torch.Tensor, op: Any = ReduceOp.SUM, group: ProcessGroup | None = None) -> Any:
    """all_reduce that waits."""
    return all_reduce.__wrapped__(tensor, op, group)


@_logged("tensors")
def all_reduce_coalesced(tensors: list[torch.Tensor], op: Any = ReduceOp.SUM, group: ProcessGroup | None = None,
                         async_op: bool = False) -> Any:
    """all_reduce of every tensor of a list (of one dtype), as one message."""
    flat = torch.cat([t.detach().reshape(-1) for t in tensors])
    work = all_reduce.__wrapped__(flat, op, group, async_op)
    finish = functools.partial(_scatter_flat, flat, tensors)
    return _After(work, finish) if work is not None else finish()


@_logged("tensor")
def broadcast(tensor: torch.Tensor, src: int | None = None, group: ProcessGroup | None = None, async_op: bool = False,
              group_src: int | None = None) -> Any:
    """Every rank's `tensor` becomes that of rank `src`."""
    core = _core(group, [tensor], async_op)
    if core is None:
        return dist.broadcast(tensor, src, group=group, async_op=async_op, group_src=group_src)
    _write(tensor, lambda flat: core.broadcast(flat, _group_rank(group, src, group_src), "broadcast"))
    return None


@_logged("tensor")
def all_gather_into_tensor(output_tensor: torch.Tensor, tensor: torch.Tensor, group: ProcessGroup | None = None,
                           async_op: bool = False) -> Any:
    """`output_tensor` becomes all ranks' tensors one after the other."""
    core = _core(group, [output_tensor, tensor], async_op)
    if core is None:
        return dist.all_gather_into_tensor(output_tensor, tensor, group=group, async_op=async_op)
    _write(output_tensor, lambda flat: core.all_gather(_read(tensor), flat, "all_gather_into_tensor"))
    return None


@_logged("input_tensor")
def allgather_fn(output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: ProcessGroup | None = None,
                 async_op: bool = False) -> Any:
    """all_gather_into_tensor by its older name."""
    return all_gather_into_tensor.__wrapped__(output_tensor, input_tensor, group, async_op)


@_logged("tensor")
def all_gather(tensor_list: list[torch.Tensor], tensor: torch.Tensor, group: ProcessGroup | None = None,
               async_op: bool = False) -> Any:
    """tensor_list[i] becomes the tensor of rank i."""
    same = all(part.shape == tensor.shape and part.dtype == tensor.dtype for part in tensor_list)
    core = _core(group, [tensor, *tensor_list], async_op) if same else None
    if core is None:
        return dist.all_gather(tensor_list, tensor, group=group, async_op=async_op)
    flat = tensor.new_empty(len(tensor_list) * tensor.numel())
    core.all_gather(_read(tensor).view(-1), flat, "all_gather").wait_released()
    return _scatter_flat(flat, tensor_list)


@_logged("input_tensors")
def all_gather_coalesced(output_tensors: list[torch.Tensor], input_tensors: list[torch.Tensor],
                         group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """all_gather_into_tensor of each pair; the handle, if any, stands for all of them."""
    works = [all_gather_into_tensor.__wrapped__(output, input_, group, async_op)
             for output, input_ in zip(output_tensors, input_tensors, strict=True)]
    return _All(works) if async_op else None


@_logged("output_tensor")
def reduce_scatter_tensor(output_tensor: torch.Tensor, tensor: torch.Tensor, op: Any = ReduceOp.SUM,
                          group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """`output_tensor` becomes this rank's part of the reduction of all ranks' tensors."""
    core = _core(group, [output_tensor, tensor], async_op, op)
    if core is None:
        return dist.reduce_scatter_tensor(output_tensor, tensor, op=op, group=group, async_op=async_op)
    _write(output_tensor, lambda flat: core.reduce_scatter(_read(tensor), flat, _op_name(op), "reduce_scatter_tensor"))
    return None


@_logged("output_tensor")
def reduce_scatter_fn(output_tensor: torch.Tensor, tensor: torch.Tensor, op: Any = ReduceOp.SUM,
                      group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """reduce_scatter_tensor by its older name."""
    return reduce_scatter_tensor.__wrapped__(output_tensor, tensor, op, group, async_op)


@_logged("output")
def reduce_scatter(output: torch.Tensor, input_list: list[torch.Tensor], op: Any = ReduceOp.SUM,
                   group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """`output` becomes the reduction of the ranks' input_list[this rank]."""
    same = all(part.shape == output.shape and part.dtype == output.dtype for part in input_list)
    core = _core(group, [output, *input_list], async_op, op) if same else None
    if core is None:
        return dist.reduce_scatter(output, input_list, op=op, group=group, async_op=async_op)
    joined = torch.cat([part.detach().reshape(-1) for part in input_list])
    _write(output, lambda flat: core.reduce_scatter(joined, flat, _op_name(op), "reduce_scatter"))
    return None


@_logged("input")
def all_to_all_single(output: torch.Tensor, input: torch.Tensor, output_split_sizes: list[int] | None = None,
                      input_split_sizes: list[int] | None = None, group: ProcessGroup | None = None,
                      async_op: bool = False) -> Any:
    """Part i of `input` goes to rank i, and part i of `output` comes from it."""
    equal = not output_split_sizes and not input_split_sizes
    core = _core(group, [output, input], async_op) if equal else None
    if core is None:
        return dist.all_to_all_single(output, input, output_split_sizes, input_split_sizes, group=group, async_op=async_op)
    _write(output, lambda flat: core.all_to_all(_read(input), flat, "all_to_all_single"))
    return None


@_logged("input_tensor_list")
def all_to_all(output_tensor_list: list[torch.Tensor], input_tensor_list: list[torch.Tensor],
               group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """input_tensor_list[i] goes to rank i, and output_tensor_list[i] comes from it."""
    if input_tensor_list[0].device.type != "cpu":
        return dist.all_to_all(output_tensor_list, input_tensor_list, group=group, async_op=async_op)
    # Gloo exchanges flat tensors only; pieces may differ in size.
    joined = torch.cat([part.detach().reshape(-1) for part in input_tensor_list])
    flat = joined.new_empty(sum(part.numel() for part in output_tensor_list))
    work = dist.all_to_all_single(flat, joined, [part.numel() for part in output_tensor_list],
                                  [part.numel() for part in input_tensor_list], group=group, async_op=async_op)
    finish = functools.partial(_scatter_flat, flat, output_tensor_list)
    return _After(work, finish) if work is not None else finish()


@_logged()
def barrier(group: ProcessGroup | None = None, async_op: bool = False, device_ids: list[int] | None = None) -> Any:
    """Returns when all ranks of the group have called it."""
    member = group is not dist.GroupMember.NON_GROUP_MEMBER
    # A device's barrier also waits for the device.
    core = _core(group, [], async_op) if member and dist.get_backend(group) == "gloo" else None
    if core is None:
        return dist.barrier(group=group, async_op=async_op, device_ids=device_ids)
    core.barrier("barrier")
    return None


@_logged()
def monitored_barrier(group: ProcessGroup | None = None, timeout: Any = None, wait_all_ranks: bool = False) -> Any:
    """barrier() that names the ranks that are missing after `timeout`."""
    return dist.monitored_barrier(group=group, timeout=timeout, wait_all_ranks=wait_all_ranks)


# ---------------------------------------------------------------- torch's own, logged

@_logged("tensor")
def reduce(tensor: torch.Tensor, dst: int | None = None, op: Any = ReduceOp.SUM, group: ProcessGroup | None = None,
           async_op: bool = False) -> Any:
    """Rank `dst`'s tensor becomes the reduction of all ranks' tensors."""
    return dist.reduce(tensor, dst if dst is not None else 0, op=op, group=group, async_op=async_op)


@_logged("tensor")
def gather(tensor: torch.Tensor, gather_list: list[torch.Tensor] | None = None, dst: int | None = None,
           group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """gather_list[i] of rank `dst` becomes the tensor of rank i."""
    return dist.gather(tensor, gather_list, dst=dst if dst is not None else 0, group=group, async_op=async_op)


@_logged("tensor")
def scatter(tensor: torch.Tensor, scatter_list: list[torch.Tensor] | None = None, src: int | None = None,
            group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """Rank i's tensor becomes scatter_list[i] of rank `src`."""
    return dist.scatter(tensor, scatter_list, src=src if src is not None else 0, group=group, async_op=async_op)


@_logged("tensor")
def send(tensor: torch.Tensor, dst: int | None = None, group: ProcessGroup | None = None, tag: int = 0) -> Any:
    """Sends to rank `dst`, which calls recv()."""
    return dist.send(tensor, dst, group=group, tag=tag)


@_logged("tensor")
def recv(tensor: torch.Tensor, src: int | None = None, group: ProcessGroup | None = None, tag: int = 0) -> Any:
    """Receives from rank `src`, which calls send()."""
    return dist.recv(tensor, src=src, group=group, tag=tag)


# Not logged: how long these take is known only when they are waited for.
def isend(tensor: torch.Tensor, dst: int | None = None, group: ProcessGroup | None = None, tag: int = 0, prof: bool = False,
          log_name: str = "isend", debug: bool = False) -> Any:
    """send() that returns at once, with a handle to wait for."""
    return dist.isend(tensor, dst, group=group, tag=tag)


def irecv(tensor: torch.Tensor, src: int | None = None, group: ProcessGroup | None = None, tag: int = 0, prof: bool = False,
          log_name: str = "irecv", debug: bool = False) -> Any:
    """recv() that returns at once, with a handle to wait for."""
    return dist.irecv(tensor, src=src, group=group, tag=tag)


class P2POp(dist.P2POp):
    """torch's, which also takes this module's isend and irecv."""

    def __new__(cls, op: Callable, *args: Any, **kwargs: Any) -> "P2POp":
        return super().__new__(cls, _torchs(op), *args, **kwargs)

    def __init__(self, op: Callable, *args: Any, **kwargs: Any) -> None:
        super().__init__(_torchs(op), *args, **kwargs)


def _torchs(op: Callable) -> Callable:
    return {isend: dist.isend, irecv: dist.irecv}.get(op, op)


def batch_isend_irecv(p2p_op_list: list[dist.P2POp]) -> list[Any]:
    """Starts several isend and irecv together; returns their handles."""
    return dist.batch_isend_irecv(p2p_op_list)


def broadcast_object_list(object_list: list[Any], src: int = 0, group: ProcessGroup | None = None, device: Any = None) -> None:
    """Every rank's list becomes that of rank `src`; its items are pickled."""
    dist.broadcast_object_list(object_list, src=src, group=group, device=device)


def all_gather_object(object_list: list[Any], obj: Any, group: ProcessGroup | None = None) -> None:
    """object_list[i] becomes the object of rank i; objects are pickled."""
    dist.all_gather_object(object_list, obj, group=group)


# ---------------------------------------------------------------- handles of composed calls

def _scatter_flat(flat: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
    """Copies consecutive pieces of `flat` into `parts`."""
    offset = 0
    for part in parts:
        part.detach().copy_(flat[offset:offset + part.numel()].view(part.shape))
        offset += part.numel()


class _After:
    """A handle that finishes the call when it is waited for."""

    def __init__(self, work: Any, finish: Callable[[], None]) -> None:
        self._work, self._finish = work, finish

    def wait(self, *args: Any) -> bool:
        done = self._work.wait(*args)
        finish, self._finish = self._finish, lambda: None
        finish()
        return done

    def is_completed(self) -> bool:
        return self._work.is_completed()


class _All:
    """One handle for several."""

    def __init__(self, works: Sequence[Any]) -> None:
        self._works = [work for work in works if work is not None]

    def wait(self, *args: Any) -> bool:
        return all([work.wait(*args) for work in self._works])

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self._works)
