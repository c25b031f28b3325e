"""Runs examples/gpt/train.py as its users do, with a tiny model on a text made here, two ranks on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "examples" / "gpt" / "train.py"


def native_package_missing() -> bool:
    try:
        return importlib.util.find_spec("deepspeed._C") is None
    except ImportError:
        return True


pytestmark = pytest.mark.skipif(native_package_missing(), reason="the native package deepspeed._C is not installed")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text/ (regular sentences, learnt within a few steps) and one configuration per stage."""
    folder = tmp_path_factory.mktemp("gpt")
    generator = random.Random(7)
    (folder / "text").mkdir()
    for number in range(20):
        lines = [f"the {generator.choice(['red', 'green', 'blue'])} {generator.choice(['cat', 'dog', 'bird'])} sees a "
                 f"{generator.choice(['house', 'tree', 'river'])} and sings.\n" for _ in range(120)]
        (folder / "text" / f"part{number}.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "text" / "picture.bin").write_bytes(bytes(range(256)) * 20)  # must be left out, not end the run
    for stage in (0, 2, 3):
        config = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
                  "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "weight_decay": 0.01}},
                  "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 3e-3, "warmup_num_steps": 5, "warmup_type": "linear"}},
                  "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}
        (folder / f"fp32_stage{stage}.json").write_text(json.dumps(config))
        (folder / f"bf16_stage{stage}.json").write_text(json.dumps({**config, "bf16": {"enabled": True}}))
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def arguments(workspace: Path, output: Path, config: str, *more: str) -> list[str]:
    return ["--deepspeed", "--deepspeed_config", str(workspace / config), "--data", str(workspace / "text"),
            "--cache_dir", str(workspace / "cache"), "--output_dir", str(output), "--vocab_size", "300", "--block_size", "32",
            "--n_layer", "2", "--d_model", "64", "--n_head", "2", "--eval_windows", "16", "--sample_tokens", "12", "--prompt", "the ", *more]


def run_ranks(script_arguments: list[str], ranks: int = 2) -> tuple[list[int], str]:
    """Exit codes and the joined output of all ranks, each started with the environment that launchers set."""
    port, children = free_port(), []
    for rank in range(ranks):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "LOCAL_SIZE": ranks,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        children.append(subprocess.Popen([sys.executable, str(TRAIN), *script_arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                         text=True, env=environment))
    try:
        output = "".join(child.communicate(timeout=300)[0] for child in children)
    finally:
        for child in children:
            child.kill()
    return [child.returncode for child in children], output


def metrics(folder: Path, key: str) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[key] for row in rows if key in row}


def check_outcome(folder: Path, steps: int) -> None:
    losses = metrics(folder, "eval_loss")
    assert max(losses) == steps
    assert losses[steps] < losses[0] - 1.0, losses
    assert len(metrics(folder, "loss")) == steps
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "sample.txt").read_text(encoding="utf-8").startswith("the ")
    assert (folder / "checkpoints" / "latest").read_text().strip() == f"global_step{steps}"


@pytest.mark.parametrize("stage", [2, 3])
def test_loss_falls_and_files_appear(workspace: Path, tmp_path: Path, stage: int) -> None:
    codes, output = run_ranks(arguments(workspace, tmp_path, f"bf16_stage{stage}.json", "--max_steps", "40", "--eval_interval", "20"))
    assert codes == [0, 0], output
    check_outcome(tmp_path, 40)
    assert f"ZeRO stage {stage}" in output


