"""Transformers' Trainer with `deepspeed=`: the same training as without it, on one and two CPU ranks, stages 0 to 3."""
from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from common import run_ranks
from tiny import auto_config, build, combinations, gather_lists, llama, needs, opt, same_everywhere, saved, text_blocks

pytestmark = needs("transformers", "accelerate")
STAGES = (0, 1, 2, 3)


def with_precision(precision: str) -> dict:
    return {} if precision == "fp32" else {precision: True}


def body_plain(path: str):
    """The same training by torch alone; in a process of its own, because the Trainer takes DeepSpeed for as long as a process lives."""
    from transformers import AutoModelForCausalLM
    from trainer_runs import arguments, trainer
    plain = trainer(AutoModelForCausalLM.from_pretrained(f"{path}/start"), arguments(f"{path}/plain", adam_beta2=0.99, weight_decay=0.0))
    assert not plain.is_deepspeed_enabled
    plain.train()
    torch.save(plain.losses, f"{path}/plain.pt")


def body_stages_agree(world: int, path: str):
    """Every stage in one process, one engine after the other: the losses of plain torch on one rank, the same bits on two."""
    from deepspeed.runtime.engine import DeepSpeedEngine
    from models import full_weights
    from transformers import AutoModelForCausalLM
    from trainer_runs import arguments, trainer
    seen = []
    for stage in STAGES:
        config = auto_config(stage)
        del config["scheduler"]  # the Trainer's own then; DeepSpeed's schedules are one step behind it
        args = arguments(f"{path}/out", config, adam_beta2=0.99, weight_decay=0.0)
        run = trainer(AutoModelForCausalLM.from_pretrained(f"{path}/start"), args)
        run.train()
        assert type(run.model_wrapped) is DeepSpeedEngine and run.model_wrapped.zero_optimization_stage() == stage
        assert run.model_wrapped.dp_world_size == world
        weights = {name: value.sum().item() for name, value in full_weights(run.model).items()}
        assert same_everywhere(weights) and all(math.isfinite(value) for value in weights.values())
        seen.append((gather_lists(run.losses), weights))
        run.accelerator.free_memory()
    for stage in (1, 3):  # 0 and 1 sum micro-batches before ranks, 2 and 3 after
        assert seen[stage] == seen[stage - 1], f"stages {stage} and {stage - 1} trained differently"
    if world == 2:
        assert seen[0][0][0] != seen[0][0][1], "each rank has its own batches"
    assert seen[0][0][0] == pytest.approx(seen[3][0][0], rel=1e-5)
    if world == 1:
        torch.save(seen[3][0][0], f"{path}/ours.pt")


@combinations("world", [1, 2], [])
def test_stages_train_alike_and_like_torch(world, tmp_path):
    saved(llama(), tmp_path / "start")
    run_ranks(body_stages_agree, world, {"world": world, "path": str(tmp_path)})
    if world == 1:
        run_ranks(body_plain, 1, {"path": str(tmp_path)})
        assert torch.load(tmp_path / "ours.pt") == pytest.approx(torch.load(tmp_path / "plain.pt"), rel=1e-5)


def resume_pair(path: str, stage: int, precision: str, sections: dict):
    """(trainer of all steps, trainer that resumed in the middle)."""
    from transformers import AutoModelForCausalLM
    from trainer_runs import arguments, trainer
    trainers = []
    for resume in (None, f"{path}/out/checkpoint-3"):
        args = arguments(f"{path}/out" if resume is None else f"{path}/again", auto_config(stage, **sections), save_strategy="steps",
                         save_steps=3, eval_strategy="steps", eval_steps=3, **with_precision(precision))
        model = AutoModelForCausalLM.from_pretrained(f"{path}/start")
        if stage == 3:
            assert all(param.shape == (0,) and param.ds_numel > 0 for param in model.parameters()), "from_pretrained() shards as it builds"
        run = trainer(model, args)
        run.train(resume_from_checkpoint=resume)
        trainers.append(run)
    return trainers


