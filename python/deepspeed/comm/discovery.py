"""Which rank this process is, from what other launchers leave in the environment.

The result is always the five variables that torch knows: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; and LOCAL_SIZE, the
ranks on this machine, where the other launcher says how many. Values that are set already win.
"""
from __future__ import annotations

import os
import re

from deepspeed.utils.logging import logger

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

# (rank, world size, local rank, ranks on this machine). Slurm: only inside a step of srun; a batch script is one process.
_DIALECTS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)


def missing_variables() -> list[str]:
    return [name for name in RANK_VARIABLES if not os.environ.get(name)]


def discover(distributed_port: int, auto_mpi_discovery: bool, verbose: bool) -> None:
    """Fills in missing variables: cloud services, MPI, Slurm; what is then still missing describes one process.

    Raises:
        RuntimeError: some variables say that there are more processes, and the rest is not known.
    """
    if missing_variables() and auto_mpi_discovery:
        if in_aml():
            patch_aml_env_for_torch_nccl_backend(verbose=verbose)
        elif in_aws_sm():
            patch_aws_sm_env_for_torch_nccl_backend(verbose=verbose)
        else:
            mpi_discovery(distributed_port=distributed_port, verbose=verbose)
    if missing_variables():
        _complete(distributed_port)


def _complete(distributed_port: int) -> None:
    world_size = int(os.environ.get("WORLD_SIZE") or 1)
    if world_size > 1:
        if not os.environ.get("RANK"):
            raise RuntimeError(f"WORLD_SIZE is {world_size} and RANK is not set: start with `deepspeed`, torchrun, mpirun "
                               "or srun, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT")
        one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(world_size)
        if not os.environ.get("MASTER_ADDR") and not one_machine:
            raise RuntimeError(f"WORLD_SIZE is {world_size} and MASTER_ADDR is not set: set it to the machine of rank 0 "
                               "(127.0.0.1 when all ranks are on one machine)")
    elif int(os.environ.get("RANK") or 0) > 0:
        raise RuntimeError(f"RANK is {os.environ['RANK']} and WORLD_SIZE is not set: set it to the number of processes")
    local_rank = (os.environ.get("RANK") or "0") if world_size > 1 else "0"
    _export({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": local_rank, "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(distributed_port)})


def mpi_discovery(distributed_port: int = 29500, verbose: bool = True) -> bool:
    """Reads the variables of Open MPI, MPICH, Intel MPI or Slurm; mpi4py is used only to find rank 0's machine when there
    are several. Returns whether there were any."""
    for names in _DIALECTS:
        rank, size, local_rank, local_size = (os.environ.get(name) for name in names)
        if rank is None or size is None:
            continue
        values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank or rank, "MASTER_PORT": str(distributed_port)}
        if not os.environ.get("MASTER_ADDR"):
            values["MASTER_ADDR"] = _master_address(size, local_size)
        here = _ranks_here(local_size)
        if here is not None:
            values["LOCAL_SIZE"] = here
        _export(values)
        if verbose:
            logger.info("Discovered rank %s of %s (local rank %s) from %s; master %s:%s", os.environ["RANK"],
                        os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"], names[0], os.environ["MASTER_ADDR"],
                        os.environ["MASTER_PORT"])
        return True
    return False


def _ranks_here(local_size: str | None) -> str | None:
    """The number of ranks on this machine from what a launcher says: a number, or Slurm's list by machine ("2(x3),1": three with two,
    then one with one). None where it does not say."""
    counts: list[str] = []
    for part in (local_size or "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None:
            return None
        counts += [found.group(1)] * int(found.group(2) or 1)
    if len(set(counts)) == 1:
        return counts[0]
    node = os.environ.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def _master_address(world_size: str, local_size: str | None) -> str:
    if world_size == "1" or local_size == world_size:
        return "127.0.0.1"
    if os.environ.get("SLURM_STEP_NODELIST"):
        return first_slurm_host(os.environ["SLURM_STEP_NODELIST"])
    try:
        from mpi4py import MPI
    except ImportError:
        raise RuntimeError("MASTER_ADDR is not set and the ranks are on several machines: set MASTER_ADDR to the machine "
                           "of rank 0 (mpirun -x MASTER_ADDR=...), or install mpi4py, which can ask rank 0") from None
    import socket
    address = socket.gethostbyname(socket.gethostname()) if MPI.COMM_WORLD.Get_rank() == 0 else None
    return MPI.COMM_WORLD.bcast(address, root=0)


def first_slurm_host(node_list: str) -> str:
    """The first machine of Slurm's short form: "gpu[07-09,12],login1" -> "gpu07"."""
    found = re.match(r"([^\[,]+)(?:\[([^\]]*)\])?", node_list)
    if found is None:
        raise RuntimeError(f"SLURM_STEP_NODELIST: cannot read '{node_list}'; set MASTER_ADDR to the machine of rank 0")
    first = re.split(r"[-,]", found.group(2))[0] if found.group(2) else ""
    return found.group(1) + first


def in_aml() -> bool:
    """Whether this is a job of Azure Machine Learning."""
    return "AZUREML_EXPERIMENT_ID" in os.environ


def in_aws_sm() -> bool:
    """Whether this is a job of Amazon SageMaker."""
    return "SM_TRAINING_ENV" in os.environ


def in_dlts() -> bool:
    """Whether this is a job of the DLTS cluster software."""
    return "DLTS_JOB_ID" in os.environ


def patch_aml_env_for_torch_nccl_backend(master_port: int = 6105, verbose: bool = True) -> None:
    """AzureML's MPI jobs: ranks from Open MPI's variables, the master from the batch node's."""
    size = os.environ["OMPI_COMM_WORLD_SIZE"]
    several = os.environ["OMPI_COMM_WORLD_LOCAL_SIZE"] != size
    values = {"RANK": os.environ["OMPI_COMM_WORLD_RANK"], "WORLD_SIZE": size,
              "LOCAL_RANK": os.environ["OMPI_COMM_WORLD_LOCAL_RANK"], "LOCAL_SIZE": os.environ["OMPI_COMM_WORLD_LOCAL_SIZE"],
              "MASTER_PORT": str(master_port)}
    if several:
        address, _, port = os.environ["AZ_BATCH_MASTER_NODE"].partition(":")
        values |= {"MASTER_ADDR": address, "MASTER_PORT": port or str(master_port)}
    else:
        values["MASTER_ADDR"] = os.environ.get("AZ_BATCHAI_MPI_MASTER_NODE", "127.0.0.1")
    _export(values)
    # The job's default interface pattern matches nothing inside its containers.
    os.environ["NCCL_SOCKET_IFNAME"] = "^docker0,lo"
    if verbose:
        logger.info("AzureML: rank %s of %s, master %s:%s", os.environ["RANK"], size, os.environ["MASTER_ADDR"],
                    os.environ["MASTER_PORT"])


def patch_aws_sm_env_for_torch_nccl_backend(verbose: bool = True) -> None:
    """SageMaker's MPI jobs: master address and port are set by the service."""
    _export({"RANK": os.environ["OMPI_COMM_WORLD_RANK"], "WORLD_SIZE": os.environ["OMPI_COMM_WORLD_SIZE"],
             "LOCAL_RANK": os.environ["OMPI_COMM_WORLD_LOCAL_RANK"],
             "LOCAL_SIZE": os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")})
    if verbose:
        logger.info("SageMaker: rank %s of %s", os.environ["RANK"], os.environ["WORLD_SIZE"])


def _export(values: dict[str, str]) -> None:
    for name, value in values.items():
        if value and not os.environ.get(name):
            os.environ[name] = value
