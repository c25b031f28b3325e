"""Modules whose whole subtree is gathered and released together ("leaf modules"), for routing that differs from rank to rank."""
from __future__ import annotations

from typing import Callable, Sequence

import torch.nn as nn

from .logging import logger


def z3_leaf_module(model: nn.Module) -> bool:
    """Whether a module is marked: gathered with all it contains, and not module by module."""
    return getattr(model, "_z3_leaf", False)


def z3_leaf_parameter(model: nn.Parameter) -> bool:
    """Whether a parameter belongs to a leaf module (known once an engine exists)."""
    return getattr(model, "ds_z3_leaf_module", None) is not None


def get_z3_leaf_modules(model: nn.Module) -> list[nn.Module]:
    """All marked modules of a model."""
    return [module for module in model.modules() if z3_leaf_module(module)]


def set_z3_leaf_module(model: nn.Module, flag: bool) -> None:
    """Marks one module, or takes its mark away."""
    model._z3_leaf = flag


def _mark(model: nn.Module, wanted: Sequence, matches: Callable[[str, nn.Module, object], bool], flag: bool,
          raise_if_not_found: bool, what: str) -> tuple[list[nn.Module], list]:
    """Sets the flag on modules that match any of `wanted`; returns them and the entries that matched nothing."""
    marked, found = [], set()
    for name, module in model.named_modules():
        hits = [i for i, entry in enumerate(wanted) if matches(name, module, entry)]
        if hits:
            found.update(hits)
            set_z3_leaf_module(module, flag)
            marked.append(module)
    missing = [entry for i, entry in enumerate(wanted) if i not in found]
    if raise_if_not_found and wanted and not marked:
        raise ValueError(f"no module of {type(model).__name__} matches the {what} {list(wanted)}")
    return marked, missing


def _class_matches(_name: str, module: nn.Module, entry: object) -> bool:
    cls = type(module)
    return entry is cls or entry in (cls.__name__, cls.__qualname__, f"{cls.__module__}.{cls.__qualname__}")


def _do_set_z3_leaf_modules(model: nn.Module, classes: Sequence, flag: bool, raise_if_not_found: bool = True) -> list[nn.Module]:
    if not isinstance(classes, (list, tuple, set)) or not all(isinstance(c, (type, str)) for c in classes):
        raise AssertionError(f"leaf modules are given as a list of classes or class names, got {classes!r}")
    return _mark(model, list(classes), _class_matches, flag, raise_if_not_found, "classes")[0]


def set_z3_leaf_modules(model: nn.Module, leaf_module_classes: Sequence, raise_if_not_found: bool = True) -> list[nn.Module]:
    """Marks every module of the given classes (or class names, plain or fully qualified); returns the modules marked."""
    return _do_set_z3_leaf_modules(model, leaf_module_classes, True, raise_if_not_found)


def unset_z3_leaf_modules(model: nn.Module, leaf_module_classes: Sequence, raise_if_not_found: bool = True) -> list[nn.Module]:
    """Takes the mark from every module of the given classes; returns these modules."""
    return _do_set_z3_leaf_modules(model, leaf_module_classes, False, raise_if_not_found)


def set_z3_leaf_modules_by_name(model: nn.Module, names: Sequence[str],
                                raise_if_not_found: bool = True) -> tuple[list[nn.Module], list[str]]:
    """Marks modules by dotted name; returns (modules marked, names that matched nothing)."""
    return _mark(model, list(names), lambda name, _module, entry: name == entry, True, raise_if_not_found, "names")


def set_z3_leaf_modules_by_suffix(model: nn.Module, suffixes: Sequence[str],
                                  raise_if_not_found: bool = True) -> tuple[list[nn.Module], list[str]]:
    """Marks modules whose dotted name ends with one of the suffixes."""
    return _mark(model, list(suffixes), lambda name, _module, entry: name.endswith(entry), True, raise_if_not_found, "name suffixes")


def apply_zero_leaf_module_config(model: nn.Module, classes: Sequence[str], names: Sequence[str],
                                  suffixes: Sequence[str]) -> list[nn.Module]:
    """Marks what the configuration's leaf_module section names; entries of the defaults may match nothing."""
    marked = _do_set_z3_leaf_modules(model, list(classes), True, raise_if_not_found=False) if classes else []
    for wanted, mark in ((names, set_z3_leaf_modules_by_name), (suffixes, set_z3_leaf_modules_by_suffix)):
        if wanted:
            found, missing = mark(model, wanted, raise_if_not_found=False)
            marked += found
            if missing:
                logger.warning(f"zero_optimization.leaf_module: nothing in the model matches {missing}")
    return marked
