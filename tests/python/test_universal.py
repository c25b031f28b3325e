"""Universal checkpoints: from any stage and number of ranks to any other, files that are missing or damaged, layouts of tensor-parallel
ranks. What real DeepSpeed reads and writes is in test_universal_interchange.py."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from common import run_ranks, single_rank
from models import config, full_weights, make_model, train

STAGES = (0, 1, 2, 3)
WARMUP = {"type": "WarmupLR", "params": {"warmup_num_steps": 8, "warmup_max_lr": 1e-2}}


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


def engine_for(stage: int, seed: int = 1, universal: bool = False, **more):
    """Two groups of parameters, in an order that is not the model's."""
    import deepspeed
    model = make_model(seed)
    groups = [{"params": [p for p in model.parameters() if p.dim() <= 1 and p.requires_grad], "weight_decay": 0.0},
              {"params": [p for p in model.parameters() if p.dim() > 1 and p.requires_grad], "weight_decay": 0.1}]
    made = config(stage, scheduler=WARMUP, **more)
    if universal:
        made["checkpoint"] = {"load_universal": True}
    return deepspeed.initialize(model=model, model_parameters=groups, config=made)[0]


def convert(directory, tag: str = "t", **options) -> str:
    from deepspeed.checkpoint.ds_to_universal import convert
    convert(str(directory / tag), str(directory / f"{tag}_universal"), **options)
    return str(directory / f"{tag}_universal")


PRECISIONS = {"fp32": {}, "bf16": {"bf16": {"enabled": True}}, "fp16": {"fp16": {"enabled": True, "initial_scale_power": 8}}}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_goes_on_bit_for_bit_from_every_other(stage, precision, tmp_path):
    more = PRECISIONS[precision]
    engine = engine_for(stage, **more)
    train(engine, 3)
    engine.module.table.mul_(2)
    engine.save_checkpoint(tmp_path, tag="t", client_state={"note": [1, "a"]})
    expected = train(engine, 3, first=3)
    convert(tmp_path)
    assert (tmp_path / "latest_universal").read_text() == "t_universal" and not (tmp_path / "t_universal.partial").exists()
    for other in STAGES:
        resumed = engine_for(other, seed=7, universal=True, **more)
        path, client = resumed.load_checkpoint(tmp_path)
        assert path.startswith(str(tmp_path / "t_universal")) and client["note"] == [1, "a"]
        assert (resumed.global_steps, resumed.global_samples) == (3, 12)
        assert torch.equal(resumed.module.table, engine.module.table)
        assert torch.equal(full_weights(resumed.module)["frozen.weight"], full_weights(engine.module)["frozen.weight"])
        got = train(resumed, 3, first=3)
        assert got == expected
        assert resumed.get_lr() == engine.get_lr()


def body_save(stage: int, path: str):
    import torch.distributed as dist
    import deepspeed
    deepspeed.init_distributed()
    rank = dist.get_rank()
    engine = engine_for(stage)
    train(engine, 3, rank=rank)
    engine.save_checkpoint(path, tag="t")
    losses = train_alike(engine)
    if rank == 0:
        with open(os.path.join(path, "losses.json"), "w") as file:
            json.dump(losses, file)


def train_alike(engine) -> list[float]:
    """Three steps that do not depend on the number of ranks: every rank has the same batch."""
    return train(engine, 3, first=10, rank=0)


def body_resume(stages: list[int], path: str, same_world: bool):
    import deepspeed
    deepspeed.init_distributed()
    with open(os.path.join(path, "losses.json")) as file:
        expected = json.load(file)
    for stage in stages:
        engine = engine_for(stage, seed=7, universal=True)
        engine.load_checkpoint(path)
        got = train_alike(engine)
        assert got == expected if same_world else got == pytest.approx(expected, abs=1e-6), (stage, got, expected)


@pytest.mark.parametrize("stage, world", [(0, 2), (1, 3), (2, 1), (3, 2), (3, 3)])
def test_another_number_of_ranks_goes_on_with_the_same_losses(stage, world, tmp_path):
    run_ranks(body_save, world, {"stage": stage, "path": str(tmp_path)})
    convert(tmp_path)
    for other in (1, 2, 3):
        run_ranks(body_resume, other, {"stages": [0, 1, 2, 3] if other == 2 else [stage], "path": str(tmp_path), "same_world": other == world})


