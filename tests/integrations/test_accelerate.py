"""Accelerate with its DeepSpeedPlugin: one engine and several, accumulation, states saved and loaded, full weights, launch."""
from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import free_port, run_ranks
from tiny import auto_config, build, combinations, llama, needs, opt, same_everywhere, saved, text_blocks

pytestmark = needs("transformers", "accelerate")


def _forget_states() -> None:
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)


def accelerator(stage: int, precision: str | None = "no", steps: int = 1, given=None):
    """Gloo by name: without it Accelerate believes that there is one process on a machine without accelerators, and cpu=True turns
    DeepSpeed off."""
    from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs
    _forget_states()
    plugin = DeepSpeedPlugin(zero_stage=stage, gradient_accumulation_steps=steps, gradient_clipping=1.0, zero3_save_16bit_model=True)
    return Accelerator(mixed_precision=precision, deepspeed_plugin=plugin if given is None else given,
                       kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])


def loader(size: int = 2, count: int = 32):
    return torch.utils.data.DataLoader(text_blocks(count), batch_size=size)


def train(accelerator, model, optimizer, batches, scheduler=None) -> list[float]:
    losses = []
    model.train()
    for batch in batches:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def body_miscounted():
    from accelerate import Accelerator, DeepSpeedPlugin
    from deepspeed.utils.logging import logger
    said: list[str] = []
    logger.log = lambda level, text, *values, **more: said.append(text % values)  # type: ignore[method-assign]
    for wrong, given in ((True, {"train_batch_size": "auto"}), (False, {})):
        _forget_states()
        acc = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config={**given, "train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 2},
                                                                         "gradient_accumulation_steps": 1}))
        assert acc.num_processes == 1
        model = torch.nn.Linear(4, 4)
        asked = (model, torch.optim.AdamW(model.parameters()), torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=2))
        says = 'Accelerate counts num_processes=1, but the job has 2 ranks.*backend="gloo"'
        if wrong:
            with pytest.raises(ValueError, match=f"(?s)train_batch_size.*{says}"):
                acc.prepare(*asked)
        else:
            acc.prepare(*asked)
            assert int(os.environ["RANK"]) != 0 or [line for line in said if re.search(says, line)], said


def test_ranks_that_accelerate_does_not_see_are_named():
    """Without a backend's name it counts one process on a machine without accelerators."""
    run_ranks(body_miscounted, 2)


def body_trains(stage: int, precision: str, path: str):
    """Training, state saved in the middle and loaded into another accelerator, weights gathered, memory freed."""
    from accelerate.utils import DeepSpeedOptimizerWrapper
    from transformers import AutoModelForCausalLM
    import deepspeed
    later = []
    for turn in range(2):
        acc = accelerator(stage, precision, steps=2)
        model = AutoModelForCausalLM.from_pretrained(f"{path}/start")
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        model, optimizer, batches, scheduler = acc.prepare(model, optimizer, loader(), scheduler)
        assert type(model) is deepspeed.DeepSpeedEngine and isinstance(optimizer, DeepSpeedOptimizerWrapper)
        batches = list(batches)
        assert len(batches) == 16 // acc.num_processes
        if turn == 0:
            losses = train(acc, model, optimizer, batches[:4], scheduler)
            acc.save_state(f"{path}/state")
            assert all(map(math.isfinite, losses)) and model.global_steps == 2
        else:
            acc.load_state(f"{path}/state")
            assert model.global_steps == 2
        later.append((train(acc, model, optimizer, batches[4:8], scheduler), weights_of(acc, model), scheduler.get_last_lr()))
        assert model.get_global_grad_norm() > 0 and not acc.optimizer_step_was_skipped
        freed = acc.free_memory(model, optimizer, batches, scheduler)
        assert freed == [None] * 4 or freed == (None,) * 4
    assert later[0][0] == later[1][0] and later[0][2] == later[1][2]
    for name, value in later[0][1].items():
        assert torch.equal(value, later[1][1][name]), name


