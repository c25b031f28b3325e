"""Muon with an auxiliary Adam, by its old path."""
from .muon_optimizer import MUON_OPTIONS, MuonWithAuxAdam, muon_groups

__all__ = ["MUON_OPTIONS", "MuonWithAuxAdam", "muon_groups"]
