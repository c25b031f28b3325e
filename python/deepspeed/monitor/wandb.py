"""Events in a run of Weights & Biases. With WANDB_MODE=offline in the environment the run stays on this machine (`wandb sync`)."""
from __future__ import annotations

from typing import Any, Sequence

from deepspeed.monitor.monitor import Event, Monitor
from deepspeed.monitor.utils import check_wandb_availability, is_writer


class WandbMonitor(Monitor):
    """Starts a run on rank 0 and logs its events there. Raises ImportError without the package wandb."""

    def __init__(self, wandb_config: Any) -> None:
        super().__init__(wandb_config)
        check_wandb_availability()
        self.enabled = wandb_config.enabled
        self.group, self.team, self.project = wandb_config.group, wandb_config.team, wandb_config.project
        if self._writes():
            import wandb
            wandb.init(project=self.project, group=self.group, entity=self.team)

    def _writes(self) -> bool:
        return self.enabled and is_writer()

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        """wandb.log() on rank 0."""
        if self._writes():
            import wandb
            wandb.log(data, step=step, commit=commit)

    def write_events(self, event_list: Sequence[Event]) -> None:
        for label, value, step in event_list:
            self.log({label: value}, step=step)
