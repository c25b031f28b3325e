"""Checkpoints: exact resume, layout and keys, bad files, conversion to plain weights."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from common import run_ranks, single_rank
from models import batch, config, full_weights, make_model, train

STAGES = (0, 1, 2, 3)
WARMUP = {"type": "WarmupLR", "params": {"warmup_num_steps": 8, "warmup_max_lr": 1e-2}}


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


def engine_for(stage: int, seed: int = 1, **more):
    import deepspeed
    return deepspeed.initialize(model=make_model(seed), config=config(stage, scheduler=WARMUP, **more))[0]


def two_groups(seed: int, stage: int, **more):
    import deepspeed
    model = make_model(seed)
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0}]
    return deepspeed.initialize(model=model, model_parameters=groups, config=config(stage, scheduler=WARMUP, **more))[0]


PRECISIONS = {"fp32": {}, "bf16": {"bf16": {"enabled": True}}, "fp16": {"fp16": {"enabled": True, "initial_scale_power": 8}}}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_resuming_continues_bit_for_bit(stage, precision, tmp_path):
    more = PRECISIONS[precision]
    engine = two_groups(1, stage, **more)
    train(engine, 4)
    assert engine.save_checkpoint(tmp_path, client_state={"note": [1, {"a": 2.5}], "when": None})
    expected = train(engine, 3, first=4)
    weights = full_weights(engine.module)
    resumed = two_groups(7, stage, **more)
    resumed.module.table.fill_(9.0)
    path, client = resumed.load_checkpoint(tmp_path)
    assert path.startswith(str(tmp_path)) and client["note"] == [1, {"a": 2.5}] and client["when"] is None
    assert (resumed.global_steps, resumed.global_samples, resumed.skipped_steps) == (4, 16, 0)
    assert train(resumed, 3, first=4) == expected
    assert all(torch.equal(value, weights[name]) for name, value in full_weights(resumed.module).items())
    assert torch.equal(resumed.module.table, engine.module.table) and resumed.get_lr() == engine.get_lr()


@pytest.mark.parametrize("stage", (0, 3))
def test_loading_tells_who_wrote_the_checkpoint(stage, tmp_path):
    """Lightning Fabric hands it on to the user. It may come back to save_checkpoint() among the client's own entries."""
    import deepspeed
    engine = engine_for(stage)
    engine.save_checkpoint(tmp_path, client_state={"note": 1})
    _, client = engine.load_checkpoint(tmp_path)
    assert client == {"note": 1, "ds_version": deepspeed.__version__, "ds_config": engine.config}
    engine.save_checkpoint(tmp_path, tag="again", client_state={**client, "ds_version": "0.1"})
    assert engine.load_checkpoint(tmp_path, tag="again")[1] == client


def body_two_ranks_resume(stage: int, path: str):
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()
    rank = dist.get_rank()
    engine = two_groups(1, stage)
    train(engine, 3, rank=rank)
    engine.save_checkpoint(path, tag="here")
    expected = train(engine, 3, first=3, rank=rank)
    resumed = two_groups(7, stage)
    resumed.load_checkpoint(path, tag="here")
    assert train(resumed, 3, first=3, rank=rank) == expected


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_resume_bit_for_bit(stage, tmp_path):
    run_ranks(body_two_ranks_resume, 2, {"stage": stage, "path": str(tmp_path)})
    names = set(os.listdir(tmp_path / "here")) - {"manifest.json"}
    assert {"rank_00000.pt", "rank_00001.pt"} <= names
    names -= {"rank_00000.pt", "rank_00001.pt"}
    if stage == 0:
        assert names == {"mp_rank_00_model_states.pt"}
    elif stage < 3:
        assert names == {"mp_rank_00_model_states.pt", *(f"zero_pp_rank_{r}_mp_rank_00_optim_states.pt" for r in range(2))}
    else:
        assert names == {f"zero_pp_rank_{r}_mp_rank_00_{kind}_states.pt" for r in range(2) for kind in ("model", "optim")}
    assert (tmp_path / "latest").read_text() == "here"
    if stage > 0:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
        state = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path))
        assert set(state) == set(make_model().state_dict()) and all(v.dtype == torch.float32 for v in state.values())
        assert {k: tuple(v.shape) for k, v in state.items()} == {k: tuple(v.shape) for k, v in make_model().state_dict().items()}


