"""The section `flops_profiler` as an object, for programs that read it without an engine. The core checks it and has its defaults."""
from __future__ import annotations

from typing import Any

from deepspeed.profiling.constants import FLOPS_PROFILER
from deepspeed.runtime.config import Section, resolved_section


class DeepSpeedFlopsProfilerConfig(Section):
    """The section of a whole configuration, with every key: enabled, recompute_fwd_factor, profile_step, module_depth, top_modules,
    detailed, output_file. Raises ConfigValidationError (a ValueError) for values that cannot be used."""

    def __init__(self, param_dict: dict[str, Any]) -> None:
        super().__init__(**resolved_section(FLOPS_PROFILER, param_dict.get(FLOPS_PROFILER, {})))
