"""A pytest plugin: Accelerate's tests, which ask for one or two GPUs, run on CPUs.

The name of a device that the tests ask about is set before they are imported; programs that the tests start get the patches of
../children instead (run_suites.py puts that folder on PYTHONPATH). Slow tests, which are those with two processes, run.
"""
from __future__ import annotations

import os

os.environ["RUN_SLOW"] = "1"

import accelerate.test_utils.testing as testing  # noqa: E402

testing.torch_device = "cpu "  # not equal to "cpu", which is what makes the tests skip themselves
testing.device_count = 2
