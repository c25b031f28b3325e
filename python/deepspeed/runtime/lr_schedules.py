"""The five learning-rate schedules of the configuration.

With i = last_batch_iteration (-1 at construction, +1 before each computation):
WarmupLR: lr = min + (max - min) * g, g = ln(i+1)/ln(n) or i/n while i < n = max(2, warmup_num_steps), then 1.
WarmupDecayLR: afterwards g = max(0, (T - i) / max(1, T - n)).
WarmupCosineLR: lr = base * ratio; warm-up as above from warmup_min_ratio, then a half cosine to cos_min_ratio.
LRRangeTest: lr = min * (1 + rate * k), k = (i+1)/step_size or its floor.
OneCycle: up and down once ("1cycle", Smith 2018), then decay; momentum moves against the rate.
"""
from __future__ import annotations

import math
from typing import Any, Sequence

from torch import Tensor
from torch.optim import Optimizer

from deepspeed.utils.logging import logger

LR_SCHEDULE = "lr_schedule"
LR_RANGE_TEST = "LRRangeTest"
ONE_CYCLE = "OneCycle"
WARMUP_LR = "WarmupLR"
WARMUP_DECAY_LR = "WarmupDecayLR"
WARMUP_COSINE_LR = "WarmupCosineLR"
VALID_LR_SCHEDULES = [LR_RANGE_TEST, ONE_CYCLE, WARMUP_LR, WARMUP_DECAY_LR, WARMUP_COSINE_LR]

LR_RANGE_TEST_MIN_LR = "lr_range_test_min_lr"
LR_RANGE_TEST_STEP_RATE = "lr_range_test_step_rate"
LR_RANGE_TEST_STEP_SIZE = "lr_range_test_step_size"
LR_RANGE_TEST_STAIRCASE = "lr_range_test_staircase"
CYCLE_MIN_LR = "cycle_min_lr"
CYCLE_MAX_LR = "cycle_max_lr"
DECAY_LR_RATE = "decay_lr_rate"
CYCLE_FIRST_STEP_SIZE = "cycle_first_step_size"
CYCLE_SECOND_STEP_SIZE = "cycle_second_step_size"
CYCLE_FIRST_STAIR_COUNT = "cycle_first_stair_count"
CYCLE_SECOND_STAIR_COUNT = "cycle_second_stair_count"
DECAY_STEP_SIZE = "decay_step_size"
CYCLE_MIN_MOM = "cycle_min_mom"
CYCLE_MAX_MOM = "cycle_max_mom"
DECAY_MOM_RATE = "decay_mom_rate"
WARMUP_MIN_LR = "warmup_min_lr"
WARMUP_MAX_LR = "warmup_max_lr"
WARMUP_NUM_STEPS = "warmup_num_steps"
WARMUP_TYPE = "warmup_type"
WARMUP_LOG_RATE = "log"
WARMUP_LINEAR_RATE = "linear"
WARMUP_MIN_RATIO = "warmup_min_ratio"
COS_MIN_RATIO = "cos_min_ratio"
TOTAL_NUM_STEPS = "total_num_steps"


