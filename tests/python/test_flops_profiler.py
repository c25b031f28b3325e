"""The flops profiler: what is counted, that nothing is left behind, what is printed, and the engine's profile of one of its steps."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import profiled
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import watched
from common import run_ranks, single_rank

from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
from deepspeed.profiling.flops_profiler import (FlopsProfiler, bytes_to_string, duration_to_string, flops_to_string, get_model_profile,
                                                get_module_duration, get_module_flops, get_module_macs, macs_to_string, number_to_string,
                                                params_to_string)
from deepspeed.profiling.flops_profiler.counting import FIGURES

REFERENCE = os.environ.get("DEEPSCALE_REFERENCE_PYTHON")


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    single_rank(monkeypatch)


class Calls(nn.Module):
    """A module whose forward is a function."""

    def __init__(self, function, *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *inputs):
        return self.function(*inputs)


def counted(function, *inputs) -> tuple[int, int]:
    """(flops, macs) of function(*inputs)."""
    return get_model_profile(Calls(function), args=list(inputs), print_profile=False, as_string=False, warm_up=0)[:2]


# ---------------------------------------------------------------- formulas

A, B, ROW = torch.ones(3, 4), torch.ones(4, 5), torch.ones(4)
STACK = torch.ones(2, 3, 4)
PRODUCTS = [
    (lambda: F.linear(STACK, torch.ones(7, 4), torch.ones(7)), 2 * 3 * 4 * 7, 0),
    (lambda: torch.matmul(A, B), 3 * 4 * 5, 0), (lambda: A @ B, 3 * 4 * 5, 0), (lambda: A.matmul(other=B), 3 * 4 * 5, 0),
    (lambda: torch.mm(input=A, mat2=B), 3 * 4 * 5, 0), (lambda: torch.bmm(STACK, torch.ones(2, 4, 5)), 2 * 3 * 4 * 5, 0),
    (lambda: A @ ROW, 3 * 4, 0), (lambda: torch.ones(3) @ A, 3 * 4, 0),  # with a vector
    (lambda: A @ torch.ones(6, 4, 5), 6 * 3 * 4 * 5, 0),  # the first operand is broadcast
    (lambda: torch.addmm(torch.ones(5), A, B), 3 * 4 * 5, 15), (lambda: torch.ones(3, 5).addmm(mat1=A, mat2=B), 3 * 4 * 5, 15),
    (lambda: torch.baddbmm(torch.ones(1, 1, 5), STACK, torch.ones(2, 4, 5)), 2 * 3 * 4 * 5, 30),
    (lambda: F.scaled_dot_product_attention(torch.ones(2, 6, 3, 4), torch.ones(2, 6, 5, 4), torch.ones(2, 6, 5, 8)), 2 * 6 * 3 * 5 * (4 + 8), 0),
    (lambda: F.conv1d(torch.ones(2, 4, 9), torch.ones(6, 2, 3), torch.ones(6), 2, 1, groups=2), 2 * 6 * 5 * 3 * 2, 2 * 6 * 5),
    (lambda: F.conv2d(torch.ones(1, 3, 8, 8), torch.ones(5, 3, 4, 4), padding="same"), 5 * 64 * 16 * 3, 0),  # an even kernel
    (lambda: F.conv2d(torch.ones(3, 8, 8), torch.ones(5, 3, 3, 3)), 5 * 36 * 9 * 3, 0),  # without a batch
    (lambda: F.conv3d(torch.ones(1, 1, 4, 4, 4), torch.ones(2, 1, 2, 2, 2), stride=[2, 2, 2]), 2 * 8 * 8, 0),
    (lambda: F.conv_transpose2d(torch.ones(1, 4, 3, 3), torch.ones(4, 1, 2, 2), torch.ones(4), stride=2, groups=4), 4 * 9 * 4, 4 * 36),
]


@pytest.mark.parametrize("case", range(len(PRODUCTS)))
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_products_take_two_operations_for_each_mac(case):
    function, macs, further = PRODUCTS[case]
    assert counted(lambda _: function(), A) == (2 * macs + further, macs)


IMAGE = torch.ones(2, 4, 6, 6)
ESTIMATES = [
    (lambda: F.relu(A), 12), (lambda: F.gelu(A, approximate="tanh"), 12), (lambda: F.leaky_relu(A, 0.1, True), 12), (lambda: F.silu(A), 12),
    (lambda: F.elu(A), 12), (lambda: F.relu6(A), 12), (lambda: F.prelu(A, torch.ones(1)), 12), (lambda: F.softmax(input=A, dim=-1), 12),
    (lambda: F.layer_norm(A, (4,)), 48), (lambda: F.layer_norm(A, (4,), ROW, ROW), 60),
    (lambda: F.group_norm(IMAGE, 2), 4 * 288), (lambda: F.instance_norm(IMAGE, weight=ROW), 5 * 288),
    (lambda: F.batch_norm(IMAGE, ROW, ROW, training=True), 4 * 288), (lambda: F.batch_norm(IMAGE, ROW, ROW, ROW, ROW, True), 5 * 288),
    (lambda: F.batch_norm(IMAGE, ROW, ROW), 288), (lambda: F.batch_norm(IMAGE, ROW, ROW, ROW, ROW), 2 * 288),
    (lambda: F.max_pool2d(IMAGE, 2, return_indices=True), 288), (lambda: F.avg_pool1d(A, 2), 12), (lambda: F.adaptive_avg_pool2d(IMAGE, 1), 288),
    (lambda: F.interpolate(IMAGE, size=(3, 5)), 2 * 4 * 15), (lambda: F.interpolate(IMAGE, None, 2.0), 4 * 288),
    (lambda: F.upsample(IMAGE, scale_factor=2), 4 * 288),
    (lambda: torch.mul(A, 2), 12), (lambda: torch.add(STACK, torch.ones(4)), 24), (lambda: ROW.mul(STACK), 24), (lambda: A.add(A, alpha=2), 12),
    (lambda: F.embedding(torch.zeros(3, dtype=torch.long), A), 0), (lambda: F.dropout(A), 0), (lambda: A + A * 2, 0),
]


@pytest.mark.parametrize("case", range(len(ESTIMATES)))
@pytest.mark.filterwarnings("ignore:`nn.functional.upsample` is deprecated")
def test_the_rest_is_estimated_by_element(case):
    function, flops = ESTIMATES[case]
    assert counted(lambda _: function(), A) == (flops, 0)


EINSUMS = [
    ("bij, bkj -> bik", [(2, 3, 4), (2, 5, 4)], 2 * 120, 120), ("ij,jk", [(3, 4), (4, 5)], 120, 60), ("ij,ij->ij", [(3, 4)] * 2, 12, 0),
    ("ij->i", [(3, 4)], 24, 0), ("...ij,jk->...ik", [(6, 2, 3, 4), (4, 5)], 2 * 720, 720), ("...i,...i", [(3, 4), (1, 4)], 24, 12),
    ("ij,jk,kl->il", [(3, 4), (4, 5), (5, 6)], 2 * (60 + 90), 150),  # (a b) c is cheaper than a (b c)
]


@pytest.mark.parametrize("equation,shapes,flops,macs", EINSUMS)
def test_einsum_takes_its_cheapest_order(equation, shapes, flops, macs):
    tensors = [torch.ones(shape) for shape in shapes]
    assert counted(lambda *inputs: torch.einsum(equation, *inputs), *tensors) == (flops, macs)
    assert counted(lambda *inputs: torch.einsum(equation, list(inputs)), *tensors) == (flops, macs)


def test_einsum_with_indices_as_numbers():
    assert counted(lambda a, b: torch.einsum(a, [0, 1], b, [1, 2], [0, 2]), A, B) == (120, 60)
    assert counted(lambda a, b: torch.einsum(a, [..., 1], b, [1, 2]), A, B) == (120, 60)


@pytest.mark.parametrize("kind,joining,gates", [(nn.RNN, 1, 1), (nn.GRU, 7, 3), (nn.LSTM, 10, 4)])
def test_recurrent_modules_by_step_layer_and_direction(kind, joining, gates):
    steps, wide, hidden = 3 * 4, 5, 7

    def layer(width, directions=1):
        products = gates * hidden * (width + hidden)
        return directions * steps * (2 * products + joining * hidden), directions * steps * products

    def profile(model, *inputs):
        return get_model_profile(model, args=list(inputs), print_profile=False, as_string=False)[:2]

    both = [sum(pair) for pair in zip(layer(wide, 2), layer(2 * hidden, 2))]
    assert list(profile(kind(wide, hidden, 2, bidirectional=True), torch.ones(3, 4, wide))) == both
    without_bias = profile(kind(wide, hidden, bias=False), torch.ones(3, 4, wide))
    assert without_bias == (layer(wide)[0] - 2 * gates * hidden * steps, layer(wide)[1])
    packed = nn.utils.rnn.pack_sequence([torch.ones(7, wide), torch.ones(5, wide)])
    assert profile(kind(wide, hidden), packed) == layer(wide)
    cell = {nn.RNN: nn.RNNCell, nn.GRU: nn.GRUCell, nn.LSTM: nn.LSTMCell}[kind]
    assert profile(cell(wide, hidden), torch.ones(steps, wide)) == layer(wide)


def test_models_by_formula():
    flops, macs, params = get_model_profile(profiled.mlp()[0], (3, 10), print_profile=False, as_string=False)
    macs_expected = 3 * 10 * 20 + 3 * 20 * 5
    assert (flops, macs, params) == (2 * macs_expected + 60 + 5 * 60 + 15, macs_expected, 200 + 20 + 40 + 100 + 5)
    model = profiled.transformer()[0]
    _, macs, params = get_model_profile(model, (2, 5, 16), print_profile=False, as_string=False)
    assert macs == 10 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 2 * 5 * 5 * 16  # projections, two linear layers, attention
    assert params == sum(param.numel() for param in model.parameters())


@pytest.mark.skipif(not REFERENCE, reason="DEEPSCALE_REFERENCE_PYTHON names no interpreter with DeepSpeed")
def test_figures_are_deepspeeds():
    environment = {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "DS_ACCELERATOR": "cpu",
                   "PATH": f"{Path(REFERENCE).parent}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run([REFERENCE, profiled.__file__], env=environment, capture_output=True, text=True, timeout=300)
    lines = [line for line in run.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, run.stdout[-2000:] + run.stderr[-2000:]
    assert profiled.main() == json.loads(lines[0].removeprefix("ANSWER "))


# ---------------------------------------------------------------- what a profile leaves alone

def surroundings(model: nn.Module) -> list:
    places = [dict(vars(owner)) for owner in (F, torch, torch.Tensor)]
    return [*places, *([dict(module.__dict__), len(module._forward_hooks), len(module._forward_pre_hooks)] for module in model.modules())]


def test_torch_and_the_model_are_as_before():
    model = profiled.mlp()[0]
    before = surroundings(model)
    profiler = FlopsProfiler(model)
    profiler.start_profile()
    assert vars(F) == before[0] and vars(torch.Tensor) == before[2]  # nothing runs yet
    model(torch.ones(3, 10))
    assert vars(F) == before[0] and vars(torch) == before[1] and vars(torch.Tensor) == before[2]
    profiler.end_profile()
    assert surroundings(model) == before


def test_a_forward_that_fails_leaves_no_trace():
    model = Calls(lambda x: x, nn.Linear(4, 4), nn.Linear(5, 5))
    model.function = failing = lambda x: model.parts[1](model.parts[0](x))
    before = surroundings(model)
    profiler = FlopsProfiler(model)
    profiler.start_profile()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(A)
    assert vars(F) == before[0] and vars(torch.Tensor) == before[2]
    model.function = lambda x: model.parts[0](x)
    model(A)
    assert profiler.get_total_macs() == 2 * 3 * 4 * 4  # the failed forward's first layer, and the second forward
    profiler.end_profile()
    model.function = failing
    assert surroundings(model) == before


def test_only_the_thread_of_the_forward_counts():

    def function(x):
        other = threading.Thread(target=lambda: [F.relu(A) for _ in range(5)])
        other.start()
        other.join()
        return F.relu(x)

    assert counted(function, A) == (12, 0)


def test_calls_outside_a_forward_do_not_count():
    profiler = FlopsProfiler(profiled.mlp()[0])
    profiler.start_profile()
    F.linear(A, A)
    assert profiler.get_total_flops() == 0
    profiler.end_profile()


def test_profiles_add_up_until_they_are_reset():
    model = nn.Linear(4, 5)
    profiler = FlopsProfiler(model)
    profiler.start_profile()
    model(A), model(A)
    assert profiler.get_total_macs() == 2 * 60 and profiler.get_total_duration() > 0
    profiler.stop_profile()
    model(A)
    assert profiler.get_total_macs() == 2 * 60  # not counted any more, still there
    profiler.resume_profile()
    model(A)
    assert profiler.get_total_macs() == 3 * 60
    profiler.reset_profile()
    assert profiler.get_total_macs() == 0 and profiler.get_total_params() == 25
    profiler.start_profile()
    model(A)
    assert profiler.get_total_macs() == 60
    profiler.end_profile()
    assert not any(hasattr(model, name) for name in FIGURES)
    with pytest.raises(RuntimeError, match="there is no profile: call start_profile"):
        profiler.get_total_flops()


# ---------------------------------------------------------------- figures of modules

def test_each_module_has_its_own_figures_and_parents_their_sum():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Sequential(shared, nn.ReLU()), shared, Calls(lambda x: F.relu(x) @ torch.ones(4, 2)))
    profiler = FlopsProfiler(model)
    profiler.start_profile()
    model(A)
    assert get_module_macs(shared) == 2 * 48 and get_module_flops(model[0]) == 4 * 48 + 12
    assert get_module_flops(model) == 4 * 48 + 12 + 12 + 48 and get_module_macs(model) == 2 * 48 + 24  # the shared layer is not counted twice
    assert model.__params__ == 20 and model[2].__flops__ == 60
    assert get_module_duration(model) >= get_module_duration(model[0]) > 0
    listed = nn.ModuleList(model[0])
    listed.__duration__ = 0.0
    assert get_module_duration(listed) == pytest.approx(sum(part.__duration__ for part in model[0]))
    profiler.end_profile()


def test_ignored_modules_count_for_the_one_around_them():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    profiler = FlopsProfiler(model)
    profiler.start_profile(ignore_list=[nn.ReLU])
    model(A)
    assert model[1].__flops__ == 0 and model.__flops__ == 12 and profiler.get_total_flops() == 96 + 12
    profiler.end_profile()


def test_experts_are_counted_apart():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2, bias=False))
    model[1].weight.group_name = "ep_size_3"
    profiler = FlopsProfiler(model, SimpleNamespace(world_size=6, dp_world_size=3, mp_world_size=2, step_milliseconds=lambda: None,
                                                    train_micro_batch_size_per_gpu=lambda: 2))
    profiler.start_profile()
    assert (model.__params__, model.__expert_params__, model.__model_expert_params__) == (25, 10, 30)
    assert profiler.get_total_params() == 35
    profiler.end_profile()


# ---------------------------------------------------------------- text

def test_numbers_are_written_as_deepspeed_writes_them():
    assert [number_to_string(n) for n in (0, 7, 999, 1000, 1234567, 2.5e9, 1.5e12, 0.0015, 2e-6)] == [
        "0 ", "7 ", "999 ", "1 K", "1.23 M", "2.5 G", "1.5 T", "1.5 m", "2 u"]
    assert number_to_string(1234567, units="K") == "1234.57 K" and number_to_string(1234567, precision=0) == "1 M"
    assert number_to_string(0.5, units="s") == "0.5 s"
    assert flops_to_string(2.5e9) == "2.5 GFLOPS" and macs_to_string(12) == "12 MACs" and bytes_to_string(2048) == "2.05 KB"
    assert params_to_string(1.5e9) == "1.5 B" and params_to_string(365) == "365" and params_to_string(1.5e9, units="B") == "1.5 B"
    assert duration_to_string(0.0125) == "12.5 ms" and duration_to_string(90) == "90 s"


def table_of(text: str) -> dict[str, str]:
    return {label.strip(): value.strip() for label, value in re.findall(r"^(.{70})  (.*)$", text, re.MULTILINE) if label.rstrip().endswith(":")}


def test_the_printed_profile(capsys):
    model = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 1, bias=False)))
    figures = get_model_profile(model, (3, 4), top_modules=2)
    assert figures == ("165 ", "75 MACs", "30")
    printed = capsys.readouterr().out
    table = table_of(printed)
    assert table["params per GPU:"] == "30" and table["fwd MACs per GPU:"] == "75 MACs" and table["fwd flops per GPU:"] == "165"
    assert "bwd latency:" not in table and "Profile Summary at step 1:" in printed
    assert "depth 0:\n    params      - {'Sequential': '30'}\n    MACs        - {'Sequential': '75 MACs'}" in printed
    assert "depth 1:\n    params      - {'Linear': '25', 'Sequential': '5'}\n    MACs        - {'Linear': '60 MACs', 'Sequential': '15" in printed
    assert "depth 2:\n    params      - {'Linear': '5', 'ReLU': '0'}" in printed
    tree = printed.partition("Detailed Profile per GPU")[2]
    assert re.search(r"^  \(0\): Linear\(25 = 83\.33% Params, 60 MACs = 80% MACs, .* latency, .*FLOPS, in_features=4, out_features=5, bias=True\)$",
                     tree, re.MULTILINE)
    assert re.search(r"^  \(1\): Sequential\(\n    5 = 16\.67% Params, 15 MACs = 20% MACs, .*\n    \(0\): ReLU\(0 = 0% Params", tree, re.MULTILINE)


def test_depth_and_detail_can_be_left_out(capsys, tmp_path):
    model = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.ReLU()))
    get_model_profile(model, (3, 4), module_depth=1, detailed=False)
    printed = capsys.readouterr().out
    assert "depth 1:" in printed and "depth 2:" not in printed and "Detailed" not in printed
    path = tmp_path / "new" / "profile.txt"
    get_model_profile(model, (3, 4), output_file=str(path))
    assert capsys.readouterr().out == "" and "Detailed Profile per GPU" in path.read_text()
    with pytest.raises(OSError, match="flops_profiler.output_file cannot be written.*profile.txt/below"):
        get_model_profile(model, (3, 4), output_file=str(path / "below"))


def test_latencies_of_a_step_with_several_micro_steps(capsys):
    engine = SimpleNamespace(world_size=4, dp_world_size=2, mp_world_size=2, step_milliseconds=lambda: (40.0, 80.0, 30.0, 2),
                             train_micro_batch_size_per_gpu=lambda: 3)
    model = nn.Linear(100, 100)
    profiler = FlopsProfiler(model, engine, recompute_fwd_factor=1.0)
    profiler.start_profile()
    model(torch.ones(50, 100))
    profiler.print_model_profile(detailed=False)
    table = table_of(capsys.readouterr().out)
    assert profiler.flops == 1_000_000 and profiler.macs == 500_000 and profiler.params == 10_100
    assert table["world size:"] == "4" and table["data parallel size:"] == "2" and table["model parallel size:"] == "2"
    assert table["params of model = params per GPU * mp_size:"] == "20.2 K"
    assert table["fwd flops of model = fwd flops per GPU * mp_size:"] == "2 M"
    assert table["fwd latency:"] == "20 ms" and table["bwd latency:"] == "40 ms" and table["step latency:"] == "30 ms"
    assert table["fwd FLOPS per GPU = fwd flops per GPU / fwd latency:"] == "50 MFLOPS"
    assert table["bwd FLOPS per GPU = 3 * fwd flops per GPU / bwd latency:"] == "75 MFLOPS"
    assert table["fwd+bwd FLOPS per GPU = 4 * fwd flops per GPU / (fwd+bwd latency):"] == "66.67 MFLOPS"
    assert table["iter latency:"] == "150 ms" and table["FLOPS per GPU = 8 * fwd flops per GPU / iter latency:"] == "53.33 MFLOPS"
    assert table["samples/second:"] == "80.0"  # 3 samples on 2 ranks, twice in 0.15 s
    profiler.end_profile()


# ---------------------------------------------------------------- get_model_profile

def test_a_model_is_run_in_evaluation_mode_and_given_back_as_it_was():
    modes = []
    model = Calls(lambda x: modes.append(model.training) or x, nn.Dropout())
    model.train()
    model.parts.eval()
    get_model_profile(model, args=[A], print_profile=False, warm_up=2)
    assert modes == [False] * 3 and model.training and not model.parts.training and not model.parts[0].training


def test_inputs_have_the_models_dtype_and_generation_can_be_profiled():
    model = nn.Linear(4, 4).bfloat16()
    assert get_model_profile(model, (3, 4), print_profile=False, as_string=False)[1] == 48
    model.generate = lambda x, count: [model(x) for _ in range(count)]
    model = model.float()
    assert get_model_profile(model, args=[A], kwargs={"count": 3}, mode="generate", print_profile=False, as_string=False)[1] == 3 * 48


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got int"):
        get_model_profile(5, (3, 4))
    with pytest.raises(ValueError, match=r"input_shape must be a tuple with at least one size, got \[3, 4\]"):
        get_model_profile(nn.Linear(4, 4), [3, 4])
    with pytest.raises(ValueError, match="pass input_shape, args or kwargs"):
        get_model_profile(nn.Linear(4, 4))
    with pytest.raises(ValueError, match='mode must be "forward" or "generate", got \'train\''):
        get_model_profile(nn.Linear(4, 4), (3, 4), mode="train")


def test_the_section_has_the_cores_defaults_and_checks():
    made = DeepSpeedFlopsProfilerConfig({"flops_profiler": {"enabled": True, "profile_step": 5}})
    assert vars(made) == {"enabled": True, "profile_step": 5, "recompute_fwd_factor": 0.0, "module_depth": -1, "top_modules": 1,
                          "detailed": True, "output_file": None}
    assert not DeepSpeedFlopsProfilerConfig({}).enabled
    with pytest.raises(ValueError, match="flops_profiler.top_modules"):
        DeepSpeedFlopsProfilerConfig({"flops_profiler": {"top_modules": 0}})
    with pytest.raises(ValueError, match="flops_profiler.enabled must be true or false, found 1"):
        DeepSpeedFlopsProfilerConfig({"flops_profiler": {"enabled": 1}})


# ---------------------------------------------------------------- the engine's profile

MACS, PARAMS = 2 * (6 * 10 + 10), 81  # of watched.model() on two samples


@pytest.mark.parametrize("stage", [0, 3])
def test_the_engine_prints_the_profile_of_one_step(stage, capfd, tmp_path):
    section = {"enabled": True, "profile_step": 2, "output_file": str(tmp_path / "flops.txt"), "recompute_fwd_factor": 1.0}
    engine = watched.engine_with(watched.model(), watched.configuration(stage, 2), {"flops_profiler": section})
    before = [dict(module.__dict__) for module in engine.module.modules()]
    watched.train(engine, 4)
    assert not (tmp_path / "flops.txt").exists()
    watched.train(engine, 4)
    text = (tmp_path / "flops.txt").read_text()
    table = table_of(text)
    assert text.count("Profile Summary at step 3:") == 1 and table["batch size per GPU:"] == "2" and table["world size:"] == "1"
    assert table["params per GPU:"] == str(PARAMS) and table["fwd MACs per GPU:"] == f"{MACS} MACs"  # of one micro-step
    assert "bwd FLOPS per GPU = 3 * fwd flops per GPU / bwd latency:" in table
    assert "FLOPS per GPU = 8 * fwd flops per GPU / iter latency:" in table and float(table["samples/second:"]) > 0
    assert (engine.flops_profiler.macs, engine.flops_profiler.params) == (MACS, PARAMS)
    assert [dict(module.__dict__) for module in engine.module.modules()] == before
    lines = [line for line in capfd.readouterr().out.splitlines() if "time (ms) | fwd:" in line]
    assert len(lines) == 4  # the profiler turns the timers on
    engine.destroy()


def test_all_forwards_of_a_micro_step_are_profiled_and_evaluation_is_not(capfd):
    engine = watched.engine_with(watched.model(), watched.configuration(1, 1), {"flops_profiler": {"enabled": True, "profile_step": 0}})
    loss = engine(torch.ones(2, 6)).mean() + engine(torch.zeros(2, 6)).mean()
    engine.backward(loss)
    with torch.no_grad():
        engine.eval()(torch.ones(2, 6))
    engine.train()
    engine.step()
    assert engine.flops_profiler.macs == 2 * MACS and "Profile Summary at step 1:" in capfd.readouterr().out
    engine.destroy()


def body_profile_of_two_ranks(folder: str) -> None:
    import torch.distributed as dist
    rank, section = int(os.environ["RANK"]), {"enabled": True, "output_file": f"{folder}/{os.environ['RANK']}.txt"}
    engine = watched.engine_with(watched.model(), watched.configuration(3, 1), {"flops_profiler": section})
    losses = watched.train(engine, 3, rank=rank)
    dist.barrier()
    assert [path.name for path in Path(folder).iterdir()] == ["0.txt"]
    table = table_of(Path(folder, "0.txt").read_text())
    assert table["world size:"] == "2" and table["params per GPU:"] == str(PARAMS) and table["fwd MACs per GPU:"] == f"{MACS} MACs"
    engine.destroy()
    plain = watched.engine_with(watched.model(), watched.configuration(3, 1), {})
    assert watched.train(plain, 3, rank=rank) == losses  # looking changes nothing
    plain.destroy()


def test_sharded_parameters_count_whole_and_rank_0_prints(tmp_path):
    run_ranks(body_profile_of_two_ranks, 2, {"folder": str(tmp_path)})


def test_a_recurrent_module_with_sharded_weights(tmp_path):
    class Net(nn.Module):

        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 1)

        def forward(self, x):
            return self.head(self.rnn(x.unsqueeze(1))[0])

    more = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    section = {"enabled": True, "profile_step": 0, "output_file": str(tmp_path / "flops.txt")}
    engine = watched.engine_with(Net(), {**watched.configuration(3, 1), **more}, {"flops_profiler": section})
    watched.train(engine, 1)
    assert engine.flops_profiler.macs == 2 * (3 * 8 * (6 + 8) + 8) and engine.flops_profiler.params == 3 * 8 * (6 + 8 + 2) + 9
    engine.destroy()
