"""The native checkpoint format: any stage, world and tier from any other; folders that are whole or not there."""
from __future__ import annotations

import gc
import json
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from common import run_ranks, single_rank
from models import config, full_weights, make_model, train


def settings(stage: int, place: str = "memory", folder: Path | None = None, **checkpoint: Any) -> dict:
    zero: dict[str, Any] = {"stage": stage}
    if place == "files":
        zero["offload_optimizer"] = {"device": "nvme", "nvme_path": str(folder)}
        if stage == 3:
            zero["offload_param"] = {"device": "nvme", "nvme_path": str(folder), "max_in_cpu": 0}
    return config(stage, zero_optimization=zero, checkpoint={"format": "native", **checkpoint})


def built(cfg: dict, model: torch.nn.Module | None = None) -> Any:
    import deepspeed
    return deepspeed.initialize(model=model or make_model(), config=cfg)[0]


def steps(engine: Any, count: int) -> list[float]:
    return train(engine, count, rank=int(os.environ.get("RANK", 0)))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("place", ["memory", "files"])
def test_a_run_goes_on_bit_for_bit(stage, place, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    cfg = settings(stage, place, tmp_path / "nvme")
    engine = built(cfg)
    steps(engine, 3)
    engine.save_checkpoint(tmp_path / "saved", client_state={"epoch": 4})
    expected = steps(engine, 3)
    other = built(cfg)
    path, client = other.load_checkpoint(tmp_path / "saved")
    assert path.endswith("global_step3/common.pt") and client["epoch"] == 4 and other.global_steps == 3
    assert steps(other, 3) == expected
    for name, value in full_weights(engine.module).items():
        assert torch.equal(full_weights(other.module)[name], value), name


@pytest.mark.parametrize("place", ["memory", "files"])
def test_momentum_of_sgd_goes_on(place, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    cfg = {**settings(2, place, tmp_path / "nvme"), "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}}
    engine = built(cfg)
    steps(engine, 3)
    engine.save_checkpoint(tmp_path / "saved")
    expected = steps(engine, 3)
    other = built(cfg)
    other.load_checkpoint(tmp_path / "saved")
    assert steps(other, 3) == expected


def test_files_are_safetensors_with_whole_tensors(tmp_path, monkeypatch):
    from safetensors.torch import load_file
    single_rank(monkeypatch)
    engine = built({**settings(2), "steps_per_print": float("inf")})
    steps(engine, 2)
    engine.save_checkpoint(tmp_path, tag="t")
    assert sorted(os.listdir(tmp_path)) == ["latest", "t"]
    saved = load_file(tmp_path / "t" / "rank_00000.safetensors")
    weights = full_weights(engine.module)
    assert all(torch.equal(saved[f"fp32/{name}"], weights[name]) for name in weights if f"fp32/{name}" in saved)
    assert saved["exp_avg/up.weight"].shape == weights["up.weight"].shape
    manifest = json.loads((tmp_path / "t" / "manifest.json").read_text())
    assert manifest["layout"] == "native" and manifest["info"]["stage"] == 2 and manifest["info"]["global_steps"] == 2
    assert manifest["info"]["config"]["zero_optimization"]["stage"] == 2 and manifest["info"]["deepscale"]
    assert manifest["info"]["config"]["steps_per_print"] == "Infinity"


def test_a_torch_optimizer_keeps_its_states(tmp_path, monkeypatch):
    import deepspeed
    single_rank(monkeypatch)

    def engine_of() -> Any:
        model = make_model()
        optimizer = torch.optim.NAdam(model.parameters(), lr=1e-3)
        cfg = settings(1)
        cfg.pop("optimizer", None)
        cfg["zero_allow_untested_optimizer"] = True
        return deepspeed.initialize(model=model, optimizer=optimizer, config=cfg)[0]
    engine = engine_of()
    steps(engine, 3)
    engine.save_checkpoint(tmp_path)
    expected = steps(engine, 3)
    other = engine_of()
    other.load_checkpoint(tmp_path)
    assert steps(other, 3) == expected


def engine_with(optimizer: Any, layout: str, device: str = "none", stage: int = 2) -> Any:
    """optimizer: of the configuration, or a function that makes one."""
    import deepspeed
    cfg = settings(stage, format=layout)
    if device != "none":
        cfg["zero_optimization"]["offload_optimizer"] = {"device": device}
    cfg.pop("optimizer", None)
    if isinstance(optimizer, dict):
        return deepspeed.initialize(model=make_model(), config={**cfg, "optimizer": optimizer})[0]
    return deepspeed.initialize(model=make_model(), optimizer=optimizer, config={**cfg, "zero_allow_untested_optimizer": True})[0]


LAYOUTS = pytest.mark.parametrize("layout", ["native", "deepspeed"])


@LAYOUTS
def test_momentum_goes_on_and_does_not_begin_again(layout, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    sgd = {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}
    engine, other = engine_with(sgd, layout), engine_with(sgd, layout)
    steps(engine, 3)
    engine.save_checkpoint(tmp_path)
    expected = steps(engine, 3)
    other.load_checkpoint(tmp_path)
    assert steps(other, 3) == expected


@LAYOUTS
@pytest.mark.parametrize("before, after", [("none", "cpu"), ("cpu", "none")])
def test_a_state_is_found_under_the_name_that_it_has_where_it_was_saved(before, after, layout, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    adagrad = {"type": "Adagrad", "params": {"lr": 0.05}}  # torch's class, or DeepSpeedCPUAdagrad
    engine, other = engine_with(adagrad, layout, before), engine_with(adagrad, layout, after)
    steps(engine, 3)
    engine.save_checkpoint(tmp_path)
    expected = steps(engine, 3)
    other.load_checkpoint(tmp_path)
    assert steps(other, 3) == expected


@LAYOUTS
@pytest.mark.parametrize("hook", ["before", "after"])
def test_an_optimizer_may_change_between_the_core_and_torch(hook, layout, tmp_path, monkeypatch):
    single_rank(monkeypatch)

    def make(hooked: bool) -> Any:
        def optimizer(params: Any) -> torch.optim.Optimizer:
            made = torch.optim.AdamW(params, lr=1e-2)
            if hooked:  # which wants to see torch's own step
                made.register_step_post_hook(lambda *_: None)
            return made
        return optimizer
    engine, other = engine_with(make(hook == "before"), layout), engine_with(make(hook == "after"), layout)
    assert engine._stepper.native != other._stepper.native
    steps(engine, 3)
    engine.save_checkpoint(tmp_path)
    expected = steps(engine, 3)
    other.load_checkpoint(tmp_path)
    assert steps(other, 3) == pytest.approx(expected, abs=1e-6)


@LAYOUTS
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_states_of_another_optimizer_are_refused(stage, layout, tmp_path, monkeypatch):
    import deepspeed
    single_rank(monkeypatch)
    engine = engine_with({"type": "Lion", "params": {"lr": 1e-3}}, layout, stage=stage)
    steps(engine, 2)
    engine.save_checkpoint(tmp_path)
    other = engine_with({"type": "AdamW", "params": {"lr": 1e-3}}, layout, stage=stage)
    before = full_weights(other.module)
    with pytest.raises(deepspeed._C.CheckpointError, match="not exp_avg_sq"):
        other.load_checkpoint(tmp_path)
    for name, value in full_weights(other.module).items():
        assert torch.equal(before[name], value), name
    other.load_checkpoint(tmp_path, load_optimizer_states=False)
    for name, value in full_weights(engine.module).items():
        assert torch.equal(full_weights(other.module)[name], value), name


def test_frozen_parameters_and_buffers_come_back(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    for stage in (0, 3):
        def engine_of(seed: int) -> Any:
            torch.manual_seed(seed)
            model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
            model[0].weight.requires_grad_(False)
            return built(settings(stage), model)
        engine = engine_of(0)
        engine.backward(engine(torch.randn(8, 4)).square().mean())
        engine.step()
        engine.save_checkpoint(tmp_path, tag=f"s{stage}")
        other = engine_of(1)
        other.load_checkpoint(tmp_path, tag=f"s{stage}")
        for name, value in full_weights(engine.module).items():
            assert torch.equal(full_weights(other.module)[name], value), name
        assert torch.equal(other.module[1].running_mean, engine.module[1].running_mean)


@pytest.mark.parametrize("layout", ["native", "deepspeed"])
def test_a_damaged_checkpoint_is_named_and_an_older_one_taken(layout, tmp_path, monkeypatch, caplog):
    import deepspeed
    single_rank(monkeypatch)
    engine = built(settings(2, format=layout))
    for tag in ("first", "second"):
        steps(engine, 1)
        engine.save_checkpoint(tmp_path, tag=tag)
    other = built(settings(2, format=layout))
    for damaged in (tmp_path / "second").iterdir():
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data)
        with pytest.raises(deepspeed._C.CheckpointError, match=damaged.name):
            other.load_checkpoint(tmp_path, tag="second")
        path, _ = other.load_checkpoint(tmp_path)
        assert "/first/" in path and other.global_steps == 1
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data)
        assert "/second/" in other.load_checkpoint(tmp_path)[0]


@pytest.mark.parametrize("layout", ["native", "deepspeed"])
def test_saving_beside_training_saves_the_moment_of_the_call(layout, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    engine = built(settings(2, format=layout, async_save=True))
    steps(engine, 2)
    engine.save_checkpoint(tmp_path)
    expected = steps(engine, 3)
    engine.wait_for_checkpoint()
    other = built(settings(2))
    other.load_checkpoint(tmp_path)
    assert steps(other, 3) == expected


def test_a_save_beside_training_that_fails_is_reported(tmp_path, monkeypatch, capfd):
    import deepspeed
    single_rank(monkeypatch)
    engine = built(settings(2, async_save=True))
    steps(engine, 1)
    engine.save_checkpoint(tmp_path, tag="good")
    engine.wait_for_checkpoint()
    engine.save_checkpoint(tmp_path, tag="bad")
    job = engine._running_save._job
    while not job.done:
        pass
    engine.wait_for_checkpoint()
    # A folder in the place of the file: it cannot be written.
    start = deepspeed._C.begin_save

    def spoil(save_dir: str, tag: str) -> str:
        folder = start(save_dir, tag)
        os.makedirs(os.path.join(folder, "rank_00000.safetensors"))
        return folder
    monkeypatch.setattr(deepspeed._C, "begin_save", spoil)
    engine.save_checkpoint(tmp_path, tag="worse")
    job = engine._running_save._job
    while not job.done:
        pass
    assert "was not saved" not in capfd.readouterr().out
    steps(engine, 1)
    said = [line for line in capfd.readouterr().out.splitlines() if "was not saved" in line]
    assert len(said) == 1 and "ERROR" in said[0] and f"[rank 0] the checkpoint {tmp_path / 'worse'} was not saved: " in said[0], said
    assert "rank_00000.safetensors" in said[0]
    steps(engine, 1)
    assert "was not saved" not in capfd.readouterr().out  # once
    with pytest.raises(OSError, match="rank_00000.safetensors"):
        engine.wait_for_checkpoint()
    assert sorted(os.listdir(tmp_path)) == ["bad", "good", "latest"]


@pytest.mark.parametrize("waits", [True, False])
def test_an_engine_that_is_destroyed_holds_no_memory_of_its_saves(waits, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    engine = built(settings(2, async_save=True))
    steps(engine, 1)
    engine.save_checkpoint(tmp_path, tag="t")
    held = [weakref.ref(thing) for thing in (engine._save_image, engine._save_memory, engine._running_save._job)]
    assert engine._save_image.capacity > 0
    if waits:
        engine.wait_for_checkpoint()
    engine.destroy()
    gc.collect()
    assert [thing() for thing in held] == [None, None, None]
    other = built(settings(2))
    assert other.load_checkpoint(tmp_path)[0].endswith("t/common.pt")


def test_old_checkpoints_are_removed_when_asked_for(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    engine = built(settings(1, keep_last=2))
    for _ in range(4):
        steps(engine, 1)
        engine.save_checkpoint(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["global_step3", "global_step4", "latest"]


def test_a_model_of_another_shape_is_refused(tmp_path, monkeypatch):
    import deepspeed
    single_rank(monkeypatch)
    engine = built(settings(2), torch.nn.Linear(4, 4))
    engine.save_checkpoint(tmp_path, tag="t")
    with pytest.raises(deepspeed._C.CheckpointError, match=r"weight: \[4, 4\] in the checkpoint, \[5, 4\] in the model"):
        built(settings(2), torch.nn.Linear(4, 5)).load_checkpoint(tmp_path)
    with pytest.raises(deepspeed._C.CheckpointError, match="missing"):
        built(settings(2), torch.nn.Sequential(torch.nn.Linear(4, 4))).load_checkpoint(tmp_path)


def flip_in(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def large(stage: int) -> Any:
    """An engine whose masters and states lie in different blocks of checksums."""
    return built(settings(stage), make_model(width=128, hidden=400))


def tensor_places(path: Path) -> dict[str, list[int]]:
    """Name -> [begin, end) in a safetensors file."""
    data = path.read_bytes()
    behind = 8 + int.from_bytes(data[:8], "little")
    return {name: [behind + place for place in entry["data_offsets"]] for name, entry in json.loads(data[8:behind]).items() if name != "__metadata__"}


def test_what_is_read_together_stands_together(tmp_path, monkeypatch):
    """Masters, then each state, so that masters are read in one run."""
    single_rank(monkeypatch)
    engine = large(2)
    steps(engine, 1)
    engine.save_checkpoint(tmp_path, tag="t")
    places = tensor_places(tmp_path / "t" / "rank_00000.safetensors")
    kinds = [name.split("/")[0] for name in sorted(places, key=places.get)]
    assert list(dict.fromkeys(kinds)) == ["fp32", "exp_avg", "exp_avg_sq", "module"]
    assert kinds == sorted(kinds, key=["fp32", "exp_avg", "exp_avg_sq", "module"].index)


def body_save_large(folder: str, stage: int) -> None:
    engine = large(stage)
    steps(engine, 2)
    engine.save_checkpoint(folder, tag="good")
    engine.save_checkpoint(folder, tag="bad")


def body_load_damaged_states(folder: str, stage: int) -> None:
    """Weights follow from masters, by a collective, while states are read: one rank's failure among these leaves nobody waiting."""
    from deepspeed._C import CheckpointError
    engine = large(stage)
    with pytest.raises(CheckpointError, match="is damaged between byte" if int(os.environ["RANK"]) == 1 else "rank 1 failed, this rank did not"):
        engine.load_checkpoint(folder, tag="bad")
    with pytest.raises(RuntimeError, match="was cut off"):
        steps(engine, 1)
    engine.load_checkpoint(folder, tag="good")
    expected = full_weights(engine.module)
    other = large(0)
    other.load_checkpoint(folder, tag="good")
    assert all(torch.equal(value, expected[name]) for name, value in full_weights(other.module).items())
    assert steps(engine, 2) == steps(other, 2)


@pytest.mark.parametrize("key", ["fp32/", "exp_avg_sq/"])
@pytest.mark.parametrize("stage", [1, 3])
def test_damage_among_the_masters_or_states_of_one_rank_is_everybodys(stage, key, tmp_path):
    arguments = {"folder": str(tmp_path), "stage": stage}
    run_ranks(body_save_large, 2, arguments, timeout_s=300)
    damaged = tmp_path / "bad" / "rank_00001.safetensors"
    places = [place for name, place in tensor_places(damaged).items() if name.startswith(key)]
    flip_in(damaged, min(begin for begin, _ in places) + 2 * 65536)  # blocks away from what rank 0 reads, too
    run_ranks(body_load_damaged_states, 2, arguments, timeout_s=300)


def body_groups(folder: str) -> None:
    def engine_of() -> Any:
        cfg = settings(3)
        cfg["zero_optimization"]["mics_shard_size"] = 2
        return built(cfg)
    engine = engine_of()
    steps(engine, 2)
    engine.save_checkpoint(folder)
    expected = steps(engine, 2)
    other = engine_of()
    other.load_checkpoint(folder)
    assert steps(other, 2) == expected


def test_frozen_parameters_of_several_groups_are_written_once(tmp_path):
    run_ranks(body_groups, 4, {"folder": str(tmp_path)}, timeout_s=300)


def body_save(folder: str, stage: int) -> None:
    engine = built(settings(stage))
    steps(engine, 2)
    engine.save_checkpoint(folder)


def body_load(folder: str, stage: int) -> None:
    from safetensors.torch import load_file, save_file
    engine = built(settings(stage))
    engine.load_checkpoint(folder)
    weights = full_weights(engine.module)
    if int(os.environ["RANK"]) == 0:
        path = Path(folder) / "weights.safetensors"
        if path.exists():
            assert all(torch.equal(value, weights[name]) for name, value in load_file(path).items())
        else:
            save_file({name: value.clone() for name, value in weights.items() if name != "head.weight"}, path)
    steps(engine, 1)
    engine.save_checkpoint(folder, tag="again")


@pytest.mark.parametrize("before, after", [((3, 2), (3, 3)), ((0, 2), (3, 1)), ((1, 3), (2, 2)), ((3, 3), (0, 2))])
def test_other_stages_and_worlds_read_it_by_slices(before, after, tmp_path):
    for body, (stage, world) in ((body_save, before), (body_load, before), (body_load, after)):
        run_ranks(body, world, {"folder": str(tmp_path), "stage": stage}, timeout_s=300)
        (tmp_path / "latest").write_text("global_step2")


@pytest.mark.parametrize("layout", ["native", "deepspeed"])
@pytest.mark.parametrize("place", ["memory", "files"])
def test_a_checkpoint_from_before_the_first_step_clears_states(layout, place, tmp_path, monkeypatch):
    """Its states are zeros or not there at all; what the engine had before must not stay."""
    single_rank(monkeypatch)
    cfg = settings(2, place, tmp_path / "nvme", format=layout)
    engine = built(cfg)
    engine.save_checkpoint(tmp_path / "saved")
    expected = steps(engine, 3)
    engine.load_checkpoint(tmp_path / "saved")
    assert steps(engine, 3) == expected


@pytest.mark.parametrize("layout", ["native", "deepspeed"])
def test_states_that_another_configuration_lacks_do_not_stay(layout, tmp_path, monkeypatch):
    """Every state is written by a load, so old values are not cleared first; these have been trained on, and must not show."""
    single_rank(monkeypatch)
    engine, other = built(settings(1, format=layout)), built(settings(3, format=layout))
    steps(engine, 2)
    steps(other, 5)
    engine.save_checkpoint(tmp_path)
    other.load_checkpoint(tmp_path)
    assert steps(other, 3) == train(engine, 3)


@pytest.mark.parametrize("optimizer", [True, False])
def test_an_engine_that_holds_parts_of_a_checkpoint_does_not_step(optimizer, tmp_path, monkeypatch):
    from deepspeed._C import CheckpointError
    single_rank(monkeypatch)
    engine = built(settings(1))
    train(engine, 1)
    engine.save_checkpoint(tmp_path, tag="good")
    expected = train(engine, 2, first=1)
    engine.save_checkpoint(tmp_path, tag="bad")
    tensors = tmp_path / "bad" / "rank_00000.safetensors"
    flip_in(tensors, tensors.stat().st_size - 40)
    with pytest.raises(CheckpointError, match="is damaged between byte.*load another checkpoint before going on"):
        engine.load_checkpoint(tmp_path, tag="bad", load_optimizer_states=optimizer)
    with pytest.raises(RuntimeError, match="was cut off: some states are changed and others are not"):
        steps(engine, 1)
    engine.load_checkpoint(tmp_path, tag="good", load_optimizer_states=False)
    if optimizer:  # weights alone do not mend states
        with pytest.raises(RuntimeError, match="was cut off"):
            steps(engine, 1)
    engine.load_checkpoint(tmp_path, tag="good")
    assert train(engine, 2, first=1) == expected
