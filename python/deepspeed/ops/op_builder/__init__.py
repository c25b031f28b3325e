"""Operator builders by their old names. Nothing is ever built here: an operator is part of the package, or does not exist yet."""
from __future__ import annotations


from .builder import OpBuilder, make_builder

# class name: (operator name, module that load() returns; None: not built yet)
_TABLE: dict[str, tuple[str, str | None]] = {
    "CPUAdamBuilder": ("cpu_adam", "deepspeed.ops.adam.native"),
    "CPUAdagradBuilder": ("cpu_adagrad", "deepspeed.ops.adagrad.cpu_adagrad"),
    "CPULionBuilder": ("cpu_lion", "deepspeed.ops.lion.lion"),
    "FusedAdamBuilder": ("fused_adam", "deepspeed.ops.adam.fused_adam"),
    "FusedLambBuilder": ("fused_lamb", "deepspeed.ops.lamb.fused_lamb"),
    "FusedLionBuilder": ("fused_lion", "deepspeed.ops.lion.lion"),
    "ShareMemCommBuilder": ("deepspeed_shm_comm", "deepspeed._C"),
    "UtilsBuilder": ("utils", "deepspeed.ops.op_builder.flatten"),
    "AsyncIOBuilder": ("async_io", "deepspeed.ops.aio.native"),
    "PinMemoryBuilder": ("pin_memory", "deepspeed.ops.aio.pin_memory"),
    "GDSBuilder": ("gds", None),
    "CCLCommBuilder": ("deepspeed_ccl_comm", None),
    "EvoformerAttnBuilder": ("evoformer_attn", None),
    "FPQuantizerBuilder": ("fp_quantizer", None),
    "InferenceBuilder": ("transformer_inference", None),
    "InferenceCoreBuilder": ("inference_core_ops", None),
    "InferenceCutlassBuilder": ("cutlass_ops", None),
    "QuantizerBuilder": ("quantizer", None),
    "RaggedOpsBuilder": ("ragged_device_ops", None),
    "RaggedUtilsBuilder": ("ragged_ops", None),
    "RandomLTDBuilder": ("random_ltd", None),
    "SpatialInferenceBuilder": ("spatial_inference", None),
    "StochasticTransformerBuilder": ("stochastic_transformer", None),
    "TransformerBuilder": ("transformer", None),
    "DeepCompileBuilder": ("dc", None),
    "NotImplementedBuilder": ("deepspeed_not_implemented", None),
}

# What to do instead of an operator that does not exist.
_INSTEAD = {
    "gds": "GPUDirect Storage needs CUDA and is not built; the aio_handle of AsyncIOBuilder reads and writes tensors on a "
           "GPU as well, through pinned memory of the host",
}

for _class_name, (_op, _module) in _TABLE.items():
    globals()[_class_name] = make_builder(_class_name, _op, _module, _INSTEAD.get(_op, ""))

ALL_OPS = {globals()[name].NAME: globals()[name]() for name in _TABLE}
__op_builders__ = list(ALL_OPS.values())
__all__ = ["OpBuilder", "ALL_OPS", *_TABLE]


