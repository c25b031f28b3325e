"""The monitors' sections as objects, for programs that make a monitor without an engine. The core checks them and has their defaults."""
from __future__ import annotations

from typing import Any

from deepspeed.runtime.config import ConfigValidationError, Section, resolved_section

SECTIONS = ("tensorboard", "wandb", "csv_monitor", "comet")


class _MonitorSection(Section):
    """Keywords are the section's keys; others get their defaults. Raises ConfigValidationError (a ValueError) for what is no key."""

    _name = ""

    def __init__(self, **given: Any) -> None:
        if given.get("enabled") == "auto":
            given["enabled"] = False
        super().__init__(**resolved_section(self._name, given))


class TensorBoardConfig(_MonitorSection):
    """Section `tensorboard`: enabled, output_path, job_name."""

    _name = "tensorboard"


class WandbConfig(_MonitorSection):
    """Section `wandb`: enabled, group, team, project."""

    _name = "wandb"


class CSVConfig(_MonitorSection):
    """Section `csv_monitor`: enabled, output_path, job_name."""

    _name = "csv_monitor"


class CometConfig(_MonitorSection):
    """Section `comet`: enabled, samples_log_interval, project, workspace, api_key, experiment_name, experiment_key, online, mode."""

    _name = "comet"


_CLASSES = {kind._name: kind for kind in (TensorBoardConfig, WandbConfig, CSVConfig, CometConfig)}


class DeepSpeedMonitorConfig(Section):
    """The four sections, and whether any of them is on (`enabled`). Keywords: dictionaries or section objects."""

    def __init__(self, **given: Any) -> None:
        unknown = sorted(set(given) - set(SECTIONS))
        if unknown:
            raise ConfigValidationError(f"{unknown[0]!r} is not a monitor: the sections are {', '.join(SECTIONS)}")
        made = {name: _CLASSES[name](**value) if isinstance(value := given.get(name, {}), dict) else value for name in SECTIONS}
        super().__init__(**made, enabled=any(section.enabled for section in made.values()))


def get_monitor_config(param_dict: dict[str, Any]) -> DeepSpeedMonitorConfig:
    """The monitors' sections of a whole configuration."""
    return DeepSpeedMonitorConfig(**{name: param_dict[name] for name in SECTIONS if name in param_dict})
