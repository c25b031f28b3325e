"""A training step leaves no reference cycle behind: what a step used is free when the step is over.

A cycle through an autograd graph would live until Python's collector happens to run, and the memory with it.
"""
from __future__ import annotations

import gc
import os
import weakref

import pytest

from common import single_rank
from models import batch, config, make_model


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_leaves_nothing_to_the_garbage_collector(stage):
    import deepspeed
    engine = deepspeed.initialize(model=make_model(), config=config(stage))[0]

    def step(index: int) -> None:
        engine.backward(engine(*batch(index)))
        engine.step()

    for index in range(3):
        step(index)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        step(3)
        gc.collect()
        left = [f"{type(item).__name__}: {item!r:.100}" for item in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    engine.destroy()
    assert left == []


@pytest.mark.parametrize("end", ["destroy", "drop"])
def test_the_collector_is_off_while_an_engine_wants_it_off(end):
    import deepspeed
    assert gc.isenabled()
    try:
        engine = deepspeed.initialize(model=make_model(), config=config(1, disable_python_gc=True))[0]
        assert not gc.isenabled()
        other = deepspeed.initialize(model=make_model(), config=config(1))[0]
        other.destroy()
        assert not gc.isenabled()
        if end == "destroy":
            engine.destroy()
        else:
            del engine
            gc.collect()
        assert gc.isenabled()
    finally:
        gc.enable()


def _deleted_files() -> int:
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found += "(deleted)" in os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:  # the listing's own
            continue
    return found


@pytest.mark.parametrize("how", ["engine", "zero.Init"])
@pytest.mark.parametrize("place", ["memory", "files"])
@pytest.mark.parametrize("ends", [True, False])
def test_a_model_that_is_dropped_takes_its_units_and_files_along(how, place, ends, tmp_path):
    import deepspeed
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    if place == "files":
        zero["offload_param"] = {"device": "nvme", "nvme_path": str(tmp_path), "max_in_cpu": 0}
    settings = config(3, zero_optimization=zero)

    def build() -> list:
        with deepspeed.zero.Init(config_dict_or_path=settings, enabled=how == "zero.Init"):
            model = make_model()
        engine = deepspeed.initialize(model=model, config=settings)[0]
        engine.backward(engine(*batch(0)))
        engine.step()
        watched = [weakref.ref(thing) for param in model.parameters() for thing in (param, slot_of(param).unit) if thing is not None]
        if ends:
            engine.destroy()
        return watched

    from deepspeed.runtime.zero.parameter import slot_of
    before = _deleted_files() if os.path.isdir("/proc/self/fd") else 0
    watched = build()
    gc.collect()
    assert watched and [ref() for ref in watched if ref() is not None] == []
    if os.path.isdir("/proc/self/fd"):
        assert _deleted_files() == before
