"""Training with states in files where something is refused, missing, full or odd: the bits of training in memory, or an error that
names the folder and says what to change; on every rank, and in time."""
from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from common import run_ranks, single_rank
from limits import in_own_mounts, linux_only, run_limited
from models import config, full_weights, train
from test_offload_files import _engine, _same, _zero


class OddModel(torch.nn.Module):
    """Parameters of no elements, of one, and of sizes beside every page and block."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = torch.nn.ParameterList(torch.nn.Parameter(torch.randn(n)) for n in (1, 0, 1023, 1024, 1025, 4097, 33333))
        self.empty = torch.nn.Parameter(torch.empty(0, 7))
        self.linear = torch.nn.Linear(5, 3)

    def forward(self, step: int) -> torch.Tensor:
        inputs = torch.full((2, 5), 0.1 * (step + 1))
        return self.linear(inputs).square().mean() + sum(p.square().sum() for p in self.sizes) * 1e-3 + self.empty.sum()


def _odd_losses(zero: dict) -> tuple[list[float], dict]:
    torch.manual_seed(3)
    engine = _engine(zero, OddModel())
    losses = []
    for step in range(3):
        loss = engine(step)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    weights = full_weights(engine.module)
    engine.destroy()
    return losses, weights


@pytest.mark.parametrize("stage, params", [(1, False), (2, False), (3, True)])
def test_parameters_of_every_size_train_as_in_memory(stage, params, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    expected = _odd_losses({"stage": stage, "stage3_param_persistence_threshold": 10})
    found = _odd_losses(_zero(stage, tmp_path, params))
    assert found[0] == expected[0]
    _same(found[1], expected[1])


@pytest.mark.parametrize("folder", ["/proc/none", "/sys/kernel"])
@linux_only
def test_a_folder_that_cannot_be_made_or_written_is_named(folder, monkeypatch):
    single_rank(monkeypatch)
    with pytest.raises(OSError, match=folder):
        _engine(_zero(3, folder, False))


def test_a_folder_that_is_missing_is_made(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    engine = _engine(_zero(3, tmp_path / "a" / "b", True))
    train(engine, 1)
    assert (tmp_path / "a" / "b").is_dir()


def test_a_path_that_is_a_file_is_named_with_its_key(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    (tmp_path / "file").write_text("x")
    for key in ("offload_optimizer", "offload_param"):
        place = {"device": "nvme", "nvme_path": str(tmp_path / "file"), **({"max_in_cpu": 0} if key == "offload_param" else {})}
        zero = {"stage": 3, "stage3_param_persistence_threshold": 10, key: place}
        with pytest.raises(OSError, match=f"zero_optimization.{key}.nvme_path: cannot make the folder .*file: it is a file"):
            _engine(zero)


def test_a_tilde_is_this_users_folder(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    engine = _engine(_zero(3, "~/swap", True))
    train(engine, 1)
    assert (tmp_path / "swap").is_dir() and not os.path.exists("~")


@linux_only
@pytest.mark.parametrize("params", [False, True])
def test_a_folder_that_is_removed_in_mid_training_changes_nothing(params, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    expected = _engine({"stage": 3, "stage3_param_persistence_threshold": 10})
    wanted = train(expected, 4)
    found_engine = _engine(_zero(3, tmp_path / "swap", params))
    found = train(found_engine, 2)
    shutil.rmtree(tmp_path / "swap")
    found += train(found_engine, 2, first=2)
    assert found == wanted
    _same(full_weights(found_engine.module), full_weights(expected.module))


_TRAIN = """
from models import *
import common, torch
from test_offload_files import _engine, _zero, _same
import pytest
patch = pytest.MonkeyPatch()
common.single_rank(patch)

def trained(zero, steps=2):
    engine = _engine(zero)
    losses = train(engine, steps)
    weights = full_weights(engine.module)
    engine.destroy()
    return losses, weights