def weights_of(acc, engine) -> dict:
    """get_state_dict() on the rank that has it; every rank calls."""
    from models import full_weights
    state = acc.get_state_dict(engine)
    inner = acc.unwrap_model(engine)
    assert inner is engine.module and type(inner).__name__ == "LlamaForCausalLM"
    whole = full_weights(inner)
    if engine.zero_optimization_stage() == 3 and acc.process_index > 0:
        assert not state, "rank 0 alone gets weights that are gathered to be saved"
    else:
        assert set(state) >= set(whole)
        for name, value in whole.items():
            assert torch.equal(state[name].to(value.dtype), value), name
    return whole


@combinations("stage,precision,world", [(1, "no", 2), (3, "bf16", 2)],
              [(stage, precision, world) for stage in (0, 1, 2, 3) for precision in ("no", "bf16") for world in (1, 2)] + [(3, "fp16", 2)])
def test_training_saving_and_loading(stage, precision, world, tmp_path):
    saved(llama(), tmp_path / "start")
    run_ranks(body_trains, world, {"stage": stage, "precision": precision, "path": str(tmp_path)})


def body_accumulation(path: str):
    """Four micro-batches of 2 are one batch of 8: same weights, every stage; without DeepSpeed, too."""
    from transformers import AutoModelForCausalLM
    from models import full_weights
    reference = None
    for stage in (0, 1, 2, 3):
        for size, steps in ((8, 1), (2, 4)):
            acc = accelerator(stage, steps=steps)
            model = AutoModelForCausalLM.from_pretrained(f"{path}/start")
            model, optimizer, batches = acc.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5), loader(size))
            train(acc, model, optimizer, batches)
            assert model.global_steps == 32 // 8
            found = full_weights(model.module)
            if reference is None:
                reference = plain_training(f"{path}/start")
            for name, value in found.items():
                torch.testing.assert_close(value, reference[name], rtol=1e-4, atol=1e-5)
            acc.free_memory()


def plain_training(folder: str) -> dict:
    from transformers import AutoModelForCausalLM
    from transformers.integrations import unset_hf_deepspeed_config
    unset_hf_deepspeed_config()
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for batch in loader(8):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.whole
def test_accumulation_equals_larger_batches(tmp_path):
    saved(llama(), tmp_path / "start")
    run_ranks(body_accumulation, 1, {"path": str(tmp_path)})


