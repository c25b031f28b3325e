"""Small trained parts of a large frozen model (LoRA): saved alone, loaded into a model that has the rest, the same bytes under every stage."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from common import run_ranks, single_rank
from models import VOCABULARY, batch, config, full_weights

STAGES, LAYOUTS = (0, 1, 2, 3), ("native", "deepspeed")


class Adapted(nn.Module):
    """A frozen linear layer with a trained one of low rank beside it, as PEFT names them."""

    def __init__(self, inputs: int, outputs: int, rank: int = 3) -> None:
        super().__init__()
        self.base_layer = nn.Linear(inputs, outputs)
        self.base_layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, outputs, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class AdaptedModel(nn.Module):
    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.embedding.requires_grad_(False)
        self.up, self.down = Adapted(width, 21), Adapted(21, width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        h = self.embedding(tokens)
        return F.cross_entropy(self.head(h + self.down(F.gelu(self.up(h)))).float().flatten(0, 1), targets.flatten())


def built(stage: int, layout: str = "native", seed: int = 1, **more: Any) -> Any:
    """The seed is of the frozen part; the trained one always begins with the same values."""
    import deepspeed
    torch.manual_seed(seed)
    model = AdaptedModel()
    generator = torch.Generator().manual_seed(8)
    for param in model.parameters():
        if param.requires_grad:
            nn.init.normal_(param, std=0.3, generator=generator)
    cfg = config(stage, checkpoint={"format": layout}, **more)
    return deepspeed.initialize(model=model, model_parameters=[p for p in model.parameters() if p.requires_grad], config=cfg)[0]


def advance(engine: Any, steps: int) -> list[float]:
    rank, losses = int(os.environ.get("RANK", 0)), []
    for step in range(steps):
        loss = engine(*batch(engine.global_steps, rank))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def is_adapter(name: str) -> bool:
    return "lora_" in name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", STAGES)
def test_adapters_alone_are_saved_and_loaded(stage, layout, tmp_path, monkeypatch):
    from deepspeed._C import CheckpointError
    single_rank(monkeypatch)
    engine = built(stage, layout)
    advance(engine, 3)
    engine.save_checkpoint(tmp_path / "whole", tag="t")
    engine.save_checkpoint(tmp_path / "alone", tag="t", exclude_frozen_parameters=True)
    trained, expected = full_weights(engine.module), advance(engine, 3)
    size = {name: sum(file.stat().st_size for file in (tmp_path / name / "t").iterdir()) for name in ("whole", "alone")}
    frozen = sum(value.nbytes for name, value in trained.items() if not is_adapter(name))
    assert size["whole"] - size["alone"] > 0.9 * frozen

    other = built(stage, layout, seed=2)
    before = full_weights(other.module)
    with pytest.raises(CheckpointError, match=r"missing \[.*embedding.weight.*load_module_strict=False"):
        other.load_checkpoint(tmp_path / "alone", tag="t")
    other.load_checkpoint(tmp_path / "alone", tag="t", load_module_strict=False)
    after = full_weights(other.module)
    for name in after:
        assert torch.equal(after[name], (trained if is_adapter(name) else before)[name]), name
    same = built(stage, layout)
    same.load_checkpoint(tmp_path / "alone", tag="t", load_module_strict=False)
    assert advance(same, 3) == expected


def adapter_bytes(state: dict[str, torch.Tensor]) -> bytes:
    """The file that PEFT would write."""
    from safetensors.torch import save
    return save({name.replace(".default", ""): value.contiguous() for name, value in sorted(state.items()) if is_adapter(name)})


def body_bytes(folder: str, stage: int, dtype: str) -> None:
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()
    zero = {"stage": stage, "stage3_param_persistence_threshold": 25, "stage3_gather_16bit_weights_on_model_save": True}
    engine = built(stage, zero_optimization=zero, **({"bf16": {"enabled": True}} if dtype == "bf16" else {}))
    advance(engine, 3)
    if stage == 3:
        state = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=True)
        with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
            gathered = {name: value.detach().clone() for name, value in engine.module.state_dict().items()}
    else:
        gathered = state = engine.module_state_dict(exclude_frozen_parameters=True)
    assert engine.save_16bit_model(folder, f"model{stage}_{dtype}.bin", exclude_frozen_parameters=True)
    if dist.get_rank() == 0:
        assert state and all(is_adapter(name) for name in state)
        plain = torch.load(Path(folder, f"model{stage}_{dtype}.bin"), weights_only=True)
        assert adapter_bytes(state) == adapter_bytes(gathered) == adapter_bytes(plain) and set(plain) == set(state)
        Path(folder, f"adapter{stage}_{dtype}").write_bytes(adapter_bytes(state))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_adapter_has_the_same_bytes_sharded_and_whole(dtype, tmp_path):
    for stage in (0, 3):
        run_ranks(body_bytes, 2, {"folder": str(tmp_path), "stage": stage, "dtype": dtype})
    whole, sharded = ((tmp_path / f"adapter{stage}_{dtype}").read_bytes() for stage in (0, 3))
    assert whole == sharded and len(whole) > 500


def body_ranks(folder: str, layout: str, phase: str, stages: tuple[int, ...]) -> None:
    import deepspeed
    deepspeed.init_distributed()
    for stage in stages:
        engine = built(stage, layout, seed=1 if phase == "save" else 2)
        if phase == "save":
            advance(engine, 2)
            engine.save_checkpoint(folder, tag=f"s{stage}", exclude_frozen_parameters=True)
            weights = full_weights(engine.module)
            if engine.global_rank == 0:
                torch.save(weights, Path(folder, f"s{stage}.weights"))
            continue
        frozen = full_weights(engine.module)
        for saved in stages:
            engine.load_checkpoint(folder, tag=f"s{saved}", load_module_strict=False)
            trained = torch.load(Path(folder, f"s{saved}.weights"))
            for name, value in full_weights(engine.module).items():
                assert torch.equal(value, (trained if is_adapter(name) else frozen)[name]), (saved, stage, name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_of_two_ranks_are_read_by_one_under_any_stage(layout, tmp_path):
    run_ranks(body_ranks, 2, {"folder": str(tmp_path), "layout": layout, "phase": "save", "stages": STAGES})
    run_ranks(body_ranks, 1, {"folder": str(tmp_path), "layout": layout, "phase": "load", "stages": STAGES})


def body_experts() -> None:
    import deepspeed
    deepspeed.init_distributed()
    model = AdaptedModel()
    model.up.lora_A["default"].weight.allreduce = False
    with pytest.raises(NotImplementedError, match="up.lora_A.default.weight: mixture of experts is not built yet"):
        deepspeed.initialize(model=model, config=config(1))


def test_experts_are_refused_where_they_would_be_averaged():
    run_ranks(body_experts, 2)
