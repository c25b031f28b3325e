"""Ray Train itself on two CPU workers: every worker saves into a temporary folder of its own, as Ray's DeepSpeed example does, Ray puts the
files of all workers together, and a second run resumes from them.

    python ray_program.py FOLDER STAGE      writes FOLDER/result.json
"""
from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORKERS, STEPS = 2, 4


def train_loop(options: dict) -> None:
    """On each worker: some steps, then a checkpoint; `resume`: from what Ray kept of the run before."""
    import deepspeed
    import ray.train
    import torch
    from ray_loop import config_of
    from tiny import build, llama, text_blocks
    deepspeed.init_distributed()
    model = build(llama())
    engine = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config_of(options["stage"], 2, False))[0]
    first = 0
    if options["resume"] is not None:
        with ray.train.Checkpoint(options["resume"]).as_directory() as folder:
            first = engine.load_checkpoint(folder)[1]["step"]
    losses = []
    for step in range(first, options["until"]):
        blocks = text_blocks(2, first=2 * (WORKERS * step + engine.global_rank))
        loss = engine(**{key: torch.stack([block[key] for block in blocks]) for key in blocks[0]}).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    with tempfile.TemporaryDirectory() as folder:
        engine.save_checkpoint(folder, client_state={"step": options["until"]})
        torch.distributed.barrier()
        ray.train.report({"losses": losses, "first": first, "world": engine.dp_world_size}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def run(folder: str, name: str, stage: int, until: int, resume: str | None = None) -> object:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    return TorchTrainer(train_loop, train_loop_config={"stage": stage, "until": until, "resume": resume}, torch_config=TorchConfig(backend="gloo"),
                        scaling_config=ScalingConfig(num_workers=WORKERS, use_gpu=False, resources_per_worker={"CPU": 1}),
                        run_config=RunConfig(storage_path=folder, name=name)).fit()


def main(folder: str, stage: int) -> None:
    import ray
    paths = [str(HERE), str(HERE.parents[0] / "python"), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=True, runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}})
    try:
        first = run(folder, "first", stage, STEPS)
        second = run(folder, "second", stage, 2 * STEPS, first.checkpoint.path)
        whole = run(folder, "whole", stage, 2 * STEPS)
        result = {"first": first.metrics, "second": second.metrics, "whole": whole.metrics}
        Path(folder, "result.json").write_text(json.dumps(result, default=str))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
