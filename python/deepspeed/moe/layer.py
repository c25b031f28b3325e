"""The expert layer by name; not built yet."""
from torch.nn import Module as _Module

from deepspeed._lazy import not_built_class as _later

MoE = _later("deepspeed.moe.layer.MoE", "mixture of experts", _Module)
