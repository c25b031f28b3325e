"""The package's logger and messages that only some ranks print."""
from __future__ import annotations

import logging
import sys
from typing import Any, Sequence

log_levels = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


class LoggerFactory:
    """Makes loggers in the package's format."""

    @staticmethod
    def create_logger(name: str | None = None, level: int = logging.WARNING) -> logging.Logger:
        if name is None:
            raise ValueError("a logger needs a name")
        made = logging.getLogger(name)
        made.setLevel(level)
        made.propagate = False
        if not made.handlers:
            handler = _StdoutHandler()
            handler.setFormatter(
                logging.Formatter("[%(asctime)s] [%(levelname)s] [%(filename)s:%(lineno)d:%(funcName)s] %(message)s"))
            made.addHandler(handler)
        return made


class _StdoutHandler(logging.StreamHandler):
    """Writes to the standard output of the moment, so that a redirection made later is honoured."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    @property
    def stream(self):
        return sys.stdout

    @stream.setter
    def stream(self, _value) -> None:
        pass


logger = LoggerFactory.create_logger(name="DeepSpeed")
_printed_once: set[str] = set()


def _rank() -> int:
    """This process's rank, or -1 while nothing is distributed."""
    import torch.distributed as dist
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else -1


def log_dist(message: str, ranks: Sequence[int] | None = None, level: int = logging.INFO) -> None:
    """Logs `message` on the given ranks (-1 or none given: on every rank)."""
    if not logger.isEnabledFor(level):
        return
    rank = _rank()
    if rank >= 0 and ranks and ranks[0] != -1 and rank not in ranks:
        return
    logger.log(level, "[Rank %d] %s", rank, message, stacklevel=2)


def log_dist_once(message: str, ranks: Sequence[int] | None = None, level: int = logging.INFO) -> None:
    """log_dist() the first time this process meets the message."""
    if message not in _printed_once:
        _printed_once.add(message)
        log_dist(message, ranks, level)


def warning_once(message: str) -> None:
    """Logs a warning the first time this process meets it."""
    if message not in _printed_once:
        _printed_once.add(message)
        logger.warning(message, stacklevel=2)


def print_rank_0(message: str, debug: bool = False, force: bool = False) -> None:
    if _rank() <= 0 and (debug or force):
        logger.info(message, stacklevel=2)


def print_configuration(args: Any, name: str) -> None:
    """Logs every attribute of `args`."""
    logger.info("%s:", name)
    for key in sorted(vars(args)):
        logger.info("  %s %s %s", key, "." * (29 - len(key)), getattr(args, key))


def print_json_dist(message: dict, ranks: Sequence[int] | None = None, path: str | None = None) -> None:
    """Writes `message` as JSON to `path` on the given ranks."""
    import json
    rank = _rank()
    if rank >= 0 and ranks and ranks[0] != -1 and rank not in ranks:
        return
    message["rank"] = rank
    if path is not None:
        with open(path, "w") as file:
            json.dump(message, file)


def get_log_level_from_string(log_level_str: str) -> int:
    try:
        return log_levels[log_level_str.lower()]
    except (KeyError, AttributeError):
        raise ValueError(f"log level {log_level_str!r} is not one of {', '.join(log_levels)}") from None


def set_log_level_from_string(log_level_str: str, custom_logger: logging.Logger | None = None) -> None:
    """Sets the logger's level by name: debug, info, warning, error or critical."""
    (custom_logger or logger).setLevel(get_log_level_from_string(log_level_str))


def get_current_level() -> int:
    return logger.getEffectiveLevel()


def should_log_le(max_log_level_str: str) -> bool:
    """Whether the logger's level is at or below the named level."""
    return get_current_level() <= get_log_level_from_string(max_log_level_str)
