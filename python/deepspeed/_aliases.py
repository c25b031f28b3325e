"""Old import paths. One table, and a finder on sys.meta_path that serves it.

A value that is a string makes the path another name of that module. A dictionary makes a module with those names: "m:a" is
attribute a of module m, `Later` a name that refuses to be used (_later.py lists them), anything else the value itself.
"""
from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

from deepspeed._lazy import resolve
from deepspeed._later import Later
from deepspeed._later import modules as _modules_of_later

# Keys of the configuration that are constants of their own name.
_KEYS = """train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps optimizer type scheduler max_grad_norm fp16
gradient_clipping steps_per_print prescale_gradients gradient_predivide_factor communication_data_type wall_clock_breakdown memory_breakdown
dump_state zero_allow_untested_optimizer zero_force_ds_cpu_optimizer data_types grad_accum_dtype checkpoint dataloader_drop_last
torch_autocast disable_allgather data_parallel_group global_rank""".split()

TABLE: dict[str, str | dict[str, Any]] = {
    **_modules_of_later(),
    "deepspeed.pipe": "deepspeed.runtime.pipe",
    "deepspeed.zero": "deepspeed.runtime.zero",
    "deepspeed.checkpointing": "deepspeed.runtime.activation_checkpointing.checkpointing",
    "deepspeed.accelerator.accelerator": "deepspeed.accelerator",
    "deepspeed.utils.comms_logging": "deepspeed.comm.comms_logging",
    "deepspeed.pt": {},
    "deepspeed.pt.deepspeed_light": {"DeepSpeedLight": "deepspeed.runtime.engine:DeepSpeedEngine"},
    "deepspeed.pt.deepspeed_lr_schedules": "deepspeed.runtime.lr_schedules",
    "deepspeed.runtime.config_utils": {"DeepSpeedConfigModel": "deepspeed.runtime.config:Section"},
    "deepspeed.comm.constants": {f"{name.upper()}_BACKEND": name for name in ("nccl", "ccl", "mpi", "gloo", "sccl", "hccl")},
    "deepspeed.comm.reduce_op": {"ReduceOp": "deepspeed.comm:ReduceOp"},
    "deepspeed.ops.lion.cpu_lion": {"DeepSpeedCPULion": "deepspeed.ops.lion.lion:DeepSpeedCPULion"},
    "deepspeed.ops.lion.fused_lion": {"FusedLion": "deepspeed.ops.lion.lion:FusedLion"},
    "deepspeed.runtime.zero.muon.original_muon": "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.constants": {**{key.upper(): key for key in _KEYS}, "OPTIMIZER_PARAMS": "params", "SCHEDULER_PARAMS": "params",
                                    "BFLOAT16": "bf16", "BFLOAT16_OLD": "bfloat16",
                                    **{f"ROUTE_{route.upper()}": route for route in ("train", "eval", "predict", "encode")}},
    # Groups of ranks that hold all shards (MiCS) are a matter of the configuration, mics_shard_size.
    "deepspeed.runtime.zero.mics": {"MiCS_Init": "deepspeed.runtime.zero.partition_parameters:Init"},
    "deepspeed.runtime.zero.linear": {"LinearModuleForZeroStage3": "torch.nn:Linear", "zero3_linear_wrap": "torch.nn.functional:linear"},
    "deepspeed.ops.transformer.inference.config": {"DeepSpeedInferenceConfig": "deepspeed.ops.transformer.inference:DeepSpeedInferenceConfig"},
    "deepspeed.utils.torch": {"required_torch_version": "deepspeed.runtime.utils:required_torch_version"},
    "deepspeed.launcher.constants": {f"{name.upper()}_LAUNCHER": name for name in ("pdsh", "openmpi", "mvapich", "slurm", "mpich", "impi")},
    "deepspeed.runtime.zero.offload_constants": {"OFFLOAD_CPU_DEVICE": "cpu", "OFFLOAD_NVME_DEVICE": "nvme"},
    "deepspeed.runtime.swap_tensor": {},
    "deepspeed.runtime.swap_tensor.constants": {"AIO_DEFAULT_DICT": {"block_size": 1048576, "queue_depth": 8,
                                                                     "intra_op_parallelism": 1, "single_submit": False,
                                                                     "overlap_events": True, "use_gds": False}},
    "deepspeed.runtime.swap_tensor.utils": {"MIN_AIO_BYTES": 1024**2, "AIO_ALIGNED_BYTES": 1024,
                                            "MIN_SWAPPABLE_BYTES": 1024**2},
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
            value: Any = entry.make(f"{module.__name__}.{name}")
        else:
            value = resolve(entry) if isinstance(entry, str) and ":" in entry else entry
        setattr(module, name, value)
        return value

    module.__doc__ = "Names at an old path."
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
