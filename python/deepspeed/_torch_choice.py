"""Which compiled part belongs to the installed torch.

What is compiled against torch depends on torch's minor version, so the package holds one folder for each: _torch/2.11,
_torch/2.12, ... with libdeepscale and the extension _C. The package's search path gets the one that fits, and
`deepspeed._C` is then imported like any other submodule.
"""
from __future__ import annotations

import os

FOLDER = "_torch"


def minor_version(version: str) -> str:
    """"2.12" for 2.12.1, 2.12.1+cpu, 2.12.0.dev20260101+cu130 and 2.12.0a0+git0123456."""
    return ".".join(str(version).split("+")[0].split(".")[:2])


def supported(package: str) -> list[str]:
    """The minor versions of torch that the package in this folder has a compiled part for, oldest first."""
    try:
        found = os.listdir(os.path.join(package, FOLDER))
    except FileNotFoundError:
        return []
    return sorted((name for name in found if name.replace(".", "").isdigit()),
                  key=lambda name: [int(part) for part in name.split(".")])


def folder(package: str, torch_version: str) -> str:
    """The folder of the compiled part for `torch_version` in the package folder `package`.

    Raises: ImportError when there is none, with the versions that there are.
    """
    path = os.path.join(package, FOLDER, minor_version(torch_version))
    if os.path.isdir(path):
        return path
    versions = supported(package)
    if not versions:
        raise ImportError(f"{package} has no compiled part: it is a source tree. Install the wheel, or build and use "
                          "PYTHONPATH=build/release/python (docs/install.md)", name="deepspeed._C")
    listed = ", ".join(versions)
    raise ImportError(f"torch {torch_version} is installed, and {package} has compiled parts for torch {listed} only; "
                      f"install one of these (for instance: pip install 'torch=={versions[-1]}.*'), or build deepspeed for "
                      f"torch {minor_version(torch_version)} (docs/install.md)", name="deepspeed._C")