def get_torch_optimizer(optimizer: Any) -> Optimizer:
    """The torch optimizer itself, or the one that a wrapper holds as `.optimizer`."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer):
        return inner
    raise TypeError(f"{type(optimizer).__name__} is not a subclass of torch.optim.Optimizer")


def update_lr(param_groups: Sequence[dict], lrs: Sequence[Any]) -> list:
    """Stores one rate per group and returns the rates now in force. A tensor rate is changed in place."""
    for group, rate in zip(param_groups, lrs):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate.item() if isinstance(rate, Tensor) else rate)
        else:
            group["lr"] = rate
    return [group["lr"] for group in param_groups]


def _per_group(optimizer: Optimizer, value: Any, name: str) -> list:
    """`value` once per parameter group; a list must have one entry per group."""
    groups = len(optimizer.param_groups)
    if not isinstance(value, (list, tuple)):
        return [value] * groups
    if len(value) != groups:
        raise ValueError(f"{name} has {len(value)} values, but the optimizer has {groups} parameter groups: "
                         "give one value, or one per group")
    return list(value)


def _warmup_steps(value: Any) -> int:
    # 0 means "no warm-up": other tools write it when their user asked for none.
    if isinstance(value, bool) or int(value) != value or value < 0:
        raise ValueError(f"warmup_num_steps must be a positive integer, got {value}")
    return max(2, int(value))


def _warmup_type(value: str) -> str:
    if value in (WARMUP_LOG_RATE, WARMUP_LINEAR_RATE):
        return value
    logger.warning(f"unknown warmup_type {value!r}: using {WARMUP_LOG_RATE!r} (known: log, linear)")
    return WARMUP_LOG_RATE


class _Schedule:
    """What all schedules share: a position, the current rates, and a state of one number."""

    optimizer: Optimizer
    last_batch_iteration: int

    def _begin(self, last_batch_iteration: int) -> None:
        self.last_batch_iteration = last_batch_iteration
        if last_batch_iteration == -1:
            self._last_lr = update_lr(self.optimizer.param_groups, self._initial_lr())

    def _initial_lr(self) -> list:
        return self.get_lr()

    def get_lr(self) -> list:
        raise NotImplementedError

    def get_last_lr(self) -> list:
        """The rates in force. AssertionError while no step has been made after a resume."""
        if getattr(self, "_last_lr", None) is None:
            raise AssertionError("need to call step() first")
        return self._last_lr

    def step(self, last_batch_iteration: int | None = None) -> None:
        self.last_batch_iteration = (self.last_batch_iteration + 1 if last_batch_iteration is None else
                                     last_batch_iteration)
        self._last_lr = update_lr(self.optimizer.param_groups, self.get_lr())

    def state_dict(self) -> dict:
        return {"last_batch_iteration": self.last_batch_iteration}

    def load_state_dict(self, sd: dict) -> None:
        self.last_batch_iteration = sd["last_batch_iteration"]


class LRRangeTest(_Schedule):
    """Raises the rate step by step, to find the largest that still trains."""

    def __init__(self, optimizer: Optimizer, lr_range_test_min_lr: float | list = 1e-3, lr_range_test_step_size: int = 2000,
                 lr_range_test_step_rate: float = 1.0, lr_range_test_staircase: bool = False,
                 last_batch_iteration: int = -1) -> None:
        if isinstance(lr_range_test_step_size, bool) or int(lr_range_test_step_size) != lr_range_test_step_size \
                or lr_range_test_step_size <= 0:
            raise ValueError(f"lr_range_test_step_size must be a positive integer, got {lr_range_test_step_size}")
        self.optimizer = get_torch_optimizer(optimizer)
        self.min_lr = _per_group(self.optimizer, lr_range_test_min_lr, LR_RANGE_TEST_MIN_LR)
        self.step_size = lr_range_test_step_size
        self.step_rate = lr_range_test_step_rate
        self.staircase = lr_range_test_staircase
        self._begin(last_batch_iteration)

    def _initial_lr(self) -> list:
        return self.min_lr

    def get_lr(self) -> list:
        position = (self.last_batch_iteration + 1) / self.step_size
        factor = 1 + self.step_rate * (math.floor(position) if self.staircase else position)
        return [rate * factor for rate in self.min_lr]


class OneCycle(_Schedule):
    """One rise and fall of the rate with the opposite in momentum, then a decay."""

    def __init__(self, optimizer: Optimizer, cycle_min_lr: float | list, cycle_max_lr: float | list, decay_lr_rate: float = 0.0,
                 cycle_first_step_size: int = 2000, cycle_second_step_size: int | None = None, cycle_first_stair_count: int = 0,
                 cycle_second_stair_count: int | None = None, decay_step_size: int = 0, cycle_momentum: bool = True,
                 cycle_min_mom: float | list = 0.8, cycle_max_mom: float | list = 0.9, decay_mom_rate: float = 0.0,
                 last_batch_iteration: int = -1) -> None:
        self.optimizer = get_torch_optimizer(optimizer)
        self.first_step_size = float(cycle_first_step_size)
        self.second_step_size = float(cycle_first_step_size if cycle_second_step_size is None else cycle_second_step_size)
        if self.first_step_size <= 0:
            raise ValueError(f"cycle_first_step_size must be positive, got {cycle_first_step_size}")
        if self.second_step_size < 0:
            raise ValueError(f"cycle_second_step_size must be non-negative, got {cycle_second_step_size}")
        self.total_size = self.first_step_size + self.second_step_size
        self.step_ratio = self.first_step_size / self.total_size
        self.first_stair_count = cycle_first_stair_count
        self.second_stair_count = cycle_first_stair_count if cycle_second_stair_count is None else cycle_second_stair_count
        self.decay_step_size, self.decay_lr_rate, self.decay_mom_rate = decay_step_size, decay_lr_rate, decay_mom_rate
        self.min_lrs = _per_group(self.optimizer, cycle_min_lr, CYCLE_MIN_LR)
        self.max_lrs = _per_group(self.optimizer, cycle_max_lr, CYCLE_MAX_LR)
        self.cycle_momentum = cycle_momentum and self._has_betas()
        if self.cycle_momentum:
            self.min_moms = [(m, 0.99) for m in _per_group(self.optimizer, cycle_min_mom, CYCLE_MIN_MOM)]
            self.max_moms = [(m, 0.99) for m in _per_group(self.optimizer, cycle_max_mom, CYCLE_MAX_MOM)]
            if last_batch_iteration == -1:
                self._store_momentum(self.min_moms)
        self.last_batch_iteration = last_batch_iteration
        if last_batch_iteration == -1:
            # get_last_lr() stays "need to call step() first" until the first step, as before any schedule value.
            update_lr(self.optimizer.param_groups, self.min_lrs)

    def _has_betas(self) -> bool:
        if "betas" in self.optimizer.defaults:
            return True
        logger.warning(f"cycle_momentum is off: optimizer {type(self.optimizer).__name__} has no betas")
        return False

    def _store_momentum(self, momentums: list) -> None:
        for group, betas in zip(self.optimizer.param_groups, momentums):
            group["betas"] = betas

    def _scale(self) -> float:
        """0 at the bottom of the cycle, 1 at its top."""
        position = self.last_batch_iteration + 1
        fraction = position / self.total_size - math.floor(position / self.total_size)
        rising = fraction <= self.step_ratio
        stairs = self.first_stair_count if rising else self.second_stair_count
        if stairs <= 0:
            return fraction / self.step_ratio if rising else (fraction - 1) / (self.step_ratio - 1)
        # Stairs are counted from the whole number of steps: rounding of `fraction` must not cost one.
        offset = position % self.total_size
        if offset <= self.first_step_size:
            return math.floor(offset * stairs / self.first_step_size) / stairs
        return math.floor((self.total_size - offset) * stairs / self.second_step_size) / stairs

    def _decay_interval(self) -> float:
        return (self.last_batch_iteration - self.total_size + 1) / self.decay_step_size

    def get_lr(self) -> list:
        if self.last_batch_iteration < self.total_size:
            scale = self._scale()
            return [low + (high - low) * scale for low, high in zip(self.min_lrs, self.max_lrs)]
        if self.decay_step_size == 0 or self.decay_lr_rate == 0:
            return self.min_lrs
        return [low / (1 + self.decay_lr_rate * self._decay_interval()) for low in self.min_lrs]

    def get_mom(self) -> list | None:
        if not self.cycle_momentum:
            return None
        if self.last_batch_iteration < self.total_size:
            scale = self._scale()
            return [(high[0] - (high[0] - low[0]) * scale, low[1]) for low, high in zip(self.min_moms, self.max_moms)]
        if self.decay_step_size == 0 or self.decay_mom_rate == 0:
            return self.max_moms
        factor = 1 + self.decay_mom_rate * self._decay_interval()
        return [(high[0] * factor, high[1]) for high in self.max_moms]

    def step(self, batch_iteration: int | None = None) -> None:
        super().step(batch_iteration)
        if self.cycle_momentum:
            self._store_momentum(self.get_mom())


class WarmupLR(_Schedule):
    """Rises from the minimum to the maximum rate, then stays."""

    def __init__(self, optimizer: Optimizer, warmup_min_lr: float | list = 0.0, warmup_max_lr: float | list | None = None,
                 warmup_num_steps: int = 1000, warmup_type: str = WARMUP_LOG_RATE, last_batch_iteration: int = -1) -> None:
        self.warmup_num_steps = _warmup_steps(warmup_num_steps)
        self.optimizer = get_torch_optimizer(optimizer)
        if warmup_max_lr is None:
            warmup_max_lr = [group["lr"] for group in self.optimizer.param_groups]
        self.min_lrs = _per_group(self.optimizer, warmup_min_lr, WARMUP_MIN_LR)
        self.max_lrs = _per_group(self.optimizer, warmup_max_lr, WARMUP_MAX_LR)
        self.delta_lrs = [high - low for high, low in zip(self.max_lrs, self.min_lrs)]
        self.warmup_type = _warmup_type(warmup_type)
        self.inverse_log_warm_up = 1.0 / math.log(self.warmup_num_steps)
        self._begin(last_batch_iteration)

    def get_lr(self) -> list:
        if self.last_batch_iteration < 0:
            return self.min_lrs
        gamma = self._get_gamma()
        return [low + delta * gamma for low, delta in zip(self.min_lrs, self.delta_lrs)]

    def _get_gamma(self) -> float:
        if self.last_batch_iteration >= self.warmup_num_steps:
            return self._after_warmup()
        if self.warmup_type == WARMUP_LOG_RATE:
            return self.inverse_log_warm_up * math.log(self.last_batch_iteration + 1)
        return self.last_batch_iteration / self.warmup_num_steps

    def _after_warmup(self) -> float:
        return 1.0


class WarmupDecayLR(WarmupLR):
    """Warm-up, then a straight line to zero at total_num_steps."""

    def __init__(self, optimizer: Optimizer, total_num_steps: int, warmup_min_lr: float | list = 0.0,
                 warmup_max_lr: float | list = 0.001, warmup_num_steps: int = 1000, warmup_type: str = WARMUP_LOG_RATE,
                 last_batch_iteration: int = -1) -> None:
        self.total_num_steps = total_num_steps
        super().__init__(optimizer, warmup_min_lr, warmup_max_lr, warmup_num_steps, warmup_type, last_batch_iteration)
        _check_total(total_num_steps, self.warmup_num_steps)

    def _after_warmup(self) -> float:
        left = self.total_num_steps - self.last_batch_iteration
        return max(0.0, left / max(1.0, self.total_num_steps - self.warmup_num_steps))


class WarmupCosineLR(_Schedule):
    """Warm-up of a ratio of each group's own rate, then a half cosine down to cos_min_ratio."""

    def __init__(self, optimizer: Optimizer, total_num_steps: int, warmup_min_ratio: float = 0.0, warmup_num_steps: int = 1000,
                 cos_min_ratio: float = 0.0001, warmup_type: str = WARMUP_LOG_RATE, last_batch_iteration: int = -1) -> None:
        self.warmup_num_steps = _warmup_steps(warmup_num_steps)
        self.optimizer = get_torch_optimizer(optimizer)
        self.total_num_steps = total_num_steps
        self.warmup_min_ratio, self.cos_min_ratio = warmup_min_ratio, cos_min_ratio
        self.warmup_type = _warmup_type(warmup_type)
        self.inverse_log_warm_up = 1.0 / math.log(self.warmup_num_steps)
        _check_total(total_num_steps, self.warmup_num_steps)
        self.org_lrs = [group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"]
                        for group in self.optimizer.param_groups]
        self._begin(last_batch_iteration)

    def get_lr_ratio(self) -> float:
        step = self.last_batch_iteration
        if step < 0:
            return 0.0
        if step < self.warmup_num_steps:
            if self.warmup_type == WARMUP_LOG_RATE:
                gamma = self.inverse_log_warm_up * math.log(step + 1)
            else:
                gamma = step / self.warmup_num_steps
            return self.warmup_min_ratio + (1.0 - self.warmup_min_ratio) * gamma
        window = max(1, self.total_num_steps - self.warmup_num_steps)
        progress = min(1.0, (step - self.warmup_num_steps + 1) / window)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return max(0.0, self.cos_min_ratio + (1.0 - self.cos_min_ratio) * cosine)

    def get_lr(self) -> list:
        ratio = self.get_lr_ratio()
        return [rate * ratio for rate in self.org_lrs]


