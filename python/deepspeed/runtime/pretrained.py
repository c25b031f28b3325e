"""Weights alone, as Hugging Face directories and single files have them: read into a model or engine, sharded or not, and written.

Known are `model.safetensors` and `pytorch_model.bin`, each whole or as parts with an index (`*.index.json`: {"weight_map": {name: file}}), a
path of any such file, and files of one state dictionary (.pt, .pth, .bin). Torch files are read without running code; safetensors one tensor
at a time. What is tied in the model need be there under one of its names.
"""
from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
import torch.nn as nn

from deepspeed._C import CheckpointError
from deepspeed.checkpoint.safe_load import load_file
from deepspeed.checkpoint.weight_files import FOLDER_NAMES, write_weights

_TORCH_ENDINGS = (".bin", ".pt", ".pth")


class Weights(dict):
    """name -> tensor, or the safetensors file with it, which is read when it is asked for."""

    def __getitem__(self, name: str) -> torch.Tensor:
        value = super().__getitem__(name)
        return value.get_tensor(name) if hasattr(value, "get_tensor") else value

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the tensor."""
        value = super().__getitem__(name)
        return tuple(value.get_slice(name).get_shape() if hasattr(value, "get_slice") else value.shape)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default


def find_weights(path: Any) -> str:
    """The file to begin with. CheckpointError when there is none."""
    path = os.fspath(path)
    if os.path.isdir(path):
        found = [name for name in FOLDER_NAMES if os.path.isfile(os.path.join(path, name))]
        if not found:
            raise CheckpointError(f"{path} holds no weights: expected one of {', '.join(FOLDER_NAMES)}")
        return os.path.join(path, found[0])
    if not path.endswith((".safetensors", ".index.json", *_TORCH_ENDINGS)):
        raise CheckpointError(f"weights are read from a folder with {' or '.join(FOLDER_NAMES)}, or from a file that ends with .safetensors, "
                              f".index.json, {', '.join(_TORCH_ENDINGS)}; got {path!r}")
    if not os.path.isfile(path):
        raise CheckpointError(f"the file {path} does not exist")
    return path


def open_weights(path: Any) -> Weights:
    """All names of a folder or file. CheckpointError naming the file that is missing, damaged or not what the index says."""
    path = find_weights(path)
    if path.endswith(".safetensors"):
        return _safetensors(path)
    if not path.endswith(".index.json"):
        state = load_file(path)
        return Weights(state.get("module", state))
    try:
        with open(path, encoding="utf-8") as file:
            weight_map = json.load(file)["weight_map"]
        named = {str(name): str(part) for name, part in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise CheckpointError(f"{path} is no index of weights ({{\"weight_map\": {{name: file}}}}): {problem!r:.200}") from problem
    parts: dict[str, Weights] = {}
    found = Weights()
    for name, part in named.items():
        if os.path.basename(part) != part or part in ("", ".", "..") or "\\" in part or part.endswith(".index.json"):
            raise CheckpointError(f"{path}: {part!r:.100} is not the name of a file beside the index")
        if part not in parts:
            parts[part] = open_weights(os.path.join(os.path.dirname(path), part))
        if name not in parts[part]:
            raise CheckpointError(f"{path} says that {name!r:.100} is in {part}, which has no such tensor")
        found[name] = dict.__getitem__(parts[part], name)
    return found


def _safetensors(path: str) -> Weights:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as problem:
        raise CheckpointError(f"reading {path} needs the package safetensors: pip install safetensors") from problem
    try:
        file = safe_open(path, framework="pt")
        return Weights((name, file) for name in file.keys())
    except (SafetensorError, OSError) as problem:
        raise CheckpointError(f"{path} is damaged, or no safetensors file: {problem}") from problem


@torch.no_grad()
def put_weights(model: nn.Module, state: dict) -> tuple[list[str], list[str], list[str]]:
    """Into a model that is plain or sharded, one module at a time. Returns (missing, unexpected, errors). Collective where sharded."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters
    known: set[str] = set()
    missing: list[str] = []
    errors: list[str] = []
    stored: set[int] = set()
    owners: dict[str, int] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        start = f"{prefix}." if prefix else ""
        for name, param in module._parameters.items():
            if param is not None:
                owners[start + name] = id(param)
                stored.update({id(param)} if start + name in state else ())
        known.update(name for name in (start + own for own in (*module._parameters, *module._buffers)) if name in state)
        with GatheredParameters(list(module.parameters(recurse=False)), modifier_rank=0):
            module._load_from_state_dict(state, start, {}, True, missing, [], errors)
    missing = [name for name in missing if owners.get(name) not in stored]
    return missing, sorted(set(state) - known), errors


def load_weights(engine: Any, path: Any, strict: bool) -> None:
    """engine.load_16bit_model. Collective."""
    from deepspeed.runtime.agreement import Together
    core = engine.live_core("load_16bit_model")
    together = Together(engine, f"load_16bit_model({path})", CheckpointError, " Nothing was changed.")
    with together.attempt():
        state = open_weights(path)
        wrong = _wrong_shapes(engine.module, state)
        if wrong:
            raise CheckpointError(f"{path}: shapes differ: {'; '.join(wrong[:5])}")
        if strict:
            _check_names(engine.module, state, path)
    together.agree()
    put_weights(engine.module, state)
    core.refresh_from_parameters()


def _wrong_shapes(model: nn.Module, state: Weights) -> list[str]:
    wrong = []
    for name, param in model.named_parameters(remove_duplicate=False):
        shape = tuple(getattr(param, "ds_shape", param.shape))
        if name in state and state.shape(name) != shape:
            wrong.append(f"{name}: {list(state.shape(name))} in the file, {list(shape)} in the model")
    return wrong


def _check_names(model: nn.Module, state: Weights, path: Any) -> None:
    names_of: dict[int, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(param), []).append(name)
    missing = [names[0] for names in names_of.values() if not any(name in state for name in names)]
    expected = set(model.state_dict(keep_vars=True))
    missing += sorted(expected - set(state) - {name for names in names_of.values() for name in names})
    unexpected = sorted(set(state) - expected)
    if missing or unexpected:
        raise CheckpointError(f"{path} does not fit the model: missing {missing[:5]}, unexpected {unexpected[:5]}; strict=False loads what fits")


def write_safetensors(state: dict, aliases: dict[str, str], path: str, max_shard_size: str | int | None) -> None:
    """A file, or parts and an index where it would be larger. The format has no shared tensors: of several names the first is kept."""
    from deepspeed.utils.zero_to_fp32 import _byte_size, _save_safetensors, _split
    kept = {name: value for name, value in state.items() if name not in aliases or aliases[name] not in state}
    parts, total = _split(kept, sys.maxsize if max_shard_size is None else _byte_size(max_shard_size), None)
    folder, filename = os.path.split(path)
    write_weights(folder, filename, parts, total, lambda part, place: _save_safetensors(part, place, None))


def write_torch_file(state: dict, path: str) -> None:
    """A file of torch.save's format."""
    folder, filename = os.path.split(path)
    write_weights(folder, filename, [state], 0, torch.save)
