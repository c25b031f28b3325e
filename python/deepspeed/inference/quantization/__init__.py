"""Weights in 8 and 4 bits for inference (ZeRO-Inference)."""
from deepspeed.inference.quantization.quantization import _init_group_wise_weight_quantization

__all__ = ["_init_group_wise_weight_quantization"]
