#!/usr/bin/env python
"""Puts the fp32 weights of a sharded checkpoint together into one state dictionary.

A copy of this file lies in every checkpoint directory:  python zero_to_fp32.py . output_dir [--tag TAG] [--safe_serialization]
"""
from __future__ import annotations

import argparse
import glob
import json
import os
import re
from collections import OrderedDict
from typing import Any, Callable, Iterator

import torch
from torch import Tensor

from deepspeed.checkpoint.constants import (BUFFER_NAMES, FROZEN_PARAM_FRAGMENTS, FROZEN_PARAM_SHAPES, OPTIMIZER_STATE_DICT, PARAM_SHAPES,
                                            PARTITION_COUNT, SHARED_PARAMS, ZERO_STAGE)
from deepspeed.checkpoint.safe_load import load_file
from deepspeed.runtime.checkpoint_restore import StateFiles

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def atoi(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def natural_keys(text: str) -> list:
    """Sort key under which "rank_10" stands after "rank_9"."""
    return [atoi(part) for part in re.split(r"(\d+)", text)]


def get_checkpoint_files(checkpoint_dir: str, glob_pattern: str) -> list[str]:
    found = sorted(glob.glob(os.path.join(checkpoint_dir, glob_pattern)), key=natural_keys)
    if not found:
        raise FileNotFoundError(f"can't find {glob_pattern} files in directory '{checkpoint_dir}'")
    return found


def get_optim_files(checkpoint_dir: str) -> list[str]:
    return get_checkpoint_files(checkpoint_dir, "*_optim_states.pt")


def get_model_state_files(checkpoint_dir: str) -> list[str]:
    return get_checkpoint_files(checkpoint_dir, "*_model_states.pt")


def get_model_state_file(checkpoint_dir: str, zero_stage: int) -> str:
    """The model-state file of rank 0."""
    if not os.path.isdir(checkpoint_dir):
        raise FileNotFoundError(f"Directory '{checkpoint_dir}' doesn't exist")
    name = "mp_rank_00_model_states.pt" if zero_stage <= 2 else "zero_pp_rank_0_mp_rank_00_model_states.pt"
    path = os.path.join(checkpoint_dir, name)
    if not os.path.exists(path):
        raise FileNotFoundError(f"can't find model states file at '{path}'")
    return path


class GatheredTensor:
    """A parameter that is read from the files when contiguous() is called."""

    def __init__(self, read: Callable[[], Tensor], shape: torch.Size, dtype: torch.dtype = torch.float32) -> None:
        self._read, self.shape, self.dtype = read, torch.Size(shape), dtype

    def numel(self) -> int:
        return self.shape.numel()

    def contiguous(self) -> Tensor:
        return self._read()


class _Checkpoint:
    """The opened files of one tag."""

    def __init__(self, directory: str) -> None:
        self.optimizer_paths = get_optim_files(directory)
        states = [load_file(path).get(OPTIMIZER_STATE_DICT) for path in self.optimizer_paths]
        for path, state in zip(self.optimizer_paths, states):
            if not isinstance(state, dict) or ZERO_STAGE not in state and PARTITION_COUNT not in state:
                raise ValueError(f"{path} is not a zero checkpoint")
        self.stage = int(states[0].get(ZERO_STAGE, 1))
        count = states[0].get(PARTITION_COUNT, len(states))
        count = max(count) if isinstance(count, (list, tuple)) else count
        if count != len(states):
            raise ValueError(f"Expected {count} of '*_optim_states.pt' under '{directory}' but found {len(states)} files. Possibly due to an "
                             "overwrite of an old checkpoint, or a checkpoint didn't get saved by one or more processes.")
        self.models = [load_file(path) for path in get_model_state_files(directory)]
        first = self.models[0]
        if BUFFER_NAMES not in first:
            raise ValueError(f"the model-state files of {directory} are not of a model checkpoint")
        self.files = StateFiles(states, [list(group.items()) for group in first[PARAM_SHAPES]], self.optimizer_paths)

    def items(self, exclude_frozen_parameters: bool) -> Iterator[tuple[str, torch.Size, Callable[[], Tensor]]]:
        """(name, shape, reader) of buffers, frozen and trained parameters."""
        first = self.models[0]
        for name in first[BUFFER_NAMES]:
            value = first["module"].get(name)
            if value is not None:
                yield name, value.shape, lambda value=value: value.float()
        if not exclude_frozen_parameters:
            for name, shape in (first.get(FROZEN_PARAM_SHAPES) or {}).items():
                yield name, torch.Size(shape), lambda name=name: self._frozen(name)
            yield from self._whole_in_module()
        for group in self.files.groups:
            for name, shape in group:
                yield name, torch.Size(shape), lambda name=name: self.files.read_whole(name)

    def _whole_in_module(self) -> Iterator[tuple[str, torch.Size, Callable[[], Tensor]]]:
        """Frozen parameters of files that do not list them: they are whole in the module's own state."""
        first = self.models[0]
        known = {*first[BUFFER_NAMES], *(first.get(FROZEN_PARAM_SHAPES) or {}), *self.files.place, *self.aliases()}
        if len(self.models) == 1:
            for name, value in first["module"].items():
                if name not in known and isinstance(value, Tensor) and value.numel() > 0:
                    yield name, value.shape, lambda value=value: value.float()

    def _frozen(self, name: str) -> Tensor:
        shape = torch.Size(self.models[0][FROZEN_PARAM_SHAPES][name])
        pieces = [model[FROZEN_PARAM_FRAGMENTS][name].reshape(-1) for model in self.models]
        return torch.cat(pieces)[:shape.numel()].view(shape).float()

    def aliases(self) -> dict[str, str]:
        return dict(self.models[0].get(SHARED_PARAMS) or {})  # older files store pairs


def _directory(checkpoint_dir: str, tag: str | None) -> str:
    if tag is None:
        latest = os.path.join(checkpoint_dir, "latest")
        if not os.path.isfile(latest):
            raise ValueError(f"Unable to find 'latest' file at {latest}")
        with open(latest) as file:
            tag = file.read().strip()
    directory = os.path.join(checkpoint_dir, tag)
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"Directory '{directory}' doesn't exist")
    return directory


