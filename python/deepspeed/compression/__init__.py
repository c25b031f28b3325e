"""Model compression: only the helpers by dotted name exist so far."""
from deepspeed._lazy import attach

__getattr__, __dir__ = attach(__name__, {
    "init_compression": "deepspeed.compression.compress:init_compression",
    "redundancy_clean": "deepspeed.compression.compress:redundancy_clean",
    "compression_scheduler": "deepspeed.compression.scheduler:compression_scheduler",
})
