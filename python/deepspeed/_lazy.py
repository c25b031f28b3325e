"""Submodules and names that load when they are first used, so that `import deepspeed` costs next to nothing."""
from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any, Callable, Mapping


def attach(package: str, names: Mapping[str, str] | None = None) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A module-level (__getattr__, __dir__) for `package`: `names` maps a name to "module:attribute" (or a module); other names
    are tried as submodules. What was found is kept in the package, so the next access costs nothing."""
    table = dict(names or {})

    def __getattr__(name: str) -> Any:
        if name in table:
            value = resolve(table[name])
        elif name.startswith("__"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        else:
            full = f"{package}.{name}"
            try:
                value = importlib.import_module(full)
            except ModuleNotFoundError as error:
                if error.name != full:
                    raise
                raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        module = sys.modules[package]
        # What the compiled part links against has a module's file name but is none.
        submodules = (found.name for found in pkgutil.iter_modules(module.__path__) if not found.name.startswith("lib"))
        return sorted({*vars(module), *table, *submodules})

    return __getattr__, __dir__


def resolve(target: str) -> Any:
    """The object that "module:attribute" or "module" names."""
    module, _, attribute = target.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def not_built(name: str, feature: str) -> Callable:
    """A function that refuses to run."""

    def raises(*_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError(f"{name} is not built yet ({feature})")

    raises.__module__, _, raises.__name__ = name.rpartition(".")
    raises.__qualname__, raises.__doc__ = raises.__name__, f"Not built yet ({feature})."
    return raises


def not_built_class(name: str, feature: str, base: type = object) -> type:
    """A class that can be imported and compared with, but not instantiated."""
    module, _, short = name.rpartition(".")
    refuse = not_built(name, feature)
    return type(short, (base,), {"__module__": module, "__init__": refuse, "__doc__": f"Not built yet ({feature})."})
