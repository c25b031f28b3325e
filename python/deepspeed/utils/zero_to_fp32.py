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
import sys
from collections import OrderedDict
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor

from deepspeed.checkpoint.constants import (BUFFER_NAMES, FROZEN_PARAM_FRAGMENTS, FROZEN_PARAM_SHAPES, OPTIMIZER_STATE_DICT, PARAM_SHAPES,
                                            PARTITION_COUNT, SHARED_PARAMS, ZERO_STAGE)
from deepspeed.checkpoint.safe_load import check_folder, load_file, run_as_program
from deepspeed.checkpoint.utils import private_copies
from deepspeed.checkpoint.weight_files import write_weights
from deepspeed.runtime.checkpoint_restore import StateFiles

OUTPUT_DTYPE_NAMES = {"fp32": torch.float32, "float32": torch.float32, "fp16": torch.float16, "float16": torch.float16,
                      "bf16": torch.bfloat16, "bfloat16": torch.bfloat16}
# Names of dtypes in safetensors files.
_SAFETENSORS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
                torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}


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
    """The optimizer files of a checkpoint, in the order of their ranks."""
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
        check_folder(directory, "use `ds_ckpt convert DIR OUT --to safetensors`")
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

    def items(self, exclude_frozen_parameters: bool) -> Iterator[tuple[str, Any, Callable[[], Tensor]]]:
        """(name, shape or stored tensor, reader) of buffers, frozen and trained parameters. Values are fp32, or not numbers with a point."""
        first = self.models[0]
        for name in first[BUFFER_NAMES]:
            value = first["module"].get(name)
            if value is not None:
                yield name, value, lambda value=value: _plain(value)
        if not exclude_frozen_parameters:
            for name, shape in (first.get(FROZEN_PARAM_SHAPES) or {}).items():
                yield name, torch.Size(shape), lambda name=name: self._frozen(name)
            yield from self._whole_in_module()
        for group in self.files.groups:
            for name, shape in group:
                yield name, torch.Size(shape), lambda name=name: self.files.read_whole(name)

    def _whole_in_module(self) -> Iterator[tuple[str, Any, Callable[[], Tensor]]]:
        """Frozen parameters of files that do not list them: they are whole in the module's own state."""
        first = self.models[0]
        known = {*first[BUFFER_NAMES], *(first.get(FROZEN_PARAM_SHAPES) or {}), *self.files.place, *self.aliases()}
        if len(self.models) == 1:
            for name, value in first["module"].items():
                if name not in known and isinstance(value, Tensor) and value.numel() > 0:
                    yield name, value, lambda value=value: _plain(value)

    def _frozen(self, name: str) -> Tensor:
        shape = torch.Size(self.models[0][FROZEN_PARAM_SHAPES][name])
        pieces = [model[FROZEN_PARAM_FRAGMENTS][name].reshape(-1) for model in self.models]
        return torch.cat(pieces)[:shape.numel()].view(shape).float()

    def aliases(self) -> dict[str, str]:
        return dict(self.models[0].get(SHARED_PARAMS) or {})  # older files store pairs


def _plain(value: Tensor) -> Tensor:
    """fp32; indices and masks as they are."""
    return value.float() if value.is_floating_point() else value.clone()


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
    for name, described, read in checkpoint.items(exclude_frozen_parameters):
        stored = isinstance(described, Tensor)
        dtype = described.dtype if stored and not described.is_floating_point() else torch.float32
        state[name] = GatheredTensor(read, described.shape if stored else described, dtype) if lazy_mode else read()
    for alias, source in checkpoint.aliases().items():
        if source in state:
            state[alias] = state[source]
    return state


def _resolve_output_dtype(dtype: Any) -> torch.dtype:
    found = OUTPUT_DTYPE_NAMES.get(dtype.lower().removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found not in OUTPUT_DTYPE_NAMES.values():
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(sorted(OUTPUT_DTYPE_NAMES))}")
    return found


def _output_dtype(value: Any, wanted: torch.dtype | None) -> torch.dtype:
    """Indices and masks keep their dtype."""
    return wanted if wanted is not None and value.dtype.is_floating_point else value.dtype


