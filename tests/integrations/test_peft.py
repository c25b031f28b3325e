"""PEFT on sharded models: adapters equal to those of unsharded training byte for byte, and the paths that ask for whole parameters."""
from __future__ import annotations


from pathlib import Path

import pytest
import torch

from common import run_ranks
from tiny import auto_config, combinations, llama, lora_config, needs, opt, saved, text_blocks

pytestmark = needs("transformers", "accelerate", "peft")
ADAPTER = "adapter_model.safetensors"


def with_adapter(path: str, **options):
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM
    base = AutoModelForCausalLM.from_pretrained(f"{path}/start")
    torch.manual_seed(5)
    return get_peft_model(base, options.pop("config", None) or lora_config(**options))


def body_adapters(path: str, precision: str, options: dict):
    """The Trainer at every stage; each saves its adapter."""
    import torch.distributed as dist
    from trainer_runs import arguments, trainer
    losses = []
    for stage in (0, 1, 2, 3):
        args = arguments(f"{path}/{stage}", auto_config(stage), gradient_accumulation_steps=1, save_strategy="steps", save_steps=3,
                         **({} if precision == "fp32" else {precision: True}))
        model = with_adapter(path, **options)
        trained = {name for name, param in model.named_parameters() if param.requires_grad}
        assert trained and all("lora_" in name or "modules_to_save" in name for name in trained)
        run = trainer(model, args)
        run.train()
        run.save_model(f"{path}/adapter{stage}")
        losses.append(run.losses)
        run.accelerator.free_memory()
    assert losses[0] == losses[1] == losses[2] == losses[3]
    dist.barrier()


@combinations("precision,world,options", [("bf16", 2, {})],
              [("fp32", 1, {}), ("fp32", 2, {}), ("fp32", 2, {"modules_to_save": ["lm_head"]}), ("fp32", 2, {"use_dora": True}),
               ("bf16", 2, {"use_rslora": True, "target_modules": "all-linear", "lora_dropout": 0.1})])
def test_an_adapter_is_the_same_bytes_at_every_stage(precision, world, options, tmp_path):
    saved(llama(), tmp_path / "start")
    run_ranks(body_adapters, world, {"path": str(tmp_path), "precision": precision, "options": options})
    files = [(tmp_path / f"adapter{stage}" / ADAPTER).read_bytes() for stage in range(4)]
    assert len(files[0]) > 1000 and files[0] == files[1] == files[2] == files[3]
    checkpoints = [(tmp_path / str(stage) / "checkpoint-3" / ADAPTER).read_bytes() for stage in range(4)]
    assert checkpoints[0] == checkpoints[3] != files[0]


def body_one_training(path: str, name: str, config: dict | None):
    """Saves the adapter, and beside it the losses and the loss of the trained model."""
    from trainer_runs import arguments, trainer
    run = trainer(with_adapter(path), arguments(f"{path}/out", config, weight_decay=0.0))
    assert run.is_deepspeed_enabled == (config is not None)  # the Trainer's state is of a whole process: one training for each
    run.train()
    run.save_model(f"{path}/{name}")
    batch = {key: value[None] for key, value in text_blocks(1)[0].items()}
    with torch.no_grad():
        after = float(run.model_wrapped(**batch).loss)
    torch.save({"losses": run.losses, "after": after}, f"{path}/{name}.pt")


