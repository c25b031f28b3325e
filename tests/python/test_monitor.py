"""What people look at: monitors, their events, timer lines, memory reports, profiler ranges and the communications summary."""
from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import watched
from common import free_port, ranks, run_ranks, single_rank
from models import config, make_model
from models import train as train_model

from deepspeed.monitor.config import SECTIONS, CometConfig, CSVConfig, DeepSpeedMonitorConfig, get_monitor_config
from deepspeed.monitor.csv_monitor import csvMonitor
from deepspeed.monitor.monitor import MonitorMaster

REFERENCE = os.environ.get("DEEPSCALE_REFERENCE_PYTHON")
TIMES = [f"Train/Samples/elapsed_time_ms_{part}" for part in ("forward", "backward", "backward_inner", "backward_allreduce", "step")]


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


def csv_section(folder) -> dict:
    return {"csv_monitor": {"enabled": True, "output_path": str(folder), "job_name": "run"}}


def rows(path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


# ---------------------------------------------------------------- destinations

def test_csv_files_have_a_header_and_a_row_for_each_event(tmp_path):
    master = MonitorMaster(get_monitor_config(csv_section(tmp_path)))
    assert master.enabled and master.tb_monitor is None
    master.write_events([("Train/Samples/lr", 0.5, 4), ("grad norm", 2, 4)])
    master.write_events([("Train/Samples/lr", 0.25, 8)])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["Train_Samples_lr.csv", "grad_norm.csv"]
    assert (tmp_path / "run/Train_Samples_lr.csv").read_bytes() == b"step,lr\r\n4,0.5\r\n8,0.25\r\n"
    assert rows(tmp_path / "run/grad_norm.csv") == [["step", "grad norm"], ["4", "2"]]
    # A run that goes on in the same folder appends, and its files stay one table.
    MonitorMaster(get_monitor_config(csv_section(tmp_path))).write_events([("Train/Samples/lr", 0.125, 12)])
    assert rows(tmp_path / "run/Train_Samples_lr.csv") == [["step", "lr"], ["4", "0.5"], ["8", "0.25"], ["12", "0.125"]]


def test_a_folder_that_cannot_be_made_is_named_with_its_key(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="csv_monitor.output_path: the folder cannot be made .*file/run"):
        MonitorMaster(get_monitor_config(csv_section(tmp_path / "file")))
    monitor = csvMonitor(get_monitor_config(csv_section(tmp_path)).csv_monitor)
    (tmp_path / "run/lr.csv").mkdir()
    with pytest.raises(OSError, match="csv_monitor.output_path: an event cannot be written .*lr.csv"):
        monitor.write_events([("lr", 0.5, 4)])


@pytest.mark.parametrize("section,package", [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("comet", "comet_ml>=3.41.0")])
def test_a_missing_package_is_named_with_the_key(section, package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package.partition(">")[0], None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportError, match=rf"{section}.enabled is true.*pip install '{package}', or set {section}.enabled to false"):
        MonitorMaster(get_monitor_config({section: {"enabled": True}}))
    MonitorMaster(get_monitor_config({section: {"enabled": False}}))


def test_an_old_comet_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "comet_ml", stand_in("comet_ml", __version__="3.9.12"))
    with pytest.raises(ImportError, match="the installed comet_ml 3.9.12 is too old: pip install --upgrade 'comet_ml>=3.41.0'"):
        MonitorMaster(get_monitor_config({"comet": {"enabled": True}}))


def stand_in(name: str, **members) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module