def test_the_deepspeed_command_starts_it(workspace: Path, tmp_path: Path) -> None:
    command = shutil.which("deepspeed", path=f"{os.environ['PATH']}{os.pathsep}{Path(sys.executable).parent}")
    assert command, "the launcher is on PATH or beside the interpreter"
    done = subprocess.run([command, "--num_gpus", "2", "--master_port", str(free_port()), str(TRAIN),
                           *arguments(workspace, tmp_path, "bf16_stage2.json", "--max_steps", "40")],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    check_outcome(tmp_path, 40)


def test_every_stage_gives_the_same_fp32_losses(workspace: Path, tmp_path: Path) -> None:
    found = {}
    for stage in (0, 2, 3):
        folder = tmp_path / str(stage)
        codes, output = run_ranks(arguments(workspace, folder, f"fp32_stage{stage}.json", "--max_steps", "6", "--save_interval", "-1"))
        assert codes == [0, 0], output
        assert not (folder / "checkpoints").exists()
        found[stage] = metrics(folder, "loss")
    for stage in (2, 3):
        assert found[stage] == pytest.approx(found[0], abs=1e-5)


def test_a_resumed_run_equals_an_uninterrupted_one(workspace: Path, tmp_path: Path) -> None:
    config = "fp32_stage3.json"
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    runs = [(whole, "--max_steps", "12"), (halves, "--max_steps", "7"), (halves, "--max_steps", "12", "--resume")]
    for folder, *more in runs:
        codes, output = run_ranks(arguments(workspace, folder, config, *more))
        assert codes == [0, 0], output
    assert sorted(metrics(halves, "loss")) == list(range(1, 13))
    assert metrics(halves, "loss") == pytest.approx(metrics(whole, "loss"), abs=1e-5)
    assert metrics(halves, "eval_loss")[12] == pytest.approx(metrics(whole, "eval_loss")[12], abs=1e-5)


def test_initial_weights_travel_through_a_file(workspace: Path, tmp_path: Path) -> None:
    weights = str(tmp_path / "initial.safetensors")
    runs = {"first": ("fp32_stage3.json", "--seed", "5", "--save_init", weights), "second": ("fp32_stage0.json", "--seed", "6", "--init_from", weights)}
    for name, (config, *more) in runs.items():
        codes, output = run_ranks(arguments(workspace, tmp_path / name, config, "--max_steps", "1", "--save_interval", "-1", *more))
        assert codes == [0, 0], output
    assert metrics(tmp_path / "first", "eval_loss")[0] == pytest.approx(metrics(tmp_path / "second", "eval_loss")[0], abs=1e-6)


@pytest.mark.parametrize(("more", "message"), [
    (["--data", "/nonexistent/text"], "/nonexistent/text: no such file or folder"),
    (["--resume"], "no checkpoint in"),
])
def test_unusable_input_ends_the_run_with_a_message(workspace: Path, tmp_path: Path, more: list[str], message: str) -> None:
    codes, output = run_ranks(arguments(workspace, tmp_path, "fp32_stage0.json", "--max_steps", "1", *more), ranks=1)
    assert codes == [2], output
    assert message in output and "Traceback" not in output


@pytest.fixture
def data_module():
    """examples/gpt/data.py under a name that nothing else has."""
    spec = importlib.util.spec_from_file_location("example_gpt_data", TRAIN.parent / "data.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_text_that_cannot_be_used_is_named(workspace: Path, tmp_path: Path, data_module) -> None:
    cache = str(tmp_path / "cache")
    with pytest.raises(data_module.DataError, match="picture.bin is not UTF-8 text"):
        data_module.load_text(str(workspace / "text" / "picture.bin"), 300, cache)
    with pytest.raises(data_module.DataError, match="--vocab_size must be at least 257"):
        data_module.load_text(str(workspace / "text"), 100, cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(data_module.DataError, match="no text files"):
        data_module.load_text(str(tmp_path / "empty"), 300, cache)
    (tmp_path / "file").write_text("x")
    with pytest.raises(data_module.DataError, match="choose another --cache_dir"):
        data_module.load_text(str(workspace / "text"), 300, str(tmp_path / "file" / "below"))
    text = data_module.load_text(str(workspace / "text"), 300, cache)
    with pytest.raises(data_module.DataError, match="smaller --block_size"):
        data_module.TrainingWindows(text.train, 100_000, 4, seed=1, rank=0)


def test_tokens_are_cached_and_decode_to_the_text(workspace: Path, tmp_path: Path, data_module) -> None:
    first = data_module.load_text(str(workspace / "text"), 300, str(tmp_path))
    stamp = (first.cache / "train.npy").stat().st_mtime_ns
    second = data_module.load_text(str(workspace / "text"), 300, str(tmp_path), make=False)
    assert (second.cache / "train.npy").stat().st_mtime_ns == stamp
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.cache.name]  # no temporary folder is left
    held_out = second.tokenizer.decode(second.held_out.tolist())
    assert held_out in "".join(path.read_text() for path in sorted((workspace / "text").glob("*.txt")))


def test_windows_depend_on_seed_rank_and_step_alone(workspace: Path, tmp_path: Path, data_module) -> None:
    tokens = data_module.load_text(str(workspace / "text"), 300, str(tmp_path)).train
    windows = data_module.TrainingWindows(tokens, 32, 4, seed=1, rank=0)
    inputs, targets = windows.batch(5)
    again = data_module.TrainingWindows(tokens, 32, 4, seed=1, rank=0).batch(5)
    assert inputs.equal(again[0]) and targets.equal(again[1])
    assert inputs[:, 1:].equal(targets[:, :-1])
    for other in (windows.batch(6), data_module.TrainingWindows(tokens, 32, 4, seed=1, rank=1).batch(5)):
        assert not inputs.equal(other[0])


def test_evaluation_windows_cover_the_held_out_part_on_any_number_of_ranks(workspace: Path, tmp_path: Path, data_module) -> None:
    tokens = data_module.load_text(str(workspace / "text"), 300, str(tmp_path)).held_out
    seen = {}
    for world in (1, 2, 3):
        ranks = [list(data_module.EvaluationWindows(tokens, 32, 4, 14, rank=rank, world_size=world)) for rank in range(world)]
        assert len({len(batches) for batches in ranks}) == 1  # every rank takes part in every forward pass
        seen[world] = sorted(row for batches in ranks for inputs, _, weight in batches for row in inputs[:weight].tolist())
    assert len(seen[1]) == 14
    assert seen[1] == seen[2] == seen[3]
