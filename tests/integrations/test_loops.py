"""Programs that drive the engine in their own manner: Ray Train's example and MosaicML Composer's trainer."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import run_ranks, script_body
from tiny import build, combinations, llama, needs, text_blocks

pytestmark = needs("transformers")
HERE = Path(__file__).parent


@combinations("stage,world,offload", [(3, 2, True)], [(stage, world, offload) for stage in (0, 1, 2, 3) for world in (1, 2) for offload in (False,)]
              + [(2, 2, True)])
def test_ray_trains_example_loop(stage, world, offload, tmp_path):
    options = ["--stage", str(stage), "--out", str(tmp_path), *(["--offload"] if offload else [])]
    run_ranks(script_body, world, {"path": str(HERE / "ray_loop.py"), "arguments": options})
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["clip"] == 1.0 and result["world"] == world and result["batches"] == 8 // world
    assert result["losses"][2] < result["losses"][1] < result["losses"][0]
    assert result["rates"][0] < result["rates"][3] and result["rates"][-1] == pytest.approx(5e-3)
    assert (tmp_path / "latest").is_file()


@pytest.mark.whole
@needs("ray")
@pytest.mark.parametrize("stage", [2, 3])
def test_ray_train_itself(stage, tmp_path):
    """Two of Ray's workers save into folders of their own; a second run resumes from what Ray made of them, exactly."""
    command = [sys.executable, str(HERE / "ray_program.py"), str(tmp_path), str(stage)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"})
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    manifest, = (tmp_path / "first").glob("*/global_step4/manifest.json")
    assert '"own_folders":true' in manifest.read_text().replace(" ", "")
    assert result["first"]["world"] == 2 and result["second"]["first"] == 4
    assert result["first"]["losses"] + result["second"]["losses"] == result["whole"]["losses"] and len(result["whole"]["losses"]) == 8


def composer_plain(steps: int) -> list[float]:
    model = build(llama())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    losses = []
    for step in range(steps):
        loss = model(**batch_of(step)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # DeepSpeed's default
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(loss.item())
    return losses


def batch_of(step: int) -> dict[str, torch.Tensor]:
    blocks = text_blocks(4, first=4 * step)
    return {key: torch.stack([block[key] for block in blocks]) for key in blocks[0]}


def body_composer(path: str, stage: int, precision: str):
    from composer_loop import ComposerTrainer

    def make():
        model = build(llama())
        return ComposerTrainer(model, torch.optim.AdamW(model.parameters(), lr=5e-3), {"zero_optimization": {"stage": stage}}, 4, 2, precision)

    first = make()
    losses = [first.train_batch(batch_of(step)) for step in range(4)]
    first.save(path)
    losses += [first.train_batch(batch_of(step)) for step in range(4, 8)]
    assert first.model.global_steps == 8 and first.model.optimizer.param_groups[0]["lr"] == pytest.approx(5e-3 / 9)
    second = make()
    second.load(path, weights_only=False, strict=True)
    for scheduler, saved in zip(second.schedulers, first.schedulers):
        state = saved.state_dict()
        state.update(last_epoch=4, _step_count=5)
        scheduler.load_state_dict(state)
    second.model.optimizer.param_groups[0]["lr"] = 5e-3 / 5
    assert [second.train_batch(batch_of(step)) for step in range(4, 8)] == losses[4:]
    weights = make()
    weights.load(path, weights_only=True, strict=True)
    assert weights.train_batch(batch_of(4)) == losses[4]
    assert losses == pytest.approx(composer_plain(8), rel=1e-5 if precision == "fp32" else 2e-2)
    with pytest.raises(RuntimeError, match="nowhere/deepspeed does not exist"):
        weights.load(path + "/nowhere", weights_only=True, strict=True)


@combinations("stage,precision,world", [(2, "amp_bf16", 2)],
              [(stage, precision, world) for stage in (0, 1, 2, 3) for precision in ("fp32", "amp_bf16", "amp_fp16") for world in (1, 2)])
def test_composers_calls(stage, precision, world, tmp_path):
    run_ranks(body_composer, world, {"path": str(tmp_path), "stage": stage, "precision": precision})
