"""Writes a universal checkpoint (deepspeed/checkpoint/universal_checkpoint.py) from a running engine, one parameter at a time."""
from __future__ import annotations

import os
from typing import Any

import torch

from deepspeed import _C
from deepspeed._C import CheckpointError
from deepspeed.checkpoint import universal_checkpoint as universal
from deepspeed.checkpoint.constants import CAT_DIM, DS_VERSION, PARAM
from deepspeed.checkpoint.on_disk import sync_tree
from deepspeed.checkpoint.universal_source import ModelFiles
from deepspeed.runtime.agreement import Together
from deepspeed.runtime.checkpoint_state import StateReader, _scale_history, optimizer_groups, param_groups, scaler_entries


@torch.no_grad()
def save_universal(engine: Any, save_dir: Any, tag: Any, client_state: dict) -> bool:
    """engine.save_universal_checkpoint. Rank r writes every world-th parameter, all ranks take part in reading each."""
    if engine.live_core("save_universal_checkpoint") is None or engine._stepper is None:
        raise CheckpointError("save_universal_checkpoint: the engine has no optimizer, so there are no states to write: use save_checkpoint")
    tag = str(f"global_step{engine.global_steps}_universal" if tag is None else tag)
    output = os.path.join(os.path.abspath(save_dir), tag)
    partial = _C.saving_folder(*os.path.split(output))
    together = Together(engine, f"save_universal_checkpoint({output})", CheckpointError)
    if engine.global_rank == 0:
        with together.attempt():
            universal.begin(output)
    together.agree()
    try:
        _write_together(engine, partial, output, client_state, together)
    except BaseException:
        if engine.global_rank == 0:
            universal.abandon(partial)
        raise
    return True


def _write_together(engine: Any, partial: str, output: str, client_state: dict, together: Together) -> None:
    states = _write_parameters(engine, partial, together)
    engine._save_model_states(_Folder(partial, together), client_state, False, with_optimizer=False)
    together.agree()  # all files of all ranks are there
    if engine.local_rank == 0 and engine.global_rank != 0:
        with together.attempt():
            sync_tree(partial)  # rank 0 does it below, but only a machine of its own can for what it wrote
    together.agree()
    if engine.global_rank == 0:
        with together.attempt():
            universal.write(_common(engine, states), universal.optimizer_state_file(partial))
            models = ModelFiles(partial)
            name, light = models.light(states)
            universal.write(light, os.path.join(partial, name))
            _write_rest(models, states, partial)
            universal.move(partial, output)
    together.agree()


class _Folder:
    """Where the engine's model states go: as CheckpointSave takes them."""

    def __init__(self, path: str, together: Together) -> None:
        self._path, self._together = path, together

    def write(self, name: str, state: Any) -> None:
        with self._together.attempt():
            universal.write(state, os.path.join(self._path, name))


def _write_parameters(engine: Any, output: str, together: Together) -> dict[str, dict]:
    """What was written, by parameter."""
    reader, states = StateReader(engine), {}
    ranks, rank = engine.communicator.size, engine.communicator.rank
    scalars = _scalars(engine, reader)
    for number, entry in enumerate(entry for group in optimizer_groups(engine) for entry in group):
        names = reader.names(entry.group) if reader.exists else {}
        written = ["fp32"]
        for key, name in {"fp32": "fp32", **names}.items():
            value = reader.full(entry.index, key)
            if value is None:
                continue
            written += [name] if key != "fp32" else []
            if number % ranks == rank:
                with together.attempt():
                    universal.write({PARAM: value.view(entry.shape), CAT_DIM: 0}, universal.state_file(output, entry.name, name))
        own = scalars[entry.name] if len(written) > 1 else {}
        if number % ranks == rank and universal.STEP in own:
            with together.attempt():
                universal.write(own[universal.STEP], universal.state_file(output, entry.name, universal.STEP))
        states[entry.name] = {"keys": written, "scalars": own}
    return states


def _scalars(engine: Any, reader: StateReader) -> dict[str, dict]:
    """By parameter, the states that are one number. An optimizer of torch has them only on ranks that hold a piece of the parameter."""
    found = {entry.name: reader.scalars([entry]) for group in optimizer_groups(engine) for entry in group}
    if reader.native or engine.communicator.size == 1:
        return found
    everyone: list[Any] = [None] * engine.communicator.size
    torch.distributed.all_gather_object(everyone, found, group=engine.data_parallel_group)
    return {name: next((other[name] for other in everyone if other[name]), {}) for name in found}


def _common(engine: Any, states: dict[str, dict]) -> dict[str, Any]:
    from deepspeed import __version__
    step = next((state["scalars"][universal.STEP] for state in states.values() if universal.STEP in state["scalars"]), None)
    names = [[entry.name for entry in group] for group in optimizer_groups(engine)]
    starts = [sum(map(len, names[:number])) for number in range(len(names))]
    groups = param_groups(engine, lambda number: list(range(starts[number], starts[number] + len(names[number]))))
    scale = scaler_entries(engine) if engine._config.shards_optimizer else _scale_history(engine)
    plain = {**scale, "zero_stage": engine.zero_optimization_stage(), "clip_grad": engine.gradient_clipping(), DS_VERSION: __version__}
    return universal.common_state(plain, groups, step, states)


def _write_rest(models: ModelFiles, trained: dict[str, dict], output: str) -> None:
    """Frozen parameters and buffers, so that the folder holds the whole model in fp32."""
    values = {name: read()[0] for name, read in models.untrained(trained).items()}
    for name, value in {**values, **models.buffers()}.items():
        if value.is_floating_point():
            universal.write({PARAM: value.float().contiguous()}, universal.state_file(output, name, "fp32"))
