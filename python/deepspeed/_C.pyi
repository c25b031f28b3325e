"""The boundary between Python and the C++ core: everything the package may call, with its contract.

Python touches modules, C++ touches bytes: no collective, no test of the ZeRO stage and no arithmetic on tensors happens
on the Python side. Errors: DeepSpeedConfigError for configuration, OSError for files and shared memory, CommError and
CheckpointError (RuntimeError) otherwise. The GIL is released wherever a call may wait for another rank.
"""
from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

class DeepSpeedConfigError(Exception): ...
class ElasticityError(DeepSpeedConfigError): ...
class ElasticityConfigError(ElasticityError): ...
class ElasticityIncompatibleWorldSize(ElasticityError): ...
class CommError(RuntimeError): ...
class CheckpointError(RuntimeError): ...

# ---------------------------------------------------------------- configuration
def parse_config(json_text: str, world_size: int, check_batch: bool = True) -> tuple[str, list[str]]:
    """Validated and resolved configuration as JSON (every key of every section), and warnings. Raises DeepSpeedConfigError.

    `check_batch=False` is for zero.Init, where batch sizes may still be missing or "auto"."""

def parse_config_file(path: str, world_size: int, check_batch: bool = True) -> tuple[str, list[str]]: ...

def elastic_batch(json_text: str, world_size: int = 0, want_micro_batch: bool = False) -> tuple[int, list[int], int | None]:
    """train_batch_size, the data-parallel sizes that can share it, and a micro-batch size, from a configuration with the
    section `elasticity`. world_size 0: not known; WORLD_SIZE is read where version 0.2 or a micro-batch needs it."""

def check_scheduler_elasticity(json_text: str) -> None:
    """Raises ElasticityConfigError when DEEPSPEED_ELASTICITY_CONFIG is set and names other batches than `elasticity`."""

# ---------------------------------------------------------------- communication
class Pending:
    def wait(self) -> None: ...
    def wait_released(self) -> None: ...

class OperationLog:
    """What communicators made by Communicator.recorded() did while it was enabled. Every operation is then waited for at once."""
    def __init__(self) -> None: ...
    enabled: bool
    def take(self) -> list[tuple[str, int, int, float]]:
        """(operation, bytes of one rank's piece, ranks, milliseconds) since the last call."""

class Communicator:
    @staticmethod
    def self_world() -> Communicator: ...
    @staticmethod
    def from_process_group(group: ProcessGroup, timeout_s: float | None = None, use_host: bool = True) -> Communicator:
        """Collective over the group. With `use_host`, CPU tensors of ranks on one machine travel through shared memory."""
    rank: int
    size: int
    shares_memory: bool
    description: str
    timeout_s: float
    bytes_moved: int
    def all_reduce(self, tensor: Tensor, op: str, tag: str = "") -> Pending: ...
    def reduce_scatter(self, input: Tensor, output: Tensor, op: str, tag: str = "") -> Pending: ...
    def all_gather(self, input: Tensor, output: Tensor, tag: str = "") -> Pending: ...
    def broadcast(self, tensor: Tensor, root: int, tag: str = "") -> Pending: ...
    def all_to_all(self, input: Tensor, output: Tensor, tag: str = "") -> Pending: ...
    def send(self, tensor: Tensor, peer: int, tag: str = "") -> Pending: ...
    def recv(self, tensor: Tensor, peer: int, tag: str = "") -> Pending: ...
    def barrier(self, tag: str = "") -> None: ...
    def allocate(self, numel: int, dtype: Any, device: Any = "cpu") -> Tensor: ...
    def allocate_common(self, numel: int, dtype: Any, device: Any = "cpu") -> Tensor | None: ...
    def subgroup(self, ranks: Sequence[int]) -> Communicator: ...
    def recorded(self, log: OperationLog) -> Communicator:
        """This communicator, whose operations go into `log`, those of its subgroups too."""

class PlanGroups:
    """The groups that a sharding plan may name. `shard` and `replica` split `data` for MiCS/HSDP (default: data and self);
    `node` is hpZ's secondary group (default: self)."""
    def __init__(self, data: Communicator, shard: Communicator | None = None, replica: Communicator | None = None,
                 node: Communicator | None = None) -> None: ...

