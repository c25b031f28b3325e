"""torch.compile, as programs ask for it here."""
from __future__ import annotations

import torch

disable = torch.compiler.disable


def is_compile_supported() -> bool:
    """Whether torch can compile modules: every version that the package supports can."""
    return hasattr(torch, "compile")
