#!/usr/bin/env python
"""Puts the weights of a sharded checkpoint together into one state dictionary of a chosen dtype.

A copy of this file lies in every checkpoint directory:  python zero_to_torch.py . output_dir --dtype bf16 [--safe_serialization]
"""
from __future__ import annotations

from typing import Sequence

from deepspeed.checkpoint.safe_load import run_as_program
from deepspeed.utils.zero_to_fp32 import OUTPUT_DTYPE_NAMES, convert_arguments, convert_zero_checkpoint_to_state_dict


def main(args: Sequence[str] | None = None) -> None:
    parser = convert_arguments("Puts the weights of a sharded checkpoint together, in fp32, fp16 or bf16.")
    parser.add_argument("--dtype", required=True, choices=sorted(OUTPUT_DTYPE_NAMES), help="dtype of the output")
    given = parser.parse_args(args)
    convert_zero_checkpoint_to_state_dict(given.checkpoint_dir, given.output_dir, given.dtype, given.max_shard_size, given.safe_serialization,
                                          given.tag, given.exclude_frozen_parameters)


if __name__ == "__main__":
    run_as_program(main)