# ---------------------------------------------------------------- parameters sharded before an engine exists (zero.Init)
class FileTier:
    """Files for parameters, where the section offload_param (device "nvme") of the resolved configuration wants them. Raises
    ConfigError without such a section, IoError naming the folder when it cannot be used."""
    def __init__(self, config_json: str) -> None: ...
    def facts(self) -> dict[str, Any]:
        """What it did so far: file_bytes (reserved), read_bytes, written_bytes, wait_seconds (spent waiting for them), pool_bytes,
        peak_pool_bytes, beyond_pool_bytes (had to be taken beside the pool), resident_bytes (of what stays), pinned_bytes, pin_refusal (why buffers are not
        pinned, or ""), queue_depth, block_size, direct (past the page cache), engine, engine_reason (why not io_uring, or "")."""

class ParamUnit:
    """Parameters gathered and released together. Constructing is collective over `groups.data` (all ranks, same order,
    same shapes): values are broadcast from rank 0, cast to `dtype`, sharded, and every `param.data` becomes an empty
    tensor of shape [0] until gather(). gather() on one host needs no peer; elsewhere it is collective."""
    def __init__(self, name: str, names: Sequence[str], params: Sequence[Tensor], groups: PlanGroups, dtype: Any,
                 tier: FileTier | None = None, keep_values: bool = True) -> None:
        """With `tier` the unit starts in its file. keep_values=False: the values become zeros, for somebody who loads others."""
    name: str
    gathered: bool
    in_file: bool
    def move_to_file(self, tier: FileTier) -> None:
        """Keeps this rank's shard in a file from now on. For units that are not gathered; nothing happens to others than sharded
        ones on the CPU. Collective."""
    params: list[Tensor]
    def gather(self) -> None:
        """param.data = full tensors, whatever the engine does meanwhile. Calls nest: each gather() needs its release()."""
    def release(self) -> None: ...
    tier: FileTier | None
    writable_in_place: bool
    def store_gathered(self) -> None:
        """Stores what the gathered parameters hold now; only where writable_in_place."""
    def shard(self, index: int) -> Tensor:
        """This rank's 1-D piece of parameter `index` (may be empty)."""
    def full_shape(self, index: int) -> list[int]: ...
    def local_piece(self, index: int) -> tuple[int, Tensor]:
        """(where it begins in the flattened parameter, shard(index))."""
    def read_full(self, index: int) -> Tensor:
        """A private full copy (never aliases the shards). Collective where memory is not shared."""
    def write_full(self, index: int, value: Tensor, root: int = -1) -> None:
        """Stores `value` (full shape) into the shards. root >= 0: that rank's value is taken on all ranks (broadcast);
        root = -1: every rank stores its own slice of its own value. Collective. An attached fp32 master copy follows."""

