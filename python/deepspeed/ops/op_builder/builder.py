"""The base of all operator builders."""
from __future__ import annotations

import importlib
from types import ModuleType


class OpBuilder:
    """An operator by name: is it there, and give me its functions."""

    BUILD_VAR = ""
    NAME = ""
    MODULE: str | None = None
    INSTEAD = ""

    def __init__(self, name: str | None = None) -> None:
        self.name = name or self.NAME

    def absolute_name(self) -> str:
        """The operator's dotted name."""
        return f"deepspeed.ops.{self.NAME}"

    def sources(self) -> list[str]:
        """No source files: operators are part of the package."""
        return []

    def is_compatible(self, verbose: bool = False) -> bool:
        """Whether load() works on this machine; independent of compilers, because nothing is compiled."""
        return self.MODULE is not None

    def load(self, verbose: bool = False) -> ModuleType:
        """The module with the operator's functions. Raises NotImplementedError for operators that do not exist here."""
        if self.MODULE is None:
            raise NotImplementedError(f"operator {self.NAME!r}: {self.INSTEAD or 'not built yet'}")
        return importlib.import_module(self.MODULE)

    def jit_load(self, verbose: bool = False) -> ModuleType:
        """load(): nothing is compiled."""
        return self.load(verbose)


def make_builder(class_name: str, op_name: str, module: str | None, instead: str = "") -> type[OpBuilder]:
    attributes = {"NAME": op_name, "BUILD_VAR": f"DS_BUILD_{op_name.upper()}", "MODULE": module, "INSTEAD": instead,
                  "__module__": "deepspeed.ops.op_builder", "__doc__": f"Operator {op_name}."}
    return type(class_name, (OpBuilder,), attributes)
