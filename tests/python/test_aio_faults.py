"""deepspeed.ops.aio where something is refused, missing or full: a clear error or the same bytes in another way, said once."""
from __future__ import annotations

import os
import pathlib
import re
import shutil
import textwrap

import pytest
import torch
from limits import in_own_mounts, linux_only, run_limited

from deepspeed.ops.aio import aio_handle

_ROUND_TRIP = """
import torch
from deepspeed.ops.aio import aio_handle

def round_trip(handle, name, numel=1_234_567):
    data = handle.new_cpu_locked_tensor(numel, torch.empty(0, dtype=torch.uint8))
    data.copy_(torch.arange(numel) % 251)
    assert handle.sync_pwrite(data, name) == 1
    back = torch.zeros_like(data)
    assert handle.async_pread(back, name) == 0 and handle.wait() == 1
    assert torch.equal(back, data)
"""


@pytest.fixture
def folder():
    path = pathlib.Path.cwd() / f"test_aio_faults_{os.getpid()}"
    path.mkdir(exist_ok=True)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_a_file_that_is_cut_off_while_it_is_read_is_an_error(folder):
    handle, name = aio_handle(block_size=4096, queue_depth=1), folder / "cut"
    data = torch.ones(64 << 20, dtype=torch.uint8)
    aio_handle().sync_pwrite(data, name)
    handle.async_pread(data, name)
    os.truncate(name, 60 << 20)
    with pytest.raises(OSError, match=f"{name}.*end"):
        handle.wait()
    assert handle.wait() == 0


@linux_only
@pytest.mark.parametrize("reason, word", [(1, "EPERM"), (38, "ENOSYS")])
def test_threads_step_in_for_io_uring_and_that_is_said_once(folder, reason, word):
    run = run_limited(f"forbid_io_uring({reason})" + _ROUND_TRIP + """
for index in range(3):
    round_trip(aio_handle(), f"file{index}")
from deepspeed import _C
assert _C.aio_engine()[0] == "threads"
""", folder, DEEPSCALE_ASYNC_IO="")
    assert run.stderr.count("slower than io_uring") == 1 and word in run.stderr, run.stderr


@linux_only
def test_who_asks_for_threads_is_not_told_and_who_asks_for_io_uring_gets_an_error(folder):
    run = run_limited(_ROUND_TRIP + "round_trip(aio_handle(), 'file')", folder, DEEPSCALE_ASYNC_IO="threads")
    assert "io_uring" not in run.stderr, run.stderr
    run_limited("forbid_io_uring()" + _ROUND_TRIP + """
try:
    aio_handle()
    raise SystemExit("no error")
except Exception as error:
    assert "io_uring cannot be used here" in str(error) and "EPERM" in str(error), error
""", folder, DEEPSCALE_ASYNC_IO="io_uring")


@linux_only
@pytest.mark.parametrize("engine", ["automatic", "threads"])
def test_a_limit_of_file_sizes_is_an_error_that_leaves_older_bytes_alone(folder, engine):
    run_limited(_ROUND_TRIP + """
handle = aio_handle()
round_trip(handle, "small")
longest_file(2_000_000)
data = torch.ones(3_000_000, dtype=torch.uint8)
for call in (lambda: handle.sync_pwrite(data, "large"), lambda: (handle.async_pwrite(data, "small", 1000), handle.wait())):
    try:
        call()
        raise SystemExit("no error")
    except OSError as error:
        assert "File too large" in str(error), error
back = torch.zeros(1_234_567, dtype=torch.uint8)
handle.sync_pread(back, "small")
assert torch.equal(back, (torch.arange(1_234_567) % 251).to(torch.uint8))
round_trip(handle, "other")
""", folder, DEEPSCALE_ASYNC_IO=engine)


@linux_only
def test_a_full_disk_says_what_is_free_and_is_usable_afterwards(folder):
    run_limited(_ROUND_TRIP + """
handle = aio_handle()
round_trip(handle, "disk/first")
data = torch.ones(8 << 20, dtype=torch.uint8)
for call in (handle.sync_pwrite, handle.async_pwrite):
    try:
        call(data, "disk/large")
        raise SystemExit("no error")
    except OSError as error:
        assert "disk/large" in str(error) and "free" in str(error), error
assert handle.wait() == 0
os.remove("disk/large")
round_trip(handle, "disk/second")
""", folder, in_own_mounts("mkdir -p disk && mount -t tmpfs -o size=4m tmpfs disk", folder))


@linux_only
def test_a_disk_that_is_read_only_is_named(folder):
    run_limited(_ROUND_TRIP + """
handle = aio_handle()
try:
    handle.sync_pwrite(torch.zeros(10), "disk/x")
    raise SystemExit("no error")
except OSError as error:
    assert "cannot open disk/x for writing: Read-only file system" in str(error), error
""", folder, in_own_mounts("mkdir -p disk && mount -t tmpfs -o ro tmpfs disk", folder))


