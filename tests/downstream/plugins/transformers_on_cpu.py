"""A pytest plugin: Transformers' tests of its DeepSpeed integration, which ask for one or two GPUs, run on CPUs.

The conditions are replaced before the tests are imported. TrainingArguments asks whether a GPU has bf16 and is told that it has: the
device stays the CPU. Programs that the tests start get the same from ../children. Slow tests, which have two processes, run.
"""
from __future__ import annotations

import os

os.environ["RUN_SLOW"] = "1"

import transformers.testing_utils as testing  # noqa: E402
import transformers.training_args as training_args  # noqa: E402

testing.require_torch_accelerator = testing.require_torch_multi_accelerator = lambda test: test
testing.backend_device_count = lambda device: 2
training_args.is_torch_bf16_gpu_available = lambda: True
