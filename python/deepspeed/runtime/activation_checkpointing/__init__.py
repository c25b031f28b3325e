"""Recomputation of activations in backward."""
from deepspeed._lazy import attach

__getattr__, __dir__ = attach(__name__)