def body_resumes(stage: int, precision: str, path: str, sections: dict):
    from models import full_weights
    whole, resumed = resume_pair(path, stage, precision, sections)
    assert len(whole.losses) == 12 and resumed.losses == whole.losses[6:], "what follows a checkpoint is what would have followed"
    assert resumed.state.global_step == 6 and resumed.lr_scheduler.get_last_lr() == whole.lr_scheduler.get_last_lr()
    first, second = full_weights(whole.model), full_weights(resumed.model)
    assert all(torch.equal(first[name], second[name]) for name in first)
    norms = [row["grad_norm"] for row in whole.state.log_history if "grad_norm" in row]
    assert len(norms) == 6 and all(math.isfinite(float(norm)) and float(norm) > 0 for norm in norms)
    check_saved_model(resumed, path)


def check_saved_model(run, path: str):
    """save_model() writes what from_pretrained() of an ordinary program reads: the engine's weights, whole."""
    import torch.distributed as dist
    from models import full_weights
    loss = run.evaluate()["eval_loss"]
    run.save_model(f"{path}/final")
    weights = full_weights(run.model)
    if dist.get_rank() == 0:
        from safetensors.torch import load_file
        stored = load_file(f"{path}/final/model.safetensors")
        first = {param: name for name, param in reversed(list(run.model.named_parameters(remove_duplicate=False)))}
        name_of = {name: first[param] for name, param in run.model.named_parameters(remove_duplicate=False)}
        assert weights.keys() <= stored.keys() <= name_of.keys(), "below stage 3 the file may hold tied weights under both names"
        assert all(value.shape == weights[name_of[name]].shape and torch.equal(value, weights[name_of[name]]) for name, value in stored.items())
    assert math.isfinite(loss) and same_everywhere(loss)
    dist.barrier()


@combinations("stage,precision,world", [(2, "fp32", 2), (3, "bf16", 2)],
              [(stage, precision, world) for stage in STAGES for precision in ("fp32", "bf16") for world in (1, 2)] + [(3, "fp16", 1), (2, "fp16", 2)])
def test_resuming_is_exact(stage, precision, world, tmp_path):
    saved(opt(dropout=0.1, tie_word_embeddings=True), tmp_path / "start")
    run_ranks(body_resumes, world, {"stage": stage, "precision": precision, "path": str(tmp_path), "sections": {}})


@pytest.mark.whole
@pytest.mark.parametrize("stage", [2, 3])
def test_resuming_with_offload_is_exact(stage, tmp_path):
    zero = auto_config(stage)["zero_optimization"] | {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
    if stage == 3:
        zero["offload_param"] = {"device": "cpu", "pin_memory": False}
    saved(opt(dropout=0.1), tmp_path / "start")
    run_ranks(body_resumes, 2, {"stage": stage, "precision": "bf16", "path": str(tmp_path), "sections": {"zero_optimization": zero}})


def body_auto_values(path: str):
    """Every "auto" has the value of TrainingArguments; the configuration is a file."""
    from transformers import AutoModelForCausalLM
    from trainer_runs import arguments, trainer
    Path(path, "ds_config.json").write_text(json.dumps(auto_config(3)).replace("Infinity", "1e9"))
    args = arguments(path, f"{path}/ds_config.json", bf16=True, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-7, max_grad_norm=0.5)
    run = trainer(AutoModelForCausalLM.from_pretrained(f"{path}/start"), args)
    run.train()
    engine = run.model_wrapped
    assert engine.get_batch_info() == (4, 2, 2) and engine.gradient_clipping() == 0.5 and engine.bfloat16_enabled()
    group = engine.optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-7, 0.01) or list(group["betas"]) == [0.8, 0.95]
    zero = engine._config.zero_config
    assert (zero.reduce_bucket_size, zero.stage3_prefetch_bucket_size, zero.stage3_param_persistence_threshold) == (32 * 32, 921, 320)
    rates = [row["learning_rate"] for row in run.state.log_history if "learning_rate" in row]
    assert max(float(rate) for rate in rates) == pytest.approx(5e-3) and float(rates[-1]) < 5e-3
    assert engine.config["optimizer"]["params"]["lr"] == 5e-3 and "auto" not in json.dumps(engine.config)