def body_direct(stage: int, path: str):
    import torch.distributed as dist
    import deepspeed
    deepspeed.init_distributed()
    rank = dist.get_rank()
    engine = engine_for(stage)
    train(engine, 3, rank=rank)
    engine.save_universal_checkpoint(path, tag="u", client_state={"note": 5})
    losses = train_alike(engine)
    if rank == 0:
        with open(os.path.join(path, "losses.json"), "w") as file:
            json.dump(losses, file)


@pytest.mark.parametrize("stage", STAGES)
def test_an_engine_writes_one_without_conversion(stage, tmp_path):
    run_ranks(body_direct, 2, {"stage": stage, "path": str(tmp_path)})
    assert (tmp_path / "latest_universal").read_text() == "u"
    run_ranks(body_resume, 2, {"stages": list(STAGES), "path": str(tmp_path), "same_world": True})
    run_ranks(body_resume, 1, {"stages": [stage], "path": str(tmp_path), "same_world": False})


@pytest.mark.parametrize("optimizer", ["SGD", "Lion", "Adagrad", "Lamb", "RMSprop"])
@pytest.mark.parametrize("stage", (1, 3))
def test_other_optimizers_keep_their_states(optimizer, stage, tmp_path):
    import deepspeed

    def make(seed: int, number: int, **more):
        model = make_model(seed)
        given = config(number, zero_allow_untested_optimizer=True, optimizer={"type": optimizer, "params": {"lr": 1e-3}}, **more)
        if optimizer == "RMSprop":
            del given["optimizer"]
            trained = [p for p in model.parameters() if p.requires_grad]
            return deepspeed.initialize(model=model, optimizer=torch.optim.RMSprop(trained, lr=1e-3, momentum=0.9), config=given)[0]
        return deepspeed.initialize(model=model, config=given)[0]

    engine = make(1, stage)
    train(engine, 3)
    engine.save_checkpoint(tmp_path, tag="t")
    expected = train(engine, 3, first=3)
    convert(tmp_path)
    resumed = make(7, 4 - stage, checkpoint={"load_universal": True})
    resumed.load_checkpoint(tmp_path)
    assert train(resumed, 3, first=3) == pytest.approx(expected, abs=1e-6)


def nadam_engine(stage: int, seed: int, **more):
    """Its states have numbers beside tensors, which only ranks with a piece of a parameter know."""
    import deepspeed
    model = make_model(seed)
    optimizer = torch.optim.NAdam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    given = {key: value for key, value in config(stage, zero_allow_untested_optimizer=True, **more).items() if key != "optimizer"}
    return deepspeed.initialize(model=model, optimizer=optimizer, config=given)[0]


def body_nadam_save(stage: int, path: str):
    import torch.distributed as dist
    import deepspeed
    deepspeed.init_distributed()
    engine = nadam_engine(stage, 1)
    train(engine, 3, rank=dist.get_rank())
    engine.save_universal_checkpoint(path, tag="direct")
    engine.save_checkpoint(path, tag="t")
    losses = train_alike(engine)
    if dist.get_rank() == 0:
        with open(os.path.join(path, "losses.json"), "w") as file:
            json.dump(losses, file)


def body_nadam_resume(stage: int, path: str, tag: str):
    import deepspeed
    deepspeed.init_distributed()
    engine = nadam_engine(stage, 7, checkpoint={"load_universal": True})
    engine.load_checkpoint(path, tag=tag)
    with open(os.path.join(path, "losses.json")) as file:
        assert train_alike(engine) == pytest.approx(json.load(file), abs=1e-6)


@pytest.mark.parametrize("stage", (1, 3))
def test_numbers_among_states_of_several_ranks_are_kept(stage, tmp_path):
    run_ranks(body_nadam_save, 3, {"stage": stage, "path": str(tmp_path)})
    convert(tmp_path)
    for ranks, tag in ((1, "direct"), (2, "direct"), (1, "t_universal"), (2, "t_universal")):
        run_ranks(body_nadam_resume, ranks, {"stage": 4 - stage, "path": str(tmp_path), "tag": tag})


