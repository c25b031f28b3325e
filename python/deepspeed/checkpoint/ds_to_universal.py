#!/usr/bin/env python
"""Converts the checkpoint of one tag, of any ZeRO stage and number of ranks, to a universal checkpoint (universal_checkpoint.py):

    python -m deepspeed.checkpoint.ds_to_universal --input_folder save_dir/global_step100 --output_folder save_dir/global_step100_universal

Source files are mapped and parameters are written one at a time, so memory is about one parameter per merge worker, and there are no
temporary copies. The folder appears under its name when it is complete; `latest_universal` beside it is written last.
"""
from __future__ import annotations

import argparse
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterable, Sequence

from deepspeed._C import CheckpointError
from deepspeed.checkpoint import universal_checkpoint as universal
from deepspeed.checkpoint.constants import (DS_VERSION, PARAM, UNIVERSAL_CHECKPOINT_INFO, UNIVERSAL_CHECKPOINT_VERSION_KEY,
                                            UNIVERSAL_CHECKPOINT_VERSION_VALUE)
from deepspeed.checkpoint.safe_load import run_as_program
from deepspeed.checkpoint.universal_merge import MergeRules
from deepspeed.checkpoint.universal_source import UniversalSource


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Converts a checkpoint to a universal one, which any number of ranks loads.")
    parser.add_argument("--input_folder", required=True, help="folder of one tag, e.g. save_dir/global_step100")
    parser.add_argument("--output_folder", required=True, help="folder to write; latest_universal is written beside it")
    parser.add_argument("--num_extract_workers", type=int, default=4, help="accepted for older command lines: nothing is extracted first")
    parser.add_argument("--num_merge_workers", type=int, default=2, help="parameters written at the same time, each of them in memory")
    parser.add_argument("--keep_temp_folder", action="store_true", help="accepted for older command lines: there are no temporary files")
    parser.add_argument("--no_strict", dest="strict", action="store_false", help="allow layout patterns that no parameter matches")
    parser.add_argument("--inject_missing_state", action="store_true",
                        help="cut every parameter along its first dimension when tensor-parallel ranks saved no universal_checkpoint_info")
    return parser.parse_args(arguments)


def convert(input_folder: str, output_folder: str, *, workers: int = 2, strict: bool = True, inject_missing_state: bool = False,
            progress: bool = False) -> None:
    """Writes `output_folder` and `latest_universal` beside it. CheckpointError, naming the file, when the input is not complete."""
    source = UniversalSource(input_folder)
    rules = MergeRules(_layout_info(source, inject_missing_state))
    unmatched = rules.unmatched([*source.names, *source.model.untrained(source.names)])
    if unmatched and strict:
        raise CheckpointError(f"checkpoint {input_folder}: no parameter matches the patterns {unmatched} of {UNIVERSAL_CHECKPOINT_INFO}: they are of "
                              "another model; --no_strict converts nevertheless")
    output_folder = os.path.abspath(output_folder)
    if output_folder == os.path.abspath(input_folder):
        raise CheckpointError(f"{output_folder} is the input, not a universal checkpoint: choose another --output_folder")
    partial = universal.begin(output_folder)
    try:
        _write(source, rules, partial, workers, progress)
        universal.move(partial, output_folder)
    except BaseException:
        universal.abandon(partial)
        raise


def _write(source: UniversalSource, rules: MergeRules, output: str, workers: int, progress: bool) -> None:
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for _ in _shown(pool.map(lambda name: _write_trained(source, rules, name, output), source.names), len(source.names), progress):
            pass
    _write_untrained(source, rules, output)
    universal.write(_common(source), universal.optimizer_state_file(output))
    _write_models(source, output)


def _layout_info(source: UniversalSource, inject: bool) -> dict[str, Any]:
    info = source.model.first.get(UNIVERSAL_CHECKPOINT_INFO)
    if info is None and source.tp_degree > 1 and not inject:
        raise CheckpointError(f"{source.model.paths[0][0]} has no entry {UNIVERSAL_CHECKPOINT_INFO!r}, which says how {source.tp_degree} "
                              "tensor-parallel ranks cut their parameters; --inject_missing_state takes the first dimension for all")
    return {UNIVERSAL_CHECKPOINT_VERSION_KEY: UNIVERSAL_CHECKPOINT_VERSION_VALUE} if info is None else info


def _shown(steps: Iterable[Any], total: int, progress: bool) -> Iterable[Any]:
    if not progress:
        return steps
    from tqdm import tqdm
    return tqdm(steps, total=total, unit="parameter")


def _write_trained(source: UniversalSource, rules: MergeRules, name: str, output: str) -> None:
    for key in source.keys(name):
        value, beside = rules.merge(name, source.slices(name, key))
        universal.write({PARAM: value, **beside}, universal.state_file(output, name, key))
    step = source.scalars(name).get(universal.STEP)
    if step is not None:
        universal.write(step, universal.state_file(output, name, universal.STEP))


def _write_untrained(source: UniversalSource, rules: MergeRules, output: str) -> None:
    """Frozen parameters, buffers and other names of parameters, so that the folder holds the whole model in fp32."""
    for name, read in source.model.untrained(source.names).items():
        value, beside = rules.merge(name, [piece.float() for piece in read()])
        universal.write({PARAM: value.contiguous(), **beside}, universal.state_file(output, name, "fp32"))
    for name, value in source.model.buffers().items():
        if value.is_floating_point():
            universal.write({PARAM: value.float()}, universal.state_file(output, name, "fp32"))
    for alias, name in source.model.aliases().items():
        original = universal.state_file(output, name, "fp32")
        if os.path.isfile(original):
            target = universal.state_file(output, alias, "fp32")
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(original, target)


def _common(source: UniversalSource) -> dict[str, Any]:
    plain = {DS_VERSION: source.model.first.get(DS_VERSION), **source.common()}
    states = {name: {"keys": source.keys(name), "scalars": source.scalars(name)} for name in source.names}
    return universal.common_state(plain, source.param_groups(), source.step(), states)


def _write_models(source: UniversalSource, output: str) -> None:
    for path in (path for paths in source.model.paths for path in paths):
        shutil.copyfile(path, os.path.join(output, os.path.basename(path)))
    if source.tp_degree == 1:
        name, state = source.model.light(source.names)
        universal.write(state, os.path.join(output, name))


def main(args: Any = None) -> None:
    """`args`: an object with the options as attributes, as programs pass it; None reads the command line."""
    args = parse_arguments() if args is None else args
    print(f"Converting the checkpoint in {args.input_folder} to a universal checkpoint in {args.output_folder}")
    convert(args.input_folder, args.output_folder, workers=getattr(args, "num_merge_workers", 2), strict=getattr(args, "strict", True),
            inject_missing_state=getattr(args, "inject_missing_state", False), progress=True)
    print(f"Done: {args.output_folder}")


def program() -> None:
    """The command ds_to_universal."""
    run_as_program(main)


if __name__ == "__main__":
    program()