def test_an_adapter_is_what_torch_trains_and_merges(tmp_path):
    """fp32: the same training by torch alone, which has no DeepSpeed. Its optimizer has a group without a trained parameter."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    from peft import PeftModel
    path = saved(llama(), tmp_path / "start")
    config = auto_config(3)
    del config["scheduler"]
    del config["optimizer"]
    for name, given in (("ours", {**config, "zero_allow_untested_optimizer": True}), ("plain", None)):
        run_ranks(body_one_training, 1, {"path": str(tmp_path), "name": name, "config": given})
    ours, plain = (torch.load(tmp_path / f"{name}.pt") for name in ("ours", "plain"))
    assert ours["losses"] == pytest.approx(plain["losses"], rel=1e-5) and ours["after"] == pytest.approx(plain["after"], rel=1e-5)
    adapters = [load_file(tmp_path / name / ADAPTER) for name in ("ours", "plain")]
    assert set(adapters[0]) == set(adapters[1])
    for name, value in adapters[1].items():
        torch.testing.assert_close(adapters[0][name], value, rtol=1e-4, atol=1e-6)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), str(tmp_path / "ours")).merge_and_unload()
    batch = {key: value[None] for key, value in text_blocks(1)[0].items()}
    with torch.no_grad():
        assert float(merged(**batch).loss) == pytest.approx(plain["after"], rel=1e-4)


def body_resumes(path: str, stage: int):
    from models import full_weights
    from trainer_runs import arguments, trainer
    runs = []
    for resume in (None, f"{path}/out/checkpoint-3"):
        args = arguments(f"{path}/out" if resume is None else f"{path}/again", auto_config(stage), save_strategy="steps", save_steps=3, bf16=True)
        run = trainer(with_adapter(path, lora_dropout=0.1), args)
        run.train(resume_from_checkpoint=resume)
        runs.append(run)
    assert len(runs[0].losses) == 12 and runs[1].losses == runs[0].losses[6:]
    first, second = (full_weights(run.model) for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    inside = {entry.name for entry in Path(path, "out", "checkpoint-3").iterdir()}
    assert {ADAPTER, "adapter_config.json", "latest", "global_step3"} <= inside


@pytest.mark.whole
@pytest.mark.parametrize("stage", [2, 3])
def test_resuming_an_adapter_is_exact(stage, tmp_path):
    saved(llama(), tmp_path / "start")
    run_ranks(body_resumes, 2, {"path": str(tmp_path), "stage": stage})


def body_whole_parameters(path: str):
    """What asks sharded parameters for their shape, copies them under gather, counts them and merges into them."""
    import deepspeed
    from models import full_weights
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig
    deepspeed.init_distributed()
    alive = HfDeepSpeedConfig({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}, "train_micro_batch_size_per_gpu": 2})
    base = AutoModelForCausalLM.from_pretrained(f"{path}/start")
    assert alive.is_zero3() and base.lm_head.weight.shape == (0,)
    before = full_weights(base)
    torch.manual_seed(1 + torch.distributed.get_rank())  # ranks that initialise adapters differently train rank 0's
    model = get_peft_model(base, lora_config(modules_to_save=["lm_head"], init_lora_weights="gaussian"))
    trainable, total = model.get_nb_trainable_parameters()
    assert (trainable, total) == (2 * 4 * (32 + 32 + 32 + 16) + 260 * 32, sum(value.numel() for value in before.values()) + trainable)
    weights = full_weights(model)
    copy = weights["base_model.model.lm_head.modules_to_save.default.weight"]
    assert torch.equal(copy, before["lm_head.weight"])
    fresh: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(fresh, {name: value.double().sum().item() for name, value in weights.items() if "lora_A" in name})
    engine = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2),
                                  config={"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 3}})[0]
    begun = full_weights(engine.module)
    assert fresh[0] == {name: begun[name].double().sum().item() for name in fresh[0]} and (len(fresh) == 1 or fresh[0] != fresh[1])
    for step in range(3):
        batch = {key: torch.stack([block[key] for block in text_blocks(2, first=2 * step)]) for key in ("input_ids", "labels")}
        engine.backward(engine(**batch).loss)
        engine.step()
    trained = full_weights(engine.module)
    engine.destroy()
    merged = model.merge_and_unload()
    after = full_weights(merged)
    name = "model.layers.0.self_attn.q_proj."
    delta = trained[f"base_model.model.{name}lora_B.default.weight"] @ trained[f"base_model.model.{name}lora_A.default.weight"] * 2
    torch.testing.assert_close(after[f"{name}weight"], before[f"{name}weight"] + delta, rtol=1e-5, atol=1e-6)
    assert torch.equal(after["lm_head.weight"], trained["base_model.model.lm_head.modules_to_save.default.weight"])
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"]) and delta.abs().max() > 1e-4


@combinations("world", [2], [1])
def test_shapes_copies_counts_and_merges_of_sharded_parameters(world, tmp_path):
    saved(llama(), tmp_path / "start")
    run_ranks(body_whole_parameters, world, {"path": str(tmp_path)})


def body_adalora(path: str):
    """The rank allocator reads whole gradients and sets ranks: the same ones as at stage 0."""
    import deepspeed
    from models import full_weights
    from peft import AdaLoraConfig
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config
    deepspeed.init_distributed()
    results = []
    for stage in (0, 2, 3):
        config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": stage}, "gradient_clipping": 1.0}
        alive = HfDeepSpeedConfig(config)
        model = with_adapter(path, config=AdaLoraConfig(init_r=6, target_r=2, total_step=8, tinit=1, tfinal=2, deltaT=1, task_type="CAUSAL_LM",
                                                        target_modules=["q_proj", "v_proj"]))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
        engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
        for step in range(8):
            batch = {key: torch.stack([block[key] for block in text_blocks(2, first=2 * step)]) for key in ("input_ids", "labels")}
            engine.backward(engine(**batch).loss)
            engine.module.base_model.update_and_allocate(step)
            engine.step()
        results.append((full_weights(engine.module), engine.module.base_model.peft_config["default"].rank_pattern))
        engine.destroy()
        del alive
        unset_hf_deepspeed_config()
    for weights, ranks in results[1:]:
        assert ranks == results[0][1] and sum(map(sum, ranks.values())) < 6 * 4
        for name, value in results[0][0].items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.whole
@pytest.mark.parametrize("world", [1, 2])
def test_adalora_allocates_the_same_ranks(world, tmp_path):
    saved(opt(), tmp_path / "start")
    run_ranks(body_adalora, world, {"path": str(tmp_path)})
