"""The core's communicators over torch's process groups, one for each group for as long as the group lives."""
from __future__ import annotations

import atexit
import os
import weakref
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from deepspeed._C import Communicator

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


def forget(group: dist.ProcessGroup | None = None) -> None:
    """Drops the communicator of `group`, or of every group."""
    if group is None:
        _communicators.clear()
    else:
        _communicators.pop(group, None)


def _leave(process: int) -> None:
    """Ends Gloo's threads while the interpreter still runs. A thread that lets go of a tensor after that ends in
    "terminate called without an active exception": it needs the interpreter's lock, and gets its own end instead."""
    forget()  # before torch tears its groups down
    if os.getpid() != process:
        return  # a forked child has none of the threads, and would wait for them
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


atexit.register(_leave, os.getpid())
