"""Linear and Embedding layers whose weight stays quantised in memory, in files and on its way.

The weight parameter of such a layer is one 1-D tensor of the model's dtype, [values | scales | minimums] as bytes (a packed weight;
src/inference/packed_weight.h). On CPUs products read it as it is, so that fewer bytes move; elsewhere, and where gradients of
the input are wanted, the weight is dequantised first.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from deepspeed import _C
from deepspeed.inference.quantization.utils import options_of, unpack_with_torch


class PackedLayout:
    """How the weight of one layer is packed. With group_dim 0 it is packed transposed, because groups lie along rows."""

    def __init__(self, rows: int, cols: int, options: dict[str, Any]) -> None:
        self.transposed = options["group_dim"] == 0
        if self.transposed:
            rows, cols = cols, rows
        self.shape = _C.PackedShape(rows, cols, options["num_bits"], options["group_size"], options["symmetric"])

    def pack(self, weight: Tensor) -> Tensor:
        """weight [rows, cols] -> 1-D tensor of its dtype on its device."""
        source = weight.detach().t() if self.transposed else weight.detach()
        return _C.pack_weight(source.contiguous().cpu(), self.shape).to(weight.device)

    def unpack(self, packed: Tensor) -> Tensor:
        plain = packed.detach()
        weight = _C.unpack_weight(plain, self.shape) if plain.is_cpu else unpack_with_torch(plain, self.shape)
        return weight.t() if self.transposed else weight


class _Packed:
    """What the layers below share. `_ds_packed` is the layout of `self.weight`."""

    def dequantized_weight(self) -> Tensor:
        return self._ds_packed.unpack(self.weight)

    def _apply(self, fn, *args, **kwargs):
        """A change of dtype would convert the bytes of the packed weight: what they mean is converted instead."""
        weight = self.weight
        whole = weight.numel() == self._ds_packed.shape.numel(weight.dtype)
        if whole and fn(weight.data.new_empty(0)).dtype != weight.dtype:
            weight.data = self._ds_packed.pack(fn(self.dequantized_weight()))
        return super()._apply(fn, *args, **kwargs)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Weights of unquantised checkpoints are packed as they come."""
        key = prefix + "weight"
        value = state_dict.get(key)
        if value is not None and value.dim() == 2:
            state_dict = {**state_dict, key: self._ds_packed.pack(value.to(self.weight.dtype))}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _hand_over(target: nn.Module, source: nn.Module) -> None:
    nn.Module.__init__(target)
    target.__dict__.update({key: value for key, value in source.__dict__.items() if key not in ("_parameters",)})
    target.__dict__["_parameters"] = dict(source._parameters)


class QuantizedLinear(_Packed, nn.Linear):
    """nn.Linear over a packed weight."""

    def __init__(self, config: Any, pre_quant_layer: nn.Linear) -> None:
        _hand_over(self, pre_quant_layer)
        pack_layer(self, options_of(config))

    def forward(self, input: Tensor) -> Tensor:
        weight, layout = self.weight, self._ds_packed
        # Autocast chooses dtypes by the operator, and knows torch's own only.
        by_kernel = input.is_cpu and not layout.transposed and not torch.is_autocast_enabled("cpu") and \
            not (torch.is_grad_enabled() and input.requires_grad)
        if by_kernel and (self.bias is None or not (torch.is_grad_enabled() and self.bias.requires_grad)):
            return _C.packed_linear(input, weight, layout.shape, self.bias)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, layout.unpack(weight).to(input.dtype), bias)


class QuantizedEmbedding(_Packed, nn.Embedding):
    """nn.Embedding over a packed weight: only the rows that are asked for are dequantised."""

    def __init__(self, config: Any, pre_quant_layer: nn.Embedding) -> None:
        if pre_quant_layer.max_norm is not None:
            raise AssertionError("QuantizedEmbedding: max_norm is not supported")
        if pre_quant_layer.sparse:
            raise AssertionError("QuantizedEmbedding: sparse gradients are not supported")
        _hand_over(self, pre_quant_layer)
        pack_layer(self, options_of(config))

    def forward(self, input: Tensor) -> Tensor:
        weight, layout = self.weight, self._ds_packed
        if weight.is_cpu and not layout.transposed:
            return _C.packed_embedding(input, weight, layout.shape)
        return F.embedding(input, layout.unpack(weight))


QUANTIZATION_LAYER_MAPPINGS = {nn.Linear: QuantizedLinear, nn.Embedding: QuantizedEmbedding}


def pack_layer(layer: nn.Module, options: dict[str, Any], keep_values: bool = True) -> None:
    """Replaces the whole weight of `layer`, which is there, by its packed form (zeros unless keep_values), without gradient."""
    weight = layer.weight
    layout = PackedLayout(*weight.shape, options)
    layer.__dict__["_ds_packed"] = layout
    packed = layout.pack(weight.data) if keep_values else weight.data.new_zeros(layout.shape.numel(weight.dtype))
    layer._parameters["weight"] = nn.Parameter(packed, requires_grad=False)


def quantize_layer(layer: nn.Module, config: Any, keep_values: bool = True) -> bool:
    """Quantises an nn.Linear or nn.Embedding in place (its class is exchanged, hooks and names stay). False: another kind of layer."""
    cls = QUANTIZATION_LAYER_MAPPINGS.get(type(layer))
    if cls is None or not layer.weight.is_floating_point():
        return False
    pack_layer(layer, options_of(config), keep_values)
    layer.__class__ = cls
    return True
