"""Quantisation of the layers of a model that exists (`weight_quantization.post_init_quant`)."""
from __future__ import annotations

import logging
import re
from typing import Any, Mapping

import torch
import torch.nn as nn

from deepspeed.inference.quantization.layers import QUANTIZATION_LAYER_MAPPINGS, PackedLayout, _Packed, quantize_layer
from deepspeed.inference.quantization.utils import options_of
from deepspeed.utils.logging import log_dist


class _Choice:
    """What `rules` choose of a model: layers by the weight that they read, and the parameters that other layers read too."""

    def __init__(self, model: nn.Module, rules: Mapping[str, Any]) -> None:
        self.layers: dict[int, list[nn.Module]] = {}  # id(weight) -> layers
        self.options: dict[int, Any] = {}  # id(weight) -> its rule, of the first layer
        self.elsewhere: set[int] = set()
        self.eligible: list[str] = []  # names of all layers that could be chosen
        self.unused = set(rules)  # rules that chose none
        for name, layer in model.named_modules():
            weight = layer._parameters.get("weight")
            keys = [key for key in rules if key in name] if type(layer) in QUANTIZATION_LAYER_MAPPINGS else []
            self.unused.difference_update(keys)
            if type(layer) in QUANTIZATION_LAYER_MAPPINGS:
                self.eligible.append(name)
            if len(keys) > 1:
                raise AssertionError(f"{name} matched multiple quantization key word {keys[0]} and {keys[1]}")
            if not keys or not weight.is_floating_point():
                self.elsewhere.update(id(param) for param in layer._parameters.values() if param is not None)
                continue
            self.elsewhere.update(id(param) for key, param in layer._parameters.items() if key != "weight" and param is not None)
            self.layers.setdefault(id(weight), []).append(layer)
            self.options.setdefault(id(weight), rules[keys[0]])


def packed_numels(model: nn.Module, rules: Mapping[str, Any], dtype: torch.dtype | None) -> dict[int, tuple[int, bool]]:
    """id(weight) -> elements that quantize_by_name() will pack it into, and whether other layers go on reading the weight itself."""
    choice = _Choice(model, rules)
    found = {}
    for key, layers in choice.layers.items():
        weight = layers[0].weight
        layout = PackedLayout(*getattr(weight, "ds_shape", weight.shape), options_of(choice.options[key]))
        found[key] = layout.shape.numel(dtype or weight.dtype), key in choice.elsewhere
    return found


def quantize_by_name(model: nn.Module, rules: Mapping[str, Any], dtype: torch.dtype | None = None) -> int:
    """Quantises every nn.Linear and nn.Embedding whose name contains a key of `rules`; returns how many. Of sharded weights one unit
    at a time is made whole, packed, and sharded again where it lived (in memory, in files) as `dtype` (None: as it was). Weights that
    several layers share stay shared. Collective where parameters are sharded."""
    from deepspeed.runtime.zero.parameter import HeapTrimmer, dissolve, members_of_units, shard, slot_of
    choice = _Choice(model, rules)
    _tell_unused(choice)
    names = {id(param): name for name, param in model.named_parameters()}
    trimmer = HeapTrimmer()
    for members in list(members_of_units(model.parameters()).values()):
        if not any(id(param) in choice.layers for param in members):
            continue
        moved_bytes = 0
        slot = slot_of(members[0])
        unit_name, tier = slot.unit.name, slot.unit.tier
        dissolve(members)
        fresh: list[tuple[str, nn.Parameter]] = []
        for param in members:
            if dtype is not None and param.dtype != dtype:
                param.data = param.data.to(dtype)
            if id(param) not in choice.layers or id(param) in choice.elsewhere:
                fresh.append((names[id(param)], param))
            if id(param) in choice.layers:
                moved_bytes += param.numel() * param.element_size()
                fresh.append((names[id(param)], _quantize_weight(param, choice)))
        shard(unit_name, [name for name, _ in fresh], [param for _, param in fresh], slot.groups, fresh[0][1].dtype, slot.communicator,
              slot.group, tier)
        trimmer.left(moved_bytes)
    for layers in list(choice.layers.values()):
        if not isinstance(layers[0], _Packed):
            _quantize_weight(layers[0].weight, choice)
    return sum(len(layers) for layers in choice.layers.values())


def _tell_unused(choice: _Choice) -> None:
    if not choice.unused:
        return
    keys = ", ".join(f'"{key}"' for key in sorted(choice.unused))
    # Of layers with the same name in many blocks, one.
    kinds = {re.sub(r"\d+", "*", name): name for name in reversed(choice.eligible)}
    names = list(reversed(kinds.values()))
    there = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none, for it has no nn.Linear and no nn.Embedding"
    log_dist(f"weight_quantization.post_init_quant: {keys} changes nothing: no part of the name of a layer that can be quantised. "
             f"Those of this model: {there}", ranks=[0], level=logging.WARNING)


def _quantize_weight(weight: nn.Parameter, choice: _Choice) -> nn.Parameter:
    """The packed form of a whole weight, which all layers that were chosen for it read from now on."""
    first, *others = choice.layers[id(weight)]
    quantize_layer(first, choice.options[id(weight)])
    for layer in others:
        layer.__dict__["_ds_packed"] = first._ds_packed
        layer._parameters["weight"] = first.weight
        layer.__class__ = QUANTIZATION_LAYER_MAPPINGS[type(layer)]
    if id(weight) not in choice.elsewhere:
        weight.data = weight.data.new_empty(0)  # somebody may hold on to it
    return first.weight


def _init_group_wise_weight_quantization(model: nn.Module, ds_config: Mapping[str, Any]) -> nn.Module:
    """Quantises layers of `model` as ds_config["weight_quantization"]["post_init_quant"] says, and returns it."""
    if "weight_quantization" not in ds_config:
        raise AssertionError("Please provide quantization config in ds_config")
    count = quantize_by_name(model, ds_config["weight_quantization"]["post_init_quant"])
    log_dist(f"Group-wise weight quantization summary: convert {count} node(s) to quantized implementation", ranks=[0], level=logging.INFO)
    return model
