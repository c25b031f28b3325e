"""_C.pyi says what the compiled extension has: the same names, the same members, the same arguments."""
from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import deepspeed
from deepspeed import _C

STUB = ast.parse((Path(deepspeed.__file__).parent / "_C.pyi").read_text())
# Of every Python object, or made by pybind11.
EVERYWHERE = {"__init__", "__module__", "__doc__", "__weakref__", "__new__", "__entries", "__members__"}


def _definitions(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Name: the first definition. Fields of a class are annotated names."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.setdefault(node.name, node)
        elif isinstance(node, ast.AnnAssign):
            found.setdefault(node.target.id, node)
    return found


def _public(names) -> set[str]:
    return {name for name in names if not name.startswith("_")}


STUB_NAMES = _definitions(STUB.body)
CLASSES = sorted(name for name, node in STUB_NAMES.items() if isinstance(node, ast.ClassDef) and not issubclass(getattr(_C, name, object), Exception))


def test_the_same_names():
    assert _public(vars(_C)) == _public(STUB_NAMES)


def test_kinds_are_the_same():
    for name, node in STUB_NAMES.items():
        assert inspect.isclass(getattr(_C, name)) == isinstance(node, ast.ClassDef), name
    for name, node in STUB_NAMES.items():
        if isinstance(node, ast.ClassDef) and issubclass(getattr(_C, name), Exception):
            assert [base.__name__ for base in getattr(_C, name).__bases__] == [base.id for base in node.bases], name


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_members(name):
    assert _public(vars(getattr(_C, name))) == _public(_definitions(STUB_NAMES[name].body))


def _arguments(function: object) -> list[str] | None:
    """Names of a compiled function's arguments; None where it is overloaded or does not name them."""
    signature = (function.__doc__ or "").splitlines()[0] if function.__doc__ else ""
    found = re.fullmatch(r"\w+\((.*)\) -> .*", signature)
    if found is None or "*args" in signature:
        return None
    inner = found.group(1)
    while "[" in inner:  # dict[str, int] has a comma that separates no arguments
        inner = re.sub(r"\[[^\[\]]*\]", "", inner)
    names = re.findall(r"(?:^|, )(\w+): ", inner)
    return None if any(re.fullmatch(r"arg\d+", name) for name in names) else names


def test_the_same_arguments():
    compared = 0
    places = [(_C, STUB_NAMES)] + [(getattr(_C, name), _definitions(STUB_NAMES[name].body)) for name in CLASSES]
    for owner, nodes in places:
        for name, node in nodes.items():
            if not isinstance(node, ast.FunctionDef) or name == "__init__":
                continue
            real = _arguments(getattr(owner, name))
            if real is None:
                continue
            listed = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            keyword_free = [re.sub("^async$", "async_", argument) for argument in real]
            assert listed == keyword_free, f"{owner.__name__}.{name}"
            compared += 1
    assert compared > 20


def test_the_package_says_that_it_is_typed():
    assert (Path(deepspeed.__file__).parent / "py.typed").exists()