def to_torch_tensor(state_dict: dict[str, Any], return_empty_tensor: bool = False, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Tensors for the lazy values of a state dictionary; shared ones once."""
    wanted = None if dtype is None else _resolve_output_dtype(dtype)
    made: dict[int, Tensor] = {}
    result: dict[str, Tensor] = OrderedDict()
    for name, value in state_dict.items():
        if id(value) not in made:
            own = _output_dtype(value, wanted)
            made[id(value)] = torch.empty(value.shape, dtype=own) if return_empty_tensor else value.contiguous().to(own)
        result[name] = made[id(value)]
    return result


def _byte_size(text: str | int) -> int:
    if isinstance(text, int):
        return text
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]+)\s*", text)
    if found is None or found.group(2).upper() not in units:
        raise ValueError(f"max_shard_size {text!r} is not a size like '5GB'")
    return int(float(found.group(1)) * units[found.group(2).upper()])


def _split(state: dict[str, Any], limit: int, wanted: torch.dtype) -> tuple[list[dict[str, Any]], int]:
    """Parts of at most `limit` bytes, in the order of the names, and the bytes of all. A tensor that is larger is a part of its own, and the
    part that was begun goes on after it; another name of a tensor stands beside the first one."""
    parts: list[dict[str, Any]] = []
    current: dict[str, Any] = OrderedDict()
    part_of: dict[int, dict[str, Any]] = {}
    size = total = 0
    for name, value in state.items():
        if id(value) in part_of:
            part_of[id(value)][name] = value
            continue
        bytes_ = value.shape.numel() * _output_dtype(value, wanted).itemsize
        total += bytes_
        if bytes_ > limit:
            parts.append(OrderedDict({name: value}))
            part_of[id(value)] = parts[-1]
            continue
        if size + bytes_ > limit:
            parts.append(current)
            current, size = OrderedDict(), 0
        current[name] = value
        part_of[id(value)] = current
        size += bytes_
    return parts + [current] if current or not parts else parts, total


def _save_safetensors(part: dict[str, Any], path: str, wanted: torch.dtype) -> None:
    """One tensor in memory at a time: 8 bytes of the header's size, a JSON header, the tensors' bytes end to end."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, value in part.items():
        own = _output_dtype(value, wanted)
        if own not in _SAFETENSORS:
            raise ValueError(f"{name} has dtype {own}, which safetensors files cannot hold: convert without safe_serialization")
        end = offset + value.shape.numel() * own.itemsize
        header[name] = {"dtype": _SAFETENSORS[own], "shape": list(value.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in part.values():
            whole = value.contiguous().to(_output_dtype(value, wanted))
            file.write(memoryview(whole.contiguous().reshape(-1).view(torch.uint8).numpy()))


def convert_zero_checkpoint_to_state_dict(checkpoint_dir: str, output_dir: str, dtype: Any = torch.float32,
                                          max_shard_size: str | int | None = "5GB", safe_serialization: bool = False,
                                          tag: str | None = None, exclude_frozen_parameters: bool = False) -> None:
    """Writes the state dictionary into `output_dir`, as pytorch_model*.bin or model*.safetensors with an index when there are parts.

    In memory is one part, or with safe_serialization one tensor; the checkpoint's files are mapped. A set of files of that name that is
    there, whoever wrote it, stays as it is until the new one is complete (the disk needs room for both) and goes then. Prints what was written."""
    wanted = _resolve_output_dtype(dtype)
    state = get_fp32_state_dict_from_zero_checkpoint(checkpoint_dir, tag, exclude_frozen_parameters, lazy_mode=True)
    if safe_serialization:
        state = _without_aliases(state)  # the format has no shared tensors
    stem, ending = ("model", "safetensors") if safe_serialization else ("pytorch_model", "bin")
    limit = sys.maxsize if max_shard_size is None else _byte_size(max_shard_size)
    parts, total = _split(state, limit, wanted)
    write = _save_safetensors if safe_serialization else _save_pickle
    write_weights(output_dir, f"{stem}.{ending}", parts, total, lambda part, path: write(part, path, wanted), other_formats_go=False)
    files = f"{stem}.{ending}" if len(parts) == 1 else f"{stem}-*.{ending} and their index"
    print(f"{os.path.join(output_dir, files)}: {len(state)} tensors, {total:,} bytes in {len(parts)} parts")


def _save_pickle(part: dict[str, Any], path: str, wanted: torch.dtype) -> None:
    torch.save(private_copies(to_torch_tensor(part, dtype=wanted)), path)


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
    convert_zero_checkpoint_to_state_dict(checkpoint_dir, output_dir, torch.float32, max_shard_size, safe_serialization, tag,
                                          exclude_frozen_parameters)


def load_state_dict_from_zero_checkpoint(model: torch.nn.Module, checkpoint_dir: str, tag: str | None = None) -> torch.nn.Module:
    """Puts the checkpoint's fp32 weights into a model on the CPU and returns it."""
    state = get_fp32_state_dict_from_zero_checkpoint(checkpoint_dir, tag)
    model = model.cpu()
    model.load_state_dict(state, strict=False)
    return model


def convert_arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("checkpoint_dir", help="directory that contains `latest`, or the tag's parent")
    parser.add_argument("output_dir", help="where pytorch_model.bin or model.safetensors is written")
    parser.add_argument("--max_shard_size", default="5GB", help="largest output file, e.g. 5GB or 500MB")
    parser.add_argument("--safe_serialization", action="store_true", help="write safetensors")
    parser.add_argument("-t", "--tag", default=None, help="checkpoint tag, e.g. global_step1 (default: the one in `latest`)")
    parser.add_argument("--exclude_frozen_parameters", action="store_true", help="leave out frozen parameters")
    parser.add_argument("-d", "--debug", action="store_true", help="accepted for older command lines")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    given = convert_arguments("Puts the fp32 weights of a sharded checkpoint together.").parse_args(args)
    convert_zero_checkpoint_to_fp32_state_dict(given.checkpoint_dir, given.output_dir, given.max_shard_size, given.safe_serialization, given.tag,
                                               given.exclude_frozen_parameters)


if __name__ == "__main__":
    run_as_program(main)
