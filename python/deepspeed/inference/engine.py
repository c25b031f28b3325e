"""init_inference()'s engine: a model in the wanted dtype, with weights where its `zero` section puts them, ready to run forward.

With a `zero` section (ZeRO-Inference) parameters are sharded and live in host memory or files; they are gathered module by module, and
what memory has room for stays. Without one the model is cast, moved and, if asked for, quantised.
"""
from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn as nn

from deepspeed.accelerator import get_accelerator
from deepspeed.inference.config import DeepSpeedInferenceConfig
from deepspeed.runtime.config import ConfigValidationError
from deepspeed.runtime.precision import cast_for_inference
from deepspeed.utils.logging import log_dist


def _refuse_what_is_not_built(config: DeepSpeedInferenceConfig) -> None:
    if config.injection_policy is not None:
        raise NotImplementedError("init_inference(injection_policy=...): module injection is not built yet; with one rank it is not needed")
    if config.enable_cuda_graph:
        raise NotImplementedError("init_inference(enable_cuda_graph=True) is not built yet: leave it out")
    if config.dtype == torch.int8:
        raise NotImplementedError("init_inference(dtype=int8): use a 16-bit dtype with weights in 8 bits: quant={\"weight\": "
                                  "{\"post_init_quant\": {\"<part of layer names>\": {\"num_bits\": 8}}}}")


def _weight_quantization(config: DeepSpeedInferenceConfig) -> dict[str, Any] | None:
    quant = config.quant or {}
    weight = quant.get("weight") or {}
    found = {key: weight[key] for key in ("post_init_quant", "quantized_initialization") if weight.get(key)}
    return found if found and quant.get("enabled", True) and weight.get("enabled", True) else None


def zero_config(config: DeepSpeedInferenceConfig) -> dict[str, Any]:
    """The configuration for initialize() that serves the `zero` section."""
    zero = {"stage": 3, **config.zero}
    text: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
    if config.dtype != torch.float32:
        text["bf16" if config.dtype == torch.bfloat16 else "fp16"] = {"enabled": True}
    quantization = _weight_quantization(config)
    if quantization is not None:
        text["weight_quantization"] = quantization
    return text


def _load_checkpoint(model: nn.Module, checkpoint: Any) -> None:
    """Into a model that is plain or sharded (zero.Init), one module at a time. Raises an error that names the file."""
    if isinstance(checkpoint, dict) or str(checkpoint).endswith(".json") and not str(checkpoint).endswith(".index.json"):
        raise NotImplementedError("init_inference(checkpoint=...): descriptions of checkpoints in JSON are not read yet, got "
                                  f"{checkpoint!r}: pass a folder or file of weights")
    from deepspeed.runtime.pretrained import open_weights, put_weights
    missing, unexpected, errors = put_weights(model, open_weights(checkpoint))
    if missing or unexpected or errors:
        raise ConfigValidationError(f"init_inference(checkpoint={str(checkpoint)!r}): missing {missing[:3]}, unexpected {unexpected[:3]}"
                                    + "".join(f"; {error}" for error in errors[:3]))


class InferenceEngine(nn.Module):
    """Runs a model forward. Attributes that it does not have are the module's."""

    def __init__(self, model: nn.Module, config: DeepSpeedInferenceConfig) -> None:
        super().__init__()
        _refuse_what_is_not_built(config)
        self._config = config
        self.model_profile_enabled = False
        self._model_times: list[float] = []
        self._engine = None
        model.eval()
        if config.checkpoint:
            _load_checkpoint(model, config.checkpoint)
        if config.zero:
            from deepspeed.runtime.setup import make_engine
            self._engine = make_engine(args=None, model=model, config=zero_config(config), config_params=None, mpu=None, mesh_param=None,
                                       dist_init_required=None, distributed_port=29500, model_parameters=[])
            self.module = self._engine.module
        else:
            self.module = self._place(model)
        self.module.eval()

    def _place(self, model: nn.Module) -> nn.Module:
        config = self._config
        cast_for_inference(model, config.dtype)
        quantization = _weight_quantization(config)
        if quantization is not None:
            from deepspeed.inference.quantization.quantization import quantize_by_name
            rules = quantization.get("post_init_quant") or {"": quantization["quantized_initialization"]}
            log_dist(f"init_inference: {quantize_by_name(model, rules)} layers quantised", ranks=[0])
        if not config.keep_module_on_host:
            model.to(get_accelerator().current_device_name())
        return model

    # ---- running
    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        if not self.model_profile_enabled:
            return self.module(*inputs, **kwargs)
        get_accelerator().synchronize()
        start = time.perf_counter()
        outputs = self.module(*inputs, **kwargs)
        get_accelerator().synchronize()
        self._model_times.append((time.perf_counter() - start) * 1000)
        return outputs

    @torch.no_grad()
    def generate(self, *inputs: Any, **kwargs: Any) -> Any:
        """The module's generate(). One beam; prompts no longer than max_out_tokens."""
        if kwargs.get("num_beams", 1) > 1:
            raise NotImplementedError("DeepSpeed does not support `num_beams` > 1, if this is important to you please add your request "
                                      "to: init_inference")
        prompt = kwargs.get("input_ids", inputs[0] if inputs else None)
        if isinstance(prompt, torch.Tensor) and prompt.dim() > 0 and prompt.shape[-1] > self._config.max_out_tokens:
            raise RuntimeError(f"Input with size {prompt.shape[-1]} exceeds maximum length of {self._config.max_out_tokens}. Please "
                               "increase max_tokens in the DeepSpeed Inference Config.")
        return self.module.generate(*inputs, **kwargs)

    def profile_model_time(self, use_cuda_events: bool = True) -> None:
        """From now on every forward is timed; model_times() reads them."""
        self.model_profile_enabled = True

    def model_times(self) -> list[float]:
        """Milliseconds of each forward since the last call."""
        if not self.model_profile_enabled:
            raise AssertionError("model profiling is not enabled: call profile_model_time() first")
        times, self._model_times = self._model_times, []
        return times

    def compile(self, *args: Any, **kwargs: Any) -> None:
        self.module.compile(*args, **kwargs)

    def destroy(self) -> None:
        """Lets files and hooks of ZeRO-Inference go."""
        if self._engine is not None:
            self._engine.destroy()

    @property
    def config(self) -> Any:
        """The module's configuration (Transformers pipelines read it)."""
        return self.module.config

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(self.module, name)
