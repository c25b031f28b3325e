"""Small parameters of stage 3 are whole from the start. A state dictionary that is asked for before the first backward pass has empty
tensors for them all the same, as DeepSpeed's has: then it is empty throughout, and nobody takes it for a model's weights."""
from __future__ import annotations

from typing import Any

import torch.nn as nn

from deepspeed.runtime.zero.parameter import slot_of


def hide_from_state_dicts(module: nn.Module) -> Any:
    """Until the returned handle's remove(). Inside GatheredParameters, and with keep_vars, values are there."""
    return module.register_state_dict_post_hook(_empty_small_parameters)


def _empty_small_parameters(module: nn.Module, state: dict, prefix: str, _metadata: dict) -> None:
    for name, param in module.named_parameters(remove_duplicate=False):
        slot, value = slot_of(param), state.get(prefix + name)
        if slot is None or value is None or isinstance(value, nn.Parameter):
            continue
        if slot.unit is None and slot.context_depth == 0:
            state[prefix + name] = value.new_empty(0)
