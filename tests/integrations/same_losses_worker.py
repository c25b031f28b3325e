"""Trains the cases of same_losses.py in this process, with whatever `import deepspeed` finds: same_losses_worker.py FOLDER

One process for each rank; RANK and WORLD_SIZE say which. Reads cases.json there and appends a line of JSON per case to losses<RANK>.jsonl.
"""
from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

import torch  # noqa: E402

from same_losses import Case  # noqa: E402
from tiny import auto_config, llama, lora_config, opt, saved, text_blocks  # noqa: E402

STEPS, ACCUMULATE, LR = 5, 2, 5e-3
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def optimizer_of(module: torch.nn.Module, own_adam: bool) -> torch.optim.Optimizer:
    trained = [param for param in module.parameters() if param.requires_grad]
    if not own_adam:
        return torch.optim.AdamW(trained, lr=LR)
    from deepspeed.ops.adam import FusedAdam
    return FusedAdam(trained, lr=LR, weight_decay=0.01)


def loader() -> torch.utils.data.DataLoader:
    """All ranks' batches; trainers give each rank its part."""
    return torch.utils.data.DataLoader(text_blocks(2 * STEPS * ACCUMULATE * WORLD), batch_size=2)


def model_of(case: Case, folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder / case.model)
    if case.lora:
        from peft import get_peft_model
        torch.manual_seed(1)
        model = get_peft_model(model, lora_config())
    return model


def trainer_losses(case: Case, folder: Path, own_adam: bool) -> list[float]:
    import deepspeed
    from trainer_runs import arguments, trainer
    deepspeed.init_distributed(dist_backend="gloo")  # DeepSpeed's zero.Init sees one rank where only torch.distributed was initialised
    config = auto_config(case.stage)
    config["optimizer"]["params"]["torch_adam"] = not own_adam
    args = arguments(folder / "out", config, max_steps=STEPS, gradient_accumulation_steps=ACCUMULATE, learning_rate=LR, bf16=case.dtype == "bf16")
    run = trainer(model_of(case, folder), args)
    run.train()
    run.accelerator.free_memory()
    return run.losses


def accelerate_losses(case: Case, folder: Path, own_adam: bool) -> list[float]:
    from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="no" if case.dtype == "fp32" else "bf16", kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")],
                              deepspeed_plugin=DeepSpeedPlugin(zero_stage=case.stage, gradient_accumulation_steps=ACCUMULATE, gradient_clipping=1.0))
    model = model_of(case, folder)
    model, optimizer, batches = accelerator.prepare(model, optimizer_of(model, own_adam), loader())
    model.train()
    losses = []
    for batch in batches:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    accelerator.free_memory()
    return losses


def lightning_losses(case: Case, folder: Path, own_adam: bool) -> list[float]:
    import pytorch_lightning
    from lightning_cpu import allow_cpu

    class Module(pytorch_lightning.LightningModule):

        def __init__(self) -> None:
            super().__init__()
            # Here and not in configure_model, which stage 3 calls inside zero.Init: Transformers does not know of it there.
            self.net, self.losses = model_of(case, folder).train(), []

        def training_step(self, batch, index):
            loss = self.net(**batch).loss
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return optimizer_of(self, own_adam)

    # Lightning is told of as many machines as there are ranks.
    os.environ.update(LOCAL_RANK="0", LOCAL_SIZE="1", NODE_RANK=str(RANK), GROUP_RANK=str(RANK), TORCHELASTIC_RUN_ID="test", LOCAL_WORLD_SIZE="1")
    module = Module()
    strategy = allow_cpu("pytorch_lightning", index=0)(stage=case.stage)
    precision = "32-true" if case.dtype == "fp32" else "bf16-mixed"
    pytorch_lightning.Trainer(accelerator="cpu", devices=1, num_nodes=WORLD, strategy=strategy, precision=precision, max_steps=STEPS,
                              accumulate_grad_batches=ACCUMULATE, gradient_clip_val=1.0, default_root_dir=folder, logger=False,
                              enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False).fit(module, loader())
    return module.losses


def main(given: Path) -> None:
    folder = given / f"rank{RANK}"
    for name, config in (("llama", llama()), ("opt", opt())):
        saved(config, folder / name)
    runs = {"trainer": trainer_losses, "accelerate": accelerate_losses, "lightning": lightning_losses}
    wanted = json.loads((given / "cases.json").read_text())
    for values in wanted["cases"]:
        case = Case(*values)
        try:
            row = {"case": case.name, "losses": runs[case.trainer](case, folder, wanted["own_adam"])}
        except Exception:
            row = {"case": case.name, "error": traceback.format_exc()}
        with open(given / f"losses{RANK}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if "error" in row and WORLD > 1:
            os._exit(1)  # the others would wait for this rank in the next case


if __name__ == "__main__":
    main(Path(sys.argv[1]))
