"""The core's communicators over torch's process groups, one for each group for as long as the group lives."""
from __future__ import annotations

import atexit
import glob
import time
import weakref
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from deepspeed._C import Communicator, OperationLog

# Keyed by the group object: when torch drops a group, its communicator goes too.
_communicators: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def get_communicator(group: dist.ProcessGroup | None = None) -> "Communicator":
    """The core's communicator over `group` (default: the world). The first call for a group is collective over it.

    Without torch.distributed this is a world of one.
    """
    from deepspeed import _C
    if not (dist.is_available() and dist.is_initialized()):
        return _C.Communicator.self_world()
    group = dist.group.WORLD if group is None else group
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("get_communicator: this rank is not a member of the group")
    found = _communicators.get(group)
    if found is None:
        found = _C.Communicator.from_process_group(group)
        _communicators[group] = found
    return found


class EngineOperations:
    """What the collectives of engines took, for the communications logger. They run inside the core, which notes them while it is enabled."""

    def __init__(self) -> None:
        self._enabled = False
        self._log: "OperationLog | None" = None  # made with the first engine: the logger alone needs no core

    def enable(self, enabled: bool) -> None:
        self._enabled = enabled
        if self._log is not None:
            self._log.enabled = enabled

    def recorded(self, communicator: "Communicator") -> "Communicator":
        if self._log is None:
            from deepspeed import _C
            self._log = _C.OperationLog()
            self._log.enabled = self._enabled
        return communicator.recorded(self._log)

    def take(self) -> list[tuple[str, int, int, float]]:
        """(operation, bytes of one rank's piece, ranks, milliseconds) since the last call, in their order."""
        return self._log.take() if self._log is not None else []


engine_operations = EngineOperations()


def bytes_moved() -> dict[str, int]:
    """Bytes that this rank has sent through the core since each group's first collective, by the communicator's description: those of
    engines, and of deepspeed.comm where the core serves it."""
    found: dict[str, int] = {}
    for communicator in list(_communicators.values()):
        found[communicator.description] = found.get(communicator.description, 0) + communicator.bytes_moved
    return found


def forget(group: dist.ProcessGroup | None = None) -> None:
    """Drops the communicator of `group`, or of every group."""
    if group is None:
        _communicators.clear()
    else:
        _communicators.pop(group, None)


def _states_of_gloos_threads() -> list[str]:
    """"S" for one that sleeps; of Linux only."""
    states = []
    for task in glob.glob("/proc/self/task/*/stat"):
        try:
            with open(task) as file:
                name, _, facts = file.read().partition("(")[2].rpartition(")")
        except OSError:  # it has ended
            continue
        if name.startswith("pt_gloo"):
            states.append(facts.split()[0])
    return states


def _leave() -> None:
    """Before the interpreter ends. A thread of Gloo that is through with a collective lets go of its tensors, for which it needs the
    interpreter's lock; when that is gone, the process ends in "terminate called without an active exception". The groups cannot be ended
    instead: programs leave engines behind, which hold them, and a collective may be waiting for a rank that will not come."""
    forget()
    deadline = time.monotonic() + 2
    asleep = 0
    while asleep < 3 and time.monotonic() < deadline:
        time.sleep(0.001)  # whoever waits for the lock gets it
        states = _states_of_gloos_threads()
        if not states:
            return
        asleep = asleep + 1 if set(states) == {"S"} else 0


atexit.register(_leave)