def test_a_handle_in_a_forked_process_says_so(folder):
    (folder / "data").write_bytes(bytes(8192))
    handle = aio_handle()
    handle.sync_pread(torch.empty(8192, dtype=torch.uint8), folder / "data")
    child = os.fork()
    if child == 0:
        try:
            handle.sync_pread(torch.empty(8192, dtype=torch.uint8), folder / "data")
        except OSError as error:
            os._exit(0 if "make a queue (aio_handle) after the fork" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@linux_only
@pytest.mark.parametrize("engine", ["automatic", "threads"])
def test_a_forked_process_may_leave_with_the_handles_of_its_parent(engine, folder):
    run_limited("""
import signal, time, torch
from deepspeed.ops.op_builder import AsyncIOBuilder
handle, idle = (AsyncIOBuilder().load().aio_handle(4096, 1, False, True, 1) for _ in range(2))
data = torch.ones(16 << 20, dtype=torch.uint8)
handle.async_pwrite(data, "pending")
for how in ("del", "exit"):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        if how == "del":
            del handle, idle
            os._exit(7)
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7, how
assert handle.wait() == 1 and os.path.getsize("pending") == len(data)
""", folder, DEEPSCALE_ASYNC_IO=engine)


def test_names_with_null_bytes_are_refused(folder):
    with pytest.raises(ValueError, match="null byte"):
        aio_handle().sync_pwrite(torch.zeros(10, dtype=torch.uint8), str(folder / "a\0b"))
    assert not (folder / "a").exists()


def _examples(page: str) -> list[str]:
    """The indented Python programs of a page of the documentation: blocks that begin with an import."""
    text = (pathlib.Path(__file__).resolve().parents[2] / "docs" / page).read_text()
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    return [textwrap.dedent(block) for block in blocks if block.lstrip("\n").startswith("    import ")]


def test_the_examples_of_the_documentation_run_as_written(folder):
    examples = _examples("nvme.md")
    assert len(examples) == 2
    for example in examples:
        exec(example.replace("/local/disk", str(folder)).replace("2**28", "2**18"), {})  # but for the disk and a GiB of memory
    assert (folder / "moments.bin").stat().st_size == 2**20
    assert torch.equal(torch.load(folder / "state.pt")["weight"], torch.ones(3))


def test_a_write_far_behind_the_end_takes_no_space_before_it(folder):
    far = 2**40 + 100
    written, seen = torch.arange(10_000, dtype=torch.uint8), torch.empty(10_000, dtype=torch.uint8)
    handle = aio_handle()
    assert handle.sync_pwrite(written, str(folder / "sparse"), far) == 1
    assert handle.sync_pread(seen, str(folder / "sparse"), far) == 1
    assert torch.equal(seen, written)
    assert os.stat(folder / "sparse").st_blocks * 512 < 2**20


def test_writers_for_torch_save(folder):
    from deepspeed.io import FastFileWriter, FastFileWriterConfig, MockFileWriter, PyFileWriter
    state = {"a": torch.randn(1000, 1001), "b": [torch.arange(7), "text"]}
    handle = aio_handle()
    for pinned, double in ((8192, True), (1 << 20, True), (12345, False), (64 << 20, True)):
        buffer = handle.new_cpu_locked_tensor(pinned, torch.empty(0, dtype=torch.uint8))
        (folder / "fast").write_bytes(b"x" * 10_000_000)
        for zipped in (True, False):
            with FastFileWriter(folder / "fast", FastFileWriterConfig(handle, buffer, double_buffer=double)) as writer:
                torch.save(state, writer, _use_new_zipfile_serialization=zipped)
            back = torch.load(folder / "fast")
            assert torch.equal(back["a"], state["a"]) and torch.equal(back["b"][0], state["b"][0])
            assert writer.statistics()["write_bytes"] == os.path.getsize(folder / "fast")
    with PyFileWriter(folder / "plain") as plain, MockFileWriter(folder / "none") as mock:
        torch.save(state, plain)
        torch.save(state, mock)
    assert torch.equal(torch.load(folder / "plain")["a"], state["a"]) and not os.path.exists(folder / "none")
    assert mock.statistics()["write_bytes"] > 4_000_000
    with pytest.raises(ValueError, match="closed"):
        plain.write(b"more")
    with pytest.raises(ValueError, match="at least 8192 are needed"):
        FastFileWriter(folder / "x", FastFileWriterConfig(handle, torch.empty(100, dtype=torch.uint8)))
    with pytest.raises(NotImplementedError, match="several writers"):
        FastFileWriter(folder / "x", FastFileWriterConfig(handle, buffer, num_parallel_writers=2))
