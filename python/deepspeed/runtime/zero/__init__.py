"""ZeRO from Python: zero.Init, GatheredParameters, registration of external parameters, tiled layers."""
from deepspeed._lazy import attach

_PARTITION = "deepspeed.runtime.zero.partition_parameters"
__getattr__, __dir__ = attach(__name__, {
    "Init": f"{_PARTITION}:Init",
    "MiCS_Init": "deepspeed.runtime.zero.mics:MiCS_Init",
    "GatheredParameters": f"{_PARTITION}:GatheredParameters",
    "ZeroParamStatus": f"{_PARTITION}:ZeroParamStatus",
    "ZeroParamType": f"{_PARTITION}:ZeroParamType",
    "DeepSpeedTensorOverride": f"{_PARTITION}:DeepSpeedTensorOverride",
    "register_external_parameter": f"{_PARTITION}:register_external_parameter",
    "unregister_external_parameter": f"{_PARTITION}:unregister_external_parameter",
    "DeepSpeedZeRoOffload": "deepspeed.runtime.zero.parameter_offload:DeepSpeedZeRoOffload",
    "TiledLinear": "deepspeed.runtime.zero.tiling:TiledLinear",
    "TiledLinearReturnBias": "deepspeed.runtime.zero.tiling:TiledLinearReturnBias",
    "unwrap_model_for_generation": "deepspeed.runtime.zero.stage3:unwrap_model_for_generation",
})