# ---------------------------------------------------------------- engine
class Engine:
    """One training engine over registered parameters: gather, reduce, settle, publish, clip, step, loss scale.

    config_json: resolved JSON of parse_config. params: in model order, each (name, tensor, group, unit): `tensor` is the
    leaf that autograd sees; `group` the index of its optimizer group, -1 for frozen parameters; `unit` a ParamUnit that
    holds it, or None: the engine then buckets it (stages 0-2, and small persistent parameters of stage 3).
    Tied parameters are listed once. Collective (broadcasts values from rank 0, except for parameters in units).
    optimizer: {"type": "adam"|"lion"|"adagrad"|"sgd"|"lamb"|"muon"|"python"|"none", options that are the same for all groups:
    "decoupled", "bias_correction", "nesterov", "momentum" (SGD: some group has it), "eps_inside_sqrt", "max_coeff", "min_coeff",
    "state_dtype"}; "python" leaves the update to a torch optimizer over fragments(); "none": no optimizer (inference)."""
    def __init__(self, config_json: str, groups: PlanGroups, params: Sequence[tuple[str, Tensor, int, ParamUnit | None]],
                 optimizer: dict[str, Any]) -> None: ...

    # hooks of gathered units (stage 3); called from module hooks
    def pre_forward(self, unit: ParamUnit, inputs: Sequence[Tensor]) -> None:
        """Gathers `unit`, prefetches by the recorded order. `inputs`: tensors of the module's inputs that require grad."""
    def post_forward(self, unit: ParamUnit, outputs: Sequence[Tensor]) -> None:
        """Releases `unit` (unless it is reused soon); arms gather-before-backward on `outputs` that require grad."""
    def reset_order(self) -> None:
        """Forgets the recorded order (after the module's structure changed)."""

    # one micro-step
    def backward_seed(self, loss: Tensor, divide_by: float) -> Tensor:
        """The gradient to start backward from: loss_scale / divide_by, in the loss's dtype and device (scalar)."""
    def begin_backward(self) -> None:
        """A backward pass is under way that did not start from a seed."""
    def finish_backward(self) -> None:
        """After each backward: releases units, starts what reductions are due. Safe to call twice."""
    def step(self, hyper: Sequence[dict[str, float]]) -> bool:
        """At a boundary: settle, norm, overflow check, clip, update, publish, zero gradients. hyper: one dict per group
        (lr, beta1, beta2, eps, weight_decay, momentum, dampening). False when the update was skipped (non-finite gradients)."""
    def zero_grad(self) -> None:
        """Forgets the window's gradients. Collective after a backward that an exception cut off: peers may wait for its reductions."""

    # the same in two halves, for optimizers written in Python
    def prepare_step(self) -> bool:
        """settle, norm, overflow, clip: fp32 gradients of fragments() are then ready. False: skip (call finish_step(False))."""
    def finish_step(self, applied: bool) -> None: ...
    def fragments(self) -> list[Fragment]: ...

    # facts
    grad_norm: float          # global norm of the last step before clipping, unscaled; inf after an overflow; nan before the first step
    overflow: bool            # the last step() found non-finite gradients
    nonfinite_parameter: str  # dotted name of the first parameter with a non-finite gradient in the last step, or ""
    loss_scale: float
    skipped_steps: int
    optimizer_steps: int
    def scaler_state(self) -> dict[str, float]: ...
    def load_scaler_state(self, state: dict[str, float]) -> None: ...
    def memory_bytes(self) -> dict[str, int]:
        """Bytes this rank holds: parameters, gradients, master, optimizer, buckets."""
    def file_tier_facts(self) -> dict[str, dict[str, Any]]:
        """FileTier.facts() of "optimizer" (with gradients of stages 2 and 3) and "parameters"; only of those that are in files."""
    def description(self) -> str:
        """One table: plan, groups, units, bytes."""

    # full values (collective over the data group) and local pieces; index: position in `params`; key: "fp32", "grad" or a state's name
    def state_keys(self) -> list[str]: ...
    def read_full(self, index: int, key: str) -> Tensor | None:
        """fp32, full shape. None for frozen parameters' gradient and states, or before they exist."""
    def write_full(self, index: int, key: str, value: Tensor) -> None:
        """Every rank passes the full value; "fp32" also updates the model's parameter."""
    def read_local(self, index: int, key: str) -> Tensor | None:
        """This rank's 1-D piece (a view where possible)."""
    def write_local(self, index: int, key: str, value: Tensor) -> None: ...
    def fragment_of(self, index: int) -> tuple[int, int]:
        """(offset in the flattened parameter, length) of this rank's optimizer piece."""
    def begin_load(self) -> None:
        """Before masters or states are written one by one: until end_load() no step runs."""
    def reset_optimizer(self, states_follow: bool = False) -> None:
        """States and step count of the native optimizer as before its first step, to load others: until end_load() no step runs."""
    def end_load(self, states: bool = True) -> None:
        """states: optimizer states were loaded, too; a load of weights alone does not mend states that are not whole."""
    def get_step(self) -> int: ...
    def set_step(self, step: int) -> None:
        """Step count of the native optimizer (bias correction)."""
    def refresh_from_parameters(self) -> None:
        """Master copies are made again from the model's parameters (after load_state_dict)."""
    def refresh_parameters(self) -> None:
        """The model's parameters are made again from the master copies. Collective."""
    def check_whole(self) -> None:
        """Raises RuntimeError when an error has cut a step or a load off, until a load is through: the states are not of one step."""
    def destroy(self) -> None:
        """Removes hooks. Sharded parameters stay as they are: their units gather and release them as before."""

