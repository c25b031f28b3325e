"""Small parameters of stage 3 are whole from the start. A state dictionary that is asked for before the first backward pass has empty
tensors for them all the same, as DeepSpeed's has: then it is empty throughout, and nobody takes it for a model's weights."""
from __future__ import annotations

from typing import Any

import torch.nn as nn

from deepspeed.runtime.zero.parameter import slot_of


class HiddenSmallParameters:
    """From its making until show(). Inside GatheredParameters, and with keep_vars, values are there. Loading such a state dictionary leaves
    small parameters as they are, like the sharded ones, until end()."""

    def __init__(self, module: nn.Module) -> None:
        self._saving: Any = module.register_state_dict_post_hook(_empty_small_parameters)
        self._loading: Any = module.register_load_state_dict_pre_hook(_keep_small_parameters)

    def show(self) -> None:
        self._saving.remove()

    def end(self) -> None:
        self._saving.remove()
        self._loading.remove()


def _keep_small_parameters(module: nn.Module, state: dict, prefix: str, *_: Any) -> None:
    for name, param in module.named_parameters(remove_duplicate=False):
        slot, value = slot_of(param), state.get(prefix + name)
        if slot is not None and slot.unit is None and value is not None and value.numel() == 0:
            state[prefix + name] = param.data


def _empty_small_parameters(module: nn.Module, state: dict, prefix: str, _metadata: dict) -> None:
    for name, param in module.named_parameters(remove_duplicate=False):
        slot, value = slot_of(param), state.get(prefix + name)
        if slot is None or value is None or isinstance(value, nn.Parameter):
            continue
        if slot.unit is None and slot.context_depth == 0:
            state[prefix + name] = value.new_empty(0)
