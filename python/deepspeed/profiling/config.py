"""The section `flops_profiler` as an object, for programs that read it without an engine. The core checks it and has its defaults."""
from __future__ import annotations

import json
from typing import Any

from deepspeed import _C
from deepspeed.profiling.constants import FLOPS_PROFILER, FLOPS_PROFILER_ENABLED
from deepspeed.runtime.config import ConfigValidationError, Section


class DeepSpeedFlopsProfilerConfig(Section):
    """The section of a whole configuration, with every key: enabled, recompute_fwd_factor, profile_step, module_depth, top_modules,
    detailed, output_file. Raises ConfigValidationError (a ValueError) for values that cannot be used."""

    def __init__(self, param_dict: dict[str, Any]) -> None:
        given = dict(param_dict.get(FLOPS_PROFILER, {}))
        enabled = given.pop(FLOPS_PROFILER_ENABLED, False)
        if not isinstance(enabled, bool):
            raise ConfigValidationError(f"flops_profiler.enabled must be true or false, found {enabled!r}")
        try:
            resolved, _ = _C.parse_config(json.dumps({FLOPS_PROFILER: given}), 1, False)
        except _C.DeepSpeedConfigError as error:
            raise ConfigValidationError(str(error)) from None
        super().__init__(**{**json.loads(resolved)[FLOPS_PROFILER], FLOPS_PROFILER_ENABLED: enabled})
