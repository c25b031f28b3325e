"""What the model's tensors are before training: device, parameter dtype, buffer dtype, buffers that stay in fp32.

[Note: dtype of buffers]
Parameters take the dtype of the enabled mode (fp16, bf16). A buffer that is left in fp32 beside them makes sums of both fp32, which
the next layer's 16-bit kernel refuses; a buffer that is rounded changes models that count on its digits. So, in this order:
- `data_types.buffer_dtype` casts all of them, except those that `data_types.keep_in_fp32_modules` names;
- without a 16-bit mode they keep their dtype;
- statistics of torch's own normalisation layers go with the layer's weights, because its kernels take one dtype for both;
- buffers of a model that says itself what stays in fp32 (Transformers, Diffusers) keep theirs: rotary tables, routing biases;
- so do buffers outside the state dictionary: the model computes them itself, with the digits it needs;
- all others are weights that are not trained, and take the dtype of the weights.
"""
from __future__ import annotations

import re
from typing import Callable, Iterator

import torch
import torch.nn as nn

from deepspeed.runtime.config import DeepSpeedConfig, to_dtype
from deepspeed.utils.logging import log_dist

_CASTABLE = (torch.float16, torch.bfloat16, torch.float32)


def _own_names(module: nn.Module, dtype: torch.dtype) -> Iterator[str]:
    """Patterns that a Transformers model and its parts give of themselves: the strict list always, the other under fp16."""
    for prefix, part in module.named_modules():
        names = list(getattr(part, "_keep_in_fp32_modules_strict", None) or [])
        if dtype == torch.float16:
            names += list(getattr(part, "_keep_in_fp32_modules", None) or [])
        for name in names:
            pattern = name.replace("*", ".*")
            yield rf"^{re.escape(prefix)}\..*{pattern}" if prefix else pattern


def fp32_names(module: nn.Module, dtype: torch.dtype, wanted: list[str] | str | None = "auto") -> re.Pattern | None:
    """Names of buffers that stay in fp32, to be searched anywhere in a dotted name; None when there are none.
    `wanted`: patterns, or "auto" for the model's own."""
    if dtype == torch.float32:
        return None
    if wanted is None or wanted == "auto":
        patterns = sorted(set(_own_names(module, dtype)))
    else:
        patterns = [name.replace("*", ".*") for name in wanted]
    return re.compile("|".join(patterns)) if patterns else None


def training_dtype(param: torch.Tensor, config: DeepSpeedConfig) -> torch.dtype:
    """The dtype in which a parameter trains. Without a 16-bit mode the caller's dtypes stay."""
    sixteen_bit = config.fp16.enabled or config.bf16.enabled
    return config.model_dtype if sixteen_bit and param.dtype in _CASTABLE else param.dtype


@torch.no_grad()
def cast_parameters(part: nn.Module, config: DeepSpeedConfig, is_sharded: Callable[[torch.Tensor], bool]) -> None:
    """Casts the unsharded parameters that belong to `part` itself. In place."""
    layout = part.__dict__.get("_ds_packed")  # a quantised layer: its bytes are no numbers of their dtype
    if layout is not None and not is_sharded(part.weight) and part.weight.dtype != training_dtype(part.weight, config):
        part.weight.data = layout.pack(layout.unpack(part.weight).to(training_dtype(part.weight, config)))
    for param in part.parameters(recurse=False):
        wanted = training_dtype(param, config)
        if param.dtype != wanted and not is_sharded(param):
            param.data = param.data.to(wanted)


def _own_buffers(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, torch.Tensor, bool]]:
    """Every floating buffer once: its dotted name, owner, own name, value, and whether it is in a model that cares for dtypes itself."""
    seen: set[int] = set()
    caring: list[str] = []  # prefixes
    for prefix, part in module.named_modules():
        if hasattr(part, "_keep_in_fp32_modules"):
            caring.append(prefix + "." if prefix else "")
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.dtype in _CASTABLE and id(buffer) not in seen:
                seen.add(id(buffer))
                full = f"{prefix}.{name}" if prefix else name
                yield full, part, name, buffer, any(full.startswith(start) for start in caring)


def _goes_with_weights(owner: nn.Module, name: str, in_caring_model: bool) -> bool:
    """See [Note: dtype of buffers]."""
    if isinstance(owner, nn.modules.batchnorm._NormBase):
        return True
    return not in_caring_model and name not in owner._non_persistent_buffers_set


@torch.no_grad()
def cast_buffers(module: nn.Module, config: DeepSpeedConfig) -> None:
    """Casts the buffers that [Note: dtype of buffers] says. In place."""
    keep = fp32_names(module, config.model_dtype, config.data_types.keep_in_fp32_modules)
    buffer_dtype = to_dtype(config.data_types.buffer_dtype)
    sixteen_bit = config.fp16.enabled or config.bf16.enabled
    unasked = []
    for full, owner, name, buffer, in_caring_model in _own_buffers(module):
        wanted = buffer_dtype
        if keep is not None and keep.search(full):
            wanted = torch.float32
        elif wanted is None and sixteen_bit and _goes_with_weights(owner, name, in_caring_model):
            wanted = config.model_dtype
            if buffer.dtype != wanted:
                unasked.append(full)
        if wanted is not None and buffer.dtype != wanted:
            buffer.data = buffer.data.to(wanted)
    if unasked:
        dtype = str(config.model_dtype).removeprefix("torch.")
        log_dist(f"{len(unasked)} buffers took the weights' dtype, {dtype}; the first is {unasked[0]}. data_types.keep_in_fp32_modules keeps those "
                 'that it names in fp32, data_types.buffer_dtype "fp32" all', ranks=[0])


@torch.no_grad()
def cast_for_inference(module: nn.Module, dtype: torch.dtype) -> None:
    """module.to(dtype), except for buffers whose digits count when `dtype` has 16 bits: tables outside the state dictionary, and what the
    model's own list names. There is no setting to say more, so all others are cast: a model that loses digits runs at least."""
    stay = []
    if dtype in (torch.float16, torch.bfloat16):
        keep = fp32_names(module, dtype)
        stay = [(owner, name, buffer) for full, owner, name, buffer, _ in _own_buffers(module)
                if name in owner._non_persistent_buffers_set or keep is not None and keep.search(full)]
    module.to(dtype)
    for owner, name, buffer in stay:
        owner._buffers[name] = buffer


def cast_module(module: nn.Module, config: DeepSpeedConfig, is_sharded: Callable[[torch.Tensor], bool]) -> None:
    """Casts unsharded parameters, and buffers. In place."""
    for part in module.modules():
        cast_parameters(part, config, is_sharded)
    cast_buffers(module, config)


@torch.no_grad()
def move_module(module: nn.Module, device: torch.device, is_sharded: Callable[[torch.Tensor], bool]) -> None:
    """Moves buffers and unsharded parameters. Sharded ones live where their shards were made."""
    for name, param in module.named_parameters():
        if is_sharded(param) or param.device == device:
            continue
        if param.device.type == "meta":
            raise RuntimeError(f"parameter {name} is on the meta device and has no values: load the model before initialize(), "
                               "or build it under deepspeed.zero.Init")
        param.data = param.data.to(device)
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.device != device:
                owner._buffers[name] = buffer.to(device)