@pytest.mark.parametrize("form", ["whole", "flat"])
def test_folders_without_a_list_of_files_load_too(form, tmp_path):
    """As DeepSpeed writes them: of stages 1 and 2 with a group count that stays 0, of stage 3 flat tensors and no steps."""
    engine = engine_for(2)
    train(engine, 3)
    engine.save_checkpoint(tmp_path, tag="t")
    expected = train(engine, 3, first=3)
    directory = convert(tmp_path)
    common = torch.load(os.path.join(directory, "zero", "optimizer_state.pt"), weights_only=False)
    del common["universal_states"]
    if form == "whole":
        del common["optimizer_state_dict"]
        common["param_groups"] = [{**group, "step": 0} for group in common["param_groups"]]
    torch.save(common, os.path.join(directory, "zero", "optimizer_state.pt"))
    for folder, _, names in os.walk(os.path.join(directory, "zero")):
        for name in names:
            path = os.path.join(folder, name)
            if name == "step.pt" and form == "flat":
                os.remove(path)
            elif name not in ("step.pt", "optimizer_state.pt") and form == "flat":
                torch.save(torch.load(path, weights_only=False)["param"].reshape(-1).clone(), path)
    for stage in (1, 3):
        resumed = engine_for(stage, seed=7, universal=True)
        resumed.load_checkpoint(tmp_path)
        assert resumed._core.get_step() == 3 and train(resumed, 3, first=3) == expected
    os.remove(os.path.join(directory, "zero", "up.weight", "exp_avg_sq.pt"))
    assert_loading_fails_and_changes_nothing(tmp_path, "up.weight/exp_avg_sq.pt")


def test_weights_alone_and_before_the_first_step(tmp_path):
    engine = engine_for(2)
    engine.save_checkpoint(tmp_path, tag="t")
    convert(tmp_path)
    resumed = engine_for(3, seed=7, universal=True)
    resumed.load_checkpoint(tmp_path)
    assert train(resumed, 2) == train(engine, 2)
    engine.save_checkpoint(tmp_path, tag="t")
    convert(tmp_path)
    for more in ({"load_optimizer_states": False}, {"load_module_only": True}):
        other = engine_for(3, seed=7, universal=True)
        other.load_checkpoint(tmp_path, **more)
        assert all(torch.equal(value, full_weights(engine.module)[name]) for name, value in full_weights(other.module).items())
        assert other._core.get_step() == 0


def test_the_program_and_the_function_that_other_programs_call(tmp_path):
    from deepspeed.checkpoint.ds_to_universal import main
    engine = engine_for(2)
    train(engine, 1)
    engine.save_checkpoint(tmp_path, tag="t")
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", "t", "--output_folder", "u", "--num_extract_workers",
               "1", "--num_merge_workers", "1", "--keep_temp_folder", "--no_strict", "--inject_missing_state"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "latest_universal").read_text() == "u"
    main(SimpleNamespace(input_folder=str(tmp_path / "t"), output_folder=str(tmp_path / "v"), num_extract_workers=1, num_merge_workers=1,
                         keep_temp_folder=False, strict=True, inject_missing_state=True))
    assert tree(tmp_path / "u") == tree(tmp_path / "v") and (tmp_path / "latest_universal").read_text() == "v"
    assert "zero/up.weight/exp_avg.pt" in tree(tmp_path / "u") and "zero/frozen.weight/fp32.pt" in tree(tmp_path / "u")


def tree(directory) -> list[str]:
    return sorted(os.path.relpath(os.path.join(folder, name), directory) for folder, _, names in os.walk(directory) for name in names)


