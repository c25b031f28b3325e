"""Learning-rate schedules against their formulas."""
from __future__ import annotations

import math

import pytest
import torch

from deepspeed.runtime import lr_schedules as schedules


def optimizer(*rates: float, cls=torch.optim.Adam) -> torch.optim.Optimizer:
    return cls([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (0.1,)])


def rates_over(schedule, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        schedule.step()
        rates.append(schedule.optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("kind", ["log", "linear"])
def test_warmup_rises_to_the_maximum_and_stays(kind):
    steps = 10
    schedule = schedules.WarmupLR(optimizer(), warmup_min_lr=0.01, warmup_max_lr=0.5, warmup_num_steps=steps, warmup_type=kind)
    assert schedule.optimizer.param_groups[0]["lr"] == 0.01
    for i, rate in enumerate(rates_over(schedule, 25)):
        gamma = 1.0 if i >= steps else math.log(i + 1) / math.log(steps) if kind == "log" else i / steps
        assert rate == pytest.approx(0.01 + 0.49 * gamma, abs=1e-12)


def test_warmup_takes_the_optimizers_rate_as_its_maximum():
    schedule = schedules.WarmupLR(optimizer(0.3, 0.7), warmup_num_steps=4)
    for _ in range(6):
        schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.3, 0.7])


def test_zero_warmup_steps_are_accepted():
    assert schedules.WarmupLR(optimizer(), warmup_num_steps=0).warmup_num_steps == 2


@pytest.mark.parametrize("steps", [-1, 2.5, True])
def test_impossible_warmup_steps_are_refused(steps):
    with pytest.raises(ValueError, match="warmup_num_steps"):
        schedules.WarmupLR(optimizer(), warmup_num_steps=steps)


def test_warmup_decay_reaches_zero_at_the_total():
    schedule = schedules.WarmupDecayLR(optimizer(), total_num_steps=30, warmup_max_lr=0.2, warmup_num_steps=10, warmup_type="linear")
    for i, rate in enumerate(rates_over(schedule, 40)):
        gamma = i / 10 if i < 10 else max(0.0, (30 - i) / 20)
        assert rate == pytest.approx(0.2 * gamma, abs=1e-12)


def test_warmup_cosine_ends_at_its_floor():
    schedule = schedules.WarmupCosineLR(optimizer(0.4), total_num_steps=20, warmup_num_steps=5, cos_min_ratio=0.1, warmup_type="linear")
    assert schedule.optimizer.param_groups[0]["lr"] == 0.0
    for i, rate in enumerate(rates_over(schedule, 40)):
        x = min(1.0, (i - 5 + 1) / 15)
        ratio = i / 5 if i < 5 else 0.1 + 0.9 * (1 + math.cos(math.pi * x)) / 2
        assert rate == pytest.approx(0.4 * ratio, abs=1e-12)


@pytest.mark.parametrize("staircase", [False, True])
def test_range_test_grows_by_its_rate(staircase):
    schedule = schedules.LRRangeTest(optimizer(), 0.01, 4, 0.5, staircase)
    for i, rate in enumerate(rates_over(schedule, 20)):
        k = (i + 1) / 4
        assert rate == pytest.approx(0.01 * (1 + 0.5 * (math.floor(k) if staircase else k)))


def test_one_cycle_moves_rate_and_momentum_against_each_other():
    schedule = schedules.OneCycle(optimizer(), 0.1, 1.0, cycle_first_step_size=5, cycle_second_step_size=10, decay_step_size=2,
                                  decay_lr_rate=0.5, decay_mom_rate=0.1)
    group = schedule.optimizer.param_groups[0]
    assert group["lr"] == 0.1 and group["betas"] == (0.8, 0.99)
    total, ratio = 15, 5 / 15
    for i in range(30):
        schedule.step()
        if i < total:
            b = i + 1
            x = 1 + b / total - math.floor(1 + b / total)
            scale = x / ratio if x <= ratio else (x - 1) / (ratio - 1)
            assert group["lr"] == pytest.approx(0.1 + 0.9 * scale, abs=1e-9)
            assert group["betas"][0] == pytest.approx(0.9 - 0.1 * scale, abs=1e-9)
        else:
            d = i - total + 1
            assert group["lr"] == pytest.approx(0.1 / (1 + 0.5 * d / 2))
            assert group["betas"][0] == pytest.approx(0.9 * (1 + 0.1 * d / 2))


def test_one_cycle_leaves_optimizers_without_betas_alone():
    schedule = schedules.OneCycle(optimizer(cls=torch.optim.SGD), 0.1, 1.0)
    schedule.step()
    assert "betas" not in schedule.optimizer.param_groups[0]


def test_last_rate_before_a_step_after_resuming_says_what_to_do():
    schedule = schedules.WarmupLR(optimizer(), last_batch_iteration=7)
    with pytest.raises(AssertionError, match="need to call step"):
        schedule.get_last_lr()


def test_a_saved_position_continues_the_same_rates():
    whole = schedules.WarmupDecayLR(optimizer(), total_num_steps=50, warmup_num_steps=10)
    expected = rates_over(whole, 20)[10:]
    first = schedules.WarmupDecayLR(optimizer(), total_num_steps=50, warmup_num_steps=10)
    rates_over(first, 10)
    second = schedules.WarmupDecayLR(optimizer(), total_num_steps=50, warmup_num_steps=10)
    second.load_state_dict(first.state_dict())
    assert first.state_dict() == {"last_batch_iteration": 9}
    assert rates_over(second, 10) == expected


def test_one_value_per_group_or_an_error():
    with pytest.raises(ValueError, match="2 parameter groups"):
        schedules.WarmupLR(optimizer(0.1, 0.2), warmup_min_lr=[0.0, 0.0, 0.0])


def test_a_tensor_rate_is_changed_in_place():
    rate = torch.tensor(0.1)
    made = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    schedules.WarmupLR(made, warmup_min_lr=0.02)
    assert rate.item() == pytest.approx(0.02)


def test_schedulers_are_found_by_name():
    assert schedules.scheduler_class("WarmupLR") is schedules.WarmupLR
    assert schedules.scheduler_class("StepLR") is torch.optim.lr_scheduler.StepLR
    with pytest.raises(ValueError, match="scheduler.type 'Nope'"):
        schedules.scheduler_class("Nope")


def test_what_is_not_an_optimizer_is_refused():
    with pytest.raises(TypeError, match="not a subclass of torch.optim.Optimizer"):
        schedules.WarmupLR(object())
