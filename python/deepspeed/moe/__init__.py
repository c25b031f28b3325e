"""Mixture of experts by name; not built yet."""
from deepspeed._lazy import attach

__getattr__, __dir__ = attach(__name__)
