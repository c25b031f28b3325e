"""What this package is: version, source revision, and the torch that it runs with."""
from __future__ import annotations

import importlib.metadata
import pathlib
import re


def _version() -> str:
    """The installed distribution's version, or that of the source tree around this file."""
    try:
        return importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        pass
    cmake = pathlib.Path(__file__).resolve().parents[2] / "CMakeLists.txt"
    if cmake.is_file():
        found = re.search(r"project\([^)]*VERSION\s+([0-9.]+)", cmake.read_text())
        if found:
            return found.group(1)
    return "0.0.0"


version = _version()
git_hash = None
git_branch = None
installed_ops: dict[str, bool] = {}
accelerator_name = "cpu"


def __getattr__(name: str):
    if name == "torch_info":
        global torch_info
        import torch
        nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "0.0"
        torch_info = {"version": ".".join(torch.__version__.split(".")[:2]), "cuda_version": torch.version.cuda or "0.0",
                      "nccl_version": nccl, "hip_version": torch.version.hip or "0.0", "bf16_support": True}
        return torch_info
    if name == "compatible_ops":
        from deepspeed.ops import __compatible_ops__
        return __compatible_ops__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
