"""Saves of universal checkpoints that are killed or fail: what was there before is found again, and nothing is left of what failed."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common import run_ranks, single_rank
from models import config, full_weights, make_model, train


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


def engine_for(stage: int, seed: int = 1, universal: bool = False) -> Any:
    import deepspeed
    more = {"checkpoint": {"load_universal": True}} if universal else {}
    return deepspeed.initialize(model=make_model(seed), config=config(stage, **more))[0]


def steps_in(folder: Path) -> int:
    """The step of the checkpoint that is loaded, after its weights were compared with those of that step."""
    engine = engine_for(2, seed=7, universal=True)
    engine.load_checkpoint(folder)
    expected = torch.load(folder.parent / f"weights_{engine.global_steps}.pt")
    assert all(torch.equal(value, expected[name]) for name, value in full_weights(engine.module).items())
    return engine.global_steps


def saved_twice(folder: Path) -> None:
    """folder/base: t of step 2, and t_universal of step 1."""
    from deepspeed.checkpoint.ds_to_universal import convert
    engine, base = engine_for(2), folder / "base"
    for step in (1, 2):
        train(engine, 1)
        torch.save(full_weights(engine.module), folder / f"weights_{step}.pt")
        engine.save_checkpoint(base, tag="t")
        if step == 1:
            convert(str(base / "t"), str(base / "t_universal"))


KILLED = '''
import itertools, os, shutil, sys
import deepspeed
from deepspeed.checkpoint.ds_to_universal import convert
folder = sys.argv[1]
for number in itertools.count(1):
    place = os.path.join(folder, str(number))
    shutil.copytree(os.path.join(folder, "base"), place)
    child = os.fork()
    if child == 0:
        counter = itertools.count(1)
        def stopping(change):
            def run(*paths):
                if next(counter) == number:
                    os._exit(9)
                change(*paths)
            return run
        os.rename, os.replace = stopping(os.rename), stopping(os.replace)
        convert(os.path.join(place, "t"), os.path.join(place, "t_universal"), workers=1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.waitstatus_to_exitcode(status) != 9:
        sys.exit(os.waitstatus_to_exitcode(status))
'''


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a kill at a certain place needs fork()")
def test_a_kill_at_any_change_of_names_leaves_a_checkpoint(tmp_path):
    from deepspeed.checkpoint.ds_to_universal import convert
    saved_twice(tmp_path)
    names = sorted(os.listdir(tmp_path / "base"))
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    places = sorted((place for place in tmp_path.iterdir() if place.name.isdigit()), key=lambda place: int(place.name))
    found = []
    for place in places:
        missing = not (place / "t_universal").exists()
        again = tmp_path / f"again_{place.name}"
        shutil.copytree(place, again)
        found.append((steps_in(place), missing))
        convert(str(again / "t"), str(again / "t_universal"))  # a save finds it again as well
        assert sorted(os.listdir(again)) == names and steps_in(again) == 2
    assert found[0] == (1, False) and (1, True) in found and found[-1] == (2, False), found
    assert sorted(os.listdir(places[-1])) == names  # the last one came to its end


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a kill at a certain place needs fork()")
def test_a_save_that_fails_after_a_kill_does_not_lose_the_checkpoint(tmp_path, monkeypatch):
    from deepspeed.checkpoint import ds_to_universal, universal_checkpoint
    saved_twice(tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    place = next(place for place in tmp_path.iterdir() if place.name.isdigit() and not (place / "t_universal").exists())
    monkeypatch.setattr(universal_checkpoint, "write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        ds_to_universal.convert(str(place / "t"), str(place / "t_universal"))
    assert steps_in(place) == 1


def full_disk(value: Any, path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(b"half")
    raise OSError(28, "No space left on device", path)


@pytest.mark.parametrize("name", ["write", "move", "sync_tree"])
def test_nothing_is_left_of_a_save_that_fails(name, tmp_path, monkeypatch):
    from deepspeed.checkpoint import ds_to_universal, universal_checkpoint
    engine = engine_for(2)
    train(engine, 1)
    engine.save_checkpoint(tmp_path, tag="t")
    engine.save_universal_checkpoint(tmp_path, tag="t_universal")
    before = sorted(os.listdir(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(universal_checkpoint, name, lambda *paths: full_disk(None, os.path.join(paths[0], "x")) if name != "write" else full_disk(*paths))
        for save in (lambda: ds_to_universal.convert(str(tmp_path / "t"), str(tmp_path / "t_universal")),
                     lambda: engine.save_universal_checkpoint(tmp_path, tag="t_universal"), lambda: engine.save_universal_checkpoint(tmp_path)):
            with pytest.raises(OSError, match="No space left"):
                save()
            assert sorted(os.listdir(tmp_path)) == before
    resumed = engine_for(1, seed=7, universal=True)
    resumed.load_checkpoint(tmp_path)
    assert resumed.global_steps == 1


def test_a_folder_that_cannot_get_its_name_leaves_the_old_one(tmp_path, monkeypatch):
    engine = engine_for(2)
    train(engine, 1)
    engine.save_universal_checkpoint(tmp_path, tag="u")
    before, rename = sorted(os.listdir(tmp_path)), os.rename

    def refused(source: str, target: str) -> None:
        if target == str(tmp_path / "u") and "saving" in source:
            raise OSError("refused")
        rename(source, target)
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refused)
        with pytest.raises(OSError, match="refused"):
            engine.save_universal_checkpoint(tmp_path, tag="u")
    assert sorted(os.listdir(tmp_path)) == before
    engine_for(1, universal=True).load_checkpoint(tmp_path)


def test_files_are_on_the_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    engine = engine_for(2)
    train(engine, 1)
    events: list[tuple[str, Any]] = []
    sync, rename, replace = os.fsync, os.rename, os.replace

    def noted(what: str, change: Any) -> Any:
        def run(*paths: Any) -> None:
            events.append((what, os.fstat(paths[0]).st_ino if what == "sync" else os.path.basename(paths[-1])))
            change(*paths)
        return run
    for number in range(2):
        events.clear()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", noted("sync", sync))
            patched.setattr(os, "rename", noted("name", rename))
            patched.setattr(os, "replace", noted("name", replace))
            engine.save_universal_checkpoint(tmp_path, tag="u")
        named, latest = events.index(("name", "u")), events.index(("name", "latest_universal"))
        written = {path.stat().st_ino for path in [tmp_path / "u", *(tmp_path / "u").rglob("*")]}
        first = named if number == 0 else events.index(("name", ".u.replaced"))
        assert written <= {what for kind, what in events[:first] if kind == "sync"}
        root = ("sync", tmp_path.stat().st_ino)
        assert root in events[named:latest] and root in events[latest:]
        assert ("sync", (tmp_path / "latest_universal").stat().st_ino) in events[named:latest]


def body_fails_on_one_rank(folder: str) -> None:
    import deepspeed
    from deepspeed.checkpoint import universal_checkpoint
    deepspeed.init_distributed()
    rank = torch.distributed.get_rank()
    engine = engine_for(3)
    train(engine, 1, rank=rank)
    engine.save_universal_checkpoint(folder, tag="u")
    before = sorted(os.listdir(folder))
    torch.distributed.barrier()  # before the other rank begins the next one
    write = universal_checkpoint.write
    universal_checkpoint.write = full_disk if rank == 1 else write
    with pytest.raises(OSError if rank == 1 else deepspeed._C.CheckpointError, match="No space left" if rank == 1 else "rank 1 failed"):
        engine.save_universal_checkpoint(folder, tag="u")
    universal_checkpoint.write = write
    torch.distributed.barrier()
    assert sorted(os.listdir(folder)) == before
    torch.distributed.barrier()
    engine.save_universal_checkpoint(folder, tag="v")
    assert sorted(os.listdir(folder)) == sorted([*before, "v"])


def test_a_rank_that_fails_ends_the_save_on_all(tmp_path):
    run_ranks(body_fails_on_one_rank, 2, {"folder": str(tmp_path)})
