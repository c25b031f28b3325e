"""The meeting of the ranks: who waits for whom is said when it takes long."""
import os
import re
import time
from datetime import timedelta
from pathlib import Path

import pytest
from common import ranks

import deepspeed
from deepspeed.comm import rendezvous


def _captured_error(path: Path) -> None:
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _wait_for(said) -> None:
    """Comes late on purpose: only when another rank has said that it waits."""
    deadline = time.monotonic() + 90
    while not said():
        assert time.monotonic() < deadline, "nobody said whom it waits for"
        time.sleep(0.05)


@ranks(3)
def test_the_first_rank_names_those_that_are_late(tmp_path):
    rank = int(os.environ["RANK"])
    _captured_error(tmp_path / f"stderr{rank}")
    wanted = re.compile(rf"deepspeed: rank 0 waits at 127.0.0.1:{os.environ['MASTER_PORT']} for rank 2 \(\d+ s\)")
    if rank == 2:
        _wait_for(lambda: wanted.search(_text(tmp_path / "stderr0")))
    deepspeed.init_distributed(verbose=False)
    deepspeed.comm.barrier()


@ranks(2)
def test_the_others_name_the_first_rank(tmp_path):
    rank = int(os.environ["RANK"])
    _captured_error(tmp_path / f"stderr{rank}")
    wanted = f"rank 1 waits for rank 0 at 127.0.0.1:{os.environ['MASTER_PORT']}"
    if rank == 0:
        _wait_for(lambda: wanted in _text(tmp_path / "stderr1"))
    deepspeed.init_distributed(verbose=False)
    deepspeed.comm.barrier()


def test_a_rank_that_never_comes_is_named(monkeypatch):
    from common import free_port
    with pytest.raises(RuntimeError, match=r"ranks 1, 2 of 3 did not come to 127.0.0.1:\d+ within 1 s"):
        rendezvous.meet("127.0.0.1", free_port(), 0, 3, timedelta(seconds=1))


def test_many_ranks_are_summed_up():
    assert rendezvous.name_ranks([3]) == "rank 3"
    assert rendezvous.name_ranks([1, 4]) == "ranks 1, 4"
    assert rendezvous.name_ranks(list(range(1, 64))) == "ranks 1, 2, 3, 4, 5, 6, 7, 8, ... (63 in all)"
