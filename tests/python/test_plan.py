"""ds_plan: parameter shapes against published totals and Transformers, plans, errors and exit codes."""
from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepspeed.launcher.runner import native_program

PUBLISHED = {
    "llama": ({"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32,
               "vocab_size": 32000}, 6_738_415_616),
    "mistral": ({"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
                 "num_hidden_layers": 32, "vocab_size": 32000}, 7_241_732_096),
    "mixtral": ({"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
                 "num_hidden_layers": 32, "vocab_size": 32000, "num_local_experts": 8}, 46_702_792_704),
    "qwen2": ({"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2,
               "num_hidden_layers": 24, "vocab_size": 151936, "tie_word_embeddings": True}, 494_032_768),
    "opt": ({"hidden_size": 2048, "ffn_dim": 8192, "num_attention_heads": 32, "num_hidden_layers": 24, "vocab_size": 50272,
             "max_position_embeddings": 2048, "word_embed_proj_dim": 2048}, 1_315_758_080),
    "gpt2": ({"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}, 124_439_808),
    "gpt_neox": ({"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 6,
                  "vocab_size": 50304}, 70_426_624),
    "bloom": ({"hidden_size": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 250880}, 559_214_592),
    "falcon": ({"hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32, "vocab_size": 65024,
                "multi_query": True, "parallel_attn": True, "bias": False, "new_decoder_architecture": False}, 6_921_720_704),
}

# Settings that change which parameters there are.
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 100}
VARIANTS = [
    {"model_type": "llama", **SMALL, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    {"model_type": "llama", **SMALL, "head_dim": 16, "tie_word_embeddings": True},
    {"model_type": "mistral", **SMALL, "num_key_value_heads": 2, "head_dim": 16},
    {"model_type": "mixtral", **SMALL, "num_key_value_heads": 2, "num_local_experts": 4},
    {"model_type": "qwen2", **SMALL, "num_key_value_heads": 2},
    {"model_type": "qwen3", **SMALL, "num_key_value_heads": 2, "head_dim": 16},
    {"model_type": "phi", **SMALL, "num_key_value_heads": 2},
    {"model_type": "opt", **SMALL, "ffn_dim": 96, "word_embed_proj_dim": 32, "max_position_embeddings": 40},
    {"model_type": "opt", **SMALL, "ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 40,
     "do_layer_norm_before": False, "enable_bias": False, "layer_norm_elementwise_affine": False},
    {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 40, "vocab_size": 100, "n_inner": 96},
    {"model_type": "gpt_neox", **SMALL, "attention_bias": False},
    {"model_type": "gpt_neox", **SMALL, "tie_word_embeddings": True},
    {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 8, "vocab_size": 100},
    {"model_type": "falcon", **SMALL, "bias": True, "multi_query": False, "parallel_attn": False},
    {"model_type": "falcon", **SMALL, "new_decoder_architecture": True, "num_kv_heads": 2},
    {"model_type": "falcon", **SMALL, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
]
STAGE_2 = {"bf16": {"enabled": True}, "optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 2}}


def plan(folder: Path, model: dict[str, Any], config: dict[str, Any], *options: str) -> tuple[int, dict[str, Any], str]:
    (folder / "config.json").write_text(json.dumps(model))
    (folder / "ds_config.json").write_text(json.dumps(config))
    run = subprocess.run([native_program("ds_plan"), "--model", str(folder / "config.json"), "--ds_config",
                          str(folder / "ds_config.json"), "--device", "cpu", "--json", *options], capture_output=True, text=True)
    return run.returncode, json.loads(run.stdout) if run.stdout else {}, run.stderr


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_totals_are_those_published(model_type: str, tmp_path: Path) -> None:
    sizes, total = PUBLISHED[model_type]
    _, found, errors = plan(tmp_path, {"model_type": model_type, **sizes}, STAGE_2, "--host_gib", "10000")
    assert found["parameters"] == total, errors


@pytest.mark.parametrize("model", VARIANTS, ids=lambda model: model["model_type"])
def test_totals_are_those_of_transformers(model: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.AutoConfig.for_model(**model)
    if model.get("layer_norm_elementwise_affine") is False and transformers.__version__.startswith("4."):
        pytest.skip("Transformers 4 cannot initialise norms without weights")
    with torch.device("meta"):
        whole = transformers.AutoModelForCausalLM.from_config(config)
    # As save_pretrained() writes it, and as a user's short file says it.
    for written in (json.loads(config.to_json_string(use_diff=False)), model):
        _, found, errors = plan(tmp_path, written, STAGE_2)
        assert found["parameters"] == sum(param.numel() for param in whole.parameters()), errors


def test_states_of_mixed_precision_take_sixteen_bytes(tmp_path: Path) -> None:
    sizes, total = PUBLISHED["gpt2"]
    code, found, _ = plan(tmp_path, {"model_type": "gpt2", **sizes}, STAGE_2, "--host_gib", "100")
    assert code == 0 and found["fits"]
    rows = {row["state"]: row["bytes"] for row in found["rows"]}
    for state, width in {"parameters": 2, "gradients": 2, "master weights": 4, "optimizer states": 8}.items():
        assert width * total <= rows[state] <= 1.001 * width * total
    assert found["rank_bytes"]["pageable"] == sum(rows.values())


def test_a_plan_that_does_not_fit_suggests_one_that_does(tmp_path: Path) -> None:
    sizes, _ = PUBLISHED["opt"]
    model = {"model_type": "opt", **sizes}
    code, found, _ = plan(tmp_path, model, STAGE_2, "--host_gib", "12", "--nvme_path", str(tmp_path))
    assert code == 1 and not found["fits"]
    short = found["shortages"][0]
    assert short["resource"] == "main memory of the host" and short["missing_bytes"] == short["needed_bytes"] - 12 * 2**30
    advice = found["advice"]
    offload = {"device": "nvme", "nvme_path": str(tmp_path)}
    if found["limits"]["disks"][0]["available_bytes"] > 20 * 2**30:
        assert advice["change"].startswith('zero_optimization.offload_optimizer.device = "nvme"')
        changed = {**STAGE_2, "zero_optimization": {"stage": 2, "offload_optimizer": offload}}
        code, found, _ = plan(tmp_path, model, changed, "--host_gib", "12")
        assert code == 0 and found["host_bytes"]["file"] == advice["file_bytes"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_another_machine_has_not_got_the_limits_of_this_process(tmp_path: Path) -> None:
    sizes, _ = PUBLISHED["gpt2"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))
    (tmp_path / "ds_config.json").write_text(json.dumps(STAGE_2))

    def run(*options: str) -> dict[str, Any]:
        command = [native_program("ds_plan"), "--model", str(tmp_path / "config.json"), "--ds_config", str(tmp_path / "ds_config.json"),
                   "--device", "cpu", "--json", *options]
        limited = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (1 << 29,) * 2); os.execv(sys.argv[1], sys.argv[1:])"
        return json.loads(subprocess.run([sys.executable, "-c", limited, *command], capture_output=True, text=True).stdout)

    here = run()
    assert not here["fits"] and any("RLIMIT_DATA" in shortage["resource"] for shortage in here["shortages"])
    there = run("--host_gib", "100")
    assert there["fits"] and there["shortages"] == []


def test_unusable_input_is_named(tmp_path: Path) -> None:
    code, _, errors = plan(tmp_path, {"model_type": "nemotron"}, STAGE_2)
    assert code == 1 and '"nemotron"' in errors and "llama" in errors and "gpt_neox" in errors
    code, _, errors = plan(tmp_path, {"model_type": "gpt2"}, {"zero_optimization": {"stage": 7}})
    assert code == 1 and "zero_optimization.stage" in errors
    code, _, errors = plan(tmp_path, {"model_type": "gpt2"}, STAGE_2, "--world", "0")
    assert code == 2 and "--world" in errors


def test_the_documentation_shows_what_is_printed(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "memory_plan.md").read_text()
    blocks = ["\n".join(line[4:] for line in block.splitlines()) for block in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)]
    command, config, *printed = [block for block in blocks if block.startswith(("ds_plan", "{", "memory of", "the run does not"))]
    folder = tmp_path / "Llama-2-7b-hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **PUBLISHED["llama"][0]}))
    (tmp_path / "ds_config.json").write_text(config)
    program, *options = command.split()
    run = subprocess.run([native_program(program), *options], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert run.returncode == 1, run.stderr
    assert "\n".join(printed) == run.stdout.rstrip("\n")


def test_missing_options_say_what_to_name(tmp_path: Path) -> None:
    for options, named in (([], "--model is missing: name the config.json"), (["--model", "x"], "--ds_config is missing"),
                           (["--model", "x", "--ds_config", "y", "--world", "5000"], "--ranks_per_host")):
        run = subprocess.run([native_program("ds_plan"), *options], capture_output=True, text=True, timeout=60)
        assert run.returncode == 2 and named in run.stderr


def test_two_billion_layers_are_refused_in_little_memory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SMALL, "num_hidden_layers": 2_000_000_000}))
    (tmp_path / "ds_config.json").write_text(json.dumps(STAGE_2))
    run = subprocess.run(["bash", "-c", 'ulimit -v 1000000; exec "$@"', "bash", native_program("ds_plan"), "--model", str(tmp_path),
                          "--ds_config", str(tmp_path / "ds_config.json")], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and '"num_hidden_layers" must be a whole number from 1 to 10000, found 2000000000' in run.stderr


def test_the_table_names_every_state(tmp_path: Path) -> None:
    sizes, _ = PUBLISHED["gpt2"]
    plan(tmp_path, {"model_type": "gpt2", **sizes}, STAGE_2)
    table = subprocess.run([native_program("ds_plan"), "--model", str(tmp_path), "--ds_config", str(tmp_path / "ds_config.json"),
                            "--device", "cpu", "--world", "2", "--host_gib", "100"], capture_output=True, text=True).stdout
    for text in ("memory of each of 2 ranks", "parameters", "gradients", "master weights", "optimizer states", "reduce buckets",
                 "activations are not included", "it fits"):
        assert text in table
