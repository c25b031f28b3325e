"""ds_bench: options, the arithmetic of bandwidths, and runs of two ranks."""
from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys

import pytest
from common import free_port

from deepspeed.benchmarks.communication import OPERATIONS, bus_factor, command_line, parser, row

PROGRAM = [sys.executable, "-m", "deepspeed.benchmarks.communication"]


def run_two_ranks(*options: str) -> str:
    """Output of rank 0."""
    port = str(free_port())
    ranks = [subprocess.Popen([*PROGRAM, "--device", "cpu", "--trials", "2", "--warmups", "1", "--debug", *options],
                              env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_SIZE": "2",
                                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(2)]
    try:
        outputs = [rank.communicate(timeout=150)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
    return outputs[0]


@pytest.mark.parametrize("way", [[], ["--dist", "torch"], ["--async-op"]], ids=["host", "gloo", "async"])
def test_all_operations_run_and_give_right_values(way: list[str]) -> None:
    flags = ["--" + name.replace("_", "-") for name in OPERATIONS]
    output = run_two_ranks("--scan", "--maxsize", "3", "--raw", *flags, *way)
    for operation in OPERATIONS:
        assert f"---- Performance of {operation} on 2 ranks" in output
    rows = re.findall(r"^ +(\d+) +(\d+) x float +([\d.]+) +([\d.]+) +([\d.]+)$", output, re.MULTILINE)
    assert len(rows) == 4 * len(OPERATIONS), output
    assert [int(size) for size, *_ in rows[:4]] == [8, 16, 32, 64]
    assert all(float(micros) > 0 for _, _, micros, _, _ in rows)


def test_five_operations_run_without_a_choice_and_one_large_message_without_scan() -> None:
    output = run_two_ranks("--mem-factor", "0.00001", "--bw-unit", "GBps", "--dtype", "bfloat16")
    assert output.count("---- Performance of") == 5 and "reduce_scatter" not in output
    assert "BusBW (GBps)" in output and "x bfloat16" in output


def test_bus_factors_are_those_of_nccl_tests() -> None:
    assert bus_factor("all_reduce", 4) == 1.5
    assert bus_factor("all_gather", 4) == bus_factor("reduce_scatter", 4) == bus_factor("all_to_all", 4) == 0.75
    assert bus_factor("broadcast", 4) == bus_factor("pt2pt", 4) == 1


def test_a_row_holds_size_time_and_both_bandwidths() -> None:
    options = parser().parse_args(["--raw", "--bw-unit", "GBps"])
    assert row("all_reduce", 4_000_000, 0.001, 4, options).split() == ["4000000", "1000000", "x", "float", "1000.000", "4.000",
                                                                     "6.000"]
    assert row("all_reduce", 4_000_000, 0.001, 4, parser().parse_args(["--raw"])).split()[-2:] == ["32.000", "48.000"]


@pytest.mark.parametrize("bad", [["--trials", "0"], ["--warmups", "-1"], ["--maxsize", "99"], ["--mem-factor", "0"],
                                 ["--dtype", "complex"], ["--bw-unit", "bps"], ["--backend", "smoke"], ["--device", "tpu"]])
def test_unusable_options_are_refused(bad: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as end:
        parser().parse_args(bad)
    assert end.value.code == 2 and bad[0] in capsys.readouterr().err


def test_the_launcher_gets_its_own_options_and_the_ranks_theirs() -> None:
    words = ["--num_gpus", "2", "--warmups", "2", "--scan", "--all-reduce", "--mem-factor", "0.5"]
    options, others = parser().parse_known_args(words)
    assert others == ["--num_gpus", "2"]
    again = parser().parse_args(command_line(options))
    assert isinstance(again, argparse.Namespace) and again == options
