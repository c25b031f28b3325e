"""Transformers' models made under ZeRO-3 begin with weights as without it. The same values are not promised: Transformers 5 draws them in
another order then."""
from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from common import TIMEOUT_S, ranks, single_rank

pytest.importorskip("transformers", reason="needs transformers (pip install transformers)")


def _config(name: str):
    import transformers
    sizes = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if name == "llama":
        return transformers.LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, **sizes)
    if name == "gpt2":
        return transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=16, **sizes)
    return transformers.OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16,
                                  word_embed_proj_dim=32, **sizes)


@ranks(2)
def test_from_config_initialises_as_without_sharding():
    import deepspeed
    from transformers import AutoModelForCausalLM, PreTrainedModel
    from transformers.integrations import HfDeepSpeedConfig
    before = PreTrainedModel._initialize_weights
    names = ("llama", "gpt2", "opt")
    plain = {}
    for name in names:
        torch.manual_seed(3)
        plain[name] = {key: value.clone() for key, value in AutoModelForCausalLM.from_config(_config(name)).named_parameters()}
    deepspeed.init_distributed("gloo")
    kept = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})  # noqa: F841  (alive: in force)
    for name in names:
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(_config(name))
        assert all(param.shape == torch.Size([0]) for param in model.parameters())
        for key, param in model.named_parameters():
            with deepspeed.zero.GatheredParameters(param):
                for measure in (torch.mean, torch.std):
                    torch.testing.assert_close(measure(param.detach()), measure(plain[name][key]), rtol=0.2, atol=2e-3,
                                               msg=lambda text: f"{name}, {key}: {text}")
    assert PreTrainedModel._initialize_weights is before, "outside of zero.Init nothing is patched"


IMPORTED_INSIDE = """
import sys
import deepspeed
from transformers import AutoConfig, AutoModelForCausalLM

config = AutoConfig.for_model("gpt2", vocab_size=512, n_embd=32, n_layer=1, n_head=4, n_positions=16, bos_token_id=1, eos_token_id=2)
assert "transformers.modeling_utils" not in sys.modules
with deepspeed.zero.Init():
    with deepspeed.zero.Init():
        model = AutoModelForCausalLM.from_config(config)
from transformers import PreTrainedModel
assert not hasattr(PreTrainedModel._initialize_weights, "__wrapped__"), "outside of zero.Init nothing is patched"
weight = model.get_input_embeddings().weight
assert weight.numel() == 0
with deepspeed.zero.GatheredParameters(weight):
    print("std", weight.std().item())
"""


def test_transformers_imported_inside_zero_init(monkeypatch):
    """AutoModel imports Transformers' modules when the first model is made, here after zero.Init has begun."""
    single_rank(monkeypatch)
    run = subprocess.run([sys.executable, "-c", IMPORTED_INSIDE], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.split("std ")[1]) == pytest.approx(0.02, rel=0.1)