def body_save(stage: int, path: str, losses: str):
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()
    engine = two_groups(1, stage)
    train(engine, 3, rank=dist.get_rank())
    engine.save_checkpoint(path)
    value = engine(*batch(50)).item()
    if dist.get_rank() == 0:
        with open(losses, "w") as file:
            json.dump([value, engine.global_samples], file)


@pytest.mark.parametrize("stage", (2, 3))
def test_another_number_of_ranks_loads_the_same_values(stage, tmp_path):
    run_ranks(body_save, 2, {"stage": stage, "path": str(tmp_path), "losses": str(tmp_path / "losses.json")})
    value, samples = json.loads((tmp_path / "losses.json").read_text())
    engine = two_groups(7, stage)
    engine.load_checkpoint(tmp_path)
    assert engine(*batch(50)).item() == pytest.approx(value, abs=1e-6) and engine.global_samples == samples
    from deepspeed.utils import safe_get_full_optimizer_state
    assert safe_get_full_optimizer_state(engine.module.up.weight, "exp_avg").abs().sum() > 0 and engine._core.get_step() == 3
    train(engine, 1)


def body_a_rank_without_fragments(path: str):
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()

    def make(stage: int, seed: int):
        torch.manual_seed(seed)
        model = torch.nn.Linear(2, 1, bias=False)
        return deepspeed.initialize(model=model, config=config(stage))[0]

    saved = make(0, 1)
    saved.save_checkpoint(path)
    for stage in (1, 3):
        engine = make(stage, 7)
        fragments = [None] * 2
        dist.all_gather_object(fragments, engine._core.fragment_of(0)[1])
        assert 0 in fragments
        engine.load_checkpoint(path)
        assert torch.equal(full_weights(engine.module)["weight"], saved.module.weight)


def test_a_rank_may_hold_nothing_of_the_loaded_model(tmp_path):
    run_ranks(body_a_rank_without_fragments, 2, {"path": str(tmp_path)}, timeout_s=40)


@pytest.mark.parametrize("stage", STAGES)
def test_an_optimizer_in_python_resumes_bit_for_bit(stage, tmp_path):
    import deepspeed

    def make(seed):
        return deepspeed.initialize(model=make_model(seed), optimizer=lambda p: torch.optim.NAdam(p, lr=1e-2),
                                    config=config(stage, zero_allow_untested_optimizer=True))[0]

    engine = make(1)
    train(engine, 3)
    engine.save_checkpoint(tmp_path)
    expected = train(engine, 3, first=3)
    resumed = make(7)
    resumed.load_checkpoint(tmp_path)
    assert train(resumed, 3, first=3) == expected


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam"])
def test_a_checkpoint_from_before_the_first_step_resets_the_optimizer(stage, name, tmp_path):
    import deepspeed
    made = {"type": name, "params": {"lr": 1e-2, **({"momentum": 0.9} if name == "SGD" else {})}}
    engine = deepspeed.initialize(model=make_model(), config=config(stage, optimizer=made, zero_allow_untested_optimizer=True))[0]
    engine.save_checkpoint(tmp_path)
    expected = train(engine, 3)
    engine.load_checkpoint(tmp_path)
    assert train(engine, 3) == expected and engine.global_steps == 3


@pytest.mark.parametrize("stage", STAGES)
def test_loading_in_the_middle_of_an_accumulation_window_begins_a_new_one(stage, tmp_path):
    engine = engine_for(stage, steps=2)
    train(engine, 2)
    engine.save_checkpoint(tmp_path)
    expected = train(engine, 4, first=2)
    train(engine, 1, first=6)
    engine.load_checkpoint(tmp_path)
    assert train(engine, 4, first=2) == expected and engine.global_steps == 3 and engine.micro_steps == 4


@pytest.mark.parametrize("stage", (0, 2))
def test_a_checkpoint_without_scheduler_or_scaler_resets_them(stage, tmp_path):
    import deepspeed
    fp16 = {"fp16": {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 1}}
    deepspeed.initialize(model=make_model(), config=config(0))[0].save_checkpoint(tmp_path)
    engine = engine_for(stage, **fp16)
    first = engine.lr_scheduler.state_dict()
    train(engine, 4)
    assert engine.optimizer.loss_scale > 256 and engine.lr_scheduler.state_dict() != first
    engine.load_checkpoint(tmp_path)
    assert engine.optimizer.loss_scale == 256 and engine.lr_scheduler.state_dict() == first


