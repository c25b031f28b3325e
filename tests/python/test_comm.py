"""deepspeed.comm: how a run starts, that every collective does what torch's does, and what the logger records."""
from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as torch_dist
from common import free_port, ranks, run_ranks

import deepspeed.comm as dist
from deepspeed.comm import comms_logging, discovery
from deepspeed.comm import init as comm_init

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int16, torch.bool]


def values(rank: int, numel: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small integers (sums are exact in every dtype), different on every rank."""
    return ((torch.arange(numel) * 7 + 5 * rank) % (2 if dtype == torch.bool else 3)).to(dtype)


# ---------------------------------------------------------------- collectives

def _all_collectives() -> None:
    dist.init_distributed(timeout=timedelta(seconds=60))
    rank, world = dist.get_rank(), dist.get_world_size()
    core = dist.get_communicator()
    assert core.shares_memory and core.size == world and core.rank == rank, core
    assert dist.get_communicator() is core
    for dtype in DTYPES:
        every = [values(r, 12 * world, dtype) for r in range(world)]
        total = torch.stack([v.double() for v in every]).sum(0)
        total = total.clamp(max=1).to(dtype) if dtype == torch.bool else total.to(dtype)
        mine = every[rank].clone()
        assert dist.all_reduce(mine) is None
        assert torch.equal(mine, total), dtype

        slice_ = torch.zeros(12, dtype=dtype)
        dist.reduce_scatter_tensor(slice_, every[rank])
        assert torch.equal(slice_, total[12 * rank:12 * rank + 12]), dtype
        dist.reduce_scatter(slice_.zero_(), list(every[rank].chunk(world)))
        assert torch.equal(slice_, total[12 * rank:12 * rank + 12]), dtype

        gathered = torch.zeros(world, 12 * world, dtype=dtype)
        dist.all_gather_into_tensor(gathered, every[rank])
        assert torch.equal(gathered, torch.stack(every)), dtype
        parts = [torch.zeros(12 * world, dtype=dtype) for _ in range(world)]
        dist.all_gather(parts, every[rank])
        assert all(torch.equal(part, v) for part, v in zip(parts, every)), dtype

        exchanged = torch.zeros(12 * world, dtype=dtype)
        dist.all_to_all_single(exchanged, every[rank])
        assert torch.equal(exchanged, torch.cat([v[12 * rank:12 * rank + 12] for v in every])), dtype

        root = world - 1
        message = every[rank].clone()
        dist.broadcast(message, src=root)
        assert torch.equal(message, every[root]), dtype
    _operations(rank, world)
    _shapes_and_handles(rank, world)
    _groups(rank, world)
    _point_to_point(rank, world)
    dist.barrier()
    dist.destroy_process_group()
    assert not dist.is_initialized()


def _operations(rank: int, world: int) -> None:
    every = torch.stack([values(r, 30) + 1 for r in range(world)])
    for op, expected in ((dist.ReduceOp.SUM, every.sum(0)), (dist.ReduceOp.AVG, every.mean(0)),
                         (dist.ReduceOp.MAX, every.amax(0)), (dist.ReduceOp.MIN, every.amin(0)),
                         (dist.ReduceOp.PRODUCT, every.prod(0))):
        mine = every[rank].clone()
        dist.all_reduce(mine, op=op)
        torch.testing.assert_close(mine, expected)
    bits = torch.tensor([1 << rank], dtype=torch.int32)
    dist.all_reduce(bits, op=dist.ReduceOp.BOR)  # only torch knows this one
    assert bits.item() == (1 << world) - 1


def _shapes_and_handles(rank: int, world: int) -> None:
    transposed = torch.full((6, 4), float(rank)).t()
    dist.all_reduce(transposed)
    assert torch.equal(transposed, torch.full((4, 6), float(sum(range(world)))))
    parameter = torch.nn.Parameter(torch.full((3, 3), float(rank)))
    dist.broadcast(parameter, 0)
    assert parameter.is_leaf and torch.equal(parameter.detach(), torch.zeros(3, 3))

    handle = dist.all_reduce(one := torch.ones(5), async_op=True)
    handle.wait()
    assert torch.equal(one, torch.full((5,), float(world)))
    tensors = [torch.ones(3), torch.ones(2, 2)]
    dist.all_reduce_coalesced(tensors)
    assert all((t == world).all() for t in tensors)
    dist.all_reduce_coalesced(tensors, async_op=True).wait()
    assert all((t == world * world).all() for t in tensors)
    outputs = [torch.zeros(2 * world), torch.zeros(world)]
    dist.all_gather_coalesced(outputs, [torch.full((2,), float(rank)), torch.full((1,), float(rank))])
    assert torch.equal(outputs[1], torch.arange(world, dtype=torch.float32))
    sent = [torch.full((peer + 1,), float(rank)) for peer in range(world)]
    received = [torch.zeros(rank + 1) for _ in range(world)]
    dist.all_to_all(received, sent)
    assert all((piece == peer).all() for peer, piece in enumerate(received))
    dist.all_gather_object(objects := [None] * world, {"rank": rank})
    assert objects == [{"rank": r} for r in range(world)]
    dist.broadcast_object_list(held := [rank * 3], src=world - 1)
    assert held == [(world - 1) * 3]
    dist.gather(torch.tensor([float(rank)]), into := [torch.zeros(1) for _ in range(world)] if rank == 0 else None, dst=0)
    assert into is None or [t.item() for t in into] == list(range(world))


def _groups(rank: int, world: int) -> None:
    evens = [r for r in range(world) if r % 2 == 0]
    group = dist.new_group(evens)
    mine = torch.ones(4)
    dist.all_reduce(mine, group=group)
    assert (mine == (len(evens) if rank in evens else 1)).all()
    if rank in evens:
        assert dist.get_world_size(group) == len(evens)
        assert dist.get_all_ranks_from_group(group) == evens
        assert dist.get_global_rank(group, len(evens) - 1) == evens[-1]
        message = torch.full((2,), float(rank))
        dist.broadcast(message, src=evens[-1], group=group)  # src is a global rank
        assert (message == evens[-1]).all()
    part = dist.get_communicator().subgroup([r for r in range(world) if r % 2 == rank % 2])
    part.all_reduce(token := torch.ones(1), "sum").wait()
    assert token.item() == part.size
    dist.barrier()


def _point_to_point(rank: int, world: int) -> None:
    incoming = torch.zeros(3)
    outgoing = torch.full((3,), float(rank))
    operations = [dist.P2POp(dist.isend, outgoing, (rank + 1) % world), dist.P2POp(dist.irecv, incoming, (rank - 1) % world)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    assert (incoming == (rank - 1) % world).all()
    if rank == 0:
        dist.send(outgoing + 7, 1)
    elif rank == 1:
        dist.recv(incoming, 0)
        assert (incoming == 7).all()


@pytest.mark.parametrize("world", [2, 4])
def test_every_collective_does_what_torchs_does(world):
    run_ranks(_all_collectives, world)


def _without_shared_memory() -> None:
    os.environ["DEEPSCALE_HOST_COMM"] = "0"
    dist.init_distributed(timeout=timedelta(seconds=60))
    core = dist.get_communicator()
    assert not core.shares_memory and "gloo" in core.description
    average = torch.full((4,), float(dist.get_rank()))
    dist.all_reduce(average, op=dist.ReduceOp.AVG)  # Gloo has none
    assert (average == 0.5).all()
    with pytest.raises(RuntimeError, match="not contiguous"):
        core.all_reduce(torch.ones(4, 6).t(), "sum")
    with pytest.raises(RuntimeError, match="op must be"):
        core.all_reduce(torch.ones(2), "mean")


def test_across_machines_torchs_group_serves_and_averages():
    run_ranks(_without_shared_memory, 2)


@ranks(2)
def test_a_late_rank_is_an_error_that_names_both_positions():
    dist.init_distributed(timeout=timedelta(seconds=2))
    core = dist.get_communicator()
    begin = time.monotonic()
    if dist.get_rank() == 0:
        with pytest.raises(RuntimeError, match="layers.7"):
            core.all_reduce(torch.ones(64), "sum", "layers.7").wait()
        assert time.monotonic() - begin < 20
    else:
        time.sleep(4)


# ---------------------------------------------------------------- starting

def _start_with_file(path: str) -> None:
    rank = int(os.environ["RANK"])
    for name in discovery.RANK_VARIABLES:
        del os.environ[name]
    dist.init_distributed(dist_backend="gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    assert (dist.get_rank(), dist.get_world_size()) == (rank, 2)
    dist.all_reduce(one := torch.ones(1))
    assert one.item() == 2


def test_a_file_can_be_the_meeting_point(tmp_path):
    run_ranks(_start_with_file, 2, {"path": str(tmp_path / "store")})


def _adopts() -> None:
    torch_dist.init_process_group("gloo")
    before = torch_dist.group.WORLD
    dist.init_distributed("nccl")
    dist.init_distributed()
    assert torch_dist.group.WORLD is before and dist.is_initialized()
    assert dist.get_world_size() == 2
    dist.all_reduce(one := torch.ones(1))
    assert one.item() == 2


def test_a_group_that_the_program_made_is_adopted():
    run_ranks(_adopts, 2)


LEAVES_WITH_GLOO_AT_WORK = '''
import sys, time
import torch, torch.distributed as dist
import deepspeed
deepspeed.init_distributed(verbose=False)
model = torch.nn.Linear(8, 8)
config = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW"}}
sys.kept = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)[0]  # programs end with their engines
sys.setswitchinterval(1000)  # nobody gets the interpreter's lock that is not given it
tensor = torch.ones(4)
dist.all_reduce(tensor, async_op=True)  # Gloo's thread lets go of the tensor when it is through, for which it needs the lock
end = time.monotonic() + 0.5
while time.monotonic() < end:
    pass
'''


def test_a_program_may_end_while_gloo_lets_go_of_a_tensor():
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    run = subprocess.run([sys.executable, "-c", LEAVES_WITH_GLOO_AT_WORK], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


@pytest.fixture
def bare(monkeypatch):
    """No launcher's variables, no group; both restored afterwards."""
    for name in list(os.environ):
        if name in discovery.RANK_VARIABLES or name.startswith(("OMPI_", "PMI_", "SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    for name in discovery.RANK_VARIABLES:  # so that what the code sets is undone too
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("LOCAL_SIZE", "")
    monkeypatch.delenv("LOCAL_SIZE")
    yield monkeypatch
    if torch_dist.is_initialized():
        dist.destroy_process_group()


def test_a_lone_process_is_a_world_of_one(bare):
    dist.init_distributed(verbose=False)
    assert (dist.get_rank(), dist.get_world_size(), dist.get_local_rank()) == (0, 1, 0)
    dist.all_reduce(one := torch.ones(3))
    assert (one == 1).all()
    assert dist.get_communicator().size == 1
    dist.barrier()


def test_two_lone_processes_do_not_fight_for_a_port(bare):
    with_port = free_port()
    import socket
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", with_port))
        taken.listen()
        dist.init_distributed(verbose=False, distributed_port=with_port)
        assert dist.get_world_size() == 1


def test_a_backend_that_cannot_run_here_is_replaced_and_said_once(bare, capsys):
    if torch.cuda.is_available():
        pytest.skip("nccl can run here")
    dist.init_distributed("nccl")
    assert torch_dist.get_backend() == "gloo"
    assert capsys.readouterr().out.count("backend 'nccl' cannot run here") == 1


def test_init_may_be_forbidden(bare):
    with pytest.raises(RuntimeError, match="dist_init_required is False"):
        dist.init_distributed(dist_init_required=False)


@pytest.mark.parametrize("variables, message", [
    ({"WORLD_SIZE": "2"}, "RANK is not set"),
    ({"WORLD_SIZE": "2", "RANK": "1"}, "MASTER_ADDR is not set"),
    ({"RANK": "1"}, "WORLD_SIZE is not set"),
])
def test_half_an_environment_names_what_is_missing(bare, variables, message):
    for name, value in variables.items():
        bare.setenv(name, value)
    with pytest.raises(RuntimeError, match=message):
        dist.init_distributed()


def test_mpi_and_slurm_are_understood(bare):
    bare.setenv("OMPI_COMM_WORLD_RANK", "3")
    bare.setenv("OMPI_COMM_WORLD_SIZE", "4")
    bare.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "3")
    bare.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "4")
    assert dist.mpi_discovery(distributed_port=29511, verbose=False)
    assert [os.environ[name] for name in discovery.RANK_VARIABLES] == ["3", "4", "3", "127.0.0.1", "29511"]
    assert os.environ["LOCAL_SIZE"] == "4"


@pytest.mark.parametrize("counts, node, here", [("4(x16)", "7", "4"), ("4(x16)", None, "4"), ("2(x3),1", "2", "2"), ("2(x3),1", "3", "1"),
                                                ("2(x3),1", None, None)])
def test_the_ranks_on_this_machine_are_read_from_slurms_list(bare, counts, node, here):
    bare.setenv("SLURM_PROCID", "0")
    bare.setenv("SLURM_STEP_NUM_TASKS", "64")
    bare.setenv("SLURM_LOCALID", "0")
    bare.setenv("SLURM_STEP_TASKS_PER_NODE", counts)
    bare.setenv("SLURM_STEP_NODELIST", "n[01-16]")
    if node is not None:
        bare.setenv("SLURM_NODEID", node)
    assert dist.mpi_discovery(verbose=False)
    assert os.environ.get("LOCAL_SIZE") == here


def test_hydras_local_size_is_exported(bare):
    for name, value in {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4", "MASTER_ADDR": "n1"}.items():
        bare.setenv(name, value)
    assert dist.mpi_discovery(verbose=False)
    assert (os.environ["LOCAL_SIZE"], os.environ["LOCAL_RANK"]) == ("4", "1")


@pytest.mark.parametrize("text, first", [("gpu[07-09,12],login1", "gpu07"), ("node1,node2", "node1"), ("a-b-c", "a-b-c"),
                                         ("n[3,5-6]", "n3")])
def test_slurms_node_lists(text, first):
    assert discovery.first_slurm_host(text) == first


def test_a_batch_script_of_slurm_is_one_process(bare):
    bare.setenv("SLURM_PROCID", "0")
    bare.setenv("SLURM_NTASKS", "4")  # what sbatch asked for; only srun starts them
    assert not dist.mpi_discovery(verbose=False)


def test_backend_strings():
    assert comm_init.backend_is_usable("gloo") and comm_init.backend_is_usable("cpu:gloo")
    assert not comm_init.backend_is_usable("cpu:gloo,cuda:nosuch")


# ---------------------------------------------------------------- the logger

@pytest.mark.parametrize("operation, counted, algorithm, bus", [
    ("all_reduce", 1e6, 16.0, 12.0),  # n = 4, 1 MB in 1 ms: 8 Gbps
    ("all_gather_into_tensor", 4e6, 32.0, 24.0),
    ("reduce_scatter_tensor", 4e6, 32.0, 24.0),
    ("all_to_all_single", 1e6, 8.0, 6.0),
    ("broadcast", 1e6, 8.0, 8.0),
])
def test_bandwidth_formulas(operation, counted, algorithm, bus):
    assert comms_logging.bandwidths(operation, 1_000_000, 1.0, 4) == pytest.approx((counted, algorithm, bus))


def test_averages_leave_out_the_extremes():
    assert comms_logging.trimmed_mean([1000.0, *[2.0] * 8, 0.0]) == 2.0
    assert comms_logging.trimmed_mean([1.0, 3.0]) == 2.0


@ranks(2)
def test_the_logger_records_what_it_is_told_to():
    dist.init_distributed(config={"comms_logger": {"enabled": True, "prof_all": False, "prof_ops": ["all_reduce"]}})
    for _ in range(3):
        dist.all_reduce(torch.ones(256))
    dist.broadcast(torch.ones(8), 0)
    assert dist.has_comm_data() and dist.get_logged_comm_ops() == ["all_reduce"] and dist.get_comm_operation_count() == 3
    dist.broadcast(torch.ones(8), 0, prof=True, log_name="mine")
    assert dist.get_logged_comm_ops() == ["all_reduce", "mine"]
    facts = dist.log_summary(show_straggler=True, return_dict=True)
    record = facts["summary"]["all_reduce"][1024]
    assert record["count"] == 3 and record["total_latency_ms"] > 0 and record["tput_avg_gbps"] > 0
    assert record["busbw_avg_gbps"] == pytest.approx(record["tput_avg_gbps"] / 2)
    assert facts["straggler_analysis"]["all_reduce"][1024]["total_straggler_ms"] >= 0
    assert facts["metadata"]["world_size"] == 2
    dist.configure(prof_all=True, debug=True)
    dist.reset_log()

    def my_step() -> None:
        dist.all_gather_into_tensor(torch.zeros(8), torch.ones(4))
        dist.all_reduce(torch.ones(4), async_op=True).wait()

    my_step()
    assert dist.get_logged_comm_ops() == ["all_gather_into_tensor | [Caller Func: my_step]",
                                          "all_reduce | [Caller Func: my_step]"]
    dist.configure(enabled=False)
    dist.all_reduce(torch.ones(4))
    assert dist.get_comm_operation_count() == 2


def test_the_summary_has_the_columns_of_the_real_one(bare, capsys):
    dist.init_distributed(verbose=False)
    dist.configure(enabled=True, prof_all=True, debug=False)
    try:
        dist.reset_log()
        dist.all_reduce(torch.ones(1024))
        dist.log_summary()
    finally:
        dist.configure(enabled=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    header = next(line for line in lines if line.startswith("Comm. Op"))
    assert [header[i:i + 20].strip() for i in range(0, 140, 20)] == [
        "Comm. Op", "Message Size", "Count", "Total Latency(ms)", "Avg Latency(ms)", "tput_avg (Gbps)", "busbw_avg (Gbps)"]
    assert "all_reduce" in lines and any(line[20:40].strip() == "4 KB" for line in lines)


def test_unknown_names_are_torchs_and_misspelt_ones_fail():
    assert dist.get_backend is torch_dist.get_backend
    with pytest.raises(AttributeError, match="deepspeed.comm"):
        dist.no_such_function  # noqa: B018


def test_importing_does_not_load_the_core_before_it_is_needed():
    import subprocess
    import sys
    code = "import sys, deepspeed.comm; assert 'deepspeed._C' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert Path(comms_logging.__file__).exists()


GROUP_THAT_GOES = """
import sys, threading, time, torch, torch.distributed as d
from deepspeed import _C
store, gloos = d.HashStore(), [None, None]
def make(rank):
    gloos[rank] = d.ProcessGroupGloo(store, rank, 2)
threads = [threading.Thread(target=make, args=(rank,)) for rank in range(2)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
group = d.ProcessGroup(store, 0, 2)
group._register_backend(torch.device("cpu"), d.ProcessGroup.BackendType.GLOO, gloos[0])
communicator = _C.Communicator.from_process_group(group, use_host=False)
sys.setswitchinterval(30)  # this thread keeps the lock
other = gloos[1].allreduce([torch.ones(4)])
group.allreduce([torch.ones(4)])
end = time.perf_counter() + 0.3
while time.perf_counter() < end: pass  # Gloo's thread waits for the lock now, to let go of the tensor
gloos[0] = None
del group
del communicator
print("ended", flush=True)
"""


def test_a_communicator_that_goes_does_not_wait_for_a_thread_that_waits_for_the_lock():
    """Its process group joins its threads. (A rank in some hundred hung at its end for this.)"""
    import subprocess
    run = subprocess.run([sys.executable, "-c", GROUP_THAT_GOES], capture_output=True, text=True, timeout=60)
    assert run.stdout == "ended\n", run.stderr[-2000:]
