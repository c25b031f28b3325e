"""Constants of the multi-node launcher, and the start of the native program for `python -m deepspeed.launcher.runner`."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig

DEEPSPEED_ENVIRONMENT_NAME = os.getenv("DS_ENV_FILE", ".deepspeed_env")
DEEPSPEED_ENVIRONMENT_PATHS = [os.path.expanduser("~"), "."]
DLTS_HOSTFILE = "/job/hostfile"
EXPORT_ENVS = ["MLFLOW", "PYTHON", "MV2", "UCX"]


def native_program(name: str) -> str:
    """Path of one of the package's programs: with this Python's other programs, otherwise on PATH."""
    for folder in (os.path.dirname(sys.executable), sysconfig.get_path("scripts")):
        program = os.path.join(folder, name + (".exe" if os.name == "nt" else ""))
        if os.access(program, os.X_OK):
            return program
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"the program `{name}` is not installed beside this Python nor on PATH: reinstall the package")
    return found


def become(name: str, arguments: list[str]) -> None:
    """Goes on as one of the package's programs; does not return."""
    program = native_program(name)
    sys.stdout.flush()
    if os.name == "nt":  # which has no exec: the caller would go on at once, without the exit code
        sys.exit(subprocess.run([program, *arguments]).returncode)
    os.execv(program, [program, *arguments])


def main(args: list[str] | None = None) -> None:
    """Replaces this process by the native launcher."""
    become("deepspeed", sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    main()
