"""Loss scalers by name. The arithmetic is the core's; these classes are how checkpoint files store its state."""
from __future__ import annotations

from typing import Any

INITIAL_LOSS_SCALE = "init_scale"
SCALE_WINDOW = "scale_window"
DELAYED_SHIFT = "delayed_shift"
CONSECUTIVE_HYSTERESIS = "consecutive_hysteresis"
MIN_LOSS_SCALE = "min_scale"


class LossScalerBase:
    """A factor for the loss."""

    def __init__(self, cur_scale: float) -> None:
        self.cur_scale = cur_scale
        self.dynamic = False

    @property
    def loss_scale(self) -> float:
        return self.cur_scale

    def scale_loss(self, loss):
        return loss * self.loss_scale

    def update_scale(self, overflow: bool) -> None:
        """Static scalers stay as they are."""

    def backward(self, loss, retain_graph: bool = False) -> None:
        self.scale_loss(loss).backward(retain_graph=retain_graph)


class LossScaler(LossScalerBase):
    """A constant factor."""

    def __init__(self, scale: float = 1) -> None:
        super().__init__(scale)


class DynamicLossScaler(LossScalerBase):
    """A factor that halves after overflows and doubles after `scale_window` good steps."""

    def __init__(self, init_scale: float = 2**32, scale_factor: float = 2.0, scale_window: int = 1000, min_scale: float = 1,
                 delayed_shift: int = 1, consecutive_hysteresis: bool = False, raise_error_at_min_scale: bool = True,
                 dtype: Any = None) -> None:
        super().__init__(init_scale)
        self.cur_iter = 0
        self.last_overflow_iter = -1
        self.scale_factor = scale_factor
        self.scale_window = scale_window
        self.min_scale = min_scale
        self.delayed_shift = delayed_shift
        self.cur_hysteresis = delayed_shift
        self.consecutive_hysteresis = consecutive_hysteresis
        self.raise_error_at_min_scale = raise_error_at_min_scale
        self.dynamic = True
        self.dtype = dtype

    def update_scale(self, overflow: bool) -> None:
        """The schedule itself, for programs that use the class on its own."""
        if overflow:
            if self.delayed_shift == 1 or self.cur_hysteresis == 1:
                if self.cur_scale == self.min_scale and self.raise_error_at_min_scale:
                    raise Exception("Current loss scale already at minimum - cannot decrease scale anymore. Exiting run.")
                self.cur_scale = max(self.cur_scale / self.scale_factor, self.min_scale)
            else:
                self.cur_hysteresis -= 1
            self.last_overflow_iter = self.cur_iter
        else:
            if self.consecutive_hysteresis:
                self.cur_hysteresis = self.delayed_shift
            stable = self.cur_iter - self.last_overflow_iter - 1
            if stable > 0 and stable % self.scale_window == 0:
                if not self.consecutive_hysteresis:
                    self.cur_hysteresis = self.delayed_shift
                self.cur_scale *= self.scale_factor
        self.cur_iter += 1


def CreateLossScaler(dtype: Any, static_loss_scale: float, dynamic_scaling: bool, dynamic_loss_args: dict | None) -> LossScalerBase:
    """The scaler for a dtype: only fp16 is ever scaled."""
    import torch
    if dtype != torch.half or not dynamic_scaling:
        return LossScaler(scale=static_loss_scale if dtype == torch.half else 1.0)
    return DynamicLossScaler(dtype=dtype, **(dynamic_loss_args or {}))
