"""File names of checkpoints, and tensors ready for torch.save."""
from __future__ import annotations

import os
from typing import Any

import torch

from .constants import MODEL_FILE_PREFIX, MODEL_FILE_SUFFIX, OPTIM_FILE_SUFFIX, ZERO_FILE_PREFIX


def get_model_ckpt_name_for_rank(base_folder: str, mp_rank_str: str) -> str:
    return os.path.join(base_folder, MODEL_FILE_PREFIX + mp_rank_str + MODEL_FILE_SUFFIX)


def get_zero_ckpt_name_for_rank(base_folder: str, dp_rank: int, mp_rank: int) -> str:
    return os.path.join(base_folder, f"{ZERO_FILE_PREFIX}{dp_rank}_{MODEL_FILE_PREFIX}{mp_rank:02d}{OPTIM_FILE_SUFFIX}")


def get_layer_ckpt_name_for_rank(base_folder: str, layer_id: str, tp_rank: int) -> str:
    return os.path.join(base_folder, f"{layer_id}-model_{tp_rank:02d}{MODEL_FILE_SUFFIX}")


def clone_tensors_for_torch_save(item: Any, device: Any = torch.device("cpu")) -> Any:
    """The same nested structure with every tensor copied: torch.save writes whole storages, and a view into a flat buffer
    would drag the buffer along. What was one tensor under two names (tied weights) still is, so that files hold it once."""
    return _clone(item, torch.device(device), {})


def _clone(item: Any, device: torch.device, copies: dict) -> Any:
    if torch.is_tensor(item):
        # The identity of values: state_dict() makes another object for every name.
        known = item.layout == torch.strided and item.data_ptr() != 0
        key = (item.data_ptr(), item.device, item.dtype, item.shape, item.stride()) if known else id(item)
        if key not in copies:
            copies[key] = item.detach().clone() if device == item.device else item.detach().to(device)
        return copies[key]
    if isinstance(item, (list, tuple)):
        return type(item)(_clone(value, device, copies) for value in item)
    if isinstance(item, dict):
        return type(item)({key: _clone(value, device, copies) for key, value in item.items()})
    return item
