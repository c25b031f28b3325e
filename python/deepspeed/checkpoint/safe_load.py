"""Reads checkpoint files without running code that they might contain.

Only tensors, plain containers and the classes listed here (or registered with torch.serialization.add_safe_globals) are made.
This file is also part of zero_to_fp32.py's work, so it imports nothing but torch and deepspeed's own small classes.
"""
from __future__ import annotations

import argparse
import collections
import datetime
import io
import os
import pathlib
import pickle
import sys
from typing import Any, Callable

import torch

from deepspeed import _C
from deepspeed._C import CheckpointError
from deepspeed.checkpoint.pickle_check import Refused, check_torch_file


def _harmless() -> list[Any]:
    import numpy

    from deepspeed.checkpoint.universal_checkpoint import SubparamShape
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler, LossScalerBase
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address
    reconstruct = numpy._core.multiarray._reconstruct
    scalar = numpy._core.multiarray.scalar
    found: list[Any] = [
        DynamicLossScaler, LossScaler, LossScalerBase, ZeroStageEnum, SubparamShape, fragment_address, argparse.Namespace,
        collections.OrderedDict,
        collections.defaultdict, collections.deque, collections.Counter, datetime.timedelta, datetime.datetime, datetime.date,
        pathlib.PosixPath, pathlib.PurePosixPath, complex, set, frozenset, slice, range, numpy.ndarray, numpy.dtype, reconstruct, scalar,
        (reconstruct, "numpy.core.multiarray._reconstruct"), (scalar, "numpy.core.multiarray.scalar")]
    found += [type(numpy.dtype(kind)) for kind in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
                                                   "float16", "float32", "float64")]
    return found


def run_as_program(main: Callable[[], None]) -> None:
    """A program's main(), whose user needs to know what is wrong with which file, not where that was found out."""
    try:
        main()
    except (CheckpointError, OSError, ValueError) as problem:
        raise SystemExit(f"{os.path.basename(sys.argv[0])}: error: {problem}") from None


def check_folder(directory: str, instead: str) -> None:
    """Every byte of a checkpoint of DeepSpeed's layout that was saved here, whose manifest has checksums; nothing for others. CheckpointError
    names what is damaged; for a checkpoint in the native format it says what to do instead."""
    if not has_manifest(directory):
        return
    if _C.checkpoint_kind(directory) == "native":
        raise CheckpointError(f"{directory} is a checkpoint in the native format, which is not read here: {instead}")
    verify_before_loading(directory)


def has_manifest(directory: str) -> bool:
    return os.path.isfile(os.path.join(directory, "manifest.json"))


def verify_before_loading(directory: str, through_cache: bool = True) -> None:
    """Reads every byte of a checkpoint that has a manifest. CheckpointError names what is damaged. through_cache: for files that are read
    from their mapping next."""
    problems = _C.verify_tag(directory, True, threads=min(os.cpu_count() or 1, 8), loads_next=through_cache)
    if problems:
        raise CheckpointError("; ".join(problems[:3]))


def load_file(path: str) -> dict:
    """The dictionary in one checkpoint file, tensors mapped from disk. Raises CheckpointError naming the file."""
    loaded = load_object(path)
    if not isinstance(loaded, dict):
        raise CheckpointError(f"checkpoint file {path} holds {type(loaded).__name__} where a dictionary is expected")
    return loaded


def load_object(path: str) -> Any:
    """load_file for files that may hold something else, such as one tensor."""
    if not os.path.isfile(path):
        raise CheckpointError(f"checkpoint file {path} does not exist: the checkpoint is not complete, or the directory or tag is wrong")
    try:
        check_torch_file(path, _is_zip(path))
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Refused as error:
        raise CheckpointError(f"checkpoint file {path} is not loaded: {error}; it is damaged, or made to harm who loads it") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"checkpoint file {path}: {_why(error)}") from error
    except Exception as error:  # whatever instructions that make no sense lead to: IndexError, struct.error, MemoryError ...
        raise CheckpointError(f"checkpoint file {path}: {_damaged(error)}") from error


def why_not_loaded(value: Any) -> str | None:
    """What keeps an object that is about to be saved from being loaded again; None: nothing. Values of tensors are not looked at.
    TypeError when it cannot even be saved."""
    buffer = io.BytesIO()
    try:
        torch.save(_without_values(value), buffer)
    except Exception as error:
        raise TypeError(f"it cannot be saved: {error}") from error
    try:
        buffer.seek(0)
        with torch.serialization.safe_globals(_harmless()):
            torch.load(buffer, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = _why(error)
        return why if "object of type" in why else f"it has a type that is not loaded from files ({why})"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _without_values(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty(0, dtype=value.dtype)
    if type(value) in (list, tuple):
        return type(value)(_without_values(item) for item in value)
    if type(value) in (dict, collections.OrderedDict):
        return type(value)((key, _without_values(item)) for key, item in value.items())
    return value


def _is_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _why(error: Exception) -> str:
    text = str(error)
    for marker in ("GLOBAL ", "Unsupported global: "):
        if marker in text:
            name = text.split(marker, 1)[1].split()[0]
            return (f"it contains an object of type {name}, which is not loaded from files because that could run code; if you trust "
                    f"the file, call torch.serialization.add_safe_globals([{name.rpartition('.')[2]}]) before loading")
    return _damaged(error)


def _damaged(error: Exception) -> str:
    # Not torch's whole message: it recommends to load such a file without these checks.
    text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    first = (text.strip().splitlines() or [type(error).__name__])[0][:300]
    return f"it is cut off or damaged ({first}): restore it, or load another tag"
