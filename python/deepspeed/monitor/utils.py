"""What the destinations of events share: who writes, into which folder, and which package has to be there."""
from __future__ import annotations

import importlib
import os
import re
from types import ModuleType
from typing import Any

from deepspeed.utils.logging import _rank

COMET_VERSION = (3, 41, 0)


def is_writer() -> bool:
    """Whether this process writes events: rank 0, and every process that is not part of a distributed run."""
    return _rank() <= 0


def make_log_folder(section: str, config: Any) -> str:
    """`output_path`/`job_name` of a section (of the current folder when output_path is empty), made if it does not exist.

    Raises OSError that names the section's key."""
    folder = os.path.join(config.output_path or "", config.job_name)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise type(error)(error.errno, f"{section}.output_path: the folder cannot be made ({error.strerror}): name one that this process may "
                          "write to", folder) from error
    return folder


def check_tb_availability() -> None:
    """ImportError when TensorBoard's package is missing."""
    _required("tensorboard", "tensorboard", "tensorboard")


def check_wandb_availability() -> None:
    """ImportError when the package of Weights & Biases is missing."""
    _required("wandb", "wandb", "wandb")


def check_comet_availability() -> None:
    """ImportError when Comet's package is missing or older than the first with comet_ml.start()."""
    wanted = f"comet_ml>={'.'.join(map(str, COMET_VERSION))}"
    found = getattr(_required("comet", "comet_ml", wanted), "__version__", "0")
    if tuple(int(part) for part in re.findall(r"\d+", found)[:3]) < COMET_VERSION:
        raise ImportError(f"comet.enabled is true, but the installed comet_ml {found} is too old: pip install --upgrade '{wanted}', or set "
                          "comet.enabled to false", name="comet_ml")


def _required(section: str, package: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{section}.enabled is true, but the package {package} cannot be imported ({error}): pip install '{install}', or set "
                          f"{section}.enabled to false", name=package) from error
