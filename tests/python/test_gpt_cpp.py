"""The C++ door beside the Python one: same configuration files, same data, same initial weights, so the same losses; and
checkpoints that go from one to the other. The C++ program is the gpt_cpp of the build folder that _C comes from."""
from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

import common
from common import built_program, free_port

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "examples" / "gpt" / "train.py"
SIZES = ["--block_size", "32", "--n_layer", "2", "--d_model", "64", "--n_head", "2", "--eval_windows", "16", "--eval_interval", "4"]


PROGRAM = built_program("gpt_cpp")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="the C++ example gpt_cpp is not built (cmake --build --preset release)")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text/, a configuration per stage, and the token cache and initial weights that the Python example makes."""
    folder = tmp_path_factory.mktemp("gpt_cpp")
    generator = random.Random(7)
    (folder / "text").mkdir()
    for number in range(20):
        lines = [f"the {generator.choice(['red', 'green', 'blue'])} {generator.choice(['cat', 'dog', 'bird'])} sees a "
                 f"{generator.choice(['house', 'tree', 'river'])} and sings.\n" for _ in range(120)]
        (folder / "text" / f"part{number}.txt").write_text("".join(lines), encoding="utf-8")
    for stage in (0, 1, 3):
        config = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2, "gradient_clipping": 1.0,
                  "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "weight_decay": 0.01}},
                  "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 3e-3, "warmup_num_steps": 5, "warmup_type": "linear"}},
                  "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}
        (folder / f"fp32_{stage}.json").write_text(json.dumps(config))
        (folder / f"bf16_{stage}.json").write_text(json.dumps({**config, "bf16": {"enabled": True}}))
        (folder / f"native_{stage}.json").write_text(json.dumps({**config, "checkpoint": {"format": "native"}}))
    return folder


def run_ranks(command: list[str], ranks: int = 2) -> str:
    port, children = free_port(), []
    for rank in range(ranks):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "LOCAL_SIZE": ranks,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment))
    try:
        output = "".join(child.communicate(timeout=300)[0] for child in children)
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * ranks, output
    return output


def train_python(workspace: Path, config: str, output: Path, *more: str) -> dict[str, dict[int, float]]:
    common.run_ranks(common.script_body, 2, {"path": str(TRAIN), "arguments": [
        "--deepspeed", "--deepspeed_config", str(workspace / config), "--data", str(workspace / "text"), "--cache_dir", str(workspace / "cache"),
        "--vocab_size", "300", "--sample_tokens", "0", "--output_dir", str(output), *SIZES, *more]})
    return metrics(output)


def train_cpp(workspace: Path, config: str, output: Path, *more: str, ranks: int = 2) -> dict[str, dict[int, float]]:
    output.mkdir(parents=True, exist_ok=True)
    run_ranks([PROGRAM, "--deepspeed", "--deepspeed_config", str(workspace / config), "--data_cache", str(workspace / "cache"),
               "--output_dir", str(output), *SIZES, *more], ranks)
    return metrics(output)


def metrics(folder: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {"loss": {}, "eval_loss": {}, "lr": {}}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for key in found:
            if key in entry:
                found[key][entry["step"]] = entry[key]
    return found


@pytest.mark.parametrize("config", ["fp32_0", "fp32_3", "bf16_3"])
def test_losses_from_the_same_weights_are_the_same(workspace: Path, config: str, tmp_path: Path) -> None:
    weights = tmp_path / "init.safetensors"
    python = train_python(workspace, f"{config}.json", tmp_path / "python", "--max_steps", "8", "--seed", "5", "--save_interval", "-1",
                          "--save_init", str(weights))
    cpp = train_cpp(workspace, f"{config}.json", tmp_path / "cpp", "--max_steps", "8", "--seed", "5", "--save_interval", "-1",
                    "--init_from", str(weights))
    assert list(cpp["loss"]) == list(range(1, 9)) and cpp["loss"][8] < cpp["loss"][1] - 0.2
    assert cpp == python


def test_initial_weights_of_a_seed_are_the_same(workspace: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    train_python(workspace, "fp32_0.json", tmp_path / "python", "--max_steps", "1", "--save_interval", "-1", "--seed", "9",
                 "--save_init", str(tmp_path / "python.safetensors"))
    train_cpp(workspace, "fp32_0.json", tmp_path / "cpp", "--max_steps", "1", "--save_interval", "-1", "--seed", "9",
              "--save_init", str(tmp_path / "cpp.safetensors"))
    ours, theirs = load_file(tmp_path / "cpp.safetensors"), load_file(tmp_path / "python.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def uninterrupted(workspace: Path, tmp_path_factory: pytest.TempPathFactory):
    """Metrics of eight steps of a configuration; the checkpoint's format changes nothing."""
    found: dict[str, dict] = {}

    def of(config: str) -> dict:
        config = config.replace("native", "fp32")
        if config not in found:
            found[config] = train_python(workspace, f"{config}.json", tmp_path_factory.mktemp("whole"), "--max_steps", "8", "--save_interval", "-1")
        return found[config]

    return of


@pytest.mark.parametrize("config", ["fp32_0", "fp32_1", "fp32_3", "bf16_0", "bf16_1", "bf16_3", "native_0", "native_1", "native_3"])
def test_checkpoints_go_both_ways(workspace: Path, uninterrupted, config: str, tmp_path: Path) -> None:
    """Four steps in one language, four more in the other, against eight without a break."""
    name = f"{config}.json"
    whole = uninterrupted(config)
    for first, second in ((train_python, train_cpp), (train_cpp, train_python)):
        folder = tmp_path / first.__name__
        first(workspace, name, folder, "--max_steps", "4")
        resumed = second(workspace, name, folder, "--max_steps", "8", "--resume")
        assert resumed == whole, f"{first.__name__}, then {second.__name__}"


def test_a_run_goes_on_at_other_stages_and_numbers_of_ranks(workspace: Path, tmp_path: Path) -> None:
    """Of the native format: the same losses whatever the stage; other batches with other ranks, from the same weights."""
    train_python(workspace, "native_1.json", tmp_path / "first", "--max_steps", "4")
    goes_on = {}
    for config, ranks in (("native_1", 2), ("native_3", 2), ("native_0", 1), ("native_3", 1)):
        folder = shutil.copytree(tmp_path / "first", tmp_path / f"{config}_{ranks}")
        goes_on[config, ranks] = train_cpp(workspace, f"{config}.json", folder, "--max_steps", "6", "--resume", ranks=ranks)["loss"]
    assert goes_on["native_1", 2].keys() >= {5, 6}
    assert [goes_on["native_3", 2][step] for step in (5, 6)] == pytest.approx([goes_on["native_1", 2][step] for step in (5, 6)], rel=1e-5)
    assert [goes_on["native_3", 1][step] for step in (5, 6)] == pytest.approx([goes_on["native_0", 1][step] for step in (5, 6)], rel=1e-5)


def test_a_damaged_checkpoint_is_named(workspace: Path, tmp_path: Path) -> None:
    train_cpp(workspace, "fp32_1.json", tmp_path, "--max_steps", "2")
    file = tmp_path / "checkpoints" / "global_step2" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(AssertionError, match="zero_pp_rank_1_mp_rank_00_optim_states.pt has .* bytes, expected"):
        train_cpp(workspace, "fp32_1.json", tmp_path, "--max_steps", "4", "--resume")
    file.unlink()
    with pytest.raises(AssertionError, match="2 ranks, but has 1 optimizer files"):
        train_cpp(workspace, "fp32_1.json", tmp_path, "--max_steps", "4", "--resume")
