"""Events as TensorBoard scalars, in `tensorboard.output_path`/`tensorboard.job_name`."""
from __future__ import annotations

from typing import Any, Sequence

from deepspeed.monitor.monitor import Event, Monitor
from deepspeed.monitor.utils import check_tb_availability, is_writer, make_log_folder


class TensorBoardMonitor(Monitor):
    """Writes the events of rank 0 through torch's SummaryWriter. Raises ImportError without the package tensorboard."""

    def __init__(self, tensorboard_config: Any) -> None:
        super().__init__(tensorboard_config)
        check_tb_availability()
        self.summary_writer: Any = None
        self.enabled = tensorboard_config.enabled
        self.output_path = tensorboard_config.output_path
        self.job_name = tensorboard_config.job_name
        self.get_summary_writer()

    def get_summary_writer(self) -> Any:
        """The writer; None where nothing is written."""
        if self.summary_writer is None and self.enabled and is_writer():
            from torch.utils.tensorboard import SummaryWriter
            self.summary_writer = SummaryWriter(log_dir=make_log_folder("tensorboard", self.monitor_config))
        return self.summary_writer

    def write_events(self, event_list: Sequence[Event], flush: bool = True) -> None:
        if self.summary_writer is None:
            return
        for label, value, step in event_list:
            self.summary_writer.add_scalar(label, value, step)
        if flush:
            self.flush()

    def flush(self) -> None:
        """Makes what was written visible to readers of the files."""
        if self.summary_writer is not None:
            self.summary_writer.flush()