def test_a_conversion_memory_holds_one_parameter_not_the_model(tmp_path):
    """64 parameters of 1 MiB, three values each: anonymous memory grows by a few of them."""
    make = ("import os, sys, torch\nfrom collections import OrderedDict\nnames = [f'layer.{i}.weight' for i in range(64)]\n"
            "shapes = [OrderedDict((n, torch.Size([512, 512])) for n in names)]\nflat = torch.ones(64 * 512 * 512)\n"
            "os.makedirs('t')\n"
            "torch.save({'module': {n: torch.zeros(512, 512, dtype=torch.bfloat16) for n in names}, 'buffer_names': [], 'optimizer': None,\n"
            "            'param_shapes': shapes, 'frozen_param_shapes': None, 'shared_params': {}, 'frozen_param_fragments': None,\n"
            "            'global_steps': 1, 'dp_world_size': 1, 'mp_world_size': 1, 'ds_version': '0.19.8'}, 't/mp_rank_00_model_states.pt')\n"
            "torch.save({'optimizer_state_dict': {'zero_stage': 2, 'partition_count': [1], 'single_partition_of_fp32_groups': [flat],\n"
            "            'base_optimizer_state': {'state': {0: {'exp_avg': flat * 2, 'exp_avg_sq': flat * 3, 'step': 1}},\n"
            "                                     'param_groups': [{'params': [0], 'lr': 1.0}]}}}, 't/zero_pp_rank_0_mp_rank_00_optim_states.pt')\n")
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True)
    measure = ("import threading, time\nfrom deepspeed.checkpoint.ds_to_universal import convert\n"
               "def anonymous():\n    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon'))\n"
               "import deepspeed.runtime.checkpoint_restore, deepspeed.runtime.fp16.loss_scaler, torch\n"
               "torch.save(torch.ones(9), 'warm'); peak, before, done = [0], anonymous(), []\n"
               "def watch():\n    while not done:\n        peak[0] = max(peak[0], anonymous()); time.sleep(0.001)\n"
               "thread = threading.Thread(target=watch); thread.start()\n"
               "convert('t', 'u', workers=1); done.append(1); thread.join()\nprint((peak[0] - before) / 1024)\n")
    grown = float(subprocess.run([sys.executable, "-c", measure], cwd=tmp_path, check=True, capture_output=True, text=True).stdout)
    assert grown < 40, f"anonymous memory grew by {grown:.0f} MiB for 192 MiB of states"
    value = torch.load(tmp_path / "u" / "zero" / "layer.63.weight" / "exp_avg_sq.pt", weights_only=True)["param"]
    assert torch.equal(value, torch.full((512, 512), 3.0))
    written = [path.stat().st_size for path in (tmp_path / "u" / "zero").rglob("*.pt")]
    assert max(written) < 1.1 * 2**20 and sum(written) < 200 * 2**20, "files hold more than their tensors"


# ---- what is missing or damaged


def saved(tmp_path, stage: int = 2):
    engine = engine_for(stage)
    train(engine, 2)
    engine.save_checkpoint(tmp_path, tag="t")
    return tmp_path / "t"


def assert_loading_fails_and_changes_nothing(tmp_path, match: str, stage: int = 1, **more):
    from deepspeed._C import CheckpointError
    engine = engine_for(stage, seed=7, universal=True)
    train(engine, 1)
    before, table = full_weights(engine.module), engine.module.table.clone()
    with pytest.raises(CheckpointError, match=match):
        engine.load_checkpoint(tmp_path, **more)
    assert all(torch.equal(value, before[name]) for name, value in full_weights(engine.module).items())
    assert torch.equal(engine.module.table, table) and engine.global_steps == 1


@pytest.mark.parametrize("file", ["zero/up.weight/fp32.pt", "zero/up.weight/exp_avg.pt", "zero/norm.bias/exp_avg_sq.pt",
                                  "zero/optimizer_state.pt", "mp_rank_00_model_states.pt"])
def test_a_file_that_is_missing_or_cut_off_is_named(file, tmp_path):
    saved(tmp_path)
    path = tmp_path / "t_universal" / file
    convert(tmp_path)
    whole = path.read_bytes()
    for share in (0.0, 0.4, 0.95):
        path.write_bytes(whole[:int(len(whole) * share)])
        assert_loading_fails_and_changes_nothing(tmp_path, file)
    path.unlink()
    if file.startswith("mp_rank"):
        (tmp_path / "t_universal" / "zero_pp_rank_0_mp_rank_00_model_states.pt").unlink()
    assert_loading_fails_and_changes_nothing(tmp_path, file)


def test_a_value_of_another_size_is_named(tmp_path):
    saved(tmp_path)
    path = os.path.join(convert(tmp_path), "zero", "up.weight", "exp_avg.pt")
    torch.save({"param": torch.zeros(3)}, path)
    assert_loading_fails_and_changes_nothing(tmp_path, "up.weight/exp_avg.pt has 3 elements")
    torch.save({"value": torch.zeros(3)}, path)
    assert_loading_fails_and_changes_nothing(tmp_path, "exp_avg.pt holds no tensor")
    torch.save({"param": torch.zeros(3)}, path.replace("exp_avg", "fp32"))
    assert_loading_fails_and_changes_nothing(tmp_path, "up.weight")


