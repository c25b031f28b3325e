"""Which checkpoint is the newest, which ones stay, and what is taken where the newest is not to be had; in both layouts."""
from __future__ import annotations

import enum
import logging
import os
import random
import shutil
import time
import types
from typing import Any

import numpy
import pytest
import torch

from common import run_ranks, single_rank
from deepspeed._C import CheckpointError
from models import config, full_weights, make_model, train

LAYOUTS = ("native", "deepspeed")


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


def built(layout: str, stage: int = 1, optimizer: dict | None = None, **checkpoint: Any) -> Any:
    import deepspeed
    more = {} if optimizer is None else {"optimizer": optimizer}
    return deepspeed.initialize(model=make_model(), config=config(stage, checkpoint={"format": layout, **checkpoint}, **more))[0]


@pytest.mark.parametrize("save_dir, tag", [("./runs", None), ("runs//x/", None), ("runs", "a/b")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_latest_is_written_with_the_checkpoint_beside_training(layout, save_dir, tag, tmp_path, monkeypatch):
    """Not only when somebody waits: a run that is killed later goes on from it."""
    monkeypatch.chdir(tmp_path)
    engine = built(layout, async_save=True)
    train(engine, 1)
    engine.save_checkpoint(save_dir, tag=tag)
    job = engine._running_save._job
    until = time.monotonic() + 60
    while not job.done and time.monotonic() < until:
        time.sleep(0.01)
    assert (tmp_path / save_dir / "latest").read_text() == (tag or "global_step1")
    other = built(layout)
    other.load_checkpoint(save_dir)
    assert other.global_steps == 1
    engine.wait_for_checkpoint()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_latest_names_is_never_removed(layout, tmp_path):
    engine = built(layout, keep_last=1)
    engine.save_checkpoint(tmp_path, tag="resume")
    engine.save_checkpoint(tmp_path, tag="best", save_latest=False)
    engine.save_checkpoint(tmp_path, tag="better", save_latest=False)
    assert sorted(name for name in os.listdir(tmp_path) if not name.endswith(".py")) == ["better", "latest", "resume"]
    assert engine.load_checkpoint(tmp_path)[0].startswith(str(tmp_path / "resume"))


@pytest.mark.parametrize("text", [b"", b"\0" * 16, b"\xff\xfe", b"two\nlines", b"gone"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_latest_that_is_damaged_does_not_hide_the_checkpoints(layout, text, tmp_path, caplog):
    engine = built(layout)
    for _ in range(2):
        train(engine, 1)
        engine.save_checkpoint(tmp_path)
    (tmp_path / "latest").write_bytes(text)
    other = built(layout)
    path, _ = other.load_checkpoint(tmp_path)
    assert path.startswith(str(tmp_path / "global_step2")) and other.global_steps == 2


def body_damaged_latest(folder: str):
    import deepspeed
    deepspeed.init_distributed()
    engine = built("native", stage=3)
    engine.save_checkpoint(folder, tag="t")
    torch.distributed.barrier()
    if engine.global_rank == 0:
        with open(os.path.join(folder, "latest"), "wb") as file:
            file.write(b"\xff\xfe")
    torch.distributed.barrier()
    assert engine.load_checkpoint(folder)[0].startswith(os.path.join(folder, "t"))


def test_a_latest_that_is_damaged_is_the_same_for_all_ranks(tmp_path):
    run_ranks(body_damaged_latest, 2, {"folder": str(tmp_path)})


OTHERS = [{"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}, {"type": "Lion", "params": {"lr": 1e-3}}, {"type": "Adagrad", "params": {"lr": 0.1}}]


def body_misfit(folder: str, layout: str, other: dict):
    import deepspeed
    deepspeed.init_distributed()
    rank = torch.distributed.get_rank()
    engine = built(layout)
    train(engine, 1, rank=rank)
    engine.save_checkpoint(folder)
    changed = built(layout, optimizer=other)
    with pytest.raises(deepspeed._C.CheckpointError, match="saved with another one|rank . failed"):
        changed.load_checkpoint(folder)
    changed.load_checkpoint(folder, load_optimizer_states=False)
    train(changed, 2, rank=rank)
    changed.save_checkpoint(folder, tag="other")
    before = full_weights(engine.module)
    with pytest.raises(deepspeed._C.CheckpointError, match="saved with another one|rank . failed"):
        engine.load_checkpoint(folder)  # though the older one would do
    for name, value in full_weights(engine.module).items():
        assert torch.equal(before[name], value), name
    engine.load_checkpoint(folder, tag="global_step1")
    train(engine, 1, rank=rank)


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other["type"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_older_checkpoint_does_not_hide_a_mistake(layout, other, tmp_path):
    run_ranks(body_misfit, 2, {"folder": str(tmp_path), "layout": layout, "other": other})


def drawn() -> list[float]:
    return [torch.rand(1).item(), random.random(), float(numpy.random.rand())]


def body_random(folder: str, layout: str, stage: int):
    import deepspeed
    deepspeed.init_distributed()
    rank = torch.distributed.get_rank()
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):
        seed(100 + rank)
    engine = built(layout, stage)
    train(engine, 1, rank=rank)
    drawn()
    engine.save_checkpoint(folder)
    expected = drawn()
    other = built(layout, stage)
    other.load_checkpoint(folder, load_module_only=True)
    assert drawn() != expected
    other.load_checkpoint(folder)
    assert drawn() == expected


@pytest.mark.parametrize("stage", (0, 1, 3))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_goes_on_with_its_random_numbers(layout, stage, tmp_path):
    run_ranks(body_random, 2, {"folder": str(tmp_path), "layout": layout, "stage": stage})


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_client_state_that_will_not_load_is_said_when_it_is_saved(layout, tmp_path, caplog, monkeypatch):
    from deepspeed.utils import logger
    monkeypatch.setattr(logger, "propagate", True)
    engine = built(layout)
    with caplog.at_level(logging.WARNING):
        engine.save_checkpoint(tmp_path, client_state={"good": {"a": [1, torch.ones(2), (None, "x")]}, "numbers": numpy.float64(3)})
    assert not [record for record in caplog.records if "will not load" in record.message]
    with caplog.at_level(logging.WARNING):
        engine.save_checkpoint(tmp_path, client_state={"colour": Colour.RED})
    assert [record for record in caplog.records if "client_state['colour']" in record.message and "add_safe_globals" in record.message]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_error_says_which_other_checkpoint_is_there(layout, tmp_path):
    from deepspeed._C import CheckpointError
    engine = built(layout)
    for _ in range(2):
        train(engine, 1)
        engine.save_checkpoint(tmp_path)
    victim = max((tmp_path / "global_step2").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{victim.name}(.|\n)*newest other checkpoint in .* is global_step1"):
        built(layout).load_checkpoint(tmp_path, tag="global_step2")


@pytest.mark.parametrize("tag", ["../victim", "a/../../victim", "/tmp/elsewhere", "a\nb", "latest"])
def test_tags_stay_below_their_folder(tag, tmp_path):
    engine = built("native")
    with pytest.raises(ValueError, match="tag"):
        engine.save_checkpoint(tmp_path / "runs", tag=tag)
    assert not (tmp_path / "victim").exists() and not os.path.exists("/tmp/elsewhere")


def test_names_that_scripts_of_deepspeed_import(tmp_path):
    """The copy of zero_to_fp32.py in a folder that DeepSpeed wrote."""
    from deepspeed.checkpoint import constants
    assert constants.AUTOEP_LAYERS_KEY == "ds_autoep_layers" and constants.FOLDING_METADATA_KEY == "folding"


def body_client_state(folder: str, layout: str):
    import deepspeed
    deepspeed.init_distributed()
    rank = torch.distributed.get_rank()
    engine = built(layout, stage=3)
    for bad in (0, 1):
        state = {"f": lambda: 1} if rank == bad else {"f": 1}
        if bad == 1 and layout == "native":  # rank 0's is saved
            engine.save_checkpoint(folder, tag="zero", client_state=state)
            continue
        with pytest.raises(TypeError if rank == bad else deepspeed._C.CheckpointError, match=r"client_state\['f'\].*cannot be saved|failed"):
            engine.save_checkpoint(folder, tag=f"bad{bad}", client_state=state)
        assert not [name for name in os.listdir(folder) if "bad" in name]
        torch.distributed.barrier()
    engine.save_checkpoint(folder, tag="good", client_state={"f": 1})
    assert engine.load_checkpoint(folder, tag="good")[1]["f"] == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_client_state_that_cannot_be_saved_is_refused_on_all_ranks(layout, tmp_path):
    """Before anything is written; the ranks go on together."""
    run_ranks(body_client_state, 2, {"folder": str(tmp_path), "layout": layout})


def body_strange_folder(folder: str, layout: str):
    import deepspeed
    deepspeed.init_distributed()
    strange = os.path.join(os.fsencode(folder), b"\xff")
    os.makedirs(strange, exist_ok=True)
    os.chdir(strange)
    engine = built(layout)
    engine.save_checkpoint("ck", tag="t")
    assert engine.load_checkpoint("ck", tag="t")[0] is not None


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_working_directory_whose_name_is_no_text(layout, tmp_path):
    run_ranks(body_strange_folder, 2, {"folder": str(tmp_path), "layout": layout})


def test_deepspeeds_files_beside_a_folder_called_zero(tmp_path):
    engine = built("deepspeed")
    train(engine, 1)
    engine.save_checkpoint(tmp_path, tag="t")
    (tmp_path / "t" / "manifest.json").unlink()
    (tmp_path / "t" / "zero").mkdir()
    other = built("deepspeed")
    other.load_checkpoint(tmp_path, tag="t")
    assert other.global_steps == 1


@pytest.mark.parametrize("wrong", [5, None, "", ["a"]])
def test_folders_that_are_no_paths(wrong, tmp_path):
    engine = built("native")
    for method, name in ((engine.save_checkpoint, "save_dir"), (engine.load_checkpoint, "load_dir")):
        with pytest.raises(ValueError, match=name):
            method(wrong)


@pytest.mark.parametrize("tag", ["u", None])
def test_a_universal_checkpoint_is_named_as_one(tag, tmp_path):
    """Also where `latest` names it: an older one of another kind would hide the missing setting."""
    engine = built("native")
    engine.save_checkpoint(tmp_path, tag="older")
    engine.save_universal_checkpoint(tmp_path, tag="u")
    (tmp_path / "latest").write_text("u")
    with pytest.raises(CheckpointError, match="checkpoint.load_universal"):
        engine.load_checkpoint(tmp_path, tag=tag)


def test_a_native_folder_without_manifest_is_not_finished(tmp_path):
    engine = built("native")
    engine.save_checkpoint(tmp_path, tag="t")
    (tmp_path / "t" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no finished checkpoint.*manifest.json"):
        engine.load_checkpoint(tmp_path, tag="t")


def what_is_said() -> list[str]:
    """Lines that are logged from now on."""
    from deepspeed.utils.logging import logger
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    return said


def body_own_folders(folder: str, layout: str, stage: int, world: int):
    """Ranks 1 and 2 have one folder, ranks 0 and 3 each its own. What an earlier run left in them is not what rank 0 has just made."""
    import deepspeed
    deepspeed.init_distributed()
    rank = torch.distributed.get_rank()
    mine = f"{folder}/{ {2: 1}.get(rank, rank)}"
    os.makedirs(f"{mine}/.t.saving", exist_ok=True)
    said = what_is_said()
    torch.distributed.barrier()
    engine = built(layout, stage, **({"async_save": True} if stage == 2 else {}))
    train(engine, 2)
    engine.save_checkpoint(mine, tag="t", client_state={"note": 5})
    engine.wait_for_checkpoint()
    assert (rank == 0) == any(f"{world - 1} ranks ({', '.join(map(str, range(1, world)))}) do not see" in line for line in said), said
    torch.distributed.barrier()
    assert sorted(name for name in os.listdir(mine) if not name.endswith(".py")) == ["latest", "t"]
    assert open(f"{mine}/t/manifest.json").read() == open(f"{folder}/0/t/manifest.json").read()
    with pytest.raises(CheckpointError, match="is missing: the ranks saved into folders of their own|see that rank's error"):
        engine.load_checkpoint(mine)
    torch.distributed.barrier()
    shutil.copytree(mine, f"{folder}/all", dirs_exist_ok=True)
    torch.distributed.barrier()
    losses = train(engine, 2)
    again = built(layout, stage)
    _, client = again.load_checkpoint(f"{folder}/all")
    assert client["note"] == 5 and train(again, 2) == losses
    said.clear()
    again.save_checkpoint(f"{folder}/shared", tag="t")
    again.load_checkpoint(f"{folder}/shared")
    assert not any("do not see" in line for line in said)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage,world", [(2, 2), (3, 4)])
def test_ranks_save_into_folders_of_their_own(layout, stage, world, tmp_path):
    """As Ray's workers do."""
    run_ranks(body_own_folders, world, {"folder": str(tmp_path), "layout": layout, "stage": stage, "world": world})


def body_apart_and_all(folder: str):
    """Each rank in its own folder: keep_last removes nothing there, and a rank that cannot begin leaves nothing anywhere."""
    import deepspeed
    from deepspeed.runtime import checkpoint_folder
    deepspeed.init_distributed()
    rank = torch.distributed.get_rank()
    mine = f"{folder}/{rank}"
    os.makedirs(mine)
    engine = built("native", 2, keep_last=1)
    for tag in ("a", "b"):
        train(engine, 1)
        engine.save_checkpoint(mine, tag=tag)
    assert sorted(name for name in os.listdir(mine) if not name.endswith(".py")) == ["a", "b", "latest"]

    def cannot(parent: str, tag: str) -> None:
        raise CheckpointError("no space here")

    if rank == 1:
        checkpoint_folder._C = types.SimpleNamespace(**{**vars(checkpoint_folder._C), "begin_save": cannot})
    with pytest.raises(CheckpointError, match="no space here|rank 1 failed"):
        engine.save_checkpoint(mine, tag="c")
    torch.distributed.barrier()
    assert sorted(name for name in os.listdir(mine) if not name.endswith(".py")) == ["a", "b", "latest"]
    assert open(f"{mine}/latest").read() == "b"


def test_folders_of_their_own_keep_all_and_are_left_clean(tmp_path):
    run_ranks(body_apart_and_all, 2, {"folder": str(tmp_path)})


def body_late_view(folder: str, mode: str):
    """One folder; rank 1 sees new files in it late, as over a network."""
    import deepspeed
    from deepspeed.runtime import checkpoint_folder
    deepspeed.init_distributed()
    rank = torch.distributed.get_rank()
    engine = built("native")
    said, list_really, see_really = what_is_said(), os.listdir, checkpoint_folder._is_seen

    def list_late(path: str) -> list[str]:
        own = {"one": f"_{rank}", "nobody": f"_{rank}", "soon": "", "not even itself": "?"}[mode]
        blind = mode == "nobody" or rank == 1
        return [name for name in list_really(path) if not (blind and name.startswith(".begun_")) or name.endswith(own)]

    checkpoint_folder.os = types.SimpleNamespace(**{**vars(os), "listdir": list_late})
    checkpoint_folder._is_seen = lambda path, attempts: rank == 0 or (path.endswith("_") and see_really(path, 1))
    engine.save_checkpoint(f"{folder}/own{rank}", tag="t") if mode == "soon" else None
    for tag in ("a", "b"):
        if mode == "soon":  # at the second look
            engine.save_checkpoint(f"{folder}/shared", tag=tag)
            assert not engine._saves_apart
        else:
            with pytest.raises(CheckpointError, match="does not see in|rank . failed"):
                engine.save_checkpoint(f"{folder}/shared", tag=tag)
    torch.distributed.barrier()
    assert set(list_really(f"{folder}/shared")) == ({"a", "b", "latest"} if mode == "soon" else set())
    assert not any("0 ranks" in line for line in said)


@pytest.mark.parametrize("mode", ["one", "nobody", "soon", "not even itself"])
def test_a_shared_folder_that_is_seen_late(mode, tmp_path):
    """Nobody takes it for its own and clears it while others write."""
    run_ranks(body_late_view, 2, {"folder": str(tmp_path), "mode": mode})


def body_cannot_save_apart(folder: str):
    import deepspeed
    deepspeed.init_distributed()
    rank = torch.distributed.get_rank()
    engine = built("native")
    if rank == 1:
        open(f"{folder}/1", "w").close()  # no folder
    torch.distributed.barrier()
    with pytest.raises((CheckpointError, OSError), match=f"{folder}/1" if rank == 1 else "rank 1 failed"):
        engine.save_checkpoint(f"{folder}/{rank}", tag="t")
    assert rank == 1 or not os.listdir(f"{folder}/0")


def test_a_folder_of_its_own_that_cannot_be_written(tmp_path):
    run_ranks(body_cannot_save_apart, 2, {"folder": str(tmp_path)})


def body_other_folders(folder: str, layout: str):
    import deepspeed
    deepspeed.init_distributed()
    rank = torch.distributed.get_rank()
    engine = built(layout)
    engine.save_checkpoint(folder, tag="t")
    said = what_is_said()
    with pytest.raises(CheckpointError):
        engine.load_checkpoint(folder if rank == 0 else f"{folder}/other", tag="t")
    assert (rank == 1) == any(f"{folder}/other/t, rank 0 {folder}/t" in line for line in said), said
    said.clear()
    if rank == 0:
        os.symlink(folder, f"{folder}/link")
    torch.distributed.barrier()
    engine.load_checkpoint(folder if rank == 0 else f"{folder}/link", tag="t")
    assert not said


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_that_name_different_folders(layout, tmp_path):
    run_ranks(body_other_folders, 2, {"folder": str(tmp_path), "layout": layout})
