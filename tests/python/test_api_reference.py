"""docs/api: the reference (scripts/docs.sh) has a place for every public name and every public header."""
from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

from public_names import home, public_names

from deepspeed._later import modules as later_modules

ROOT = Path(__file__).resolve().parents[2]
LISTED = re.findall(r"^\.\. automodule:: (\S+)$", (ROOT / "docs" / "api" / "python.rst").read_text(), re.MULTILINE)


def _defining_modules() -> dict[str, str]:
    """{module: one of the public functions and classes that it defines}"""
    found = {}
    for place, names in public_names().items():
        for name in names:
            value = getattr(home(place), name)
            module = getattr(value, "__module__", None) or ""
            if (inspect.isclass(value) or inspect.isfunction(value)) and module.startswith("deepspeed") and not name.startswith("_"):
                found[module] = f"{place}.{name}"
    return found


def test_every_module_with_a_public_name_is_listed():
    missing = {module: name for module, name in _defining_modules().items() if module not in LISTED and module not in later_modules()}
    missing = {module: name for module, name in missing.items() if ":" not in name}  # methods stand in the classes that have them
    assert not missing, missing


def test_listed_modules_exist_once_and_say_what_they_are_for():
    assert len(LISTED) == len(set(LISTED)) and len(LISTED) > 50
    for module in LISTED:
        assert (importlib.import_module(module).__doc__ or "").strip() or module == "deepspeed._C", module
    assert not set(LISTED) & set(later_modules())


def test_every_public_header_is_listed():
    listed = set(re.findall(r"``<deepscale/(\w+\.h)>``", (ROOT / "docs" / "api" / "cpp.rst").read_text()))
    assert listed == {path.name for path in (ROOT / "include" / "deepscale").glob("*.h")} - {"deepscale.h"}
