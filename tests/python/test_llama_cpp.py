"""The C++ program that generates without Python against Transformers: Llama and OPT, sharded or not, in memory, in a file, in 8 bits."""
from __future__ import annotations

import json
import subprocess

import pytest
import torch

from common import built_program

transformers = pytest.importorskip("transformers")
PROGRAM = built_program("llama_cpp")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="the C++ example llama_cpp is not built (cmake --build --preset release)")
PROMPT = [1, 5, 9, 2, 77, 31]


def _llama(**more):
    return transformers.LlamaConfig(vocab_size=120, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                                    num_key_value_heads=2, max_position_embeddings=128, **more)


def _opt(**more):
    settings = {"word_embed_proj_dim": 64, **more}
    return transformers.OPTConfig(vocab_size=120, hidden_size=64, ffn_dim=96, num_hidden_layers=3, num_attention_heads=4,
                                  max_position_embeddings=128, **settings)


CONFIGS = {
    "llama": _llama,
    "llama tied": lambda: _llama(tie_word_embeddings=True),
    "llama biased, other base": lambda: _llama(attention_bias=True, mlp_bias=True, rope_theta=500.0),
    "opt": _opt,
    "opt post-norm, projected": lambda: _opt(word_embed_proj_dim=32, do_layer_norm_before=False, activation_function="gelu"),
}


def _save(config, folder, dtype=torch.float32, **how):
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param) * 0.05)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder, **how)
    return model


def _run(folder, *options) -> dict:
    run = subprocess.run([PROGRAM, "--model", str(folder), "--prompt_ids", ",".join(map(str, PROMPT)), "--tokens", "12", "--print_logits", *options],
                         capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@torch.no_grad()
def _expected(model) -> tuple[torch.Tensor, list[int]]:
    ids = torch.tensor([PROMPT])
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0)
    return model(ids).logits[0].float(), tokens[0].tolist()


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_texts_are_those_of_transformers(name, where, tmp_path):
    model = _save(CONFIGS[name](), tmp_path / "model")
    options = ["--weights_folder", str(tmp_path), "--max_resident", "0"] if where == "file" else []
    ours = _run(tmp_path / "model", *options)
    logits, ids = _expected(model)
    assert torch.allclose(torch.tensor(ours["logits"]).view_as(logits), logits, atol=1e-4, rtol=1e-4)
    assert ours["ids"] == ids
    assert (ours["file_bytes_read"] > 0) == (where == "file")


def test_sharded_checkpoints_are_read_once(tmp_path):
    model = _save(_llama(), tmp_path / "model", max_shard_size="60KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    ours = _run(tmp_path / "model", "--weights_folder", str(tmp_path))
    assert ours["ids"] == _expected(model)[1]
    assert ours["checkpoint_bytes_read"] == sum(p.numel() * 4 for p in model.parameters())


def test_bf16_logits_agree_within_its_rounding(tmp_path):
    model = _save(_llama(), tmp_path / "model", torch.bfloat16)
    logits, _ = _expected(model)
    ours = torch.tensor(_run(tmp_path / "model")["logits"]).view_as(logits)
    assert (ours - logits).abs().max() < 0.05 * logits.std()


def test_eight_bits_choose_nearly_the_same(tmp_path):
    model = _save(_llama(), tmp_path / "model")
    logits, _ = _expected(model)
    ours = torch.tensor(_run(tmp_path / "model", "--bits", "8", "--group_size", "32")["logits"]).view_as(logits)
    assert (ours - logits).abs().mean() < 0.03 * logits.std()


def test_what_is_wrong_is_said(tmp_path):
    run = subprocess.run([PROGRAM, "--model", str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 1 and "config.json cannot be read" in run.stderr