class Fragment:
    """This rank's piece of one trainable parameter, as a torch optimizer sees it (fp32 master, shape [length], or the
    parameter's full shape when it is not sharded)."""
    index: int
    group: int
    offset: int
    length: int
    master: Tensor
    grad: Tensor | None

# ---------------------------------------------------------------- optimizer kernels for the CPU optimizer classes
def adam_step(param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, lr: float, beta1: float, beta2: float, eps: float,
              weight_decay: float, decoupled: bool, bias_correction: bool, step: int, grad_scale: float = 1.0, copy_out: Tensor | None = None) -> None: ...
def adagrad_step(param: Tensor, grad: Tensor, exp_avg_sq: Tensor, lr: float, eps: float, weight_decay: float) -> None: ...
def lion_step(param: Tensor, grad: Tensor, exp_avg: Tensor, lr: float, beta1: float, beta2: float, weight_decay: float) -> None: ...
def sgd_step(param: Tensor, grad: Tensor, momentum_buffer: Tensor | None, lr: float, momentum: float, dampening: float,
             weight_decay: float, nesterov: bool, first_step: bool) -> None: ...
def lamb_step(param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
              bias_correction: bool, step: int, eps_inside_sqrt: bool, max_coeff: float, min_coeff: float) -> float: ...
def cpu_target_name() -> str: ...
def trim_heap() -> None:
    """Gives freed memory that malloc keeps back to the system."""

# ---------------------------------------------------------------- checkpoints (src/checkpoint/tag_folder.h, save_job.h)
class ShardImage:
    """Memory for a rank's part of a checkpoint while it is written beside training; kept for the next one."""
    def __init__(self) -> None: ...
    capacity: int  # bytes

class KeptMemory:
    """Memory that a save which training waits for goes through; kept for the next one."""
    def __init__(self) -> None: ...

class SaveJob:
    """One rank's part of one save; the rank that `commits` also makes the whole valid. Errors are raised where they are waited for.

    plan: save_dir, tag, layout ("native" or "deepspeed"), rank, ranks, tensor_file, threads, commits, info (JSON), write_latest,
    latest_dir and latest_text (where `latest` stands above save_dir, else ""), keep_last, patience_s. slices: (name, shape of the whole,
    offset, number of elements, dtype, tensor or function that returns it). memory: kept for the next save.
    archives: files of torch.save as (name, pickle, per storage a list of (bytes, tensor or function that returns it))."""
    def __init__(self, plan: dict[str, Any], slices: Sequence[tuple[str, Sequence[int], int, int, torch.dtype, Any]],
                 archives: Sequence[tuple[str, bytes, Sequence[list[tuple[int, Any]]]]], memory: KeptMemory | None = None) -> None: ...
    def write_part(self) -> None:
        """Writes this rank's files, here and now."""
    def commit(self) -> None:
        """Waits for all ranks' parts, and makes the checkpoint valid. By the rank that commits."""
    def take_snapshot(self, image: ShardImage, threads: int) -> None:
        """Copies what start() is to write into `image`; training may go on afterwards."""
    def start(self) -> None:
        """Writes, and commits where this rank does, on a thread of its own."""
    done: bool
    def wait_for_part(self) -> None:
        """Until this rank's files are written."""
    def wait(self) -> None:
        """Until start() is through."""
    def cancel(self) -> None:
        """Ends start() early; the checkpoint does not come to be."""

class CheckpointTensors:
    """The tensors of a checkpoint in the native layout. Every byte that is read is checked against the manifest."""
    def __init__(self, folder: str) -> None: ...
    layout: str
    info: str  # JSON
    def names(self) -> list[str]: ...
    def find(self, name: str) -> tuple[list[int], torch.dtype] | None:
        """Shape and dtype."""
    def read(self, requests: Sequence[tuple[str, int, Tensor]]) -> None:
        """Fills contiguous CPU tensors: (name, first element, destination)."""
    def read_files(self, requests: Sequence[tuple[str, int, Tensor]]) -> None:
        """Fills contiguous CPU tensors with bytes of the folder's files, each checked: (file, first byte, destination)."""
    def check_file(self, name: str) -> None:
        """Raises CheckpointError unless a file of the folder has the manifest's checksums."""