def test_auto_values_come_from_the_arguments(tmp_path):
    saved(llama(), tmp_path / "start")
    run_ranks(body_auto_values, 1, {"path": str(tmp_path)})


def generate(model, tokens: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=6, do_sample=False, pad_token_id=258)


def body_generates(path: str):
    """A model trained under stage 3 writes the same text as the same weights in one piece, while ranks write texts of different lengths."""
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM
    from transformers.integrations import unset_hf_deepspeed_config
    from trainer_runs import arguments, trainer
    run = trainer(AutoModelForCausalLM.from_pretrained(f"{path}/start"), arguments(f"{path}/out", auto_config(3), gradient_checkpointing=True))
    run.train()
    run.save_model(f"{path}/final")
    tokens = text_blocks(1, length=6 + 3 * dist.get_rank(), first=50)[0]["input_ids"][None]
    written = generate(run.model, tokens)
    assert written.shape == (1, tokens.shape[1] + 6)
    loss = run.evaluate()["eval_loss"]
    unset_hf_deepspeed_config()
    dist.barrier()
    whole = AutoModelForCausalLM.from_pretrained(f"{path}/final")
    assert torch.equal(generate(whole, tokens), written)
    with torch.no_grad():
        expected = torch.stack([whole(**{key: value[None] for key, value in block.items()}).loss for block in text_blocks(8, first=40)]).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_generation_and_evaluation_under_stage_3(tmp_path):
    saved(llama(), tmp_path / "start")
    run_ranks(body_generates, 2, {"path": str(tmp_path)})


def body_checkpointing(path: str):
    from transformers import AutoModelForCausalLM
    from trainer_runs import arguments, trainer
    for stage in (2, 3):
        losses = []
        for reentrant in (None, False, True):
            options = {} if reentrant is None else {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
            args = arguments(path, auto_config(stage), **options)
            run = trainer(AutoModelForCausalLM.from_pretrained(f"{path}/start"), args)
            run.train()
            losses.append(run.losses)
            run.accelerator.free_memory()
        assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0] == pytest.approx(losses[2], rel=1e-6)


@pytest.mark.whole
def test_checkpointed_activations_change_nothing(tmp_path):
    saved(llama(), tmp_path / "start")
    run_ranks(body_checkpointing, 2, {"path": str(tmp_path)})


def body_best_model(path: str):
    """load_best_model_at_end, predict, and evaluation by an engine that never trains."""
    from trainer_runs import arguments, trainer
    for stage in (1, 3):
        config = auto_config(stage)
        args = arguments(f"{path}/{stage}", config, save_strategy="steps", eval_strategy="steps", save_steps=2, eval_steps=2,
                         load_best_model_at_end=True, save_total_limit=1, metric_for_best_model="eval_loss", greater_is_better=True)
        run = trainer(build(llama()), args)
        run.train()
        losses = [row["eval_loss"] for row in run.state.log_history if "eval_loss" in row]
        best = max(float(loss) for loss in losses)
        assert float(losses[-1]) < best, "the first checkpoint is called the best one here, so that the last is not"
        assert run.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-5)
        assert run.predict(text_blocks(4)).predictions.shape[-1] == 260
        run.accelerator.free_memory()
    args = arguments(f"{path}/never", auto_config(3), prediction_loss_only=True)
    fresh = trainer(build(llama()), args, train_dataset=None)
    assert fresh.evaluate()["eval_loss"] == pytest.approx(math.log(260), rel=0.05)