def body_two_models(path: str):
    """A student trained at stage 2 and a frozen teacher at stage 3 in one program: two plugins, two engines."""
    from accelerate import DeepSpeedPlugin
    from transformers import AutoModelForCausalLM
    base = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1, "train_batch_size": "auto"}
    student_plugin = DeepSpeedPlugin(hf_ds_config={**base, "zero_optimization": {"stage": 2}})
    teacher_plugin = DeepSpeedPlugin(hf_ds_config={**base, "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})
    acc = accelerator(2, precision=None, given={"student": student_plugin, "teacher": teacher_plugin})
    student = build(opt(), seed=3)
    # First: an accelerator's backward() is that of the first engine it prepared.
    student, optimizer, batches = acc.prepare(student, torch.optim.AdamW(student.parameters(), lr=5e-3), loader())
    assert student.zero_optimization_stage() == 2
    acc.state.select_deepspeed_plugin("teacher")
    teacher = AutoModelForCausalLM.from_pretrained(f"{path}/start")
    assert all(param.shape == (0,) for param in teacher.parameters())
    teacher = acc.prepare(teacher)
    assert teacher.zero_optimization_stage() == 3
    acc.state.select_deepspeed_plugin("student")
    differences = []
    for batch in batches:
        with torch.no_grad():
            wanted = teacher.eval()(**batch).logits
        difference = torch.nn.functional.kl_div(student(**batch).logits.log_softmax(-1), wanted.softmax(-1), reduction="batchmean")
        acc.backward(difference)
        optimizer.step()
        optimizer.zero_grad()
        differences.append(difference.item())
    assert differences[-1] < 0.8 * differences[0], differences
    first, second = build_second_student(acc)
    assert first < second


def build_second_student(acc) -> tuple[float, float]:
    """Another trained engine beside the first ones: losses at the end and at the beginning."""
    model = build(llama(), seed=4)
    model, optimizer, batches = acc.prepare(model, torch.optim.AdamW(model.parameters(), lr=5e-3), loader())
    losses = []
    for batch in batches:
        loss = model(**batch).loss
        model.backward(loss)
        model.step()
        losses.append(loss.item())
    return losses[-1], losses[0]


@combinations("world", [2], [1])
def test_several_models_in_one_program(world, tmp_path):
    saved(llama(), tmp_path / "start")
    run_ranks(body_two_models, world, {"path": str(tmp_path)})


def body_dummies(path: str):
    """A configuration file with optimizer and scheduler: DummyOptim and DummyScheduler stand in for them."""
    from accelerate import DeepSpeedPlugin
    from accelerate.utils import DummyOptim, DummyScheduler
    from transformers import AutoModelForCausalLM
    from models import full_weights
    config = auto_config(3)
    config["scheduler"] = {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": 5e-3, "warmup_num_steps": 2}}
    config["optimizer"]["params"] = {"lr": "auto", "weight_decay": "auto"}
    Path(f"{path}/config{os.environ['RANK']}.json").write_text(json.dumps(config).replace("Infinity", "1e9"))
    acc = accelerator(3, precision=None, given=DeepSpeedPlugin(hf_ds_config=f"{path}/config{os.environ['RANK']}.json"))
    model = AutoModelForCausalLM.from_pretrained(f"{path}/start")
    optimizer = DummyOptim(model.parameters(), lr=5e-3, weight_decay=0.1)
    model, optimizer, batches, scheduler = acc.prepare(model, optimizer, loader(), DummyScheduler(optimizer, warmup_num_steps=2))
    group = model.optimizer.param_groups[0]
    assert group["weight_decay"] == 0.1 and model.train_micro_batch_size_per_gpu() == 2
    losses = train(acc, model, optimizer, batches, scheduler)
    assert losses[-1] < losses[0] and scheduler.scheduler.get_last_lr() == [5e-3]
    acc.save_model(model, f"{path}/saved")
    whole = full_weights(model.module)
    if acc.is_main_process:
        from safetensors.torch import load_file
        assert all(torch.equal(value, whole[name]) for name, value in load_file(f"{path}/saved/model.safetensors").items())
    acc.wait_for_everyone()
    assert same_everywhere({name: value.sum().item() for name, value in whole.items()})


@pytest.mark.whole
@pytest.mark.parametrize("world", [1, 2])
def test_optimizer_and_schedule_of_the_configuration(world, tmp_path):
    saved(llama(), tmp_path / "start")
    run_ranks(body_dummies, world, {"path": str(tmp_path)})


PROGRAM = Path(__file__).with_name("accelerate_program.py")


@combinations("stage,options", [(3, ["--mixed_precision", "bf16"])],
              [(2, ["--offload_optimizer_device", "cpu"]), (1, []), (3, ["--offload_optimizer_device", "cpu", "--offload_param_device", "cpu"])])
def test_accelerate_launch(stage, options, tmp_path):
    """The command line with its configuration file, two processes: the program itself knows nothing of DeepSpeed."""
    file = tmp_path / "accelerate.yaml"
    file.write_text(f"""compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config: {{zero_stage: {stage}, gradient_accumulation_steps: 2, gradient_clipping: 1.0, zero3_init_flag: {stage == 3},
                    zero3_save_16bit_model: true}}
num_machines: 1
num_processes: 2
""")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "--main_process_port", str(free_port()), *options, str(PROGRAM)]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    run = subprocess.run(command, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=180, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert sorted(line["rank"] for line in lines) == [0, 1]
    for line in lines:
        assert line["engine"] == "DeepSpeedEngine" and line["stage"] == stage and line["world"] == 2 and line["steps"] == 4
        assert line["losses"][-1] < line["losses"][0]