expected = trained({"stage": 3, "stage3_param_persistence_threshold": 10})
"""
_SAME = """
found = trained(_zero(3, "swap", True))
assert found[0] == expected[0]
_same(found[1], expected[1])
"""


@linux_only
@pytest.mark.parametrize("limit, said", [("forbid_io_uring()", "slower than io_uring"), ("forbid_locking()", "are not pinned")])
def test_what_the_system_refuses_changes_no_value_and_is_said_once(limit, said, tmp_path):
    large = _TRAIN.replace("_engine(zero)", "_engine(zero, make_model(width=600, hidden=700))")  # small buffers are not pinned
    run = run_limited(limit + "\n" + large + _SAME, tmp_path, DEEPSCALE_ASYNC_IO="")
    assert run.stderr.count(said) == 1, run.stderr


@linux_only
@pytest.mark.parametrize("mib", [8, 56], ids=["for parameters", "for gradients and moments"])
def test_a_disk_that_is_too_small_is_an_error_before_training(mib, tmp_path):
    run_limited(_TRAIN + """
from deepspeed.runtime.memory_plan import MemoryPlanError
torch.manual_seed(1)
model = torch.nn.Linear(2000, 2000)
try:
    _engine(_zero(3, "disk", True), model)
    raise SystemExit("no error")
except MemoryPlanError as error:
    text = str(error)
    assert "disk of nvme_path disk" in text and "choose another nvme_path" in text and "missing" in text, text
import os
os.environ["DEEPSCALE_MEMORY_PLAN"] = "off"  # the file itself says so too
try:
    _engine(_zero(3, "disk", True), model)
    raise SystemExit("no error")
except OSError as error:
    text = str(error)
    assert "no room for" in text and "disk" in text and "choose another nvme_path" in text, text
""" + _SAME, tmp_path, in_own_mounts(f"mkdir -p disk && mount -t tmpfs -o size={mib}m tmpfs disk", tmp_path))


@linux_only
def test_a_disk_that_is_read_only_is_an_error_before_training(tmp_path):
    run_limited(_TRAIN + """
try:
    _engine(_zero(3, "disk", True))
    raise SystemExit("no error")
except OSError as error:
    assert "disk" in str(error) and "Read-only file system" in str(error), error
""", tmp_path, in_own_mounts("mkdir -p disk && mount -t tmpfs -o ro tmpfs disk", tmp_path))


@linux_only
@pytest.mark.parametrize("params", [False, True])
def test_a_write_that_fails_in_mid_training_is_named_and_nothing_goes_on_with_old_values(params, tmp_path):
    run_limited(_TRAIN + f"""
engine = _engine(_zero(3, "swap", {params}))
train(engine, 1)
longest_file(4096)
for attempt in range(2):
    try:
        train(engine, 4)
        raise SystemExit("no error")
    except (OSError if attempt == 0 else (OSError, RuntimeError)) as error:
        text = str(error)
        assert "is lost" in text and "swap" in text and "nvme_path" in text and "File too large" in text, text
""", tmp_path)


def _rank_with_a_limit(folder: str, limited: tuple[int, ...], steps_before: int) -> None:
    import resource
    rank = int(os.environ["RANK"])
    engine = None
    if steps_before:
        engine = _engine(_zero(3, folder, True))
        train(engine, steps_before, rank=rank)
    if rank in limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    begin = time.monotonic()
    try:
        train(engine or _engine(_zero(3, folder, True)), 6, rank=rank)
    except OSError as error:
        assert rank in limited and "nvme_path" in str(error), error
        os._exit(0)  # as a program that ends by its exception
    except RuntimeError as error:  # the other rank was first
        assert f"rank {1 - rank}" in str(error), error
        assert time.monotonic() - begin < 60
        return
    raise AssertionError(f"rank {rank}: no error")


@linux_only
@pytest.mark.parametrize("limited, steps_before", [((0, 1), 1), ((1,), 1), ((0,), 0)])
def test_when_disks_fail_every_rank_ends_with_an_error(limited, steps_before, tmp_path):
    run_ranks(_rank_with_a_limit, 2, {"folder": str(tmp_path), "limited": limited, "steps_before": steps_before}, may_leave=limited)


@linux_only
def test_shared_memory_that_is_too_small_changes_no_value(tmp_path):
    """Two ranks whose /dev/shm has 64 KiB: they train, or say what is missing."""
    program = """
from common import run_ranks
from test_offload_files import _ranks_train
if __name__ == "__main__":
    run_ranks(_ranks_train, 2, {"stage": 3, "params": True, "folder": "swap"})
"""
    run_limited(program, tmp_path, in_own_mounts("mount -t tmpfs -o size=64k tmpfs /dev/shm", tmp_path))


@linux_only
def test_nothing_is_left_of_a_process_that_is_killed(tmp_path):
    program = """
