"""Builds models on a device and in a dtype of the caller's choice, e.g. on "meta" without memory."""
from __future__ import annotations

from typing import Any, Callable

import torch

_CONSTRUCTORS = ("empty", "zeros", "ones", "full")


class OnDevice:
    """Context: floating tensors made by torch.empty, zeros, ones and full have `dtype` and live on `device`."""

    def __init__(self, dtype: torch.dtype, device: Any = "meta", enabled: bool = True) -> None:
        self.dtype, self.device, self.enabled = dtype, device, enabled
        self._saved: dict[str, Callable] = {}
        self._device_context: Any = None

    def _wrapped(self, constructor: Callable) -> Callable:

        def construct(*args, **kwargs):
            if kwargs.get("device") is None:
                kwargs["device"] = self.device
            tensor = constructor(*args, **kwargs)
            return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

        return construct

    def __enter__(self) -> "OnDevice":
        if self.enabled:
            for name in _CONSTRUCTORS:
                self._saved[name] = getattr(torch, name)
                setattr(torch, name, self._wrapped(self._saved[name]))
            self._device_context = torch.device(self.device)
            self._device_context.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        if self.enabled:
            self._device_context.__exit__(*exception)
            for name, constructor in self._saved.items():
                setattr(torch, name, constructor)
            self._saved.clear()
