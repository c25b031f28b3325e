"""zero_to_fp32 and zero_to_torch: what they write, in how much memory, and that real DeepSpeed's scripts write the same.

Comparisons need DEEPSCALE_REFERENCE_PYTHON: the interpreter of an environment with DeepSpeed 0.19.8. Skipped without it.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from common import single_rank
from models import config, make_model, train
from test_interchange import REFERENCE, run

from deepspeed.utils import zero_to_fp32

STAGES = (1, 2, 3)


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


def write_checkpoint(directory: Path, names: list[str], shape: tuple[int, ...], buffers: dict[str, torch.Tensor] | None = None) -> None:
    """Files of stage 2 and one rank, without an engine: parameter i is filled with i."""
    (directory / "t").mkdir(parents=True)
    (directory / "latest").write_text("t")
    numel = torch.Size(shape).numel()
    flat = torch.arange(len(names), dtype=torch.float32).repeat_interleave(numel)
    buffers = buffers or {}
    torch.save({"module": buffers, "buffer_names": list(buffers), "param_shapes": [OrderedDict((name, torch.Size(shape)) for name in names)],
                "frozen_param_shapes": None, "frozen_param_fragments": None, "shared_params": {"alias": names[0]}, "dp_world_size": 1,
                "ds_version": "0.19.8"}, directory / "t" / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {"zero_stage": 2, "partition_count": [1], "single_partition_of_fp32_groups": [flat],
                                         "base_optimizer_state": {"state": {}, "param_groups": []}}},
               directory / "t" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")


def read(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a converted folder, by way of the index when there is one."""
    from safetensors.torch import load_file
    indices = [name for name in os.listdir(directory) if name.endswith(".index.json")]
    files = set(os.listdir(directory)) - set(indices)
    merged = {}
    for name in sorted(files):
        merged.update(load_file(directory / name) if name.endswith(".safetensors") else torch.load(directory / name, weights_only=True))
    if indices:
        index = json.loads((directory / indices[0]).read_text())
        assert set(index["weight_map"]) == set(merged) and set(index["weight_map"].values()) == files
    return merged


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "float32", "torch.bfloat16", torch.float16])
@pytest.mark.parametrize("safe", (False, True))
def test_indices_and_masks_keep_their_dtype_and_the_rest_gets_the_wanted_one(dtype, safe, tmp_path):
    buffers = {"positions": torch.arange(5), "mask": torch.tensor([True, False]), "scale": torch.tensor(0.3), "half": torch.ones(3).bfloat16()}
    write_checkpoint(tmp_path, ["a", "b"], (4, 3), buffers)
    zero_to_fp32.convert_zero_checkpoint_to_state_dict(str(tmp_path), str(tmp_path / "out"), dtype, safe_serialization=safe)
    state = read(tmp_path / "out")
    wanted = zero_to_fp32._resolve_output_dtype(dtype)
    assert torch.equal(state["positions"], torch.arange(5)) and torch.equal(state["mask"], buffers["mask"])
    assert torch.equal(state["scale"], torch.tensor(0.3).to(wanted)) and state["half"].dtype == wanted
    assert torch.equal(state["b"], torch.ones(4, 3).to(wanted)) and state["b"].dtype == wanted
    assert ("alias" in state) == (not safe)
    plain = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(tmp_path))
    assert plain["positions"].dtype == torch.int64 and plain["half"].dtype == torch.float32


def test_parts_are_as_large_as_allowed_and_an_index_names_them(tmp_path):
    names = [f"layer.{i}" for i in range(7)]
    write_checkpoint(tmp_path, names, (10, 25))  # 1,000 bytes each
    for size, parts in (("3KB", 3), (2500, 4), ("1 KB", 7), ("0.5KB", 7), ("1GB", 1), (None, 1), ("7KB", 1)):
        for safe in (False, True):
            out = tmp_path / f"{size}{safe}"
            zero_to_fp32.convert_zero_checkpoint_to_fp32_state_dict(str(tmp_path), str(out), size, safe)
            files = sorted(name for name in os.listdir(out) if not name.endswith(".json"))
            stem, ending = ("model", "safetensors") if safe else ("pytorch_model", "bin")
            assert files == ([f"{stem}-{n:05d}-of-{parts:05d}.{ending}" for n in range(1, parts + 1)] if parts > 1 else [f"{stem}.{ending}"])
            state = read(out)
            assert all(torch.equal(state[name], torch.full((10, 25), float(i))) for i, name in enumerate(names))
            if parts > 1:
                index = json.loads((out / f"{stem}.{ending}.index.json").read_text())
                assert index["metadata"]["total_size"] == 7000
    with pytest.raises(ValueError, match="max_shard_size"):
        zero_to_fp32.convert_zero_checkpoint_to_fp32_state_dict(str(tmp_path), str(tmp_path / "no"), "five")
    with pytest.raises(ValueError, match="dtype"):
        zero_to_fp32.convert_zero_checkpoint_to_state_dict(str(tmp_path), str(tmp_path / "no"), "fp8")


