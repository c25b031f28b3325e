"""Batch sizes that many numbers of ranks can share: for programs that schedule runs. The engine itself reads the section
`elasticity` without this module."""
from deepspeed.elasticity.constants import ELASTICITY, ENABLED, ENABLED_DEFAULT
from deepspeed.elasticity.elasticity import compute_elastic_config, elasticity_enabled, ensure_immutable_elastic_config

__all__ = ["ELASTICITY", "ENABLED", "ENABLED_DEFAULT", "compute_elastic_config", "elasticity_enabled",
           "ensure_immutable_elastic_config"]
