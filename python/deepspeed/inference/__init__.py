"""Inference: init_inference's engine and its configuration, quantised weights."""
from deepspeed._lazy import attach

__getattr__, __dir__ = attach(__name__, {
    "InferenceEngine": "deepspeed.inference.engine:InferenceEngine",
    "DeepSpeedInferenceConfig": "deepspeed.inference.config:DeepSpeedInferenceConfig",
    **{name: f"deepspeed.inference.v2:{name}" for name in ("DeepSpeedTPConfig", "InferenceEngineV2", "RaggedInferenceEngineConfig",
                                                           "build_engine_from_ds_checkpoint", "build_hf_engine")},
})
