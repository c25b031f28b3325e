"""What all integration tests share: no network, no GPU, a world of one in pytest's own process, and the option --whole.

By default a small set runs, with what CI installs. --whole runs every combination.
"""
from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
for folder in (TESTS / "python", TESTS / "integrations"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from common import single_rank  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="integrations: every combination, not only the small set of the default")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "whole: an integration test that runs only with --whole")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--whole"):
        return
    left_out = [item for item in items if item.get_closest_marker("whole") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.get_closest_marker("whole") is None]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what ranks started by common.run_ranks inherit."""
    single_rank(monkeypatch)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TRL_EXPERIMENTAL_SILENCE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
