"""The monitor of an engine. No destination is built yet, and the configuration refuses those that are switched on."""
from __future__ import annotations

from typing import Any

_DESTINATIONS = ("tensorboard", "csv_monitor", "wandb", "comet")


class MonitorMaster:
    """Sends events to every destination that is switched on; at present there can be none."""

    def __init__(self, monitor_config: Any) -> None:
        for name in _DESTINATIONS:
            if getattr(getattr(monitor_config, name, None), "enabled", False):
                raise NotImplementedError(f"{name}: monitors are not built yet; set {name}.enabled to false")
        self.enabled = False

    def write_events(self, event_list: Any) -> None:
        """Nothing to do without a destination."""
