"""Old import paths. One table, and a finder on sys.meta_path that serves it.

A value that is a string makes the path another name of that module. A dictionary makes a module with those names: "m:a" is
attribute a of module m, `Later(feature)` a class that refuses to be used, anything else the value itself.
"""
from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from deepspeed._lazy import not_built_class, resolve


@dataclass(frozen=True)
class Later:
    """A class of a feature that does not exist yet."""

    feature: str
    is_module: bool = False


_PIPE, _MOE = Later("pipeline parallelism", True), Later("mixture of experts", True)
_WARMUP = "deepspeed.runtime.lr_schedules"

TABLE: dict[str, str | dict[str, Any]] = {
    "deepspeed.zero": "deepspeed.runtime.zero",
    "deepspeed.checkpointing": "deepspeed.runtime.activation_checkpointing.checkpointing",
    "deepspeed.accelerator.accelerator": "deepspeed.accelerator",
    "deepspeed.utils.comms_logging": "deepspeed.comm.comms_logging",
    "deepspeed.pt": {},
    "deepspeed.pt.deepspeed_light": {"DeepSpeedLight": "deepspeed.runtime.engine:DeepSpeedEngine"},
    "deepspeed.pt.deepspeed_lr_schedules": _WARMUP,
    "deepspeed.runtime.config_utils": {"DeepSpeedConfigModel": "deepspeed.runtime.config:Section"},
    "deepspeed.comm.constants": {f"{name.upper()}_BACKEND": name for name in ("nccl", "ccl", "mpi", "gloo", "sccl", "hccl")},
    "deepspeed.runtime.zero.offload_constants": {"OFFLOAD_CPU_DEVICE": "cpu", "OFFLOAD_NVME_DEVICE": "nvme"},
    "deepspeed.runtime.swap_tensor": {},
    "deepspeed.runtime.swap_tensor.constants": {"AIO_DEFAULT_DICT": {"block_size": 1048576, "queue_depth": 8,
                                                                     "intra_op_parallelism": 1, "single_submit": False,
                                                                     "overlap_events": True, "use_gds": False}},
    "deepspeed.runtime.swap_tensor.utils": {"MIN_AIO_BYTES": 1024**2, "AIO_ALIGNED_BYTES": 1024,
                                            "MIN_SWAPPABLE_BYTES": 1024**2},
    "deepspeed.runtime.swap_tensor.partitioned_param_swapper": {"AsyncPartitionedParameterSwapper": Later("NVMe offload")},
    "deepspeed.runtime.pipe": {"PipelineModule": _PIPE, "LayerSpec": Later("pipeline parallelism"),
                               "TiedLayerSpec": Later("pipeline parallelism")},
    "deepspeed.runtime.pipe.module": {"PipelineModule": _PIPE, "LayerSpec": Later("pipeline parallelism"),
                                      "TiedLayerSpec": Later("pipeline parallelism")},
    "deepspeed.runtime.pipe.engine": {"PipelineEngine": _PIPE},
    "deepspeed.runtime.pipe.dualpipev": {"DualPipeVEngine": _PIPE, "DualPipeVModule": _PIPE},
    "deepspeed.runtime.pipe.topology": {name: Later("pipeline parallelism")
                                        for name in ("ProcessTopology", "PipeDataParallelTopology",
                                                     "PipeModelDataParallelTopology", "PipelineParallelGrid")},
    "deepspeed.runtime.hybrid_engine": {"DeepSpeedHybridEngine": Later("the hybrid engine", True)},
    "deepspeed.sequence": {},
    "deepspeed.sequence.layer": {"DistributedAttention": Later("sequence parallelism", True)},
    "deepspeed.module_inject": {},
    "deepspeed.linear": {"OptimizedLinear": Later("optimized linear layers", True), "LoRAConfig": Later("optimized linear layers"),
                         "QuantizationConfig": Later("optimized linear layers")},
    "deepspeed.ops.transformer": {"DeepSpeedTransformerLayer": Later("the fused transformer layer", True),
                                  "DeepSpeedTransformerConfig": Later("the fused transformer layer")},
    "deepspeed.ops.deepspeed4science": {"DS4Sci_EvoformerAttention": Later("Evoformer attention")},
}


def _install(module: ModuleType, entries: dict[str, Any]) -> None:
    """Names resolve at first use: an alias must not load what nobody asks for."""

    def __getattr__(name: str) -> Any:
        if name not in entries:
            full = f"{module.__name__}.{name}"
            if full in TABLE:
                return importlib.import_module(full)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        entry = entries[name]
        if isinstance(entry, Later):
            base: type = object
            if entry.is_module:
                from torch.nn import Module
                base = Module
            value: Any = not_built_class(f"{module.__name__}.{name}", entry.feature, base)
        else:
            value = resolve(entry) if isinstance(entry, str) and ":" in entry else entry
        setattr(module, name, value)
        return value

    module.__getattr__ = __getattr__  # type: ignore[attr-defined]
    module.__dir__ = lambda: sorted({*vars(module), *entries})  # type: ignore[attr-defined, method-assign]
    module.__all__ = list(entries)  # type: ignore[attr-defined]


class _AliasLoader(importlib.abc.Loader):
    """Gives an existing module under a second name, or a module made from a table entry."""

    def __init__(self, target: str | None, entries: dict[str, Any] | None = None) -> None:
        self._target, self._entries = target, entries
        self._own_spec: Any = None

    def create_module(self, spec):
        if self._target is None:
            return None
        module = importlib.import_module(self._target)
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        if self._target is not None:
            module.__spec__ = self._own_spec  # the import system has just replaced it
        else:
            _install(module, self._entries or {})


class _AliasFinder(importlib.abc.MetaPathFinder):

    def find_spec(self, fullname: str, path=None, target=None):
        if fullname.startswith("deepscale."):
            real = "deepspeed." + fullname[len("deepscale."):]
            return self._spec(fullname, _AliasLoader(real)) if importlib.util.find_spec(real) is not None else None
        entry = TABLE.get(fullname)
        if entry is None:
            return None
        return self._spec(fullname, _AliasLoader(entry) if isinstance(entry, str) else _AliasLoader(None, entry))

    @staticmethod
    def _spec(fullname: str, loader: _AliasLoader):
        return importlib.machinery.ModuleSpec(fullname, loader, is_package=True)


def install() -> None:
    """Makes the table importable. Safe to call twice."""
    if not any(isinstance(finder, _AliasFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AliasFinder())
