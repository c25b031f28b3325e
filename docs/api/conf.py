"""Sphinx: the API reference. `scripts/docs.sh` runs it, with the tag "cpp" when Doxygen has read the headers."""
from __future__ import annotations

import re

import deepspeed

project = "DeepScale"
version = release = deepspeed.__version__
author = "the authors of DeepScale"
project_copyright = author
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns: list[str] = []
if tags.has("cpp"):  # noqa: F821  (Sphinx defines it)
    extensions.append("breathe")  # docs.sh says where Doxygen's files are
    breathe_default_project = "deepscale"
else:
    exclude_patterns.append("cpp.rst")

html_theme = "alabaster"
html_show_sourcelink = False
default_role = "code"
python_use_unqualified_type_names = True
autodoc_default_options = {
    "members": True,
    "inherited-members": "Module,Optimizer,Exception,Enum,SimpleNamespace,dict,int,str",
    "member-order": "bysource",
    "show-inheritance": True,
    "ignore-module-all": True,
}
autodoc_typehints = "none"
suppress_warnings = ["ref.ref", "ref.doc"]  # what inherits PyTorch's docstrings inherits links into its pages


def plain_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text: what reStructuredText would take as markup is escaped, and indented parts are shown as they are."""
    shown: list[str] = []
    literal = False
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        if indented and not literal and (number == 0 or not lines[number - 1].strip()) and not _is_section(shown):
            shown += ["::", ""]
            literal = True
        elif line.strip() and not indented:
            literal = False
        shown.append(line if literal else re.sub(r"([*|]|\b_|_\b)", r"\\\1", line))
    lines[:] = shown


def _is_section(shown: list[str]) -> bool:
    """Whether the last paragraph heads a list of arguments."""
    text = [line.strip() for line in shown if line.strip()]
    return bool(text) and text[-1] in ("Args:", "Returns:", "Raises:")


def setup(app) -> None:
    app.connect("autodoc-process-docstring", plain_text, priority=400)  # before napoleon's