def test_tensorboard_gets_scalars_in_its_folder(monkeypatch, tmp_path):
    written: list = []

    class SummaryWriter:

        def __init__(self, log_dir):
            written.append(log_dir)

        def add_scalar(self, *event):
            written.append(event)

        def flush(self):
            written.append("flush")

    monkeypatch.setitem(sys.modules, "tensorboard", stand_in("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in("torch.utils.tensorboard", SummaryWriter=SummaryWriter))
    master = MonitorMaster(get_monitor_config({"tensorboard": {"enabled": True, "output_path": str(tmp_path), "job_name": "tb"}}))
    master.write_events([("Train/Samples/lr", 0.5, 4), ("Train/Samples/train_loss", 2.0, 4)])
    assert written == [str(tmp_path / "tb"), ("Train/Samples/lr", 0.5, 4), ("Train/Samples/train_loss", 2.0, 4), "flush"]
    assert (tmp_path / "tb").is_dir()


def test_tensorboards_own_reader_finds_the_events(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    master = MonitorMaster(get_monitor_config({"tensorboard": {"enabled": True, "output_path": str(tmp_path), "job_name": "tb"}}))
    master.write_events([("Train/Samples/lr", 0.5, 4), ("Train/Samples/lr", 0.25, 8)])
    reader = EventAccumulator(str(tmp_path / "tb"))
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("Train/Samples/lr")] == [(4, 0.5), (8, 0.25)]


def test_wandb_gets_a_run_and_its_events(monkeypatch):
    calls: list = []
    module = stand_in("wandb", init=lambda **kwargs: calls.append(kwargs),
                      log=lambda data, step=None, commit=None: calls.append((data, step, commit)))
    monkeypatch.setitem(sys.modules, "wandb", module)
    master = MonitorMaster(get_monitor_config({"wandb": {"enabled": True, "team": "t", "group": "g", "project": "p"}}))
    master.write_events([("Train/Samples/lr", 0.5, 4)])
    master.wandb_monitor.log({"x": 1}, commit=True)
    assert calls == [{"project": "p", "group": "g", "entity": "t"}, ({"Train/Samples/lr": 0.5}, 4, None), ({"x": 1}, None, True)]


def test_comet_gets_an_experiment_and_a_part_of_the_events(monkeypatch):
    calls: list = []
    experiment = SimpleNamespace(set_name=lambda name: calls.append(name),
                                 log_metric=lambda name, value, step: calls.append((name, value, step)))

    def start(**kwargs):
        calls.append(kwargs)
        return experiment

    monkeypatch.setitem(sys.modules, "comet_ml", stand_in("comet_ml", __version__="3.41.0", start=start))
    given = {"enabled": True, "samples_log_interval": 10, "project": "p", "workspace": "w", "api_key": "k", "experiment_name": "n",
             "experiment_key": "e", "online": False, "mode": "create"}
    master = MonitorMaster(get_monitor_config({"comet": given}))
    assert master.comet_monitor.experiment is experiment and master.comet_monitor.samples_log_interval == 10
    assert calls == [{"api_key": "k", "project": "p", "workspace": "w", "experiment_key": "e", "mode": "create", "online": False}, "n"]
    for samples in (4, 8, 12, 16, 20, 24):
        master.write_events([("lr", 0.1, samples), *([("loss", 1.0, samples)] if samples > 4 else [])])
    assert [step for name, _, step in calls[2:] if name == "lr"] == [4, 16]
    assert [step for name, _, step in calls[2:] if name == "loss"] == [8, 20]


def body_only_rank_0_writes(folder: str) -> None:
    import torch.distributed as dist
    dist.init_process_group("gloo")
    master = MonitorMaster(get_monitor_config({**csv_section(Path(folder) / str(dist.get_rank())), "wandb": {"enabled": dist.get_rank() > 0}}))
    assert master.enabled and (master.csv_monitor is None) == (dist.get_rank() > 0) and master.wandb_monitor is None
    master.write_events([("lr", 0.5, 4)])
    dist.barrier()
    assert sorted(path.name for path in Path(folder).iterdir()) == ["0"]


def test_only_rank_0_writes(tmp_path):
    run_ranks(body_only_rank_0_writes, 2, {"folder": str(tmp_path)})


# ---------------------------------------------------------------- names and configuration

@pytest.mark.parametrize("path,names", [
    ("monitor.monitor", "Monitor MonitorMaster"), ("monitor.csv_monitor", "csvMonitor"), ("monitor.tensorboard", "TensorBoardMonitor"),
    ("monitor.wandb", "WandbMonitor"), ("monitor.comet", "CometMonitor EventsLogScheduler"),
    ("monitor.config", "get_monitor_config DeepSpeedMonitorConfig TensorBoardConfig WandbConfig CSVConfig CometConfig"),
    ("monitor.utils", "check_tb_availability check_wandb_availability check_comet_availability"),
    ("profiling.config", "DeepSpeedFlopsProfilerConfig"), ("profiling.constants", "FLOPS_PROFILER FLOPS_PROFILER_PROFILE_STEP_DEFAULT"),
    ("profiling.flops_profiler", "FlopsProfiler get_model_profile"),
    ("profiling.flops_profiler.profiler", "FlopsProfiler get_model_profile number_to_string get_module_flops get_module_macs")])
def test_old_paths(path, names):
    import deepspeed
    found = deepspeed
    for part in path.split("."):
        found = getattr(found, part)
    assert found is importlib.import_module(f"deepspeed.{path}")
    assert all(hasattr(found, name) for name in names.split()) and "not built" not in str([getattr(found, name).__doc__ for name in names.split()])



def test_sections_have_the_cores_defaults_and_checks():
    made = DeepSpeedMonitorConfig(csv_monitor={"enabled": True, "job_name": "auto"})
    assert made.enabled and made.csv_monitor.enabled and made.csv_monitor.job_name == "DeepSpeedJobName" and made.csv_monitor.output_path == ""
    assert not made.tensorboard.enabled and made.wandb.project == "deepspeed" and CometConfig().samples_log_interval == 100
    assert not DeepSpeedMonitorConfig().enabled and not CSVConfig(enabled="auto").enabled
    with pytest.raises(ValueError, match="csv_monitor.jobname: unknown key; did you mean 'job_name'"):
        CSVConfig(jobname="x")
    with pytest.raises(ValueError, match="csv_monitor.enabled must be true or false, found 'yes'"):
        CSVConfig(enabled="yes")
    with pytest.raises(ValueError, match="'csv' is not a monitor: the sections are tensorboard, wandb, csv_monitor, comet"):
        DeepSpeedMonitorConfig(csv={})


def test_the_engines_configuration_says_whether_a_monitor_is_on():
    from deepspeed.runtime.config import DeepSpeedConfig
    made = DeepSpeedConfig(config(1))
    assert not made.monitor_config.enabled and set(SECTIONS) <= set(vars(made.monitor_config))
    assert made.flops_profiler_config is made.flops_profiler


# ---------------------------------------------------------------- the engine's events

def run_watched(tmp_path, **more) -> dict:
    return watched.main({"stage": 1, "steps": 3, "accumulate": 1, "folder": str(tmp_path), "sections": csv_section("logs"), **more})


@pytest.fixture
def in_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_step_writes_its_events_at_the_samples_seen(in_folder, capfd):
    answer = run_watched(in_folder, accumulate=2)
    assert answer["events"] == [(f"Train/Samples/{name}", step) for step in (4, 8, 12) for name in ("train_loss", "lr")]
    losses = answer["losses"]
    table = rows("logs/run/Train_Samples_train_loss.csv")
    assert table[0] == ["step", "train_loss"] and [row[0] for row in table[1:]] == ["4", "8", "12"]
    assert [float(row[1]) for row in table[1:]] == pytest.approx([(losses[i] + losses[i + 1]) / 2 for i in (0, 2, 4)], rel=1e-6)
    assert rows("logs/run/Train_Samples_lr.csv")[1:] == [["4", "0.0"], ["8", "0.0625"], ["12", "0.125"]]
    assert answer["printed"] == [] and capfd.readouterr().out == ""  # quiet by default


def test_times_are_events_where_they_are_measured(in_folder):
    answer = run_watched(in_folder, steps=2, sections={**csv_section("logs"), "wall_clock_breakdown": True})
    assert [event for event in answer["events"] if "elapsed" in event[0]] == [(name, step) for step in (2, 4) for name in TIMES]
    for line, step in zip(answer["printed"], ("2", "4"), strict=True):
        printed = dict(part.split(": ") for part in line.split(" | ")[1:])
        for name, event in zip(("fwd", "bwd", "bwd_inner", "bwd_allreduce", "step"), TIMES, strict=True):
            values = dict(rows(f"logs/run/{event.replace('/', '_')}.csv"))
            assert float(printed[name]) == pytest.approx(float(values[step]), abs=0.006) and float(values[step]) > 0


def test_the_loss_scale_is_an_event_of_fp16(in_folder):
    sections = {**csv_section("logs"), "fp16": {"enabled": True, "initial_scale_power": 60, "hysteresis": 1}}
    engine = watched.engine_with(watched.model(), watched.configuration(1, 1), sections)
    for _ in range(2):  # the first ones overflow: the scale halves
        engine.backward(engine(torch.ones(2, 6).half()).float().sum())
        engine.step()
    assert engine.skipped_steps == 2
    assert rows("logs/run/Train_Samples_loss_scale.csv") == [["step", "loss_scale"], ["2", str(2.0**59)], ["4", str(2.0**58)]]
    assert [label for label, _, _ in engine.summary_events] == [f"Train/Samples/{name}" for name in ("train_loss", "lr", "loss_scale")]
    engine.destroy()


def test_a_backward_of_the_users_own_has_times_and_no_loss(in_folder):
    engine = watched.engine_with(watched.model(), watched.configuration(1, 1), {**csv_section("logs"), "wall_clock_breakdown": True})
    engine(torch.ones(2, 6)).mean().backward()
    engine.step()
    events = {label: value for label, value, _ in engine.summary_events}
    assert list(events) == ["Train/Samples/lr", *TIMES] and all(events[name] > 0 for name in TIMES)
    assert events[TIMES[1]] >= events[TIMES[2]] > 0
    engine.destroy()


def body_events_of_two_ranks(folder: str) -> None:
    import torch.distributed as dist
    os.chdir(folder)
    engine = watched.engine_with(watched.model(), watched.configuration(2, 1), csv_section("logs"))
    losses = watched.train(engine, 2, rank=dist.get_rank())
    if dist.get_rank() == 0:
        table = rows("logs/run/Train_Samples_train_loss.csv")
        assert [int(row[0]) for row in table[1:]] == [4, 8]  # two samples a rank
        assert [float(row[1]) for row in table[1:]] == pytest.approx(losses)
    else:
        assert engine.monitor.enabled and engine.summary_events == []
    engine.backward(engine(torch.ones(2, 6)).mean())
    assert len(engine._window_losses) == (1 if dist.get_rank() == 0 else 0)
    engine.step()
    engine.destroy()


def test_events_of_two_ranks_are_rank_0s(tmp_path):
    run_ranks(body_events_of_two_ranks, 2, {"folder": str(tmp_path)})


@pytest.mark.skipif(not REFERENCE, reason="DEEPSCALE_REFERENCE_PYTHON names no interpreter with DeepSpeed")
def test_events_files_and_lines_are_those_of_deepspeed(tmp_path):
    sections = {**csv_section("logs"), "wall_clock_breakdown": True, "memory_breakdown": True}
    answers = []
    for python in (sys.executable, REFERENCE):
        folder = tmp_path / str(len(answers))
        folder.mkdir()
        job = {"stage": 1, "steps": 3, "accumulate": 2, "folder": str(folder), "sections": sections}
        environment = {**os.environ, "MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
                       "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"}
        if python == REFERENCE:
            environment.pop("PYTHONPATH", None)
        run = subprocess.run([python, watched.__file__, json.dumps(job)], env=environment, capture_output=True, text=True, timeout=300)
        lines = [line for line in run.stdout.splitlines() if line.startswith("ANSWER ")]
        assert lines, run.stdout[-2000:] + run.stderr[-2000:]
        answers.append(json.loads(lines[0].removeprefix("ANSWER ")))
    ours, theirs = answers
    loss = ["Train/Samples/train_loss", 4], ["Train/Samples/train_loss", 8], ["Train/Samples/train_loss", 12]
    assert [event for event in ours["events"] if event not in loss] == theirs["events"]  # 0.19.8 writes it in pipelines alone
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert set(ours["files"]) - set(theirs["files"]) == {"logs/run/Train_Samples_train_loss.csv"}
    for name, text in theirs["files"].items():
        if "elapsed" in name:  # other times, in the same rows
            assert [row.split(",")[0] for row in ours["files"][name].splitlines()] == [row.split(",")[0] for row in text.splitlines()], name
        else:
            assert ours["files"][name] == text, name
    assert shapes(ours["printed"]) == [line for line in shapes(theirs["printed"]) if "optimizer_" not in line]


def shapes(lines: list[str]) -> list[str]:
    """Lines without their numbers; memory sizes are set otherwise."""
    kept = []
    for line in lines:
        if line.startswith("MA "):
            kept.append(" ".join(word for word in line.split() if word.startswith(("MA", "Max", "CA"))))
        else:
            kept.append("".join(c for c in line.split(" | mem_allocated")[0] if not c.isdigit() and c != "."))
    return kept


# ---------------------------------------------------------------- lines, memory, ranges

def test_micro_steps_have_lines_of_their_own_when_there_are_several(in_folder):
    answer = run_watched(in_folder, steps=1, accumulate=2, sections={"wall_clock_breakdown": True})
    assert [line.split(" | ")[1].split(":")[0] for line in answer["printed"]] == ["fwd_microstep", "fwd_microstep", "fwd"]
    micro = [float(line.split("fwd_microstep: ")[1].split(" ")[0]) for line in answer["printed"][:2]]
    assert float(answer["printed"][2].split("fwd: ")[1].split(" ")[0]) == pytest.approx(sum(micro), abs=0.2)


def test_the_timers_of_the_last_step_can_be_read(in_folder):
    engine = watched.engine_with(watched.model(), watched.configuration(1, 1), {"wall_clock_breakdown": True})
    watched.train(engine, 1)
    times = engine.get_wall_clock_timers()
    names = ["fwd", "bwd", "bwd_inner", "bwd_allreduce", "step"]
    assert list(times) == names + [f"{name}_microstep" for name in names] and all(value > 0 for value in times.values())
    assert times["bwd"] >= times["bwd_inner"]
    engine.destroy()


def test_memory_breakdown_reports_around_each_part(in_folder):
    answer = run_watched(in_folder, steps=1, sections={"memory_breakdown": True})
    parts = [f"Engine {when} {what}" for what in ("forward", "backward", "step") for when in ("before", "after")]
    assert [line for line in answer["printed"] if line.startswith("Engine")] == parts
    sizes = [line.split() for line in answer["printed"] if line.startswith("MA ")]
    assert len(sizes) == 6 and sizes[0][::3] == ["MA", "Max_MA", "CA", "Max_CA"] and float(sizes[0][1]) > 0
    assert sum(line.startswith("CPU Virtual Memory:  used = ") for line in answer["printed"]) == (6 if sys.platform == "linux" else 0)


def test_memory_reports_are_only_printed_when_asked_for(capfd):
    from deepspeed.runtime.utils import memory_status, see_memory_usage
    see_memory_usage("quiet")
    assert capfd.readouterr().out == ""
    see_memory_usage("now", force=True)
    memory_status("later")
    printed = capfd.readouterr().out.splitlines()
    assert printed[0] == "now" and "later" in printed and printed[1].startswith("MA ")


@pytest.mark.parametrize("stage", [1, 3])
def test_torchs_profiler_shows_the_parts_of_a_step_and_units(stage):
    import deepspeed
    engine = deepspeed.initialize(model=make_model(), config=config(stage))[0]
    train_model(engine, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        train_model(engine, 2)
    seen: dict[str, int] = {}
    for event in profile.events():
        seen[event.name] = seen.get(event.name, 0) + 1
    for part in ("forward", "backward", "allreduce_gradients", "step"):
        assert seen[f"DeepSpeedEngine.{part}"] == 2
    units = {"up", "down", "embedding", "frozen", "norm"}
    gathers = {name for name in seen if name.startswith("gather ")}
    assert gathers == ({f"gather {unit}" for unit in units} if stage == 3 else set())
    assert stage == 1 or seen["gather up"] == 4  # forward and backward of both steps
    assert any(name.startswith("update ") for name in seen) and (stage == 1 or {"update up", "update down"} <= set(seen))
    engine.destroy()


@ranks(2)
def test_reductions_show_in_the_profiler():
    import deepspeed
    engine = deepspeed.initialize(model=make_model(), config=config(3))[0]
    train_model(engine, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        train_model(engine, 1)
    assert {"reduce up", "reduce down"} <= {event.name for event in profile.events()}
    engine.destroy()


def test_instrumented_functions_show_in_the_profiler():
    from deepspeed.utils import instrument_w_nvtx

    @instrument_w_nvtx
    def doubled(x):
        return 2 * x

    assert doubled(2) == 4
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        assert doubled(3) == 6
    assert any(event.name.endswith("doubled") for event in profile.events())


# ---------------------------------------------------------------- communication

def body_the_summary_counts_the_engines_collectives() -> None:
    import contextlib
    import io

    import deepspeed
    import torch.distributed as dist
    engine = deepspeed.initialize(model=make_model(), config=config(2, comms_logger={"enabled": True, "prof_all": False, "prof_ops": ["all_reduce"]}))[0]
    before = deepspeed.comm.log_summary(return_dict=True)["bytes_moved"]
    train_model(engine, 2, rank=dist.get_rank())
    deepspeed.comm.all_reduce(torch.ones(4))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        facts = deepspeed.comm.log_summary(return_dict=True)
    assert list(facts["summary"]) == ["all_reduce"]  # switched on by the engine's configuration
    parameters = sum(p.numel() for p in engine.module.parameters() if p.requires_grad)
    name, = facts["bytes_moved"]
    # Each of two steps sends half of the gradients and half of the new parameters to the other rank, in fp32.
    assert facts["bytes_moved"][name] - before[name] >= 2 * (2 * parameters * 4) // 2
    assert ("sent by rank 0 in all" in printed.getvalue()) == (dist.get_rank() == 0) and (name in printed.getvalue()) == (dist.get_rank() == 0)
    engine.destroy()


def test_the_communications_summary_counts_the_engines_collectives():
    run_ranks(body_the_summary_counts_the_engines_collectives, 2)


def body_the_summary_has_the_engines_operations(stage: int) -> None:
    import deepspeed
    import torch.distributed as dist
    engine = deepspeed.initialize(model=make_model(), config=config(stage, comms_logger={"enabled": True}))[0]
    deepspeed.comm.reset_log()
    losses = train_model(engine, 3, rank=dist.get_rank())
    facts = deepspeed.comm.log_summary(return_dict=True, show_straggler=True)
    wanted = {0: {"all_reduce"}}.get(stage, {"reduce_scatter_tensor", "all_gather_into_tensor"})
    assert wanted <= set(facts["summary"]) == set(facts["straggler_analysis"]) == set(deepspeed.comm.get_logged_comm_ops())
    gradients = sum(param.numel() for param in engine.module.parameters() if param.requires_grad) * 4 if stage < 3 else 0
    name = "all_reduce" if stage == 0 else "reduce_scatter_tensor"
    size, record = max(facts["summary"][name].items())
    assert size >= gradients and record["count"] >= 3 and record["total_latency_ms"] > 0 and record["busbw_avg_gbps"] > 0
    deepspeed.comm.configure(enabled=False)
    count = deepspeed.comm.get_comm_operation_count()
    more = train_model(engine, 3, rank=dist.get_rank())
    assert deepspeed.comm.get_comm_operation_count() == count
    engine.destroy()
    plain = deepspeed.initialize(model=make_model(), config=config(stage))[0]
    assert train_model(plain, 3, rank=dist.get_rank()) == losses and train_model(plain, 3, rank=dist.get_rank()) == more
    assert deepspeed.comm.get_comm_operation_count() == count


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
def test_the_communications_summary_has_the_engines_operations(stage):
    """By operation and size, as DeepSpeed's; the losses are those without the logger."""
    run_ranks(body_the_summary_has_the_engines_operations, 2, {"stage": stage})