@pytest.mark.parametrize("saved", STAGES)
@pytest.mark.parametrize("loaded", STAGES)
def test_any_stage_loads_any_stage(saved, loaded, tmp_path):
    engine = engine_for(saved)
    train(engine, 3)
    engine.save_checkpoint(tmp_path)
    expected = train(engine, 2, first=3)
    other = engine_for(loaded, seed=7)
    other.load_checkpoint(tmp_path)
    assert train(other, 2, first=3) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_saving_changes_nothing_and_loading_goes_back(stage, tmp_path):
    engine, untouched = engine_for(stage), engine_for(stage)
    train(engine, 2)
    engine.save_checkpoint(tmp_path)
    train(untouched, 2)
    expected = train(untouched, 3, first=2)
    assert train(engine, 3, first=2) == expected
    engine.load_checkpoint(tmp_path)
    assert train(engine, 3, first=2) == expected


@pytest.mark.parametrize("stage", STAGES)
def test_weights_alone(stage, tmp_path):
    engine = engine_for(stage)
    train(engine, 3)
    engine.save_checkpoint(tmp_path)
    other = engine_for(stage, seed=7)
    other.load_checkpoint(tmp_path, load_module_only=True)
    assert other.global_steps == 0 and other._core.get_step() == 0
    expected = full_weights(engine.module)
    assert all(torch.equal(value, expected[name]) for name, value in full_weights(other.module).items())
    from deepspeed.utils import safe_get_full_fp32_param
    assert torch.equal(safe_get_full_fp32_param(other.module.up.weight), expected["up.weight"])


