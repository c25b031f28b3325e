"""Group-wise quantisation of weights to 8 or 4 bits as torch operations, on any device, and the layout of packed weights.

Formulas (b bits, L = 2^b - 1, every operation rounded to the weight's dtype): scale = L / (max - min) of a group,
q = round(clamp((x - min) * scale, 0, L)), x' = q / scale + min. These are the bits of DeepSpeed 0.19.8. What runs on CPUs is the
core's kernels (src/kernels/cpu/quantize.h), which have the same bits wherever the formula is finite.
"""
from __future__ import annotations

from typing import Any, Mapping

import torch
from torch import Tensor


def options_of(config: Any) -> dict[str, Any]:
    """num_bits, group_size, group_dim and symmetric of a configuration (mapping or section), checked."""
    read = (lambda key, default: config.get(key, default)) if isinstance(config, Mapping) else \
        (lambda key, default: getattr(config, key, default))
    options = {"num_bits": read("num_bits", 8), "group_size": read("group_size", 64), "group_dim": read("group_dim", 1),
               "symmetric": bool(read("symmetric", False))}
    if options["num_bits"] not in (4, 8):
        raise AssertionError(f"num_bits must be 4 or 8, found {options['num_bits']}")
    if options["group_dim"] not in (0, 1):
        raise AssertionError(f"group_dim must be 0 or 1, got {options['group_dim']}")
    if options["group_size"] < 1:
        raise AssertionError(f"group_size must be at least 1, got {options['group_size']}")
    return options


def _groups(tensor: Tensor, options: dict[str, Any]) -> Tensor:
    """`tensor` with the group dimension split into (groups, group_size)."""
    dim, size = options["group_dim"], options["group_size"]
    if tensor.shape[dim] % size != 0:
        raise AssertionError(f"Tensor shape: {tuple(tensor.shape)} quantization config {options}: dimension {dim} is not a "
                             "multiple of group_size")
    return tensor.reshape(tensor.shape[:dim] + (tensor.shape[dim] // size, size) + tensor.shape[dim + 1:])


class Quantizer:
    """Quantises tensors: (values as uint8, scale, minimum). 4-bit values are packed, the even column in the high nibble."""

    def __init__(self, config: Any) -> None:
        self.config = options_of(config)
        if self.config["symmetric"]:
            raise AssertionError("Only asymmetric quantization is supported by Quantizer")

    def quantize(self, tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bits, dim = self.config["num_bits"], self.config["group_dim"]
        if bits == 4:
            if tensor.shape[-1] % 2 != 0:
                raise AssertionError(f"4-bit values are packed in pairs: the last dimension {tensor.shape[-1]} must be even")
        grouped = _groups(tensor, self.config)
        low = grouped.amin(dim=dim + 1, keepdim=True)
        high = grouped.amax(dim=dim + 1, keepdim=True)
        scale = (2**bits - 1) / (high - low)
        values = grouped.sub(low).mul_(scale).clamp_(0, 2**bits - 1).round_().to(torch.uint8).reshape(tensor.shape).contiguous()
        if bits == 4:
            flat = values.view(-1, 2)
            values = ((flat[:, 0] << 4) | flat[:, 1]).view(tensor.shape[:-1] + (tensor.shape[-1] // 2,))
        return values, scale, low


class DeQuantizer:
    """The inverse: values, scale and minimum as Quantizer returns them, to tensors of `dtype`."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        self.config = options_of(config)
        self.dtype = dtype

    def dequantize(self, tensor: Tensor, quant_scale: Tensor, quant_min: Tensor) -> Tensor:
        if self.config["num_bits"] == 4:
            tensor = torch.stack((tensor >> 4, tensor & 0xF), dim=-1).reshape(tensor.shape[:-1] + (tensor.shape[-1] * 2,))
        grouped = _groups(tensor, self.config).to(self.dtype)
        return grouped.div_(quant_scale).add_(quant_min).reshape(tensor.shape)


def unpack_with_torch(packed: Tensor, shape: Any) -> Tensor:
    """The weight [rows, cols] of a packed tensor, by torch operations: for devices without kernels of ours."""
    rows, cols, bits, size = shape.rows, shape.cols, shape.bits, shape.group_size
    element = packed.element_size()
    row_bytes = (cols + 1) // 2 if bits == 4 else cols
    groups = -(-cols // size)
    value_bytes = -(-rows * row_bytes // element) * element
    values = packed.view(torch.uint8)[:rows * row_bytes].view(rows, row_bytes)
    if bits == 4:
        values = torch.stack((values >> 4, values & 0xF), dim=-1).view(rows, 2 * row_bytes)[:, :cols]
    scales = packed[value_bytes // element:][:rows * groups].view(rows, groups).repeat_interleave(size, dim=1)[:, :cols]
    weight = values.to(packed.dtype)
    if shape.symmetric:
        return (weight - 2**(bits - 1)) / scales
    lows = packed[value_bytes // element + rows * groups:].view(rows, groups).repeat_interleave(size, dim=1)[:, :cols]
    return weight.div_(scales).add_(lows)
