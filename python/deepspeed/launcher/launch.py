"""`python -m deepspeed.launcher.launch`: the ranks of one node, as job schedulers start them. Drives the native program `deepspeed`.

    python -m deepspeed.launcher.launch --world_info=BASE64 [--node_rank=N] [--master_addr=A] [--master_port=P] script [arguments]

`world_info` is URL-safe base64 of {"host": [slots], ...}, in the order of the ranks.
"""
from __future__ import annotations

import argparse
import sys

from deepspeed.launcher.runner import become


def native_arguments(args: list[str]) -> list[str]:
    """Arguments of the native program for those of DeepSpeed's node launcher."""
    parser = argparse.ArgumentParser(prog="python -m deepspeed.launcher.launch", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--world_info", required=True, help="base64 of {host: [slots]}")
    parser.add_argument("--node_rank", type=int, default=0)
    parser.add_argument("--master_addr", default="127.0.0.1")
    parser.add_argument("--master_port", type=int, default=29500)
    for flag in ("module", "no_python", "no_local_rank", "bind_cores_to_rank"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--bind_core_list")
    parser.add_argument("--enable_each_rank_log", default="None")
    parser.add_argument("--log_level", default="info")
    parser.add_argument("--save_pid", type=int, default=0, help="accepted; the launcher that started this one keeps the file")
    for name in ("min_elastic_nodes", "max_elastic_nodes"):
        parser.add_argument(f"--{name}", type=int, default=-1, help="accepted; the launcher of the whole job uses it")
    parser.add_argument("--enable_elastic_training", action="store_true", help="refused: give --elastic_training to `deepspeed`")
    parser.add_argument("script")
    parser.add_argument("script_arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args(args)
    if given.enable_elastic_training:
        parser.error("--enable_elastic_training: one node cannot restart the others; use `deepspeed --elastic_training`")
    native = ["--world_info", given.world_info, "--no_ssh", "--node_rank", str(given.node_rank), "--master_addr", given.master_addr,
              "--master_port", str(given.master_port), "--log_level", given.log_level]
    native += [f"--{flag}" for flag in ("module", "no_python", "no_local_rank", "bind_cores_to_rank") if getattr(given, flag)]
    if given.bind_core_list:
        native += ["--bind_core_list", given.bind_core_list]
    if given.enable_each_rank_log != "None":
        native += ["--log_dir", given.enable_each_rank_log]
    return [*native, given.script, *given.script_arguments]


def main(args: list[str] | None = None) -> None:
    """Replaces this process by the native launcher."""
    become("deepspeed", native_arguments(sys.argv[1:] if args is None else args))


if __name__ == "__main__":
    main()
