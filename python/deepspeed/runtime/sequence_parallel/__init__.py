"""Ulysses: the ranks of a group share every sequence; for attention they exchange sequence shards for whole sequences of some heads."""
from deepspeed._lazy import attach

__getattr__, __dir__ = attach(__name__, {})
