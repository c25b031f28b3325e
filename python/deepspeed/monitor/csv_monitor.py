"""Events in CSV files: one file for each label, in `csv_monitor.output_path`/`csv_monitor.job_name`.

The file of "Train/Samples/lr" is Train_Samples_lr.csv: a first row "step,lr", then a row of step and value for each event. Rows end
with CR LF (RFC 4180). A run that goes on in the same folder appends to its files.
"""
from __future__ import annotations

import csv
import os
from typing import Any, Sequence

from deepspeed.monitor.monitor import Event, Monitor
from deepspeed.monitor.utils import is_writer, make_log_folder


class csvMonitor(Monitor):  # noqa: N801  (the name that programs import)
    """Writes the events of rank 0. Each call leaves complete files: a program that is killed loses nothing that was written."""

    def __init__(self, csv_config: Any) -> None:
        super().__init__(csv_config)
        self.filenames: list[str] = []  # of this process, without folder and suffix
        self.enabled = csv_config.enabled
        self.output_path = csv_config.output_path
        self.job_name = csv_config.job_name
        self.log_dir = self.setup_log_dir()

    def setup_log_dir(self) -> str | None:
        """The folder of the files; None where nothing is written."""
        return make_log_folder("csv_monitor", self.monitor_config) if self.enabled and is_writer() else None

    def write_events(self, event_list: Sequence[Event]) -> None:
        if self.log_dir is None:
            return
        for label, value, step in event_list:
            self._append(label, value, step)

    def _append(self, label: str, value: Any, step: int) -> None:
        name = label.replace("/", "_").replace(" ", "_")
        path = os.path.join(self.log_dir, f"{name}.csv")
        try:
            # Opened anew for each event, so that somebody may move the files away or read them while training runs.
            with open(path, "a", newline="") as file:
                writer = csv.writer(file)
                if name not in self.filenames:
                    self.filenames.append(name)
                    if file.tell() == 0:
                        writer.writerow(["step", label.rpartition("/")[2]])
                writer.writerow([step, value])
        except OSError as error:
            raise type(error)(error.errno, f"csv_monitor.output_path: an event cannot be written ({error.strerror}): make room, name another "
                              "folder, or set csv_monitor.enabled to false", path) from error
