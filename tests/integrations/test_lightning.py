"""PyTorch Lightning's DeepSpeedStrategy and Fabric, stages 1 to 3 and offload: fit, checkpoint, resume, test, convert."""
from __future__ import annotations

import os

import pytest
import torch

from common import run_ranks
from tiny import combinations, needs, text_blocks

pytestmark = needs("transformers", "lightning", "pytorch_lightning")


def module_class(package, offload: bool = False):
    """A language model of linear layers, built in configure_model as Lightning's documentation says for stage 3."""

    class Bytes(package.LightningModule):

        def __init__(self, lr: float = 1e-2):
            super().__init__()
            self.save_hyperparameters()
            self.net = None
            self.losses: list[float] = []
            self.tested: list[float] = []

        def configure_model(self):
            if self.net is None:
                torch.manual_seed(3)
                self.net = torch.nn.Sequential(torch.nn.Embedding(260, 16), torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 260))

        def loss(self, batch):
            logits = self.net(batch["input_ids"][:, :-1])
            return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch["input_ids"][:, 1:].flatten())

        def training_step(self, batch, index):
            loss = self.loss(batch)
            self.losses.append(loss.item())
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, index):
            self.log("val_loss", self.loss(batch), sync_dist=True)

        def test_step(self, batch, index):
            self.tested.append(self.loss(batch).item())

        def configure_optimizers(self):
            if offload:
                from deepspeed.ops.adam import DeepSpeedCPUAdam
                optimizer = DeepSpeedCPUAdam(self.parameters(), lr=self.hparams.lr, adamw_mode=True)
            else:
                optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5), "interval": "step"}}

    return Bytes


def trainer(package, strategy, path: str, steps: int, precision: str, **options):
    from pytorch_lightning.loggers import CSVLogger
    logger = CSVLogger(path) if package.__name__ == "pytorch_lightning" else False
    return package.Trainer(accelerator="cpu", devices=1, num_nodes=int(os.environ["WORLD_SIZE"]), strategy=strategy, precision=precision, max_steps=steps,
                           accumulate_grad_batches=2, gradient_clip_val=1.0, default_root_dir=path, logger=logger, enable_progress_bar=False,
                           log_every_n_steps=1, use_distributed_sampler=False, **options)


