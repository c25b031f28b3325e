"""File names of checkpoints, and tensors ready for torch.save."""
from __future__ import annotations

import os
from collections import OrderedDict
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
    """The same nested structure with every tensor copied to `device`: torch.save writes whole storages, and a view into a flat buffer
    would drag the buffer along. Tied weights become separate copies: safetensors refuses tensors that share memory."""
    if torch.is_tensor(item):
        there = item.device == torch.device(device)
        return item.detach().clone() if there else item.detach().to(device)
    if isinstance(item, (list, tuple)):
        return type(item)(clone_tensors_for_torch_save(value, device) for value in item)
    if isinstance(item, dict):
        return type(item)({key: clone_tensors_for_torch_save(value, device) for key, value in item.items()})
    return item


def private_copies(value: Any, copies: dict | None = None) -> Any:
    """Tensors that are views into larger buffers are copied, because torch.save writes whole storages. What was shared stays shared."""
    copies = {} if copies is None else copies
    if isinstance(value, torch.Tensor):
        plain = value.detach()
        if plain.untyped_storage().nbytes() == plain.numel() * plain.element_size():
            return plain
        place = (plain.data_ptr(), plain.shape, plain.stride(), plain.dtype)
        if place not in copies:
            copies[place] = plain.clone()
        return copies[place]
    if isinstance(value, OrderedDict):
        return OrderedDict((key, private_copies(item, copies)) for key, item in value.items())
    if isinstance(value, dict):
        return {key: private_copies(item, copies) for key, item in value.items()}
    if isinstance(value, list):
        return [private_copies(item, copies) for item in value]
    return value
