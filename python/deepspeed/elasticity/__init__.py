"""Batch sizes that many numbers of ranks can share: for programs that schedule runs. The engine itself reads the section
`elasticity` without this module."""
from deepspeed._lazy import attach
from deepspeed.elasticity.constants import ELASTICITY, ENABLED, ENABLED_DEFAULT
from deepspeed.elasticity.elasticity import compute_elastic_config, elasticity_enabled, ensure_immutable_elastic_config

__getattr__, __dir__ = attach(__name__, {"DSElasticAgent": "deepspeed.elasticity.elastic_agent:DSElasticAgent"})
__all__ = ["ELASTICITY", "ENABLED", "ENABLED_DEFAULT", "compute_elastic_config", "elasticity_enabled",
           "ensure_immutable_elastic_config"]
