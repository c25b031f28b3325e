"""Constants of the multi-node launcher, and the start of the native program for `python -m deepspeed.launcher.runner`."""
from __future__ import annotations

import os
import shutil
import sys

DEEPSPEED_ENVIRONMENT_NAME = os.getenv("DS_ENV_FILE", ".deepspeed_env")
DEEPSPEED_ENVIRONMENT_PATHS = [os.path.expanduser("~"), "."]
DLTS_HOSTFILE = "/job/hostfile"
EXPORT_ENVS = ["MLFLOW", "PYTHON", "MV2", "UCX"]


def native_program(name: str) -> str:
    """Path of one of the package's programs: beside this Python, otherwise on PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), name)
    program = beside if os.access(beside, os.X_OK) else shutil.which(name)
    if program is None:
        raise FileNotFoundError(f"the program `{name}` is not installed beside this Python nor on PATH: reinstall the package")
    return program


def main(args: list[str] | None = None) -> None:
    """Replaces this process by the native launcher."""
    program = native_program("deepspeed")
    os.execv(program, [program, *(sys.argv[1:] if args is None else args)])


if __name__ == "__main__":
    main()
