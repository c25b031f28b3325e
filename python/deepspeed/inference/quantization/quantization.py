"""Quantisation of the layers of a model that exists (`weight_quantization.post_init_quant`)."""
from __future__ import annotations

import logging
from typing import Any, Mapping

import torch.nn as nn

from deepspeed.inference.quantization.layers import QUANTIZATION_LAYER_MAPPINGS, _Packed, quantize_layer
from deepspeed.utils.logging import log_dist


def quantize_by_name(model: nn.Module, rules: Mapping[str, Any]) -> int:
    """Quantises every nn.Linear and nn.Embedding whose name contains a key of `rules`; returns how many. Sharded weights are made
    whole first, one layer at a time. Weights that several layers share stay shared. Collective where parameters are sharded."""
    from deepspeed.runtime.zero.parameter import dissolve, is_sharded
    packed_of: dict[int, tuple[nn.Module, nn.Parameter]] = {}
    count = 0
    for name, layer in model.named_modules():
        if type(layer) not in QUANTIZATION_LAYER_MAPPINGS or isinstance(layer, _Packed):
            continue
        keys = [key for key in rules if key in name]
        assert len(keys) <= 1, f"{name} matched multiple quantization key word {keys[0]} and {keys[1]}"
        if not keys:
            continue
        before = layer.weight
        if id(before) in packed_of:
            twin = packed_of[id(before)][0]
            layer.__dict__["_ds_packed"] = twin._ds_packed
            layer._parameters["weight"] = twin.weight
            layer.__class__ = QUANTIZATION_LAYER_MAPPINGS[type(layer)]
        else:
            if is_sharded(before):
                dissolve([before])
            quantize_layer(layer, rules[keys[0]])
            packed_of[id(before)] = (layer, before)  # keeps `before` alive, so that its id stays its own
            before.data = before.data.new_empty(0)
        count += 1
    return count


def _init_group_wise_weight_quantization(model: nn.Module, ds_config: Mapping[str, Any]) -> nn.Module:
    """Quantises layers of `model` as ds_config["weight_quantization"]["post_init_quant"] says, and returns it."""
    assert "weight_quantization" in ds_config, "Please provide quantization config in ds_config"
    count = quantize_by_name(model, ds_config["weight_quantization"]["post_init_quant"])
    log_dist(f"Group-wise weight quantization summary: convert {count} node(s) to quantized implementation", ranks=[0], level=logging.INFO)
    return model
