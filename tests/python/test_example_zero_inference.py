"""examples/zero_inference: every way to place weights generates the same tokens as Transformers alone."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
from common import free_port  # noqa: E402

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "zero_inference"
OPTIONS = {"host": ["--cpu-offload"], "disk": ["--disk-offload", "--max-in-cpu", "0"], "disk, what fits stays": ["--disk-offload"],
           "disk, 8 bits": ["--disk-offload", "--quant_bits", "8"], "host, 4 bits, offloaded cache": ["--cpu-offload", "--quant_bits", "4", "--kv-offload"],
           "neither": []}


def _run(folder: Path, *options: str, ranks: int = 1) -> str:
    port = str(free_port())
    started = [subprocess.Popen([sys.executable, str(EXAMPLE / "run_model.py"), "--offload-dir", str(folder / "offload"), "--prompt-len", "6",
                                 "--gen-len", "5", "--batch-size", "2", "--loops", "1", *options], cwd=folder, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks),
                                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"})
               for rank in range(ranks)]
    outputs = [process.communicate(timeout=180)[0] for process in started]
    assert all(process.returncode == 0 for process in started), outputs
    return outputs[0]


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-opt"])
@pytest.mark.parametrize("how", OPTIONS)
def test_the_example_runs(how, shape, tmp_path):
    output = _run(tmp_path, "--model", shape, "--dummy", *OPTIONS[how])
    assert float(re.search(r"total throughput: ([\d.]+) token/s", output)[1]) > 0
    assert len(list(tmp_path.glob(f"ds-{shape}-bs2-prompt6-gen5-*.log"))) == 1


def test_the_readme_shows_what_is_printed(tmp_path):
    readme = (EXAMPLE / "README.md").read_text()
    command = re.search(r"deepspeed run_model.py (--model tiny-llama .*)", readme)[1].replace("/tmp/offload", str(tmp_path / "offload"))
    shown = [line[4:] for line in readme.splitlines() if re.match(r"    (loaded|model:|peak|prefill|decode|total)", line)]
    output = _run(tmp_path, *command.split(), "--loops", "1", "--batch-size", "1")
    printed = [line for line in output.splitlines() if re.match("loaded|model:|peak|prefill|decode|total", line)]
    assert [re.sub(r"\d+\.\d+", "N", line) for line in printed] == [re.sub(r"\d+\.\d+", "N", line) for line in shown]
    log, = tmp_path.glob("*.log")
    assert log.name in readme and log.read_text().splitlines() == printed[1:]


def test_two_ranks_share_the_model(tmp_path):
    assert "total throughput" in _run(tmp_path, "--model", "tiny-llama", "--dummy", "--disk-offload", ranks=2)


def test_placements_that_exclude_each_other_are_refused(tmp_path):
    run = subprocess.run([sys.executable, str(EXAMPLE / "run_model.py"), "--cpu-offload", "--disk-offload"], capture_output=True, text=True)
    assert run.returncode == 2 and "exclude each other" in run.stderr


def test_random_folders_load_with_the_names_of_the_model(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM
    subprocess.run([sys.executable, str(EXAMPLE / "random_weights.py"), "--shape", "tiny-llama", "--out", str(tmp_path / "m")], check=True)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "m", torch_dtype=torch.bfloat16, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert 0.015 < model.lm_head.weight.float().std() < 0.025
