"""Training: the engine and what belongs to it. Submodules load when they are first used."""
from deepspeed._lazy import attach

__getattr__, __dir__ = attach(__name__, {name: f"deepspeed.runtime.base_optimizer:{name}" for name in ("DeepSpeedOptimizer", "ZeROOptimizer")})