def get_fp32_state_dict_from_zero_checkpoint(checkpoint_dir: str, tag: str | None = None, exclude_frozen_parameters: bool = False,
                                             lazy_mode: bool = False) -> dict[str, Any]:
    """The model's whole fp32 state dictionary, on the CPU.

    lazy_mode: values are GatheredTensor objects, which read the files when contiguous() is called; parameters that share memory are
    then the same object."""
    checkpoint = _Checkpoint(_directory(checkpoint_dir, tag))
    state: dict[str, Any] = OrderedDict()
    for name, shape, read in checkpoint.items(exclude_frozen_parameters):
        state[name] = GatheredTensor(read, shape) if lazy_mode else read()
    for alias, source in checkpoint.aliases().items():
        if source in state:
            state[alias] = state[source]
    return state


def _resolve_output_dtype(dtype: Any) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    try:
        return _DTYPES[dtype or "fp32"]
    except KeyError:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}") from None


def to_torch_tensor(state_dict: dict[str, Any], return_empty_tensor: bool = False, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Tensors for the lazy values of a state dictionary; shared ones once."""
    made: dict[int, Tensor] = {}
    result: dict[str, Tensor] = OrderedDict()
    for name, value in state_dict.items():
        if id(value) not in made:
            wanted = dtype or value.dtype
            if return_empty_tensor:
                made[id(value)] = torch.empty(value.shape, dtype=wanted)
            else:
                whole = value if isinstance(value, Tensor) else value.contiguous()
                made[id(value)] = whole.to(wanted)
        result[name] = made[id(value)]
    return result


def _byte_size(text: str | int) -> int:
    if isinstance(text, int):
        return text
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    found = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]+)\s*", text)
    if found is None or found.group(2).upper() not in units:
        raise ValueError(f"max_shard_size {text!r} is not a size like '5GB'")
    return int(float(found.group(1)) * units[found.group(2).upper()])


def _split(state: dict[str, Any], limit: int, element_bytes: int) -> list[dict[str, Any]]:
    """Consecutive parts of at most `limit` bytes (a single larger tensor is a part of its own)."""
    parts: list[dict[str, Any]] = [OrderedDict()]
    size = 0
    for name, value in state.items():
        bytes_ = value.shape.numel() * element_bytes
        if parts[-1] and size + bytes_ > limit:
            parts.append(OrderedDict())
            size = 0
        parts[-1][name] = value
        size += bytes_
    return parts


def convert_zero_checkpoint_to_state_dict(checkpoint_dir: str, output_dir: str, max_shard_size: str | int | None = "5GB",
                                          safe_serialization: bool = False, tag: str | None = None,
                                          exclude_frozen_parameters: bool = False, dtype: Any = None) -> None:
    """Writes the state dictionary into `output_dir`, as pytorch_model*.bin or model*.safetensors with an index when there are parts."""
    wanted = _resolve_output_dtype(dtype)
    state = get_fp32_state_dict_from_zero_checkpoint(checkpoint_dir, tag, exclude_frozen_parameters, lazy_mode=True)
    if safe_serialization:
        from safetensors.torch import save_file
        state = _without_aliases(state)  # the format has no shared tensors
    stem, ending = ("model", "safetensors") if safe_serialization else ("pytorch_model", "bin")
    element_bytes = torch.empty(0, dtype=wanted).element_size()
    parts = [state] if max_shard_size is None else _split(state, _byte_size(max_shard_size), element_bytes)
    os.makedirs(output_dir, exist_ok=True)
    weight_map, total = {}, 0
    for number, part in enumerate(parts):
        name = f"{stem}.{ending}" if len(parts) == 1 else f"{stem}-{number + 1:05d}-of-{len(parts):05d}.{ending}"
        tensors = to_torch_tensor(part, dtype=wanted)
        path = os.path.join(output_dir, name)
        if safe_serialization:
            save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata={"format": "pt"})
        else:
            torch.save(tensors, path)
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(value.numel() * element_bytes for value in tensors.values())
    if len(parts) > 1:
        with open(os.path.join(output_dir, f"{stem}.{ending}.index.json"), "w", encoding="utf-8") as file:
            json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, file, indent=2, sort_keys=True)


def _without_aliases(state: dict[str, Any]) -> dict[str, Any]:
    seen: set[int] = set()
    kept = OrderedDict()
    for name, value in state.items():
        if id(value) not in seen:
            seen.add(id(value))
            kept[name] = value
    return kept


def convert_zero_checkpoint_to_fp32_state_dict(checkpoint_dir: str, output_dir: str, max_shard_size: str | int | None = "5GB",
                                               safe_serialization: bool = False, tag: str | None = None,
                                               exclude_frozen_parameters: bool = False) -> None:
    """convert_zero_checkpoint_to_state_dict in fp32."""
    convert_zero_checkpoint_to_state_dict(checkpoint_dir, output_dir, max_shard_size, safe_serialization, tag, exclude_frozen_parameters,
                                          dtype="fp32")


def load_state_dict_from_zero_checkpoint(model: torch.nn.Module, checkpoint_dir: str, tag: str | None = None) -> torch.nn.Module:
    """Puts the checkpoint's fp32 weights into a model on the CPU and returns it."""
    state = get_fp32_state_dict_from_zero_checkpoint(checkpoint_dir, tag)
    model = model.cpu()
    model.load_state_dict(state, strict=False)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Puts the weights of a sharded checkpoint together.")
    parser.add_argument("checkpoint_dir", help="directory that contains `latest`, or the tag's parent")
    parser.add_argument("output_dir", help="where pytorch_model.bin or model.safetensors is written")
    parser.add_argument("--max_shard_size", default="5GB", help="largest output file, e.g. 5GB")
    parser.add_argument("--safe_serialization", action="store_true", help="write safetensors")
    parser.add_argument("-t", "--tag", default=None, help="checkpoint tag, e.g. global_step1 (default: the one in `latest`)")
    parser.add_argument("--exclude_frozen_parameters", action="store_true", help="leave out frozen parameters")
    parser.add_argument("--dtype", default="fp32", choices=sorted(_DTYPES), help="dtype of the output")
    parser.add_argument("-d", "--debug", action="store_true", help="accepted for older command lines")
    arguments = parser.parse_args()
    convert_zero_checkpoint_to_state_dict(arguments.checkpoint_dir, arguments.output_dir, arguments.max_shard_size,
                                          arguments.safe_serialization, arguments.tag, arguments.exclude_frozen_parameters, arguments.dtype)


if __name__ == "__main__":
    main()
