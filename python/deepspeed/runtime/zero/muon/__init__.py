"""Muon with an auxiliary Adam, by its old path."""
from .muon_optimizer import MuonWithAuxAdam, muon_groups

__all__ = ["MuonWithAuxAdam", "muon_groups"]