import sys, time
sys.path[:0] = sys.argv[2:]
from models import *
import common, pytest
from test_offload_files import _engine, _zero
common.single_rank(pytest.MonkeyPatch())
engine = _engine(_zero(3, sys.argv[1], True))
train(engine, 1)
print("trained", flush=True)
time.sleep(600)
"""
    folder = tmp_path / "swap"
    here = str(pathlib.Path(__file__).parent)
    process = subprocess.Popen([sys.executable, "-c", program, str(folder), here], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "trained\n"
        open_files = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{process.pid}/fd") if os.path.islink(entry.path)}
        assert any(str(folder) in name and name.endswith("(deleted)") for name in open_files), open_files
        assert not os.listdir(folder)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not os.listdir(folder)


def test_facts_about_the_files(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    engine = _engine(_zero(3, tmp_path, True), aio={"block_size": 12288, "queue_depth": 3, "intra_op_parallelism": 2})
    assert set(engine.file_tier_facts()) == {"optimizer", "parameters"}
    before = engine.file_tier_facts()
    train(engine, 2)
    from deepspeed.utils import safe_get_full_optimizer_state
    for _ in range(2):  # training needs no reading while writes are under way: what they write is still in memory
        safe_get_full_optimizer_state(engine.module.up.weight, "exp_avg")
        full_weights(engine.module)
    for name, facts in engine.file_tier_facts().items():
        # What is still being written when it is wanted again needs no reading.
        assert facts["read_bytes"] >= before[name]["read_bytes"] and facts["written_bytes"] > before[name]["written_bytes"]
        assert facts["wait_seconds"] > 0 and facts["file_bytes"] > 0 and 0 < facts["pool_bytes"] <= facts["peak_pool_bytes"]
        assert (facts["block_size"], facts["queue_depth"]) == (12288, 6)
    memory = _engine({"stage": 3, "stage3_param_persistence_threshold": 10})
    assert memory.file_tier_facts() == {}


def test_facts_about_the_files_of_a_model_that_is_built_in_them(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    import deepspeed
    from models import TinyLanguageModel
    settings = config(3, zero_optimization=_zero(3, tmp_path, True))
    with deepspeed.zero.Init(config_dict_or_path=settings) as context:
        model = TinyLanguageModel()
    built = context._file_tier.facts()
    assert built["written_bytes"] > 0
    engine = deepspeed.initialize(model=model, config=settings)[0]
    train(engine, 1)
    facts = engine.file_tier_facts()["parameters"]
    assert facts["written_bytes"] > built["written_bytes"] and facts["file_bytes"] >= built["file_bytes"]


@pytest.mark.parametrize("aio, found", [({"queue_depth": 5}, (1 << 20, 5)), ({"block_size": 5000, "queue_depth": 2**40}, (8192, 4096)),
                                        ({"block_size": 1 << 16, "queue_depth": "auto"}, (1 << 16, 32))])
def test_given_settings_win_over_measured_ones(aio, found, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    monkeypatch.setenv("DEEPSCALE_CACHE_DIR", str(tmp_path / "cache"))
    facts = _engine(_zero(3, tmp_path, False), aio=aio).file_tier_facts()["optimizer"]
    assert (facts["block_size"], facts["queue_depth"]) == found and not (tmp_path / "cache").exists()


def test_settings_that_are_not_given_are_measured_and_remembered(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    monkeypatch.setenv("DEEPSCALE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("DEEPSCALE_IO_CALIBRATION", "on")
    facts = _engine(_zero(3, pathlib.Path.cwd() / f"swap_{os.getpid()}", False)).file_tier_facts()["optimizer"]
    os.rmdir(pathlib.Path.cwd() / f"swap_{os.getpid()}")
    from deepspeed.ops.aio import tuned_settings
    known = tuned_settings(os.getcwd())
    assert known["remembered"] and (facts["block_size"], facts["queue_depth"]) == (known["block_size"], known["queue_depth"])


@pytest.mark.parametrize("layout", ["native", "deepspeed"])
def test_a_load_that_was_cut_off_is_not_trained_on(layout, tmp_path, monkeypatch):
    """What has read half of the states does not step, and is not saved, until a load is through."""
    from deepspeed.runtime import checkpoint_native, checkpoint_restore
    single_rank(monkeypatch)
    model = torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(3)])
    engine = _engine(_zero(2, tmp_path, False), model, checkpoint={"format": layout})

    def step() -> None:
        engine.backward(engine(torch.ones(1, 16)).square().mean())
        engine.step()
    step()
    engine.save_checkpoint(tmp_path / "saved", tag="good")

    def fails(*_args, **_options):
        raise OSError("the disk is gone")
    with monkeypatch.context() as broken:
        if layout == "native":
            broken.setattr(checkpoint_native.NativeLoader, "_read_fragments", fails)
        else:
            broken.setattr(checkpoint_restore.StateFiles, "read_into", fails)
        with pytest.raises((OSError, RuntimeError), match="the disk is gone"):
            engine.load_checkpoint(tmp_path / "saved", tag="good")
    with pytest.raises(RuntimeError, match="loading of states was cut off.*Load a checkpoint"):
        step()
    with pytest.raises(RuntimeError, match="cut off"):
        engine.save_checkpoint(tmp_path / "saved", tag="bad")
    engine.load_checkpoint(tmp_path / "saved", tag="good")
    step()
    engine.destroy()


@linux_only
def test_a_step_that_was_cut_off_is_not_continued(tmp_path, monkeypatch):
    """A failing read leaves some blocks updated and others not: no further step, no checkpoint of it, until one is loaded."""
    single_rank(monkeypatch)
    zero = {**_zero(2, tmp_path, False), "sub_group_size": 1 << 14}
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(6)])
    engine = _engine(zero, model)

    def backward() -> None:
        engine.backward(engine(torch.ones(1, 256)).square().mean())
    backward()
    engine.step()
    engine.save_checkpoint(tmp_path / "saved", tag="good")
    expected = full_weights(model)
    backward()
    files = {d: os.stat(d).st_size for d in pathlib.Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(d)}
    for descriptor, size in files.items():
        os.truncate(descriptor, size // 2)
    with pytest.raises(OSError):
        engine.step()
    with pytest.raises(RuntimeError, match="step 2 was cut off by an error.*Load a checkpoint"):
        engine.step()
    with pytest.raises(RuntimeError, match="cut off"):
        engine.save_checkpoint(tmp_path / "saved", tag="bad")
    assert not (tmp_path / "saved" / "bad").exists()
    for descriptor, size in files.items():
        os.truncate(descriptor, size)  # the disk is well again, what was in the file is lost
    engine.load_checkpoint(tmp_path / "saved", tag="good")
    _same(full_weights(model), expected)
    backward()
    engine.step()
    engine.destroy()


@linux_only
def test_a_forked_process_leaves_while_its_parent_trains_from_files(tmp_path):
    """As data loaders' workers do, with whatever the parent had when they were made."""
    run_limited("""
import signal, torch
from models import config
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0", DS_ACCELERATOR="cpu")
import deepspeed
place = {"device": "nvme", "nvme_path": "swap"}

def losses_of(zero, forks):
    settings = config(3, zero_optimization=zero, aio={"block_size": 4096, "queue_depth": 1})
    torch.manual_seed(1)
    engine = deepspeed.initialize(model=torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(4)]), config=settings)[0]
    losses = []
    for step in range(3):
        loss = engine(torch.ones(2, 1024)).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        child = os.fork() if forks else None
        if child == 0:
            signal.alarm(60)
            sys.exit(7)
        assert child is None or os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7, step
    return losses

found = losses_of({"stage": 3, "offload_param": {**place, "max_in_cpu": 0}, "offload_optimizer": place}, forks=True)
assert found == losses_of({"stage": 3}, forks=False)
""", tmp_path)


def test_a_module_without_elements_lives_in_files(tmp_path, monkeypatch):
    import deepspeed
    from deepspeed.runtime.zero.parameter import slot_of
    single_rank(monkeypatch)

    class Empty(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = torch.nn.Parameter(torch.empty(0, 5))

    zero = {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": str(tmp_path), "max_in_cpu": 0}}
    with deepspeed.zero.Init(config_dict_or_path=config(3, zero_optimization=zero)):
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), Empty())  # what comes before takes the place in memory
    assert slot_of(model[1].e).unit.in_file
    with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0):
        assert model[1].e.shape == (0, 5)