def loader(count: int, first: int = 0):
    """Batches of 2 from this rank's `count` blocks."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return torch.utils.data.DataLoader(text_blocks(count * world, first=first)[rank::world], batch_size=2)


def one_per_node() -> None:
    """common.run_ranks starts ranks of one machine; Lightning is told of as many machines with one rank each."""
    os.environ.update(LOCAL_RANK="0", LOCAL_SIZE="1", NODE_RANK=os.environ["RANK"], GROUP_RANK=os.environ["RANK"], TORCHELASTIC_RUN_ID="test",
                      LOCAL_WORLD_SIZE="1")


def body_fits(path: str, stage: int, precision: str, offload: bool, package_name: str):
    import importlib
    from lightning_cpu import allow_cpu
    from models import full_weights
    one_per_node()
    package = importlib.import_module(package_name)
    strategy_class = allow_cpu(package_name)
    offloading = {"offload_optimizer": True, "offload_parameters": stage == 3} if offload else {}
    make = lambda **more: strategy_class(stage=stage, **offloading, **more)  # noqa: E731
    cls = module_class(package, offload)
    whole = cls()
    run = trainer(package, make(), path, 6, precision, limit_val_batches=1)
    run.fit(whole, loader(48), loader(4, first=100))
    assert len(whole.losses) == 12 and whole.losses[-1] < whole.losses[0]
    half = cls()
    run = trainer(package, make(), path, 3, precision, limit_val_batches=0)
    run.fit(half, loader(48))
    assert half.losses == whole.losses[:6]
    checkpoint = f"{path}/three.ckpt"
    run.save_checkpoint(checkpoint)
    assert os.path.isdir(checkpoint)
    resumed = cls()
    run = trainer(package, make(), path, 6, precision, limit_val_batches=0)
    run.fit(resumed, torch.utils.data.DataLoader(list(loader(48).dataset)[12:], batch_size=2), ckpt_path=checkpoint)
    assert run.global_step == 6 and resumed.losses == whole.losses[6:]
    after, expected = full_weights(resumed), full_weights(whole)
    assert all(torch.equal(value, after[name]) for name, value in expected.items())
    check_test_and_conversion(package, make, cls, path, checkpoint, precision)


def check_test_and_conversion(package, make, cls, path: str, checkpoint: str, precision: str) -> None:
    """test(ckpt_path) without training, which DeepSpeed 0.19.8 cannot do at stage 3, and the checkpoint as one file of fp32 weights."""
    from pytorch_lightning.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict
    tested = cls()
    trainer(package, make(), path, 3, precision).test(tested, loader(4, first=100), ckpt_path=checkpoint, verbose=False)
    torch.distributed.barrier()
    if os.environ["RANK"] == "0":
        state = convert_zero_checkpoint_to_fp32_state_dict(checkpoint, f"{path}/one.pt")["state_dict"]
        plain = cls()
        plain.configure_model()
        plain.load_state_dict(state)
        with torch.no_grad():
            expected = [plain.loss(batch).item() for batch in loader(4, first=100)]
        assert tested.tested == pytest.approx(expected, rel=1e-5 if precision == "32-true" else 2e-2)


@combinations("stage,precision,offload,world", [(3, "32-true", False, 1), (2, "bf16-mixed", False, 2)],
              [(stage, precision, offload, world) for stage in (1, 2, 3) for precision in ("32-true", "bf16-mixed") for offload in (False, True)
               for world in (1, 2)])
def test_fit_resume_test_and_convert(stage, precision, offload, world, tmp_path):
    if offload and stage == 1:
        pytest.skip("Lightning's strategy offloads from stage 2 on")
    run_ranks(body_fits, world, {"path": str(tmp_path), "stage": stage, "precision": precision, "offload": offload,
                                 "package_name": "pytorch_lightning"})


@pytest.mark.whole
def test_the_package_under_its_other_name(tmp_path):
    run_ranks(body_fits, 1, {"path": str(tmp_path), "stage": 3, "precision": "32-true", "offload": False, "package_name": "lightning.pytorch"})


def body_stages_agree(path: str):
    import pytorch_lightning
    from lightning_cpu import allow_cpu
    strategy_class = allow_cpu("pytorch_lightning")
    one_per_node()
    losses = []
    for stage in (1, 2, 3):
        module = module_class(pytorch_lightning)()
        trainer(pytorch_lightning, strategy_class(stage=stage), f"{path}/{stage}", 6, "32-true", enable_checkpointing=False).fit(module, loader(48))
        losses.append(module.losses)
    plain = module_class(pytorch_lightning)()
    if os.environ["WORLD_SIZE"] == "1":
        trainer(pytorch_lightning, "auto", f"{path}/plain", 6, "32-true", enable_checkpointing=False).fit(plain, loader(48))
        assert losses[0] == pytest.approx(plain.losses, rel=1e-5)
    assert losses[1] == losses[2] and losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.whole
@pytest.mark.parametrize("world", [1, 2])
def test_stages_train_alike_and_like_torch(world, tmp_path):
    run_ranks(body_stages_agree, world, {"path": str(tmp_path)})


def body_fabric(path: str, stage: int, precision: str):
    from lightning.fabric import Fabric
    from lightning_cpu import allow_cpu
    strategy_class = allow_cpu("lightning.fabric")
    one_per_node()
    runs = []
    for turn in range(2):
        fabric = Fabric(accelerator="cpu", devices=1, num_nodes=int(os.environ["WORLD_SIZE"]), strategy=strategy_class(stage=stage), precision=precision)
        fabric.launch()
        with fabric.init_module(empty_init=None if stage == 3 else False):
            torch.manual_seed(3)
            model = torch.nn.Sequential(torch.nn.Embedding(260, 16), torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 260))
        if stage == 3:
            assert all(param.shape == (0,) for param in model.parameters())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model, optimizer = fabric.setup(model, optimizer)
        state = {"model": model, "optimizer": optimizer, "note": turn}
        first = 0
        if turn == 1:
            left = fabric.load(f"{path}/saved", state)
            assert state["note"] == 0 and "note" not in left
            first = 3
        losses = []
        for step, batch in enumerate(list(loader(48))[first:6], first):
            logits = model(batch["input_ids"][:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch["input_ids"][:, 1:].flatten())
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if turn == 0 and step == 2:
                fabric.save(f"{path}/saved", state)
        runs.append(losses)
    assert runs[1] == runs[0][3:] and runs[0][-1] < runs[0][0]


@combinations("stage,precision,world", [(3, "bf16-mixed", 2)],
              [(stage, precision, world) for stage in (1, 2, 3) for precision in ("32-true", "bf16-mixed", "bf16-true") for world in (1, 2)])
def test_fabric_trains_saves_and_loads(stage, precision, world, tmp_path):
    run_ranks(body_fabric, world, {"path": str(tmp_path), "stage": stage, "precision": precision})
