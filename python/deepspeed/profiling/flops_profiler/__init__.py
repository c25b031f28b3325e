"""How many floating-point operations a model's forward takes, module by module. See docs/monitoring.md."""
from deepspeed._lazy import attach

_NAMES = ("FlopsProfiler", "get_model_profile", "get_module_flops", "get_module_macs", "get_module_duration", "number_to_string",
          "flops_to_string", "macs_to_string", "params_to_string", "bytes_to_string", "duration_to_string", "DEFAULT_PRECISION")
__all__ = list(_NAMES)
__getattr__, __dir__ = attach(__name__, {name: f"deepspeed.profiling.flops_profiler.profiler:{name}" for name in _NAMES})