def _check_total(total_num_steps: int, warmup_num_steps: int) -> None:
    if total_num_steps < warmup_num_steps:
        logger.warning(f"total_num_steps {total_num_steps} is less than warmup_num_steps {warmup_num_steps}: "
                       "the rate never reaches its maximum")


_CLASSES = {WARMUP_LR: WarmupLR, WARMUP_DECAY_LR: WarmupDecayLR, WARMUP_COSINE_LR: WarmupCosineLR,
            LR_RANGE_TEST: LRRangeTest, ONE_CYCLE: OneCycle}


def scheduler_class(name: str) -> type:
    """The class for a configured scheduler name: one of ours, or the exact name of one in torch.optim.lr_scheduler."""
    import torch.optim.lr_scheduler as torch_schedulers
    found = _CLASSES.get(name) or getattr(torch_schedulers, name, None)
    if not isinstance(found, type):
        raise ValueError(f"scheduler.type {name!r} is not known: use one of {', '.join(VALID_LR_SCHEDULES)} "
                         "or a class name of torch.optim.lr_scheduler")
    return found


def get_lr_from_config(config: dict) -> tuple[float | None, str]:
    """The rate that a scheduler section starts from, and a message when there is none."""
    if "type" not in config:
        return None, "LR schedule type not defined in config"
    if "params" not in config:
        return None, "LR schedule params not defined in config"
    name, params = config["type"], config["params"]
    if name not in VALID_LR_SCHEDULES:
        return None, f"{name} is not a valid LR schedule"
    key = {LR_RANGE_TEST: LR_RANGE_TEST_MIN_LR, ONE_CYCLE: CYCLE_MAX_LR}.get(name, WARMUP_MAX_LR)
    return params[key], ""