@pytest.mark.parametrize("stage", (0, 3))
def test_an_inference_engine_loads_a_training_checkpoint(stage, tmp_path):
    import deepspeed
    engine = engine_for(stage)
    train(engine, 3)
    engine.save_checkpoint(tmp_path)
    settings = {"train_batch_size": 1, "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 10}}
    other = deepspeed.initialize(model=make_model(7), config=settings)[0]
    other.load_checkpoint(tmp_path, load_optimizer_states=False)
    with torch.no_grad():
        assert other(*batch(9)).item() == engine(*batch(9)).item()


def test_the_keys_that_other_programs_read(tmp_path):
    engine = engine_for(2, bf16={"enabled": True})
    train(engine, 1)
    engine.save_checkpoint(tmp_path)
    directory = tmp_path / "global_step1"
    model = torch.load(directory / "mp_rank_00_model_states.pt", weights_only=False)
    assert {"module", "buffer_names", "optimizer", "param_shapes", "frozen_param_shapes", "shared_params", "frozen_param_fragments",
            "lr_scheduler", "data_sampler", "random_ltd", "skipped_steps", "global_steps", "global_samples", "dp_world_size", "mp_world_size",
            "checkpoint_parallel_dimensions", "ds_config", "ds_version"} == set(model)
    assert model["buffer_names"] == ["table"] and model["shared_params"] == {"head.weight": "embedding.weight"}
    assert model["ds_config"] == engine.config and list(model["frozen_param_shapes"]) == ["frozen.weight", "frozen.bias"]
    state = torch.load(directory / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", weights_only=False)["optimizer_state_dict"]
    assert {"loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad", "base_optimizer_state", "single_partition_of_fp32_groups",
            "zero_stage", "group_paddings", "partition_count", "ds_version", "param_slice_mappings"} <= set(state)
    assert state["zero_stage"] == 2 and os.access(tmp_path / "zero_to_fp32.py", os.X_OK)


def test_the_default_tag_counts_steps_and_latest_can_be_left_alone(tmp_path):
    engine = engine_for(1)
    train(engine, 2)
    engine.save_checkpoint(str(tmp_path))
    train(engine, 1)
    engine.save_checkpoint(str(tmp_path), save_latest=False)
    assert (tmp_path / "latest").read_text() == "global_step2" and (tmp_path / "global_step3").is_dir()
    engine.load_checkpoint(str(tmp_path), tag="global_step3")
    assert engine.global_steps == 3


def test_saving_over_another_checkpoint_leaves_nothing_of_it(tmp_path):
    for stage, bf16 in ((3, False), (2, True), (1, False), (0, False), (3, False)):
        engine = engine_for(stage, bf16={"enabled": bf16})
        (tmp_path / "t").mkdir(exist_ok=True)
        (tmp_path / "t" / "zero_pp_rank_5_mp_rank_00_optim_states.pt").write_bytes(b"of six ranks")
        (tmp_path / "t" / "mine.txt").write_text("not a checkpoint file")
        engine.save_checkpoint(tmp_path, tag="t")
        assert len(os.listdir(tmp_path / "t")) == (4 if stage == 0 else 5)
        engine.load_checkpoint(tmp_path, tag="t")


def test_arguments_that_make_no_sense(tmp_path):
    engine = engine_for(1)
    with pytest.raises(ValueError, match="save_dir"):
        engine.save_checkpoint("")
    with pytest.raises(KeyError, match="global_steps"):
        engine.save_checkpoint(tmp_path, client_state={"global_steps": 5})
    assert engine.load_checkpoint(tmp_path / "nothing") == (None, None)


def saved(tmp_path, stage: int):
    engine = engine_for(stage)
    train(engine, 2)
    engine.save_checkpoint(tmp_path, tag="t")
    return tmp_path / "t"


def assert_loading_fails_and_changes_nothing(stage: int, tmp_path, match: str):
    from deepspeed._C import CheckpointError
    engine = engine_for(stage, seed=7)
    train(engine, 1)
    before = full_weights(engine.module)
    table = engine.module.table.clone()
    with pytest.raises(CheckpointError, match=match):
        engine.load_checkpoint(tmp_path, tag="t")
    assert all(torch.equal(value, before[name]) for name, value in full_weights(engine.module).items())
    assert torch.equal(engine.module.table, table) and engine.global_steps == 1
    train(engine, 1)


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_file_is_named(stage, tmp_path):
    directory = saved(tmp_path, stage)
    files = sorted(os.listdir(directory))
    files.remove("manifest.json")  # without it the folder is as other programs write it
    for name in files:
        kept = (directory / name).read_bytes()
        (directory / name).unlink()
        assert_loading_fails_and_changes_nothing(stage, tmp_path, "missing|does not exist|no optimizer files")
        (directory / name).write_bytes(kept)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_a_cut_file_is_named(stage, share, tmp_path):
    directory = saved(tmp_path, stage)
    for name in sorted(os.listdir(directory)):
        whole = (directory / name).read_bytes()
        (directory / name).write_bytes(whole[:int(len(whole) * share)])
        assert_loading_fails_and_changes_nothing(stage, tmp_path, name)
        (directory / name).write_bytes(whole)


def test_a_directory_or_tag_that_is_not_there(tmp_path):
    from deepspeed._C import CheckpointError
    with pytest.raises(CheckpointError, match="does not exist"):
        engine_for(1).load_checkpoint(tmp_path, tag="never")


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_another_model_is_refused(stage, tmp_path):
    import deepspeed
    other = deepspeed.initialize(model=make_model(hidden=16), config=config(stage, scheduler=WARMUP))[0]
    train(other, 1)
    other.save_checkpoint(tmp_path, tag="t")
    assert_loading_fails_and_changes_nothing(stage, tmp_path, "up.weight")


def test_files_cannot_run_code(tmp_path):
    directory = saved(tmp_path, 2)
    victim = tmp_path / "victim"

    class Evil:

        def __reduce__(self):
            return os.system, (f"touch {victim}",)

    path = directory / "mp_rank_00_model_states.pt"
    state = torch.load(path, weights_only=False)
    torch.save({**state, "note": Evil()}, path)
    (directory / "manifest.json").unlink()  # which would notice the change
    assert_loading_fails_and_changes_nothing(2, tmp_path, "could run code")
    assert not victim.exists()


def body_one_rank_cannot_read(path: str):
    import deepspeed
    import torch.distributed as dist
    from deepspeed._C import CheckpointError
    from deepspeed.runtime import checkpoint_load
    deepspeed.init_distributed()
    engine = engine_for(2)
    engine.save_checkpoint(path, tag="t")
    if dist.get_rank() == 1:
        checkpoint_load.load_file = lambda file: (_ for _ in ()).throw(CheckpointError(f"{file} is unreadable here"))
    before = full_weights(engine.module)
    train(engine, 1, rank=dist.get_rank())
    changed = full_weights(engine.module)
    try:
        engine.load_checkpoint(path, tag="t")
        raise SystemError("loading should have failed")
    except CheckpointError as error:
        assert ("unreadable here" if dist.get_rank() == 1 else "rank 1 failed") in str(error)
    assert all(torch.equal(v, changed[n]) for n, v in full_weights(engine.module).items()) and set(before) == set(changed)
    train(engine, 1, rank=dist.get_rank())


def test_when_one_rank_cannot_read_all_ranks_stop_before_storing(tmp_path):
    run_ranks(body_one_rank_cannot_read, 2, {"path": str(tmp_path)})


def body_tags_differ(path: str, mode: str):
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()
    engine = engine_for(1, checkpoint={"tag_validation": mode})
    tag = f"tag{dist.get_rank()}"
    if mode == "Fail":
        with pytest.raises(AssertionError, match="not consistent across all ranks"):
            engine.save_checkpoint(path, tag=tag)
    else:
        engine.save_checkpoint(path, tag=tag)


@pytest.mark.parametrize("mode", ["Fail", "Ignore", "Warn"])
def test_tags_that_differ_between_ranks(mode, tmp_path):
    run_ranks(body_tags_differ, 2, {"path": str(tmp_path), "mode": mode})
    expected = {"latest", "tag0", "zero_to_fp32.py"} if mode != "Fail" else set()  # one checkpoint, under the tag of rank 0
    assert expected <= set(os.listdir(tmp_path)) and "tag1" not in os.listdir(tmp_path)


def test_frozen_parameters_can_be_left_out(tmp_path):
    for stage in STAGES:
        engine = engine_for(stage)
        engine.save_checkpoint(tmp_path, tag=f"s{stage}", exclude_frozen_parameters=True)
        name = "zero_pp_rank_0_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
        state = torch.load(tmp_path / f"s{stage}" / name, weights_only=False)
        assert not any(key.startswith("frozen") for key in state["module"]) and state["frozen_param_shapes"] is None
        frozen = full_weights(engine.module)["frozen.weight"]
        engine.load_checkpoint(tmp_path, tag=f"s{stage}", load_module_strict=False)
        assert torch.equal(full_weights(engine.module)["frozen.weight"], frozen)


@pytest.mark.parametrize("stage", STAGES)
def test_16bit_model_is_a_plain_state_dictionary(stage, tmp_path):
    engine = engine_for(stage, bf16={"enabled": True})
    train(engine, 1)
    done = engine.save_16bit_model(tmp_path)
    assert done == (stage < 3)
    if stage == 3:
        zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 10}
        engine = engine_for(3, bf16={"enabled": True}, zero_optimization=zero)
        train(engine, 1)
        assert engine.save_16bit_model(tmp_path, "model.bin") and engine.save_fp16_model(tmp_path)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    weights = full_weights(engine.module)
    assert set(state) == set(make_model().state_dict())
    assert all(torch.equal(state[name], weights[name]) and state[name].dtype == torch.bfloat16 for name in weights)
    assert state["head.weight"].data_ptr() == state["embedding.weight"].data_ptr()


def body_consolidated():
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()
    engine = engine_for(3)
    state = engine._zero3_consolidated_16bit_state_dict()
    assert (state is None) == (dist.get_rank() != 0)
    if state is not None:
        expected = make_model().state_dict()
        assert set(state) == set(expected) and all(torch.equal(state[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="ZeRO-3"):
        engine_for(2)._zero3_consolidated_16bit_state_dict()
    with pytest.raises(ValueError, match="only applicable"):
        engine_for(1)._consolidated_16bit_state_dict()


def test_the_consolidated_state_is_on_rank_zero_only():
    run_ranks(body_consolidated, 2)


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_conversion_to_fp32(stage, tmp_path):
    from deepspeed.utils import zero_to_fp32
    engine = engine_for(stage, bf16={"enabled": True})
    train(engine, 3)
    engine.save_checkpoint(tmp_path)
    from deepspeed.utils import safe_get_full_fp32_param
    expected = {name: safe_get_full_fp32_param(p) for name, p in engine.module.named_parameters()}
    state = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(tmp_path))
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert torch.equal(state["table"], engine.module.table) and torch.equal(state["head.weight"], state["embedding.weight"])
    lazy = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(tmp_path), lazy_mode=True)
    assert torch.equal(lazy["up.weight"].contiguous(), expected["up.weight"]) and lazy["head.weight"] is lazy["embedding.weight"]
    model = zero_to_fp32.load_state_dict_from_zero_checkpoint(make_model(9), str(tmp_path))
    assert torch.equal(model.up.weight, expected["up.weight"])
    without = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(tmp_path), exclude_frozen_parameters=True)
    assert "frozen.weight" not in without
    directory = str(tmp_path / "global_step3")
    assert os.path.exists(zero_to_fp32.get_model_state_file(directory, stage)) and len(zero_to_fp32.get_optim_files(directory)) == 1


