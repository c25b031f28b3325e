"""Files of checkpoints. Submodules load when they are first used."""
from deepspeed._lazy import attach

__getattr__, __dir__ = attach(__name__, {"DeepSpeedCheckpoint": "deepspeed.checkpoint.deepspeed_checkpoint:DeepSpeedCheckpoint"})