def add_tuning_arguments(parser: Any) -> Any:
    """Adds the arguments of scheduler tuning scripts to an argparse parser, and returns it."""
    group = parser.add_argument_group("Convergence Tuning", "Convergence tuning configurations")
    group.add_argument("--lr_schedule", type=str, default=None, help="LR schedule for training.")
    numbers = {LR_RANGE_TEST_MIN_LR: 0.001, LR_RANGE_TEST_STEP_RATE: 1.0, LR_RANGE_TEST_STEP_SIZE: 1000, CYCLE_FIRST_STEP_SIZE: 1000,
               CYCLE_FIRST_STAIR_COUNT: -1, CYCLE_SECOND_STEP_SIZE: -1, CYCLE_SECOND_STAIR_COUNT: -1, DECAY_STEP_SIZE: 1000,
               CYCLE_MIN_LR: 0.01, CYCLE_MAX_LR: 0.1, DECAY_LR_RATE: 0.0, CYCLE_MIN_MOM: 0.8, CYCLE_MAX_MOM: 0.9, DECAY_MOM_RATE: 0.0,
               WARMUP_MIN_LR: 0.0, WARMUP_MAX_LR: 0.001, WARMUP_NUM_STEPS: 1000, WARMUP_MIN_RATIO: 0.01, COS_MIN_RATIO: 0.01}
    for name, default in numbers.items():
        group.add_argument(f"--{name}", type=type(default), default=default)
    group.add_argument(f"--{LR_RANGE_TEST_STAIRCASE}", action="store_true")
    group.add_argument("--cycle_momentum", action="store_true")
    group.add_argument(f"--{WARMUP_TYPE}", type=str, default=WARMUP_LOG_RATE)
    return parser