def begin_save(save_dir: str, tag: str) -> str:
    """Makes the empty folder that a save is written into; returns its path. By one rank."""
def abandon_save(save_dir: str, tag: str) -> None:
    """Removes that folder. Where it is a whole checkpoint that the new one had already changed names with, files of others in it go to that."""
def saving_folder(save_dir: str, tag: str) -> str: ...
def read_part(folder: str, rank: int) -> str:
    """A rank's part of the manifest, in a folder where a save is under way."""
def put_part(folder: str, rank: int, text: str) -> None: ...
def read_latest(save_dir: str) -> str | None:
    """What SAVE_DIR/latest says, "" when it is damaged, None when there is none."""
def restore_replaced(save_dir: str) -> None:
    """Gives a checkpoint its name back that a killed run left under another. By one rank, before the folder is read."""
def list_tags(save_dir: str) -> list[dict[str, Any]]:
    """Folders with a manifest, newest first: tag, saved_at, problem ("" when the manifest is usable), layout, bytes, info."""
def checkpoint_kind(path: str) -> str:
    """"native", "deepspeed", "universal", "safetensors" or "nothing known", from the manifest's first bytes or from what files are there."""
def verify_tag(folder: str, deep: bool, threads: int = 1, loads_next: bool = False) -> list[str]:
    """What is wrong, a line each. deep: every byte is read; loads_next: in the way that is best for who loads the files afterwards."""

# ---------------------------------------------------------------- tensors from and to files
class aio_handle:
    """Reads and writes contiguous tensors of any size and dtype, many at a time, past the page cache. Buffers of
    new_cpu_locked_tensor are the fast ones; what is not page-aligned goes through the page cache, tensors on a device through
    pinned memory of the host. `filename`: str, bytes, os.PathLike or a file descriptor (its position does not matter).
    Raises OSError that names file and sizes: no such file, too short, no room on the disk, no permission; and RuntimeError
    for tensors that are not contiguous. Buffers are kept until their operation is over. Any thread; the GIL is released.

    A write makes the file and keeps what stands outside [file_offset, file_offset + bytes). `validate` compares file and
    buffer afterwards. `intra_op_parallelism` multiplies queue_depth; single_submit and overlap_events change nothing."""
    def __init__(self, block_size: int = 1048576, queue_depth: int = 128, single_submit: bool = False, overlap_events: bool = False,
                 intra_op_parallelism: int = 1) -> None: ...
    def get_block_size(self) -> int: ...
    def get_queue_depth(self) -> int: ...
    def get_single_submit(self) -> bool: ...
    def get_overlap_events(self) -> bool: ...
    def get_intra_op_parallelism(self) -> int: ...
    def get_alignment(self) -> int:
        """512 bytes per unit of parallelism, for programs that pad to it; nothing has to be padded."""
    def read(self, buffer: Tensor, filename: Any, validate: bool, file_offset: int = 0) -> int:
        """Everything behind file_offset, which must be as long as the buffer. Returns 0."""
    def write(self, buffer: Tensor, filename: Any, validate: bool, file_offset: int = 0) -> int:
        """Returns 0."""
    def pread(self, buffer: Tensor, filename: Any, validate: bool, async_: bool, file_offset: int = 0) -> int:
        """A part of the file. Returns 1, or 0 at once with `async` (the argument's name), which wait() ends."""
    def pwrite(self, buffer: Tensor, filename: Any, validate: bool, async_: bool, file_offset: int = 0) -> int: ...
    def sync_pread(self, buffer: Tensor, filename: Any, file_offset: int = 0) -> int: ...
    def sync_pwrite(self, buffer: Tensor, filename: Any, file_offset: int = 0) -> int: ...
    def async_pread(self, buffer: Tensor, filename: Any, file_offset: int = 0) -> int:
        """The second argument may also be given as `fd`."""
    def async_pwrite(self, buffer: Tensor, filename: Any, file_offset: int = 0) -> int: ...
    def wait(self) -> int:
        """Number of asynchronous operations that are over now: all of them, 0 when there were none. Raises the first failure."""
    def new_cpu_locked_tensor(self, num_elem: int, example_tensor: Tensor) -> Tensor:
        """[num_elem] zeros of the example's dtype in pinned memory, which lives as long as the tensor. Where the system refuses to
        lock memory, the tensor is pageable (is_pinned: False) and a warning says why."""
    def free_cpu_locked_tensor(self, tensor: Tensor) -> bool:
        """Unlocks it; the tensor stays valid. False for tensors that are not pinned by a handle, or freed already."""
    def is_pinned(self, buffer: Tensor) -> bool:
        """Pinned by any handle of this process, or by torch."""

