"""Linear layers of a model that only runs forward on CPUs: products with few rows stream the weight once, at the speed of memory."""
from __future__ import annotations

import copyreg
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from deepspeed import _C


class DecodeLinear(nn.Linear):
    """nn.Linear whose products with at most 16 rows on the CPU are the core's (fp32 sums, one rounding at the end)."""

    def forward(self, input: Tensor) -> Tensor:
        # Autocast chooses dtypes by the operator, and knows torch's own only.
        if torch.is_grad_enabled() or not input.is_cpu or torch.is_autocast_enabled("cpu"):
            return F.linear(input, self.weight, self.bias)
        return _C.few_rows_linear(input, self.weight, self.bias)

    def __reduce_ex__(self, protocol: int) -> Any:
        """Copies and files are of torch's own class."""
        return copyreg._reconstructor, (nn.Linear, object, None), self.__dict__


def stream_linears(module: nn.Module) -> None:
    """Makes every plain nn.Linear of `module` a DecodeLinear, in place; restore_linears() undoes it."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = DecodeLinear


def restore_linears(module: nn.Module) -> None:
    for layer in module.modules():
        if type(layer) is DecodeLinear:
            layer.__class__ = nn.Linear