def test_the_copied_script_converts_as_a_program(tmp_path):
    engine = engine_for(2)
    train(engine, 1)
    engine.save_checkpoint(tmp_path / "checkpoint")
    command = [sys.executable, "zero_to_fp32.py", ".", str(tmp_path / "out"), "--max_shard_size", "1KB"]
    subprocess.run(command, cwd=tmp_path / "checkpoint", check=True, capture_output=True)
    index = json.loads((tmp_path / "out" / "pytorch_model.bin.index.json").read_text())
    weights = full_weights(engine.module)
    for name, file in index["weight_map"].items():
        tensor = torch.load(tmp_path / "out" / file, weights_only=True)[name]
        if name in weights:
            assert torch.equal(tensor, weights[name])
    assert set(index["weight_map"]) == set(make_model().state_dict())


def test_conversion_of_an_incomplete_checkpoint_says_so(tmp_path):
    from deepspeed.utils import zero_to_fp32
    engine = engine_for(2)
    engine.save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="latest"):
        zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(tmp_path / "global_step0"))
    path = tmp_path / "global_step0" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shutil.copy(path, str(path).replace("rank_0_mp", "rank_1_mp"))
    with pytest.raises(ValueError, match="Expected 1"):
        zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(tmp_path))


@pytest.mark.parametrize("stage", STAGES)
def test_the_optimizers_own_state_dictionary_restores_it(stage):
    engine, other = engine_for(stage), engine_for(stage)
    train(engine, 3)
    state = engine.optimizer.state_dict()
    expected = train(engine, 2, first=3)
    other.module.load_state_dict({n: v for n, v in other.module.state_dict().items()})
    other.optimizer.load_state_dict(state)
    if stage > 0:  # plain fp32 state dictionaries hold no weights
        assert train(other, 2, first=3) == pytest.approx(expected, abs=0.05)
    assert other._core.get_step() >= 3


