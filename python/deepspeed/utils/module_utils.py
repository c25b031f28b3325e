"""Access to submodules and attributes by dotted name."""
from __future__ import annotations

import functools
from typing import Any


def recursive_getattr(model: Any, module_name: str) -> Any:
    """`model.a.b.c` for "a.b.c"."""
    return functools.reduce(getattr, module_name.split("."), model)


def recursive_setattr(model: Any, module_name: str, module: Any) -> None:
    """`model.a.b.c = module` for "a.b.c"."""
    parent, _, name = module_name.rpartition(".")
    setattr(recursive_getattr(model, parent) if parent else model, name, module)
