"""deepspeed.elasticity and the configuration section: the interface; the numbers are tested in C++ against DeepSpeed's."""
from __future__ import annotations

import json

import pytest

import deepspeed
from deepspeed.elasticity import compute_elastic_config, elasticity_enabled, ensure_immutable_elastic_config
from deepspeed.elasticity.config import (ElasticityConfig, ElasticityConfigError, ElasticityError,
                                         ElasticityIncompatibleWorldSize)
from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

VERSION = deepspeed.__version__


def section(**more) -> dict:
    return {"elasticity": {"enabled": True, "max_train_batch_size": 10000, "micro_batch_sizes": [8, 12, 16, 17],
                           "min_gpus": 32, "max_gpus": 1500, "min_time": 20, "version": 0.1, **more}}


def test_every_valid_size_divides_the_batch() -> None:
    batch, sizes = compute_elastic_config(section(), VERSION)
    assert (batch, len(sizes)) == (9792, 23)
    assert all(batch % size == 0 for size in sizes)
    _, _, micro = compute_elastic_config(section(), VERSION, world_size=64)
    assert micro == 17


def test_a_world_outside_the_list_is_refused() -> None:
    with pytest.raises(ElasticityIncompatibleWorldSize, match="128 data-parallel ranks"):
        compute_elastic_config(section(), VERSION, world_size=128)


@pytest.mark.parametrize("broken", [{"enabled": False}, {"version": 0.3}, {"micro_batch_sizes": [1, "few"]}, {"min_gpus": 0},
                                    {"max_train_batch_size": 2}, {"model_parallel_size": 2}])
def test_unusable_sections_are_refused(broken: dict) -> None:
    with pytest.raises(ElasticityConfigError):
        compute_elastic_config(section(**broken), VERSION)
    with pytest.raises(ElasticityConfigError):
        compute_elastic_config({}, VERSION)


def test_errors_have_a_common_class_and_are_configuration_errors() -> None:
    assert issubclass(ElasticityConfigError, ElasticityError) and issubclass(ElasticityError, DeepSpeedConfigError)
    with pytest.raises(ElasticityError, match="0.2"):
        compute_elastic_config(section(), "0.2")
    with pytest.raises(ValueError):
        compute_elastic_config("a text", VERSION)


def test_version_two_counts_model_parallel_ranks_of_the_environment(monkeypatch) -> None:
    settings = section(version=0.2, num_gpus_per_node=8, model_parallel_size=2, min_gpus=8)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ElasticityConfigError, match="WORLD_SIZE"):
        compute_elastic_config(settings, VERSION)
    monkeypatch.setenv("WORLD_SIZE", "16")
    batch, sizes, micro = compute_elastic_config(settings, VERSION, return_microbatch=True)
    assert 8 in sizes and batch % (8 * micro) == 0


def test_the_engine_s_configuration_takes_its_batch_sizes_from_the_section(monkeypatch) -> None:
    small = {"elasticity": {"enabled": True, "version": 0.1, "max_train_batch_size": 4, "micro_batch_sizes": [1, 2, 3, 4]}}
    config = DeepSpeedConfig(small)
    assert (config.train_batch_size, config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps) == (4, 4, 1)
    assert config.elasticity_enabled and elasticity_enabled(small)
    with pytest.raises(ElasticityConfigError, match="train_batch_size: is 2"):
        DeepSpeedConfig({**small, "train_batch_size": 2})
    monkeypatch.setenv("DEEPSPEED_ELASTICITY_CONFIG", json.dumps({**small["elasticity"], "max_train_batch_size": 8}))
    with pytest.raises(ElasticityConfigError, match="scheduler"):
        DeepSpeedConfig(small)
    with pytest.raises(ElasticityConfigError, match="scheduler"):
        ensure_immutable_elastic_config(small["elasticity"])
    monkeypatch.setenv("DEEPSPEED_ELASTICITY_CONFIG", json.dumps(small["elasticity"]))
    ensure_immutable_elastic_config(small["elasticity"])


def test_the_section_as_an_object() -> None:
    config = ElasticityConfig(section()["elasticity"])
    assert config.micro_batches == [8, 12, 16, 17] and config.max_acceptable_batch_size == 10000
    assert config.prefer_larger_batch_size and json.loads(repr(config))["min_gpus"] == 32
    for broken in ({"enabled": True, "micro_batch_sizes": [2]}, {"min_gpus": 5, "max_gpus": 4}, {"min_time": -1}):
        with pytest.raises(ElasticityConfigError):
            ElasticityConfig(broken)
