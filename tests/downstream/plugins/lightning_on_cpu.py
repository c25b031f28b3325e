"""A pytest plugin: Lightning's tests of its DeepSpeed strategies, which ask for GPUs, get CPU devices.

Lightning's strategies are not touched: its CUDA accelerator says that there are two devices and hands out torch.device("cpu", i), from
which everything else (Gloo, no CUDA calls) follows. Tests for GPUs with bf16 run too: a CPU has bf16.
"""
from __future__ import annotations

import functools
import os

import pytest
import torch

DEVICES = 2
STANDALONE = "PL_RUN_STANDALONE_TESTS"  # makes RunIf accept tests that want a process of their own, and conftest.py drop all others
os.environ[STANDALONE] = "1"


def _cpu_devices(devices: list[int]) -> list[torch.device]:
    return [torch.device("cpu", i) for i in devices]


def _patch_accelerator(accelerator: type) -> None:
    accelerator.setup_device = lambda self, device: None
    accelerator.get_parallel_devices = staticmethod(_cpu_devices)
    accelerator.get_device_stats = lambda self, device: {}


def _patch_counts() -> None:
    import lightning.fabric.accelerators.cuda as fabric_cuda
    import lightning.fabric.utilities.testing._runif as fabric_runif
    import lightning.pytorch.accelerators.cuda as pytorch_cuda

    for module in (fabric_cuda, fabric_runif, pytorch_cuda):
        module.num_cuda_devices = lambda: DEVICES
    _patch_accelerator(fabric_cuda.CUDAAccelerator)
    _patch_accelerator(pytorch_cuda.CUDAAccelerator)


def _without_cuda_bf16(original):
    @functools.wraps(original)
    def reasons(*, bf16_cuda: bool = False, **conditions):
        return original(**conditions)

    return reasons


def _patch_conditions() -> None:
    import lightning.fabric.utilities.testing as fabric
    import lightning.pytorch.utilities.testing as pytorch

    for package in (fabric, pytorch):
        package._runif_reasons = _without_cuda_bf16(package._runif_reasons)


_patch_counts()
_patch_conditions()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems():
    os.environ.pop(STANDALONE, None)
