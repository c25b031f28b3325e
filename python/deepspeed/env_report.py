"""The report of the program `ds_report`, for `python -m deepspeed.env_report` and for programs that print it."""
from __future__ import annotations

import subprocess
import sys

from deepspeed.launcher.runner import native_program


def main(hide_operator_status: bool = False, hide_errors_and_warnings: bool = False) -> None:
    """Prints the report."""
    hidden = [option for option, given in (("--hide_operator_status", hide_operator_status),
                                           ("--hide_errors_and_warnings", hide_errors_and_warnings)) if given]
    sys.stdout.flush()
    subprocess.run([native_program("ds_report"), *hidden], check=True)


def cli_main() -> None:
    """Runs the program with this process's arguments, and ends with its exit code."""
    sys.exit(subprocess.run([native_program("ds_report"), *sys.argv[1:]]).returncode)


if __name__ == "__main__":
    cli_main()
