"""ds_ckpt: every command over checkpoints that the engine saved, by any stage and number of ranks, and over damaged ones."""
from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from common import built_program, run_ranks, single_rank
from models import config, full_weights, make_model, train

LAYOUTS = ("native", "deepspeed")
STAGES = (0, 3)


def save_all(folder: str) -> None:
    """On each rank: one run per stage and layout; the same data on all ranks, so that worlds agree too."""
    import deepspeed
    world = int(os.environ["WORLD_SIZE"])
    for stage in STAGES:
        for layout in LAYOUTS:
            engine = deepspeed.initialize(model=make_model(), config=config(stage, checkpoint={"format": layout}))[0]
            train(engine, 2)
            target = os.path.join(folder, f"{layout}_{stage}_{world}")
            engine.save_checkpoint(target, tag="first")
            train(engine, 1, first=2)
            engine.save_checkpoint(target)
            if layout == "native":
                engine.save_universal_checkpoint(os.path.join(folder, f"universal_{stage}_{world}"), tag="u")
            if world == 1 and layout == "native":
                torch.save(full_weights(engine.module), os.path.join(folder, f"weights_{stage}.pt"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for world in (1, 2):
        run_ranks(save_all, world, {"folder": str(folder)})
    return folder


def ds_ckpt(*arguments: Any, status: int = 0) -> str:
    """What the program prints; its exit status must be `status`."""
    program = built_program("ds_ckpt")
    assert program is not None, "ds_ckpt is not built"
    run = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert run.returncode == status, f"{run.returncode}\n{run.stdout}\n{run.stderr}"
    return run.stdout if status != 2 else run.stderr


def as_json(*arguments: Any, status: int = 0) -> Any:
    return json.loads(ds_ckpt(*arguments, "--json", status=status))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def flip_a_value(path: Path) -> None:
    """In the largest member of a file of torch.save; between members are bytes that nothing covers."""
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda info: info.file_size)
    head = path.read_bytes()[member.header_offset:member.header_offset + 30]
    flip(path, member.header_offset + 30 + sum(struct.unpack_from("<HH", head, 26)) + member.file_size // 2)


@pytest.fixture
def copy_of(saved: Path, tmp_path: Path) -> Any:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(saved / name, tmp_path / name))
    return copy


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ls_lists_tags_and_tensors(saved, layout, world):
    tags = as_json("ls", saved / f"{layout}_3_{world}")
    assert [(t["tag"], t["format"], t["state"], t["latest"], t["world"], t["stage"], t["global_steps"]) for t in tags] == [
        ("global_step3", layout, "intact", True, world, 3, 3), ("first", layout, "intact", False, world, 3, 2)]
    files = [path for path in (saved / f"{layout}_3_{world}" / "first").iterdir()]
    assert tags[1]["bytes"] == sum(path.stat().st_size for path in files) and tags[1]["files"] == len(files)
    assert "<- latest" in ds_ckpt("ls", saved / f"{layout}_3_{world}")
    listed = as_json("ls", saved / f"{layout}_3_{world}", "--tag", "first", "--name", "fp32/*.weight")
    weights = {name: value for name, value in make_model().state_dict().items() if name.endswith(".weight")}
    trained = {name for name in weights if name not in ("frozen.weight", "head.weight")}
    assert {t["name"] for t in listed["tensors"]} == {f"fp32/{name}" for name in trained}
    assert all(t["shape"] == list(weights[t["name"][5:]].shape) and t["dtype"] == "float32" for t in listed["tensors"])
    assert listed["aliases"] == {"head.weight": "embedding.weight"}


def test_ls_shows_unfinished_and_damaged_tags(copy_of):
    folder = copy_of("native_3_2")
    shutil.copytree(folder / "first", folder / ".second.saving")
    (folder / ".second.saving" / "manifest.json").unlink()
    (folder / "first" / "rank_00000.pt").unlink()
    states = {t["tag"]: (t["state"], t["problem"]) for t in as_json("ls", folder)}
    assert states[".second.saving"][0] == "unfinished" and states["global_step3"] == ("intact", "")
    assert states["first"][0] == "damaged" and "rank_00000.pt is missing" in states["first"][1]


@pytest.mark.parametrize("name", [f"{layout}_{stage}_{world}" for layout in LAYOUTS for stage in STAGES for world in (1, 2)])
def test_verify_finds_a_flipped_bit_in_every_file(copy_of, name):
    folder = copy_of(name)
    assert as_json("verify", folder)["intact"]
    for path in sorted((folder / "first").iterdir()):
        flip(path, path.stat().st_size // 2)
        report = as_json("verify", folder, "--tag", "first", status=1)
        assert path.name in "\n".join(report["problems"]), report
        flip(path, path.stat().st_size // 2)
    assert as_json("verify", folder / "first")["problems"] == []


def test_verify_names_missing_cut_and_other_files(copy_of):
    folder = copy_of("native_3_2") / "first"
    (folder / "notes.txt").write_text("mine")
    report = as_json("verify", folder)
    assert report["intact"] and "notes.txt" in report["notes"][0]
    assert not as_json("verify", folder, "--strict", status=1)["intact"]
    path = folder / "rank_00001.safetensors" if (folder / "rank_00001.safetensors").exists() else folder / "rank_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "bytes, expected" in ds_ckpt("verify", folder, status=1)
    path.unlink()
    assert f"{path.name} is missing" in ds_ckpt("verify", folder, status=1)
    assert "there is no folder" in ds_ckpt("verify", folder / "nothing", status=2)


@pytest.mark.parametrize("stage", STAGES)
def test_verify_reads_deepspeed_folders_without_manifest(copy_of, stage):
    folder = copy_of(f"deepspeed_{stage}_2") / "first"
    (folder / "manifest.json").unlink()
    report = as_json("verify", folder)
    assert report["intact"] and not report["manifest"] and "no manifest" in report["notes"][0]
    path = max(folder.iterdir(), key=lambda p: p.stat().st_size)
    flip_a_value(path)
    assert path.name in ds_ckpt("verify", folder, status=1)
    flip_a_value(path)
    if stage == 3:
        next(folder.glob("*rank_1_*optim_states.pt")).unlink()
        assert "files are missing" in ds_ckpt("verify", folder, status=1)


@pytest.mark.parametrize("stage", STAGES)
def test_diff_does_not_depend_on_layout_and_ranks(saved, stage):
    """All ranks saw the same data, so only the way of saving is different."""
    for world in (1, 2):
        report = as_json("diff", saved / f"native_{stage}_{world}", saved / f"deepspeed_{stage}_{world}")
        assert report["equal"] and report["identical"] == report["compared"] > 20, report
    other = as_json("diff", saved / f"native_{stage}_1", saved / f"native_{stage}_1" / "first", status=1)
    first = torch.load(saved / f"weights_{stage}.pt", weights_only=True)["up.weight"]
    found = next(d for d in other["differences"] if d["name"] == "fp32/up.weight")
    assert found["elements"] == first.numel() and found["different"] > 0 and 0 < found["max_abs_difference"] < 1
    assert "exp_avg/up.weight" in {d["name"] for d in other["differences"]}
    assert {d["name"].split("/")[0] for d in as_json("diff", saved / f"native_{stage}_1", saved / f"native_{stage}_1" / "first", "--weights",
                                                    status=1)["differences"]} == {"fp32"}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world", [1, 2])
def test_universal_checkpoints_are_read_too(saved, tmp_path, stage, world):
    universal = saved / f"universal_{stage}_{world}" / "u"
    assert as_json("diff", universal, saved / f"native_{stage}_{world}", "--weights")["equal"]
    found = as_json("diff", universal, saved / f"native_{stage}_{world}" / "first", "--weights", status=1)
    assert any(d["name"] == "fp32/up.weight" and d["different"] > 0 for d in found["differences"])
    listed = ds_ckpt("ls", universal)
    assert "up.weight" in listed and "exp_avg" in listed
    ds_ckpt("convert", universal, tmp_path / "model", "--to", "safetensors")
    expected = torch.load(saved / f"weights_{stage}.pt", weights_only=True)
    from safetensors.torch import load_file
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert "up.weight" in written and set(written) - set(expected) == {"table"}  # a buffer
    if world == 1:
        assert all(torch.equal(value, expected[name]) for name, value in written.items() if name in expected)
    one = universal / "zero" / "up.weight" / "fp32.pt"
    one.rename(tmp_path / "kept.pt")
    try:
        assert not as_json("diff", universal, saved / f"native_{stage}_{world}", "--weights", status=1)["equal"]
    finally:
        (tmp_path / "kept.pt").rename(one)


def test_diff_counts_elements(tmp_path):
    from safetensors.torch import save_file
    a = {"same": torch.arange(5), "some": torch.zeros(10_000), "shape": torch.zeros(2, 3), "gone": torch.zeros(1), "nan": torch.full((2,), 1.0)}
    b = {"same": torch.arange(5), "some": torch.zeros(10_000), "shape": torch.zeros(3, 2), "nan": torch.tensor([1.0, float("nan")]),
         "new": torch.zeros(1)}
    b["some"][[17, 9_000]] = torch.tensor([0.25, -3.0])
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    report = as_json("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors", status=1)
    found = {d["name"]: d for d in report["differences"]}
    assert set(found) == {"some", "shape", "gone", "new", "nan"} and report["identical"] == 1
    assert (found["some"]["different"], found["some"]["first_different"], found["some"]["max_abs_difference"]) == (2, 17, 3.0)
    assert found["nan"]["not_numbers"] == 1 and found["gone"]["what"] == "only in the first" and "[2, 3], [3, 2]" in found["shape"]["what"]


@pytest.mark.parametrize("name", ["native_0_1", "native_3_2", "deepspeed_0_2", "deepspeed_3_2"])
def test_convert_writes_what_other_programs_read(saved, tmp_path, name):
    from safetensors.torch import load_file
    stage = name.split("_")[1]
    ds_ckpt("convert", saved / name, tmp_path / "model", "--to", "safetensors")
    assert os.listdir(tmp_path / "model") == ["model.safetensors"]
    found, expected = load_file(tmp_path / "model" / "model.safetensors"), torch.load(saved / f"weights_{stage}.pt", weights_only=True)
    expected.pop("head.weight", None)  # another name of the embedding
    assert torch.equal(found.pop("table"), make_model().table)  # a buffer
    assert sorted(found) == sorted(expected)
    if name.endswith("_1"):
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert as_json("diff", saved / name, tmp_path / "model")["equal"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_convert_in_parts_with_an_index(saved, tmp_path, dtype):
    from safetensors.torch import load_file
    ds_ckpt("convert", saved / "native_3_2", tmp_path, "--to", "safetensors", "--dtype", dtype, "--max_shard_size", "300B")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    ds_ckpt("convert", saved / "native_3_2", tmp_path / "whole", "--to", "safetensors")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert set(index["weight_map"]) == set(whole) and len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == sum(2 * value.numel() for value in whole.values())
    cast = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    for key, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[key], whole[key].to(cast)), key
    assert "--overwrite" in ds_ckpt("convert", saved / "native_3_2", tmp_path, "--to", "safetensors", status=2)
    (tmp_path / "config.json").write_text("{}")
    ds_ckpt("convert", saved / "native_3_2", tmp_path, "--to", "safetensors", "--overwrite")
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors", "whole"]


def test_convert_of_damaged_files_leaves_nothing(copy_of, tmp_path):
    for name in ("native_3_2", "deepspeed_3_2"):
        folder = copy_of(name)
        for path in (folder / "global_step3").glob("*_00000.safetensors" if name.startswith("native") else "*optim*"):
            flip(path, path.stat().st_size - 2000)
        target = tmp_path / f"model_{name}"
        ds_ckpt("convert", folder, target, "--to", "safetensors", status=2)
        assert not target.exists() or os.listdir(target) == []


@pytest.mark.parametrize("target, advice", [("universal", "ds_to_universal"), ("native", "checkpoint.format"), ("bin", "zero_to_fp32")])
def test_convert_says_what_to_use_instead(saved, tmp_path, target, advice):
    assert advice in ds_ckpt("convert", saved / "native_3_2", tmp_path / "x", "--to", target, status=2)
    assert not (tmp_path / "x").exists()


def losses_after(folder: Path, count: int = 2) -> list[float]:
    import deepspeed
    engine = deepspeed.initialize(model=make_model(seed=5), config=config(3))[0]
    engine.load_checkpoint(folder)
    return train(engine, count, first=3)


def test_resharded_checkpoints_load_as_the_original(saved, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    expected = losses_after(saved / "native_3_2")
    for world in (1, 3, 5):
        target = tmp_path / str(world)
        ds_ckpt("reshard", saved / "native_3_2", target, "--world", world)
        assert as_json("verify", target)["intact"] and as_json("diff", saved / "native_3_2", target)["equal"]
        assert len(list((target / "global_step3").glob("*.safetensors"))) == world
        listed = as_json("ls", target)[0]
        assert (listed["world"], listed["slices_for"], listed["latest"]) == (2, world, True)
        assert losses_after(target) == expected


def test_reshard_in_place_needs_overwrite_and_native(copy_of):
    folder = copy_of("native_3_2")
    before = as_json("verify", folder)["tensors"]
    assert "--overwrite" in ds_ckpt("reshard", folder, folder, "--world", 1, status=2)
    ds_ckpt("reshard", folder, folder, "--world", 1, "--overwrite")
    report = as_json("verify", folder)
    assert report["intact"] and report["tensors"] == before and report["notes"] == []
    assert sorted(p.name for p in folder.iterdir()) == ["first", "global_step3", "latest"]
    assert "only native ones" in ds_ckpt("reshard", copy_of("deepspeed_3_2"), folder, "--world", 1, status=2)


def test_a_disk_that_is_full_leaves_no_checkpoint(saved, tmp_path):
    """A file-size limit stands for the disk: files cannot grow beyond it."""
    program = built_program("ds_ckpt")
    for arguments in (["convert", saved / "native_3_2", tmp_path / "model", "--to", "safetensors"],
                      ["reshard", saved / "native_3_2", tmp_path / "tags", "--world", "1"]):
        run = subprocess.run(["bash", "-c", 'trap "" XFSZ; ulimit -f 2; exec "$@"', "bash", program, *map(str, arguments)],
                             capture_output=True, text=True, timeout=60)
        assert run.returncode == 2 and "error" in run.stderr, run.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [], left


def test_help_of_every_command():
    for command in ("ls", "verify", "diff", "convert", "reshard"):
        assert "--help" in ds_ckpt(command, "--help")
    assert "subcommand" in ds_ckpt(status=2).lower()


def test_an_unknown_command_is_named():
    assert "there is no command lss; the commands are ls, verify, diff, convert, reshard" in ds_ckpt("lss", status=2)
