"""Pipeline parallelism by name; not built yet."""
from torch.nn import Module as _Module

from deepspeed._lazy import not_built_class as _later

PipelineModule = _later("deepspeed.pipe.PipelineModule", "pipeline parallelism", _Module)
LayerSpec = _later("deepspeed.pipe.LayerSpec", "pipeline parallelism")
TiedLayerSpec = _later("deepspeed.pipe.TiedLayerSpec", "pipeline parallelism")