@pytest.mark.whole
@pytest.mark.parametrize("world", [1, 2])
def test_best_model_prediction_and_evaluation_alone(world, tmp_path):
    run_ranks(body_best_model, world, {"path": str(tmp_path)})


def body_resized(path: str):
    """New tokens under stage 3: rows are added to sharded embeddings and to the tied head."""
    from transformers import AutoModelForCausalLM
    from models import full_weights
    from trainer_runs import arguments, trainer
    for config in (opt(), llama()):
        args = arguments(path, auto_config(3))
        model = AutoModelForCausalLM.from_pretrained(f"{path}/{config.model_type}")
        before = full_weights(model)
        model.resize_token_embeddings(272)
        after = full_weights(model)
        name = next(name for name in after if "embed_tokens" in name)
        assert after[name].shape == (272, 32) and torch.equal(after[name][:260], before[name])
        run = trainer(model, args)
        run.train()
        assert len(run.losses) == 12 and all(map(math.isfinite, run.losses))
        run.accelerator.free_memory()


@pytest.mark.whole
@pytest.mark.parametrize("world", [1, 2])
def test_resized_embeddings_under_stage_3(world, tmp_path):
    saved(opt(), tmp_path / "opt")
    saved(llama(), tmp_path / "llama")
    run_ranks(body_resized, world, {"path": str(tmp_path)})


def body_numbers(path: str):
    """Transformers' own regression model: two parameters without dimensions."""
    import torch.nn as nn
    from transformers import PretrainedConfig, PreTrainedModel
    from trainer_runs import arguments, trainer

    class RegressionConfig(PretrainedConfig):
        hidden_size = 1

    class Regression(PreTrainedModel):
        config_class = RegressionConfig
        base_model_prefix = "regression"

        def __init__(self, config):
            super().__init__(config)
            self.a, self.b = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))
            self.post_init()

        def forward(self, input_x, labels=None, **_unused):
            y = input_x * self.a + self.b
            return nn.functional.mse_loss(y, labels), y

    data = [{"input_x": torch.tensor([x]), "labels": torch.tensor([2 * x + 1])} for x in torch.linspace(-1, 1, 32).tolist()]
    found = []
    for stage in STAGES:
        run = trainer(Regression(RegressionConfig()), arguments(path, auto_config(stage), max_steps=20, learning_rate=0.1), train_dataset=data)
        run.train()
        found.append((run.model.a.item(), run.model.b.item()))
        run.accelerator.free_memory()
    assert found[0] == found[1] and found[2] == found[3] and found[0] == pytest.approx(found[3], rel=1e-5)
    assert found[0][0] > 0.5 and found[0][1] > 0.5


@pytest.mark.whole
def test_parameters_without_dimensions(tmp_path):
    run_ranks(body_numbers, 2, {"path": str(tmp_path)})


def body_smaller_batches(path: str):
    """auto_find_batch_size: the first engine is destroyed after a step that ran out of memory, a second one trains the same model."""
    from trainer_runs import RecordingTrainer, arguments
    failures = []

    class Memory(RecordingTrainer):

        def training_step(self, model, inputs, *args, **kwargs):
            if len(inputs["input_ids"]) > 2:
                failures.append(len(inputs["input_ids"]))
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(model, inputs, *args, **kwargs)

    for stage in (0, 2):  # Transformers refuses the combination at stage 3
        failures.clear()
        args = arguments(f"{path}/{stage}", auto_config(stage), per_device_train_batch_size=4, auto_find_batch_size=True)
        run = Memory(model=build(llama()), args=args, train_dataset=text_blocks(40))
        run.train()
        assert failures and run.state.global_step == 6 and run.losses[-1] < run.losses[0]
        run.accelerator.free_memory()


@pytest.mark.whole
def test_a_second_engine_after_a_failed_step(tmp_path):
    run_ranks(body_smaller_batches, 1, {"path": str(tmp_path)})