class pin_handle:
    """Pinned tensors without files; counted together with those of every aio_handle."""
    def __init__(self) -> None: ...
    def new_cpu_locked_tensor(self, num_elem: int, example_tensor: Tensor) -> Tensor: ...
    def free_cpu_locked_tensor(self, locked_tensor: Tensor) -> bool: ...
    def free_cpu_locked_tensor_by_ptr(self, address: int) -> bool: ...
    def is_pinned(self, buffer: Tensor) -> bool: ...

def aio_read(buffer: Tensor, filename: Any, block_size: int, queue_depth: int, single_submit: bool, overlap_events: bool, validate: bool) -> int: ...
def aio_write(buffer: Tensor, filename: Any, block_size: int, queue_depth: int, single_submit: bool, overlap_events: bool, validate: bool) -> int: ...
def aio_tuned_settings(folder: str) -> dict[str, Any]:
    """What suits the disk of `folder` (docs/env.md: DEEPSCALE_IO_CALIBRATION): block_size, queue_depth, and what was measured:
    read_bytes_per_s, write_bytes_per_s, remembered (from an earlier run), seconds (that measuring took now), reason (why these are
    the default settings, or ""). At most a second."""
def aio_engine() -> tuple[str, str]:
    """"io_uring", "threads" or "completion_port", and why it is not io_uring (or "")."""
def deepspeed_memcpy(dest: Tensor, src: Tensor) -> int:
    """The bytes of `src`; both contiguous CPU tensors of the same number of bytes. Returns 0."""

# ---- memory plan (src/engine/plan_builder.h)
def plan_memory(config_json: str, params: Sequence[tuple[str, Sequence[int], torch.dtype, bool, str]], world: dict[str, Any]) -> dict[str, str]:
    """params: (name, shape, dtype, trainable, module that owns it). world: ranks, ranks_per_host (0: all), accelerator, trains, states
    and external (of an optimizer that the program passes; states None: what the configuration names), held_memory_bytes and
    held_file_bytes (of parameters that exist), device_bytes or None. Returns "table", "json", and "misfit": an error text, empty
    when the plan fits."""


# ---- inference (src/inference/packed_weight.h)
class PackedShape:
    """A weight [rows, cols] kept in `bits` (4 or 8) with one scale per `group_size` elements along a row."""

    rows: int
    cols: int
    bits: int
    group_size: int
    symmetric: bool

    def __init__(self, rows: int, cols: int, bits: int, group_size: int, symmetric: bool = False) -> None: ...
    def numel(self, dtype: torch.dtype) -> int:
        """Elements of the packed tensor, whose dtype is the model's."""


def pack_weight(weight: Tensor, shape: PackedShape) -> Tensor:
    """weight [rows, cols] on the CPU -> [numel], bytes [values | scales | minimums]."""
def unpack_weight(packed: Tensor, shape: PackedShape) -> Tensor: ...
def packed_linear(x: Tensor, packed: Tensor, shape: PackedShape, bias: Tensor | None = None) -> Tensor:
    """x [..., cols] -> [..., rows]; no autograd."""
def packed_embedding(ids: Tensor, packed: Tensor, shape: PackedShape) -> Tensor:
    """ids [...] -> [..., cols]."""
def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear, faster on CPUs for at most 16 rows of x; no autograd."""
def available_memory() -> int:
    """Bytes that this process could take now, under the limits of its control groups."""
