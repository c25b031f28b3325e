"""Events as metrics of a Comet experiment, each label at most once in `comet.samples_log_interval` samples."""
from __future__ import annotations

from typing import Any, Sequence

from deepspeed.monitor.monitor import Event, Monitor
from deepspeed.monitor.utils import check_comet_availability, is_writer


class CometMonitor(Monitor):
    """Starts an experiment on rank 0 and logs its events there. Raises ImportError without comet_ml 3.41.0 or newer.

    `comet.online` false keeps the experiment on this machine (`comet upload`)."""

    def __init__(self, comet_config: Any) -> None:
        super().__init__(comet_config)
        check_comet_availability()
        self.enabled = comet_config.enabled
        self._experiment: Any = None
        self._schedule = EventsLogScheduler(comet_config.samples_log_interval)
        if self.enabled and is_writer():
            import comet_ml
            self._experiment = comet_ml.start(api_key=comet_config.api_key, project=comet_config.project, workspace=comet_config.workspace,
                                              experiment_key=comet_config.experiment_key, mode=comet_config.mode, online=comet_config.online)
            if comet_config.experiment_name is not None:
                self._experiment.set_name(comet_config.experiment_name)

    @property
    def experiment(self) -> Any:
        """The comet_ml experiment; None where nothing is written."""
        return self._experiment

    @property
    def samples_log_interval(self) -> int:
        return self.monitor_config.samples_log_interval

    def write_events(self, event_list: Sequence[Event]) -> None:
        if self._experiment is None:
            return
        for label, value, samples in event_list:
            if self._schedule.needs_logging(label, samples):
                self._experiment.log_metric(name=label, value=value, step=samples)


class EventsLogScheduler:
    """Thins events out: after the first event of a label, the next that is let through is at least `samples_log_interval` samples later."""

    def __init__(self, samples_log_interval: int) -> None:
        self._interval = samples_log_interval
        self._last: dict[str, int] = {}  # label: samples at the last event that was let through

    def needs_logging(self, name: str, current_sample: int) -> bool:
        last = self._last.get(name)
        if last is not None and current_sample - last < self._interval:
            return False
        self._last[name] = current_sample
        return True