@pytest.mark.parametrize("stage", STAGES)
def test_a_conversion_names_the_file_that_is_missing_or_damaged_and_writes_nothing(stage, tmp_path):
    from deepspeed._C import CheckpointError
    directory = saved(tmp_path, stage)
    (directory / "manifest.json").unlink()  # as other programs write it
    for name in sorted(name for name in os.listdir(directory) if not name.startswith("rank_")):  # of random numbers: not converted
        whole = (directory / name).read_bytes()
        (directory / name).write_bytes(whole[:len(whole) // 2])
        with pytest.raises(CheckpointError, match=name):
            convert(tmp_path)
        (directory / name).unlink()
        with pytest.raises(CheckpointError, match="no (model|optimizer) files"):
            convert(tmp_path)
        (directory / name).write_bytes(whole)
    assert sorted(os.listdir(tmp_path)) == sorted(["latest", "t"] + ([] if stage == 0 else ["zero_to_fp32.py", "zero_to_torch.py"]))


def test_a_conversion_refuses_files_that_do_not_belong_together(tmp_path):
    from deepspeed._C import CheckpointError
    directory = saved(tmp_path)
    optimizer = directory / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shutil.copy(optimizer, directory / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(CheckpointError, match="of the same rank"):
        convert(tmp_path)
    (directory / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    shutil.copy(optimizer, directory / "zero_pp_rank_2_mp_rank_00_optim_states.pt")
    with pytest.raises(CheckpointError, match="rank 1, tensor-parallel rank 0 is missing"):
        convert(tmp_path)
    (directory / "zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    model = torch.load(directory / "mp_rank_00_model_states.pt", weights_only=False)
    shapes = model["param_shapes"][1]
    shapes["up.weight"], shapes["down.weight"] = shapes["down.weight"], shapes["up.weight"]
    shapes.move_to_end("embedding.weight")
    (directory / "manifest.json").unlink()  # another program wrote it
    torch.save(model, directory / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="stands at"):
        convert(tmp_path)


def test_only_universal_checkpoints_are_written_over(tmp_path):
    from deepspeed._C import CheckpointError
    saved(tmp_path)
    (tmp_path / "t_universal").mkdir()
    convert(tmp_path)
    (tmp_path / "t_universal" / "old").write_text("of the earlier conversion")
    convert(tmp_path)
    assert not (tmp_path / "t_universal" / "old").exists()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("...")
    from deepspeed.checkpoint.ds_to_universal import convert as convert_folder
    for output in ("precious", "t"):
        with pytest.raises(CheckpointError, match="not a universal checkpoint"):
            convert_folder(str(tmp_path / "t"), str(tmp_path / output))


def test_names_cannot_lead_out_of_the_folder(tmp_path):
    from deepspeed._C import CheckpointError
    from deepspeed.checkpoint.universal_checkpoint import parameter_folder, state_file
    for name in ("../../x", "/x", "", ".", "a/../../b"):
        with pytest.raises(CheckpointError, match="cannot be the name"):
            parameter_folder(str(tmp_path), name)
    with pytest.raises(CheckpointError, match="cannot be the name"):
        state_file(str(tmp_path), "up.weight", "../x")


def test_what_is_not_universal_is_refused_with_the_remedy(tmp_path):
    from deepspeed._C import CheckpointError
    saved(tmp_path)
    engine = engine_for(1, universal=True)
    with pytest.raises(ValueError, match="latest_universal.*ds_to_universal"):
        engine.load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="not a universal checkpoint.*ds_to_universal"):
        engine.load_checkpoint(tmp_path, tag="t")
    with pytest.raises(CheckpointError, match="does not exist"):
        engine.load_checkpoint(tmp_path, tag="never")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    import deepspeed
    other = deepspeed.initialize(model=make_model(hidden=16), config=config(2))[0]
    train(other, 1)
    other.save_checkpoint(tmp_path, tag="t")
    convert(tmp_path)
    assert_loading_fails_and_changes_nothing(tmp_path, "up.weight")


# ---- tensor-parallel ranks, as other programs save them


def split(tmp_path, cut, info) -> None:
    """A checkpoint of stage 1 as two tensor-parallel ranks would have saved it: parameter -> its two pieces."""
    from collections import OrderedDict
    (tmp_path / "t").mkdir(exist_ok=True)
    for tp in range(2):
        pieces = {name: value[tp] for name, value in cut.items()}
        shapes = [OrderedDict((name, piece.shape) for name, piece in pieces.items())]
        flat = torch.cat([piece.reshape(-1) for piece in pieces.values()])
        flat = torch.cat([flat, flat.new_zeros(flat.numel() % 2)])
        model = {"module": pieces, "buffer_names": [], "optimizer": None, "param_shapes": shapes, "frozen_param_shapes": None, "shared_params": {},
                 "frozen_param_fragments": None, "global_steps": 3, "dp_world_size": 1, "mp_world_size": 2, "ds_version": "0.19.8"}
        if info is not None:
            model["universal_checkpoint_info"] = info
        torch.save(model, tmp_path / "t" / f"mp_rank_{tp:02d}_model_states.pt")
        state = {"zero_stage": 1, "partition_count": [1], "single_partition_of_fp32_groups": [flat], "ds_version": "0.19.8",
                 "base_optimizer_state": {"state": {0: {"exp_avg": flat * 2, "exp_avg_sq": flat * 3, "step": torch.tensor(3.0)}},
                                          "param_groups": [{"params": [0], "lr": 0.1}]}}
        torch.save({"optimizer_state_dict": state}, tmp_path / "t" / f"zero_pp_rank_0_mp_rank_{tp:02d}_optim_states.pt")


def test_pieces_of_tensor_parallel_ranks_are_joined_as_the_client_says(tmp_path):
    from deepspeed._C import CheckpointError
    generator = torch.Generator().manual_seed(3)
    whole = {name: torch.randn(shape, generator=generator) for name, shape in
             {"word.weight": (10, 3), "column.weight": (6, 3), "row.weight": (3, 6), "norm.weight": (5,), "mean.weight": (4,), "gate.weight": (8, 3),
              "qkv.weight": (12, 3)}.items()}
    word = torch.cat([whole["word.weight"], torch.zeros(2, 3)])  # padded to 12 rows
    q, k, v = whole["qkv.weight"].split([6, 4, 2])
    up, gate = whole["gate.weight"].chunk(2)
    cut = {"word.weight": word.chunk(2), "column.weight": whole["column.weight"].chunk(2), "row.weight": whole["row.weight"].chunk(2, dim=1),
           "norm.weight": (whole["norm.weight"],) * 2, "mean.weight": (whole["mean.weight"] - 1, whole["mean.weight"] + 1),
           "gate.weight": [torch.cat([up.chunk(2)[r], gate.chunk(2)[r]]) for r in range(2)],
           "qkv.weight": [torch.cat([part.chunk(2)[r] for part in (q, k, v)]) for r in range(2)]}
    info = {"universal_checkpoint_version": 0.2, "original_vocab_size": 10, "vocabulary_parameter_patterns": ["word.weight"],
            "parameter_with_row_parallelism_patterns": ["row.weight"], "tp_replicated_parameter_patterns": ["norm.*"],
            "parameter_to_average_patterns": ["mean.*"], "parameter_with_2_sub_params_cat_dim_0": ["gate.*"],
            "parameter_with_sub_params": [{"patterns": ["qkv.*"], "shape": ((6, 4, 2), -1), "partition_dim": 0}]}
    split(tmp_path, cut, info)
    directory = convert(tmp_path)
    for name, value in whole.items():
        for key, factor in {"fp32": 1, "exp_avg": 2, "exp_avg_sq": 3}.items():
            stored = torch.load(os.path.join(directory, "zero", name, f"{key}.pt"), weights_only=False)
            expected = factor * value
            assert torch.allclose(stored["param"], expected, atol=1e-6) and stored["param"].shape == value.shape, (name, key)
    split(tmp_path, cut, {**info, "tp_replicated_parameter_patterns": ["nrom.*"]})
    with pytest.raises(CheckpointError, match="nrom"):
        convert(tmp_path)
    split(tmp_path, {**cut, "norm.weight": (torch.zeros(5), torch.ones(5))}, info)
    with pytest.raises(CheckpointError, match="norm.weight.*copies differ"):
        convert(tmp_path)
    split(tmp_path, {"column.weight": cut["column.weight"]}, None)
    with pytest.raises(CheckpointError, match="--inject_missing_state"):
        convert(tmp_path)
    directory = convert(tmp_path, inject_missing_state=True)
    stored = torch.load(os.path.join(directory, "zero", "column.weight", "fp32.pt"), weights_only=False)["param"]
    assert torch.equal(stored, whole["column.weight"])
