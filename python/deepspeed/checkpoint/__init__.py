"""Files of checkpoints. Submodules load when they are first used."""
from deepspeed._lazy import attach

_CONSTANTS = """UNIVERSAL_CHECKPOINT_INFO VOCABULARY_PARAMETER_PATTERNS PIPELINE_REPLICATED_PARAMETER_PATTERNS TP_REPLICATED_PARAMETER_PATTERNS
PARAMETER_WITH_ROW_PARALLELISM_PATTERNS PARAMETER_TO_AVERAGE_PATTERNS""".split()

__getattr__, __dir__ = attach(__name__, {
    "DeepSpeedCheckpoint": "deepspeed.checkpoint.deepspeed_checkpoint:DeepSpeedCheckpoint",
    "reshape_meg_2d_parallel": "deepspeed.checkpoint.reshape_meg_2d:reshape_meg_2d_parallel",
    "ZeROCheckpoint": "deepspeed.checkpoint.zero_checkpoint:ZeROCheckpoint",
    **{name: f"deepspeed.checkpoint.constants:{name}" for name in _CONSTANTS}})
