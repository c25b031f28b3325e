"""Where training events go: every destination that the configuration switches on, written by rank 0 alone.

An event is (label, value, step): the engine's labels are "Train/Samples/...", its steps count samples (docs/monitoring.md).
"""
from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import Any, Sequence

from deepspeed.monitor.utils import is_writer

Event = tuple[str, Any, int]


class Monitor(ABC):
    """One destination of events."""

    @abstractmethod
    def __init__(self, monitor_config: Any) -> None:
        self.monitor_config = monitor_config

    @abstractmethod
    def write_events(self, event_list: Sequence[Event]) -> None:
        """Writes (label, value, step) one after the other. Does nothing on other ranks than 0."""


class MonitorMaster(Monitor):
    """Sends events to every destination that is switched on.

    monitor_config: has the sections `tensorboard`, `wandb`, `csv_monitor` and `comet` as attributes. Those that are missing are off.
    Raises ImportError when a destination's package is not installed, OSError when its folder cannot be made; both on rank 0 alone.
    """

    def __init__(self, monitor_config: Any) -> None:
        super().__init__(monitor_config)
        self.tb_monitor = self._open("tensorboard")
        self.wandb_monitor = self._open("wandb")
        self.csv_monitor = self._open("csv_monitor")
        self.comet_monitor = self._open("comet")
        self.enabled = any(self._switched_on(name) for name in ("tensorboard", "wandb", "csv_monitor", "comet"))

    def _switched_on(self, name: str) -> bool:
        return bool(getattr(getattr(self.monitor_config, name, None), "enabled", False))

    def _open(self, name: str) -> Any:
        if not self._switched_on(name) or not is_writer():
            return None
        return _destination(name)(getattr(self.monitor_config, name))

    def write_events(self, event_list: Sequence[Event]) -> None:
        for monitor in (self.tb_monitor, self.wandb_monitor, self.csv_monitor, self.comet_monitor):
            if monitor is not None:
                monitor.write_events(event_list)


# Imported when they are needed: their packages are optional.
_DESTINATIONS = {"tensorboard": "TensorBoardMonitor", "wandb": "WandbMonitor", "csv_monitor": "csvMonitor", "comet": "CometMonitor"}


def _destination(name: str) -> type[Monitor]:
    """The class behind a section."""
    return getattr(importlib.import_module(f"deepspeed.monitor.{name}"), _DESTINATIONS[name])


def __getattr__(name: str) -> Any:
    for section, class_name in _DESTINATIONS.items():
        if name == class_name:
            return _destination(section)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