def body_unwritable(path: str):
    import deepspeed
    import torch.distributed as dist
    from deepspeed.runtime.checkpoint_folder import CheckpointSave
    from deepspeed.runtime.checkpoint_pickle import PlacedTensor
    engine = deepspeed.initialize(model=make_model(), config=config(2))[0]
    train(engine, 1)
    rank = dist.get_rank()
    write = CheckpointSave.write

    def failing(saving: CheckpointSave, name: str, state: dict) -> None:
        if "optim_states" in name and rank == 1:  # its bytes cannot be read when they are written
            state = {**state, "bad": PlacedTensor(torch.float32, [(4, lambda: unreadable(name))])}
        write(saving, name, state)

    def unreadable(name: str) -> torch.Tensor:
        raise OSError(f"no space left for {name}")
    CheckpointSave.write = failing
    with pytest.raises(Exception, match="rank 1 failed" if rank == 0 else "optim_states"):
        engine.save_checkpoint(path, tag="t")
    CheckpointSave.write = write
    assert not os.path.exists(os.path.join(path, "latest"))
    assert len(train(engine, 2, first=1)) == 2, "training goes on"


def test_a_rank_that_cannot_write_is_named_by_the_others(tmp_path):
    run_ranks(body_unwritable, 2, {"path": str(tmp_path)})
    assert sorted(os.listdir(tmp_path)) == ["zero_to_fp32.py", "zero_to_torch.py"]


def body_latest(path: str):
    import deepspeed
    engine = deepspeed.initialize(model=make_model(), config=config(1))[0]
    engine.save_checkpoint(path, tag="a")
    # A machine whose file system has no `latest`: what rank 0 sees counts.
    elsewhere = path if engine.global_rank == 0 else os.path.join(path, "none")
    os.makedirs(elsewhere, exist_ok=True)
    if engine.global_rank == 1:
        os.symlink(os.path.join(path, "a"), os.path.join(elsewhere, "a"))
    assert engine.load_checkpoint(elsewhere)[0] is not None
    assert engine.load_checkpoint(os.path.join(path, "empty")) == (None, None)


def test_rank_zero_decides_which_checkpoint_is_the_latest(tmp_path):
    run_ranks(body_latest, 2, {"path": str(tmp_path)})
