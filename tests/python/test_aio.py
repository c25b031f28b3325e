"""deepspeed.ops.aio: tensors from and to files. Returned numbers are those of DeepSpeed 0.19.8."""
from __future__ import annotations

import gc
import os
import pathlib
import shutil
import threading

import pytest
import torch
from limits import linux_only, run_limited

from deepspeed.ops.aio import AsyncIOBuilder, aio_handle
from deepspeed.ops.op_builder import GDSBuilder, PinMemoryBuilder

aio = AsyncIOBuilder().load()


@pytest.fixture
def folder():
    """Beside the tests: pytest's own folder may be in memory, where there is no direct access."""
    path = pathlib.Path.cwd() / f"test_aio_{os.getpid()}"
    path.mkdir(exist_ok=True)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def pinned(handle, numel: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    tensor = handle.new_cpu_locked_tensor(numel, torch.empty(0, dtype=dtype))
    return tensor.copy_(torch.arange(numel) % 251)


def test_defaults_and_getters():
    handle = aio_handle()
    assert (handle.get_block_size(), handle.get_queue_depth(), handle.get_single_submit(), handle.get_overlap_events(),
            handle.get_intra_op_parallelism(), handle.get_alignment()) == (1048576, 128, False, False, 1, 512)
    handle = aio.aio_handle(4096, 2, True, True, 4)
    assert (handle.get_block_size(), handle.get_queue_depth(), handle.get_single_submit(), handle.get_overlap_events(),
            handle.get_intra_op_parallelism(), handle.get_alignment()) == (4096, 2, True, True, 4, 2048)
    assert aio_handle(block_size=8192, queue_depth=1, single_submit=False, overlap_events=True, intra_op_parallelism=1)
    with pytest.raises(Exception, match="queue_depth must be at least 1, found 0"):
        aio_handle(queue_depth=0)


@pytest.mark.parametrize("parallelism", [1, 3])
def test_every_call_moves_the_bytes_and_returns_the_customary_number(folder, parallelism):
    handle = aio_handle(1 << 20, 8, False, True, parallelism)
    data, name = pinned(handle, (1 << 20) + 12345), str(folder / "a")
    back = torch.zeros_like(data)

    def arrived() -> bool:
        same = torch.equal(back, data)
        back.zero_()
        return same

    assert handle.write(data, name, False) == 0 and os.path.getsize(name) == data.nbytes
    assert handle.read(back, name, False) == 0 and arrived()
    assert handle.pwrite(data, name, True, False) == 1
    assert handle.pread(back, name, True, False) == 1 and arrived()
    assert handle.sync_pwrite(data, name) == 1 and handle.sync_pread(back, name) == 1 and arrived()
    assert handle.pwrite(data, name, False, True) == 0 and handle.wait() == 1
    assert handle.pread(back, name, False, True) == 0 and handle.wait() == 1 and arrived()
    assert handle.async_pwrite(data, str(folder / "b")) == 0 and handle.async_pread(back, name) == 0
    assert handle.wait() == 2 and arrived()
    assert handle.wait() == 0
    assert aio.aio_write(data, str(folder / "c"), 1 << 20, 32, False, False, True) == 0
    assert aio.aio_read(back, str(folder / "c"), 1 << 20, 32, False, False, True) == 0 and arrived()


def test_files_may_be_named_in_every_way(folder):
    handle = aio_handle(block_size=4096)
    data, path = pinned(handle, 10000), folder / "n\u00e4me"
    back = torch.zeros_like(data)
    for name in (path, str(path), os.fsencode(path)):
        assert handle.sync_pwrite(buffer=data, filename=name, file_offset=0) == 1
        back.zero_()
        assert handle.sync_pread(buffer=back, filename=name) == 1 and torch.equal(back, data)
    assert os.listdir(folder) == [path.name]
    with open(folder / "descriptor", "w+b") as file:
        assert handle.async_pwrite(data, file.fileno(), 100) == 0 and handle.wait() == 1
        back.zero_()
        assert handle.async_pread(buffer=back, fd=file.fileno(), file_offset=100) == 0 and handle.wait() == 1
        assert torch.equal(back, data) and file.tell() == 0
    with pytest.raises(OSError, match="descriptor 4321"):
        handle.async_pwrite(data, 4321)
    with pytest.raises(TypeError):
        handle.sync_pwrite(data, 1.5)


def test_offsets_select_a_part(folder):
    handle, name = aio_handle(), str(folder / "parts")
    parts = [pinned(handle, 100_000).add_(index) for index in range(4)]
    for index in (3, 0, 2, 1):
        handle.async_pwrite(parts[index], name, index * 100_000)
    assert handle.wait() == 4 and os.path.getsize(name) == 400_000
    for index, part in enumerate(parts):
        back = torch.zeros_like(part)
        handle.sync_pread(back, name, index * 100_000)
        assert torch.equal(back, part)
    handle.sync_pwrite(parts[0], name)  # keeps the rest
    assert os.path.getsize(name) == 400_000
    back = torch.zeros_like(parts[0])
    assert handle.read(back, name, False, file_offset=300_000) == 0 and torch.equal(back, parts[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
@pytest.mark.parametrize("numel", [0, 1, 1023, 70_001])
def test_tensors_of_any_size_and_dtype_pinned_or_not(folder, dtype, numel):
    handle, name = aio_handle(block_size=16384, queue_depth=4), str(folder / "t")
    data = (torch.arange(numel) % 2).to(dtype).reshape(1, numel, 1)
    assert handle.sync_pwrite(data, name) == 1 and os.path.getsize(name) == data.nbytes
    back = torch.zeros_like(data)
    assert handle.sync_pread(back, name) == 1 and torch.equal(back, data)
    shifted = torch.zeros(numel + 3, dtype=dtype)[3:]  # no alignment at all
    assert handle.sync_pread(shifted, name) == 1 and torch.equal(shifted, data.flatten())


def test_what_cannot_be_read_or_written_is_an_error_with_file_and_sizes(folder):
    handle, name = aio_handle(), str(folder / "short")
    handle.sync_pwrite(pinned(handle, 1000), name)
    with pytest.raises(OSError, match=f"cannot read 2000 bytes at offset 0 of {name}: the file has 1000 bytes"):
        handle.sync_pread(pinned(handle, 2000), name)
    with pytest.raises(OSError, match="cannot read 1000 bytes at offset 1 of"):
        handle.async_pread(pinned(handle, 1000), name, 1)
    with pytest.raises(OSError, match="the file has 1000 bytes; give a buffer that holds all of it"):
        handle.read(pinned(handle, 500), name, False)
    with pytest.raises(OSError, match="file_offset must not be negative, found -5"):
        handle.sync_pread(pinned(handle, 1000), name, -5)
    for call in (handle.sync_pread, handle.async_pread):
        with pytest.raises(OSError, match=f"cannot open {folder}/none for reading: No such file or directory"):
            call(pinned(handle, 1000), f"{folder}/none")
    with pytest.raises(OSError, match=f"cannot open {folder}/no/x for writing: No such file or directory"):
        handle.sync_pwrite(pinned(handle, 1000), f"{folder}/no/x")
    with pytest.raises(OSError, match=f"cannot open {folder} for writing"):
        handle.sync_pwrite(pinned(handle, 1000), folder)
    with pytest.raises(OSError, match="bytes are free there"):
        handle.sync_pwrite(pinned(handle, 1000), name, 1 << 55)
    assert handle.wait() == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's device that is always full")
def test_a_full_disk_is_reported_by_wait_and_by_the_call():
    handle = aio_handle()
    with pytest.raises(OSError, match="/dev/full: No space left on device"):
        handle.sync_pwrite(pinned(handle, 100_000), "/dev/full")
    assert handle.async_pwrite(pinned(handle, 100_000), "/dev/full") == 0
    with pytest.raises(OSError, match="/dev/full: No space left on device"):
        handle.wait()
    assert handle.wait() == 0


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="a folder that nobody may write")
def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(OSError, match="cannot open /sys/kernel/x for writing"):
        aio_handle().sync_pwrite(torch.zeros(10), "/sys/kernel/x")


def test_tensors_that_cannot_be_used_are_refused(folder):
    handle, name = aio_handle(), str(folder / "x")
    with pytest.raises(RuntimeError, match=r"buffer must be a contiguous tensor, found strides \[1, 4\] for shape \[4, 4\]"):
        handle.sync_pwrite(torch.zeros(4, 4).t(), name)
    assert not os.path.exists(name)
    with pytest.raises(RuntimeError, match="buffer must be a contiguous tensor"):
        handle.async_pread(torch.zeros(10)[::2], name)
    with pytest.raises(RuntimeError, match="num_elem"):
        handle.new_cpu_locked_tensor(-1, torch.zeros(1))
    assert handle.wait() == 0


def test_validate_finds_what_differs(folder):
    handle, name = aio_handle(), str(folder / "v")
    data = pinned(handle, 1 << 20)
    assert handle.pwrite(data, name, True, True) == 0
    back, other = torch.zeros_like(data), aio_handle()
    while not torch.equal(back, data):  # until it is written
        other.sync_pread(back, name)
    with open(name, "r+b") as file:
        file.seek(5000)
        file.write(b"\xff")
    with pytest.raises(OSError, match=f"validate: {name} and the buffer of 1048576 bytes differ at byte 5000 of the file"):
        handle.wait()


def test_buffers_live_until_their_operation_is_over(folder):
    handle = aio_handle(block_size=4096, queue_depth=2)
    for index in range(4):
        handle.async_pwrite(torch.full((1 << 18,), index, dtype=torch.int32), str(folder / str(index)))
        gc.collect()
    del handle  # waits
    for index in range(4):
        back = torch.zeros(1 << 18, dtype=torch.int32)
        aio_handle().sync_pread(back, str(folder / str(index)))
        assert torch.equal(back, torch.full_like(back, index))


def test_other_threads_run_while_one_waits(folder):
    handle = aio_handle(block_size=4096, queue_depth=1)
    handle.async_pwrite(pinned(handle, 16 << 20), str(folder / "slow"))
    waiter = threading.Thread(target=handle.wait)
    waiter.start()
    steps = 0
    while waiter.is_alive():
        steps += 1
    assert steps > 100  # a wait that kept the GIL would have let this loop begin only afterwards


def test_pinned_tensors(folder):
    handle, other = aio_handle(), aio_handle()
    pin = PinMemoryBuilder().load().pin_handle()
    tensor = handle.new_cpu_locked_tensor(1000, torch.empty(3, 3, dtype=torch.half))
    assert tensor.shape == (1000,) and tensor.dtype == torch.half and not tensor.any() and tensor.data_ptr() % 4096 == 0
    locked = handle.is_pinned(tensor)  # False where the limits forbid it
    assert other.is_pinned(tensor[10:]) == pin.is_pinned(tensor) == locked
    assert not handle.is_pinned(torch.empty(3))
    assert not handle.free_cpu_locked_tensor(torch.empty(3))
    assert other.free_cpu_locked_tensor(tensor) and not handle.free_cpu_locked_tensor(tensor) and not handle.is_pinned(tensor)
    assert tensor.fill_(1).sum() == 1000  # its memory is still there
    mine = pin.new_cpu_locked_tensor(10, torch.empty(1))
    assert handle.is_pinned(mine) == pin.is_pinned(mine) == locked
    assert pin.free_cpu_locked_tensor_by_ptr(mine.data_ptr()) and not pin.free_cpu_locked_tensor(mine)
    assert handle.new_cpu_locked_tensor(0, torch.empty(1)).shape == (0,)
    kept = aio_handle().new_cpu_locked_tensor(1 << 20, torch.empty(1))
    gc.collect()
    assert kept.fill_(2).sum() == 2 << 20  # outlives its handle


@linux_only
def test_memory_that_may_not_be_locked_is_pageable_and_said_once(tmp_path):
    run = run_limited("""
forbid_locking()
import torch
from deepspeed.ops.aio import aio_handle
handle = aio_handle()
tensors = [handle.new_cpu_locked_tensor(100000, torch.empty(1)) for _ in range(3)]
assert not any(map(handle.is_pinned, tensors))
tensors[0].fill_(3)
handle.sync_pwrite(tensors[0], "x"); handle.sync_pread(tensors[1], "x")
assert torch.equal(tensors[0], tensors[1])
""", tmp_path)
    assert run.stderr.count("stay pageable") == 1 and "RLIMIT_MEMLOCK" in run.stderr, run.stderr


def test_memcpy():
    source, target = torch.arange(10.), torch.zeros(2, 5)
    assert aio.deepspeed_memcpy(target, source) == 0 and torch.equal(target.flatten(), source)
    with pytest.raises(RuntimeError, match="40 bytes on cpu and 20 bytes on cpu"):
        aio.deepspeed_memcpy(target, torch.zeros(5))


def test_gpu_direct_storage_says_what_to_use_instead():
    assert not GDSBuilder().is_compatible()
    with pytest.raises(NotImplementedError, match="gds.*CUDA.*aio_handle"):
        GDSBuilder().load()
    import deepspeed.ops.aio as package
    with pytest.raises(NotImplementedError, match="gds.*aio_handle"):
        package.gds_handle
    with pytest.raises(AttributeError):
        package.nonsense


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("numel", [1, 1000, 1 << 20])
def test_tensors_on_a_gpu_go_through_the_host(folder, numel):
    handle, name = aio_handle(), str(folder / "gpu")
    data = torch.randn(numel, device="cuda")
    assert handle.sync_pwrite(data, name) == 1
    back = torch.zeros_like(data)
    assert handle.async_pread(back, name) == 0 and handle.wait() == 1 and torch.equal(back, data)
    assert handle.pwrite(data * 2, name, True, True) == 0 and handle.wait() == 1
    assert handle.read(back, name, True) == 0 and torch.equal(back, data * 2)
