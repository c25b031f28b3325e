"""Which tests of which checkout run, with which plugin. Checkouts are never changed."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Suite:
    name: str
    checkout: str  # the folder's name in DEEPSCALE_DOWNSTREAM
    package: str  # the distribution whose version the checkout must fit
    url: str  # of its repository
    tag: str  # git's name of that version, or of the nearest one
    plugin: str  # of plugins/
    tests: tuple[str, ...]  # files and folders in the checkout
    quick: str  # pytest's -k expression: what --quick runs

    def missing(self, folder: Path) -> list[str]:
        return [path for path in self.tests if not (folder / self.checkout / path).exists()]


LIGHTNING = {"checkout": "pytorch-lightning", "package": "lightning", "url": "https://github.com/Lightning-AI/pytorch-lightning",
             "tag": "2.6.5", "plugin": "lightning_on_cpu"}

SUITES = (
    Suite(name="accelerate", checkout="accelerate", package="accelerate", url="https://github.com/huggingface/accelerate", tag="v1.15.0",
          plugin="accelerate_on_cpu", tests=("tests/deepspeed",), quick="DeepSpeedConfigIntegration and not basic_run and not prepare_deepspeed"),
    Suite(name="transformers", checkout="transformers", package="transformers", url="https://github.com/huggingface/transformers",
          tag="v5.23.0", plugin="transformers_on_cpu", tests=("tests/trainer/distributed/test_trainer_distributed_deepspeed.py",),
          quick="TestNonTrainerIntegrationDeepSpeed"),
    Suite(name="lightning-pytorch", **LIGHTNING, quick="not multi",
          tests=("tests/tests_pytorch/strategies/test_deepspeed.py", "tests/tests_pytorch/utilities/test_deepspeed_collate_checkpoint.py",
                 "tests/tests_pytorch/utilities/test_deepspeed_model_summary.py",
                 "tests/tests_pytorch/plugins/precision/test_deepspeed_precision.py")),
    Suite(name="lightning-fabric", **LIGHTNING, quick="not multi and not stage and not save_load and not bfloat16",
          tests=("tests/tests_fabric/strategies/test_deepspeed.py", "tests/tests_fabric/strategies/test_deepspeed_integration.py",
                 "tests/tests_fabric/plugins/precision/test_deepspeed.py",
                 "tests/tests_fabric/plugins/precision/test_deepspeed_integration.py")),
)
