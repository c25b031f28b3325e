"""The configuration of init_inference(): keys, defaults and checks are the core's (section `inference` in docs/config.md)."""
from __future__ import annotations

import json
from typing import Any, Mapping

import torch

from deepspeed.runtime.config import ConfigValidationError, DeepSpeedConfig, _section

_DTYPES = {"fp16": torch.float16, "float16": torch.float16, "half": torch.float16, "torch.float16": torch.float16, "torch.half": torch.float16,
           "fp32": torch.float32, "float32": torch.float32, "float": torch.float32, "torch.float32": torch.float32,
           "torch.float": torch.float32, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "torch.bfloat16": torch.bfloat16,
           "int8": torch.int8, "torch.int8": torch.int8}
# Values that are objects and no JSON.
_OBJECTS = ("mpu", "ep_group", "ep_mp_group", "injection_policy", "injection_dict")


def merged(config: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of init_inference(model, config, **keywords); a key with two different values is a ValueError."""
    if isinstance(config, str):
        with open(config, encoding="utf-8") as file:
            config = json.load(file)
    elif isinstance(config, DeepSpeedInferenceConfig):
        config = config.given
    settings = dict(config or {})
    for key, value in keywords.items():
        if key in settings and settings[key] != value:
            raise ValueError(f"init_inference: {key} is {settings[key]!r} in the configuration and {value!r} as a keyword: give it once")
        settings[key] = value
    return settings


class DeepSpeedInferenceConfig:
    """Validated settings as attributes. `dtype` is a torch.dtype; `zero` and `quant` are dictionaries as given."""

    def __init__(self, **settings: Any) -> None:
        self.given = dict(settings)
        objects = {key: settings.pop(key) for key in _OBJECTS if settings.get(key) is not None}
        settings = {key: value for key, value in settings.items() if key not in _OBJECTS}
        dtype = str(settings.get("dtype", "fp16"))
        if dtype not in _DTYPES:
            raise ConfigValidationError(f"inference.dtype: {dtype!r} is not one of {', '.join(sorted(set(_DTYPES)))}")
        settings["dtype"] = dtype
        if not isinstance(settings.get("moe", {}), Mapping):
            settings["moe"] = {"enabled": bool(settings["moe"])}
        text = {"train_micro_batch_size_per_gpu": 1, "inference": settings}
        resolved = DeepSpeedConfig(text, check_batch=False).resolved["inference"]
        for key, value in resolved.items():
            setattr(self, key, value if key in ("zero", "quant", "moe", "checkpoint") else _section(value, key))
        self.dtype = _DTYPES[dtype]
        self.mpu = objects.get("mpu")
        self.injection_policy = objects.get("injection_policy", objects.get("injection_dict"))