def test_a_file_that_is_cut_off_is_named(tmp_path):
    from deepspeed._C import CheckpointError
    write_checkpoint(tmp_path, ["a"], (4,))
    for path in (tmp_path / "t").iterdir():
        whole = path.read_bytes()
        path.write_bytes(whole[:len(whole) // 2])
        with pytest.raises(CheckpointError, match=path.name):
            zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(tmp_path))
        path.write_bytes(whole)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("safe,limit_mib", [(False, 48), (True, 24)])
def test_memory_is_one_part_not_the_model(safe, limit_mib, tmp_path):
    """192 tensors of 1 MiB in parts of 16 MiB; with safetensors one tensor at a time."""
    write_checkpoint(tmp_path, [f"layer.{i}" for i in range(192)], (512, 512))
    program = ("import sys, threading, time, torch\nfrom deepspeed.utils import zero_to_fp32 as z\n"
               "def anonymous():\n    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon'))\n"
               "z.get_fp32_state_dict_from_zero_checkpoint('.', lazy_mode=True); torch.save(torch.ones(9), 'warm')\n"
               "peak, before, done = [0], anonymous(), []\n"
               "def watch():\n    while not done:\n        peak[0] = max(peak[0], anonymous()); time.sleep(0.001)\n"
               "thread = threading.Thread(target=watch); thread.start()\n"
               f"z.convert_zero_checkpoint_to_fp32_state_dict('.', 'out', '17MB', {safe}); done.append(1); thread.join()\n"
               "print((peak[0] - before) / 1024)\n")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    grown = float(done.stdout.split()[-1])
    assert grown < limit_mib, f"anonymous memory grew by {grown:.0f} MiB"
    assert len(read(tmp_path / "out")) == 192 + (not safe)
    assert max(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 17 * 2**20, "parts hold more than their tensors"


@pytest.mark.parametrize("stage", STAGES)
def test_both_scripts_lie_in_the_checkpoint_and_run_alone(stage, tmp_path):
    import deepspeed
    engine = deepspeed.initialize(model=make_model(), config=config(stage, bf16={"enabled": True}))[0]
    train(engine, 1)
    engine.save_checkpoint(tmp_path)
    expected = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(tmp_path))

    def script(name: str, out: str, *options: str) -> subprocess.CompletedProcess:
        assert os.access(tmp_path / name, os.X_OK)
        return subprocess.run([sys.executable, name, ".", out, *options], cwd=tmp_path, capture_output=True, text=True)

    assert script("zero_to_fp32.py", "a", "--safe_serialization", "--max_shard_size", "1KB", "-t", "global_step1").returncode == 0
    assert script("zero_to_torch.py", "b", "--dtype", "bf16", "--exclude_frozen_parameters").returncode == 0
    assert script("zero_to_torch.py", "c").returncode != 0, "--dtype is required"
    failed = script("zero_to_fp32.py", "d", "--tag", "never")
    assert failed.returncode != 0 and "never" in failed.stderr
    whole, half = read(tmp_path / "a"), read(tmp_path / "b")
    assert all(torch.equal(value, expected[name]) for name, value in whole.items()) and set(expected) - set(whole) == {"head.weight"}
    assert all(torch.equal(value, expected[name].bfloat16()) for name, value in half.items())
    assert set(expected) - set(half) == {"frozen.weight", "frozen.bias"}


OPTIONS = [{}, {"exclude_frozen_parameters": True}, {"max_shard_size": "1KB"}, {"max_shard_size": "2KB", "dtype": "float16", "tag": "step"},
           {"max_shard_size": None, "dtype": "bf16"}]
PROGRAM = """
import json, sys
from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_state_dict
source, out, options = json.loads(sys.argv[1])
for number, given in enumerate(options):
    convert_zero_checkpoint_to_state_dict(source, f"{out}{number}", **given)
"""


def convert(python: str, source: Path, out: Path) -> None:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    if python == REFERENCE:
        environment.pop("PYTHONPATH", None)
    arguments = [python, "-c", PROGRAM, json.dumps([str(source), str(out), OPTIONS])]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(not REFERENCE, reason="DEEPSCALE_REFERENCE_PYTHON names no interpreter with DeepSpeed")
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world", (1, 2))
def test_real_deepspeed_writes_the_same_from_its_checkpoints_and_ours(stage, world, tmp_path):
    job = {"stage": stage, "dtype": "bf16", "optimizer": "AdamW", "steps": 2, "load": False, "save": True}
    for owner, python in (("theirs", REFERENCE), ("ours", sys.executable)):
        run(python, world, {**job, "directory": str(tmp_path / owner)})
        convert(sys.executable, tmp_path / owner, tmp_path / f"{owner}_us")
        convert(REFERENCE, tmp_path / owner, tmp_path / f"{owner}_them")
        for number in range(len(OPTIONS)):
            us, them = tmp_path / f"{owner}_us{number}", tmp_path / f"{owner}_them{number}"
            mine, other = read(us), read(them)
            if stage == 1 and not OPTIONS[number].get("exclude_frozen_parameters"):  # DeepSpeed's script loses the frozen weights of stage 1
                assert set(mine) - set(other) == {"frozen.weight", "frozen.bias"}
                mine = {name: mine[name] for name in other}  # with more tensors, files are cut at other names
            else:
                assert sorted(os.listdir(us)) == sorted(os.listdir(them))
                for name in os.listdir(us):
                    if name.endswith(".json"):
                        assert (us / name).read_text() == (them / name).read_text()
            assert list(mine) == list(other)
            assert all(torch.equal(mine[name], value) and mine[name].dtype == value.dtype for name, value in other.items())


def test_damaged_and_native_checkpoints_are_not_converted(tmp_path, monkeypatch):
    """The manifest has checksums of DeepSpeed's files, too: what they find is not exported, to any format."""
    import zipfile

    import deepspeed
    from deepspeed._C import CheckpointError
    from deepspeed.checkpoint.ds_to_universal import main as to_universal, parse_arguments
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_state_dict
    single_rank(monkeypatch)
    for layout in ("deepspeed", "native"):
        engine = deepspeed.initialize(model=make_model(), config=config(2, checkpoint={"format": layout}))[0]
        train(engine, 1)
        engine.save_checkpoint(tmp_path / layout, tag="t")
        engine.destroy()
    convert_zero_checkpoint_to_state_dict(str(tmp_path / "deepspeed"), str(tmp_path / "good"))
    path, = (tmp_path / "deepspeed" / "t").glob("*_optim_states.pt")
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda info: info.file_size)
    data = bytearray(path.read_bytes())
    data[member.header_offset + 200 + member.file_size // 2] ^= 1
    path.write_bytes(data)
    for layout, said in (("deepspeed", "is damaged between byte"), ("native", "native format, which is not read here")):
        with pytest.raises(CheckpointError, match=said):
            convert_zero_checkpoint_to_state_dict(str(tmp_path / layout), str(tmp_path / "bad"))
        arguments = ["--input_folder", str(tmp_path / layout / "t"), "--output_folder", str(tmp_path / f"universal_{layout}")]
        with pytest.raises(CheckpointError, match=said):
            to_universal(parse_arguments(arguments))
        assert not (tmp_path / f"universal_{layout}").exists()


@pytest.mark.parametrize("safe", [False, True])
def test_a_conversion_that_fails_leaves_the_earlier_files(safe, tmp_path, monkeypatch, capsys):
    write_checkpoint(tmp_path, [f"layer.{i}" for i in range(3)], (10, 25))
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    other = out / ("pytorch_model.bin" if safe else "model.safetensors")
    other.write_text("of another format")
    zero_to_fp32.convert_zero_checkpoint_to_fp32_state_dict(str(tmp_path), str(out), "1KB", safe)
    assert "tensors, 3,000 bytes in 3 parts" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    read_one, count = zero_to_fp32.GatheredTensor.contiguous, iter(range(100))
    monkeypatch.setattr(zero_to_fp32.GatheredTensor, "contiguous", lambda self: read_one(self) if next(count) < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        zero_to_fp32.convert_zero_checkpoint_to_fp32_state_dict(str(tmp_path), str(out), "1KB", safe)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.undo()
    zero_to_fp32.convert_zero_checkpoint_to_fp32_state_dict(str(tmp_path), str(out), None, safe)
    whole = "model.safetensors" if safe else "pytorch_model.bin"
    assert sorted(path.name for path in out.iterdir()) == sorted(["config.json", other.name, whole]), "parts of the earlier set are gone"
