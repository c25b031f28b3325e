"""ds_io and ds_nvme_tune."""
from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys

import pytest

from deepspeed.nvme import ds_io, ds_nvme_tune
from deepspeed.nvme.transfer import size_of, size_text


def run(module: str, *options: str, fails: bool = False) -> str:
    done = subprocess.run([sys.executable, "-m", f"deepspeed.nvme.{module}", *options], capture_output=True, text=True, timeout=150)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def test_sizes():
    assert [size_of(text) for text in ("1", "4k", "64M", "1.5G", "2GiB", " 8m ")] == [1, 4096, 64 << 20, 3 << 29, 2 << 30, 8 << 20]
    assert [size_text(size) for size in (4096, 1 << 20, 3 << 30, 1000)] == ["4K", "1M", "3G", "1000"]
    for text in ("", "0", "-1", "4X", "many"):
        with pytest.raises(argparse.ArgumentTypeError, match="number of bytes"):
            size_of(text)


@pytest.mark.parametrize("engine", ["aio_handle", "aio_basic", "torch_io", "torch_fastio"])
@pytest.mark.parametrize("direction", [[], ["--read"]], ids=["write", "read"])
def test_every_engine_measures_and_cleans_up(tmp_path, engine, direction, capsys):
    ds_io.main(["--folder", str(tmp_path), "--io_size", "3000001", "--engine", engine, "--loops", "2", "--validate", "--fast_io_size", "1M",
                "--block_size", "256K", "--io_parallel", "2", *direction])
    output = capsys.readouterr().out
    word = "Read" if direction else "Write"
    assert len(re.findall(r"^Loop \d: [\d.]+ sec, [\d.]+ GB/sec$", output, re.M)) == 2, output
    for title in ("Task", "E2E"):
        assert float(re.search(rf"^{title} {word} Speed = ([\d.e-]+) GB/sec$", output, re.M)[1]) > 0
    assert not os.listdir(tmp_path)


def test_processes_move_their_files_at_the_same_time(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    output = run("ds_io", "--folder", str(tmp_path / "a"), str(tmp_path / "b"), "--io_size", "4M", "--multi_process", "2", "--loops", "2",
                 "--different_file_each_iteration", "--include_warmup_time")
    assert len(re.findall(r"^Loop \d", output, re.M)) == 3 and "Task Write Speed" in output
    assert not os.listdir(tmp_path / "a") and not os.listdir(tmp_path / "b")


@pytest.mark.parametrize("options, problem", [
    (["--folder", "/no/such", "--io_size", "1M"], "ds_io: error: /no/such is not a folder"),
    (["--folder", ".", "--io_size", "1M", "--use_gds"], "ds_io: error: --use_gds: GPUDirect Storage is not built; --gpu alone"),
    (["--folder", ".", "--io_size", "much"], "must be a number of bytes such as 4096"),
    (["--folder_to_device_mapping", "here", "--io_size", "1M"], "expected PATH:NUMBER"),
    (["--io_size", "1M"], "--folder"),
    (["--folder", "/sys/kernel", "--io_size", "1M", "--multi_process", "2"], "/sys/kernel"),
])
def test_what_cannot_be_done_is_said(options, problem):
    assert problem in run("ds_io", *options, fails=True)


def test_the_best_settings_are_printed_as_a_section(tmp_path):
    sweep = tmp_path / "sweep.json"
    sweep.write_text(json.dumps({"block_size": ["256K", "1M"], "queue_depth": [4], "io_parallel": 2}))
    disk, logs = tmp_path / "disk", tmp_path / "logs"
    disk.mkdir()
    output = run("ds_nvme_tune", "--nvme_dir", str(disk), "--io_size", "8M", "--sweep_config", str(sweep), "--log_dir", str(logs), "--verbose")
    assert re.search(r"^Best performance \(GB/sec\): read = +[\d.]+, write = +[\d.]+$", output, re.M), output
    section = json.loads(output[output.index("{"):output.rindex("}") + 1])["aio"]
    assert set(section) == {"single_submit", "overlap_events", "intra_op_parallelism", "queue_depth", "block_size"}
    assert re.search(r"^Without block_size and queue_depth DeepScale takes \w+ and \d+ on this disk: read", output, re.M)
    assert {"read_bs256K_qd4_p2.txt", "write_bs1M_qd4_p2.txt"} <= set(os.listdir(logs)) and not os.listdir(disk)


def test_the_default_sweep_and_its_limits():
    choices = ds_nvme_tune.candidates({})
    assert len(choices) == 16 and {choice.block_size for choice in choices} == {1 << 20, 8 << 20}
    with pytest.raises(SystemExit, match="blocksize in the sweep: expected block_size"):
        ds_nvme_tune.candidates({"blocksize": [1]})
    with pytest.raises(SystemExit, match="queue_depth in the sweep: must be at least 1, found 0"):
        ds_nvme_tune.candidates({"queue_depth": [0]})
    with pytest.raises(SystemExit, match="nothing to measure"):
        ds_nvme_tune.main(["--nvme_dir", ".", "--no_read", "--no_write"])
    with pytest.raises(SystemExit, match="--gds: GPUDirect Storage is not built"):
        ds_nvme_tune.main(["--nvme_dir", ".", "--gds"])
    with pytest.raises(SystemExit, match="--sweep_config /none"):
        ds_nvme_tune.main(["--nvme_dir", ".", "--sweep_config", "/none"])


def test_the_best_moves_a_byte_there_and_back_in_the_least_time():
    first, second = ds_nvme_tune.candidates({"block_size": ["1M", "2M"], "queue_depth": [1], "io_parallel": [1]})
    assert ds_nvme_tune.best_of({first: {"read": 4.0, "write": 1.0}, second: {"read": 2.0, "write": 2.0}}) == second
    assert ds_nvme_tune.best_of({first: {"read": 4.0}, second: {"read": 2.0}}) == first
