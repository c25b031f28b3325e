"""The same package under its project's name: every name and submodule is deepspeed's own object."""
import sys as _sys

import deepspeed as _deepspeed

_sys.modules[__name__] = _deepspeed
