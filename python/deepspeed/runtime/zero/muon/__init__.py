"""Muon with an auxiliary Adam, by its old path."""
from deepspeed._lazy import attach

from .muon_optimizer import MUON_OPTIONS, MuonWithAuxAdam, muon_groups

__getattr__, __dir__ = attach(__name__)
__all__ = ["MUON_OPTIONS", "MuonWithAuxAdam", "muon_groups"]
