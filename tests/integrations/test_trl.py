"""TRL: SFTTrainer and DPOTrainer, reference models by prepare_deepspeed(), generation between steps with hooks taken off and put back."""
from __future__ import annotations

import math

import pytest
import torch

from common import run_ranks
from tiny import auto_config, combinations, llama, lora_config, needs, saved, text_blocks, tokenizer

pytestmark = needs("transformers", "accelerate", "peft", "trl", "datasets")


def options_of(folder: str, stage: int | None, **more) -> dict:
    config = None
    if stage is not None:
        config = auto_config(stage)
        del config["scheduler"]
    settings = dict(output_dir=folder, deepspeed=config, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=4,
                    learning_rate=5e-3, weight_decay=0.0, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, seed=11, bf16=False,
                    gradient_checkpointing=False)
    return {**settings, **more}


def recording(trainer_class: type) -> type:
    """The trainer with exact losses of its micro-steps."""

    class Recording(trainer_class):

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            self.__dict__.setdefault("losses", []).append(float(loss))
            return loss

    return Recording


def texts(count: int = 32) -> list[str]:
    return [bytes(block["input_ids"].tolist()).decode() for block in text_blocks(count)]


def body_sft(path: str, stages: tuple, lora: bool):
    """Stage None is torch alone; in a process of its own, because the Trainer takes DeepSpeed for as long as a process lives."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer
    data = Dataset.from_list([{"text": text} for text in texts()])
    losses = []
    for stage in stages:
        args = SFTConfig(**options_of(f"{path}/out", stage, max_length=24))
        model = AutoModelForCausalLM.from_pretrained(f"{path}/start")
        run = recording(SFTTrainer)(model=model, args=args, train_dataset=data, processing_class=tokenizer(),
                                    peft_config=lora_config(r=8) if lora else None)
        assert run.is_deepspeed_enabled == (stage is not None)
        run.train()
        run.save_model(f"{path}/{stage}")
        losses.append(run.losses)
        run.accelerator.free_memory()
    assert len(losses[0]) == 8 and all(map(math.isfinite, losses[0]))
    assert losses[0] == pytest.approx(losses[-1], rel=1e-6)
    torch.save(losses[0], f"{path}/losses{stages[0]}.pt")


@pytest.mark.parametrize("lora", [False, True], ids=["weights", "lora"])
@combinations("world", [2], [1])
def test_supervised_fine_tuning(world, lora, tmp_path):
    saved(llama(), tmp_path / "start")
    tokenizer().save_pretrained(tmp_path / "start")
    run_ranks(body_sft, world, {"path": str(tmp_path), "stages": (2, 3), "lora": lora})
    if world == 1:
        run_ranks(body_sft, 1, {"path": str(tmp_path), "stages": (None,), "lora": lora})
        assert torch.load(tmp_path / "losses2.pt") == pytest.approx(torch.load(tmp_path / "lossesNone.pt"), rel=1e-5)


def body_preferences(path: str):
    """DPOTrainer makes its reference model an engine without optimizer, with TRL's own keys in the configuration."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer
    from deepspeed import DeepSpeedEngine
    lines = texts(48)
    data = Dataset.from_list([{"prompt": lines[i], "chosen": lines[i + 1], "rejected": lines[i + 2]} for i in range(0, 48, 3)])
    losses = []
    for stage in (2, 3):
        args = DPOConfig(**options_of(f"{path}/out", stage, max_length=72))
        model, reference = (AutoModelForCausalLM.from_pretrained(f"{path}/start") for _ in range(2))
        run = recording(DPOTrainer)(model=model, ref_model=reference, args=args, train_dataset=data, processing_class=tokenizer())
        run.train()
        assert isinstance(run.ref_model, DeepSpeedEngine) and run.ref_model.zero_optimization_stage() == (3 if stage == 3 else 0)
        losses.append(run.losses)
        run.ref_model.destroy()
        run.accelerator.free_memory()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][0] == pytest.approx(math.log(2) / 2, rel=1e-3)


@pytest.mark.whole
@pytest.mark.parametrize("world", [1, 2])
def test_preference_training_with_a_reference_model(world, tmp_path):
    saved(llama(), tmp_path / "start")
    run_ranks(body_preferences, world, {"path": str(tmp_path)})


def write_text(model, accelerator, tokens, gather: bool) -> torch.Tensor:
    from trl.models.utils import unwrap_model_for_generation
    with unwrap_model_for_generation(model, accelerator, gather_deepspeed3_params=gather) as unwrapped:
        unwrapped.eval()
        with torch.no_grad():
            written = unwrapped.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=5, do_sample=False, pad_token_id=258)
        unwrapped.train()
    return written


def body_generates_between_steps(path: str):
    """Training goes on as if nobody had written a text in between, with parameters gathered around generation and without."""
    from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState
    from transformers import AutoModelForCausalLM
    runs = []
    for stage, gather in ((3, None), (3, True), (3, False), (2, True)):
        AcceleratorState._reset_state(reset_partial_state=True)
        acc = Accelerator(deepspeed_plugin=DeepSpeedPlugin(zero_stage=stage, gradient_accumulation_steps=1),
                          kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
        model = AutoModelForCausalLM.from_pretrained(f"{path}/start")
        loader = torch.utils.data.DataLoader(text_blocks(16), batch_size=2)
        model, optimizer, loader = acc.prepare(model, torch.optim.AdamW(model.parameters(), lr=5e-3), loader)
        losses, written = [], []
        for batch in loader:
            loss = model(**batch).loss
            acc.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if gather is not None:
                written.append(write_text(model, acc, batch["input_ids"][:1, :6], gather).tolist())
        runs.append((losses, written))
        acc.free_memory()
    assert runs[0][0] == runs[1][0] == runs[2][0] == runs[3][0]
    assert runs[1][1] == runs[2][1] == runs[3][1] and len(runs[1][1][0][0]) == 11


@combinations("world", [2], [1])
def test_generation_between_steps_changes_nothing(world, tmp_path):
    saved(llama(), tmp_path / "start")
    run_ranks(body_generates_between_steps, world, {"path": str(tmp_path)})


def body_reference_alone(path: str):
    """prepare_deepspeed() of a model that is not trained: its logits are those of the model in one piece."""
    from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs
    from transformers import AutoModelForCausalLM
    from transformers.integrations import unset_hf_deepspeed_config
    from trl.models.utils import add_hooks, prepare_deepspeed, remove_hooks
    plugin = DeepSpeedPlugin(hf_ds_config={"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}, "train_micro_batch_size_per_gpu": 2,
                                           "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
                                           "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 2}}})
    acc = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    sharded = AutoModelForCausalLM.from_pretrained(f"{path}/start")
    assert all(param.shape == (0,) for param in sharded.parameters())
    engine = prepare_deepspeed(sharded, acc)
    batch = {key: value[None] for key, value in text_blocks(1)[0].items()}
    with torch.no_grad():
        first = engine(**batch).logits
        remove_hooks(engine)
        assert not engine.optimizer.forward_hooks
        add_hooks(engine)
        second = engine(**batch).logits
    unset_hf_deepspeed_config()
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(f"{path}/start")(**batch).logits
    assert torch.equal(first, second) and torch.allclose(first, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.whole
@pytest.mark.parametrize("world", [1, 2])
def test_a_reference_model_at_stage_3(world, tmp_path):
    saved(llama(), tmp_path / "start")
    run_ranks(body_reference_alone, world, {"path": str(tmp_path)})
