"""Names of the launcher that Python code imports; the launcher itself is the native program `deepspeed`."""
from deepspeed._lazy import attach

__getattr__, __dir__ = attach(__name__)
