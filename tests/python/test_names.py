"""Every name that the ecosystem imports exists at its path, and importing the package is quick and quiet."""
from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from public_names import home, public_names

from deepspeed._aliases import TABLE
from deepspeed._later import Later
from deepspeed._later import modules as later_modules

PLACES = public_names()
LATER = {module: [(name, entry) for name, entry in names.items() if isinstance(entry, Later)] for module, names in later_modules().items()}


@pytest.mark.parametrize("place", PLACES)
def test_names_are_importable_and_attributes_of_the_package(place):
    """After `import deepspeed` alone, too: programs write deepspeed.runtime.zero.partition_parameters.ZeroParamStatus."""
    import deepspeed
    found = deepspeed
    for part in re.split("[.:]", place)[1:]:
        found = getattr(found, part)
    imported = home(place)
    assert found is imported
    missing = [name for name in PLACES[place] if not hasattr(imported, name)]
    assert not missing, f"{place} lacks {missing}"


@pytest.mark.parametrize("module", [module for module in LATER if LATER[module]])
def test_features_of_later_say_so_when_used(module):
    for name, entry in LATER[module]:
        found = getattr(importlib.import_module(module), name)
        assert (found.__module__, found.__qualname__) == (module, name)
        if entry.kind == "exception":
            assert issubclass(found, Exception)
            continue
        for use in [found, *(getattr(found, method) for method in entry.methods)]:
            with pytest.raises(NotImplementedError, match=rf"{re.escape(name)}.*not built yet"):
                use(1, some=2)


def test_no_old_path_hides_a_module_that_exists():
    """The finder of the table comes first: who builds a feature takes its lines out of _later.py."""
    import deepspeed
    package = Path(deepspeed.__file__).parent.parent
    paths = [package.joinpath(*module.split(".")) for module in TABLE]
    hidden = [str(path) for path in paths if path.with_suffix(".py").exists() or (path / "__init__.py").exists()]
    assert not hidden and len(paths) > 80, hidden


def test_second_paths_of_later_features_are_the_same_objects():
    for module, names in later_modules().items():
        for name, entry in names.items():
            if isinstance(entry, str):
                original, _, attribute = entry.partition(":")
                assert getattr(importlib.import_module(module), name) is getattr(importlib.import_module(original), attribute)


def _undocumented(place, name):
    found = getattr(home(place), name)
    described = inspect.isroutine(found) or inspect.isclass(found) or isinstance(found, property)
    ours = str(getattr(found, "__module__", "deepspeed")).startswith("deepspeed")
    return described and ours and not (inspect.getdoc(found) or "").strip()


def test_every_public_function_class_and_method_has_a_docstring():
    missing = [f"{place}.{name}" for place, names in PLACES.items() for name in names if _undocumented(place, name)]
    assert not missing, missing


def test_names_that_load_late_are_listed_and_there():
    import deepspeed
    import deepspeed.monitor
    import deepspeed.runtime.pipe.topology as alias
    assert {"DeepSpeedEngine", "zero", "comm", "ops", "OnDevice", "initialize"} <= set(dir(deepspeed))
    assert "monitor" in dir(deepspeed.monitor) and "ProcessTopology" in dir(alias)
    for name in dir(deepspeed):
        getattr(deepspeed, name)


def test_libraries_beside_an_extension_are_no_submodules(tmp_path, monkeypatch):
    """A wheel has libdeepscale.so in the folder of _C, and a listing must not offer what cannot be imported."""
    package = tmp_path / "package_with_library"
    package.mkdir()
    (package / "__init__.py").write_text("from deepspeed._lazy import attach\n__getattr__, __dir__ = attach(__name__)\n")
    (package / "part.py").write_text("")
    (package / "libcore.so").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    listed = dir(importlib.import_module("package_with_library"))
    assert "part" in listed and "libcore" not in listed


def test_classes_live_where_callers_look_for_them():
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    assert DeepSpeedEngine.__module__ == "deepspeed.runtime.engine"
    assert DeepSpeedZeroOptimizer_Stage3.__module__ == "deepspeed.runtime.zero.stage3"
    assert type(DeepSpeedEngine) is type


def test_engine_can_be_imitated_by_mock():
    from unittest import mock

    import deepspeed
    with mock.patch("deepspeed.DeepSpeedEngine", autospec=True) as fake:
        assert deepspeed.DeepSpeedEngine is fake
    assert deepspeed.DeepSpeedEngine.__name__ == "DeepSpeedEngine"
    with mock.patch("deepspeed.initialize", autospec=True), mock.patch("deepspeed.init_distributed", autospec=True), \
            mock.patch("deepspeed.zero.Init"), mock.patch("deepspeed.checkpointing.configure", autospec=True):
        pass


def test_the_other_name_of_the_package_is_the_same_package():
    import deepscale
    import deepscale.runtime.lr_schedules as other
    import deepspeed
    import deepspeed.runtime.lr_schedules as one
    assert deepscale is deepspeed and other is one


def test_signatures_that_callers_inspect():
    import deepspeed
    expected = ["args", "model", "optimizer", "model_parameters", "training_data", "lr_scheduler", "distributed_port", "mpu",
                "dist_init_required", "collate_fn", "config", "mesh_param", "config_params"]
    assert list(inspect.signature(deepspeed.initialize).parameters)[:13] == expected
    assert "exclude_frozen_parameters" in inspect.signature(deepspeed.DeepSpeedEngine.save_checkpoint).parameters
    assert list(inspect.signature(deepspeed.DeepSpeedEngine.backward).parameters) == ["self", "loss", "retain_graph", "scale_wrt_gas"]


def test_what_is_missing_from_a_class_that_exists_says_so():
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    with pytest.raises(NotImplementedError, match="not built yet"):
        DeepSpeedCPUAdam.rollback_subgroup()


def test_the_cuda_accelerator_has_the_whole_interface():
    from unittest import mock

    from deepspeed.accelerator.abstract_accelerator import DeepSpeedAccelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
    device = CUDA_Accelerator()
    for name in ("synchronize", "set_device", "empty_cache", "memory_allocated", "max_memory_reserved", "reset_peak_memory_stats"):
        with mock.patch(f"torch.cuda.{name}", return_value=7) as torchs:
            assert getattr(device, name)(0) == 7
        torchs.assert_called_once_with(0)
    code = {name: getattr(getattr(member, "fget", member), "__code__", None) for name, member in vars(DeepSpeedAccelerator).items()}
    refuses = [name for name in code if code[name] is not None and "NotImplementedError" in code[name].co_names]
    assert "memory_stats" in refuses
    inherited = [name for name in refuses if getattr(CUDA_Accelerator, name) is getattr(DeepSpeedAccelerator, name)]
    assert not inherited, inherited


def test_small_helpers_of_the_old_paths():
    import torch
    from deepspeed.runtime.compiler import is_compile_supported
    from deepspeed.runtime.utils import (call_to_str, get_ma_status, get_only_unique_item, is_model_parallel_parameter, prefix_sum_inc,
                                         required_torch_version)
    from deepspeed.utils.bwc import bwc_pipeline_parallel_world_size, bwc_tensor_model_parallel_rank, bwc_tensor_model_parallel_world_size
    assert prefix_sum_inc([1, 2, 3]) == [1, 3, 6]
    assert call_to_str("forward", 1, key="x") == "forward(1, key='x')"
    assert get_only_unique_item([2, 2]) == 2 and is_compile_supported() and get_ma_status() > 0
    with pytest.raises(RuntimeError, match="only one unique"):
        get_only_unique_item([1, 2])
    minor = ".".join(torch.__version__.split(".")[:2])
    assert required_torch_version(min_version=2.6) and required_torch_version(min_version=minor, max_version=minor)
    assert not required_torch_version(max_version="2.10") and not required_torch_version(min_version="99.0")

    class Mpu:

        def get_tensor_model_parallel_rank(self):
            return 3

        def get_model_parallel_world_size(self):
            return 4

    assert (bwc_tensor_model_parallel_rank(Mpu()), bwc_tensor_model_parallel_world_size(Mpu())) == (3, 4)
    assert (bwc_tensor_model_parallel_rank(), bwc_pipeline_parallel_world_size(Mpu())) == (0, 1)
    parameter = torch.nn.Parameter(torch.zeros(1))
    assert not is_model_parallel_parameter(parameter)
    parameter.tensor_model_parallel = True
    assert is_model_parallel_parameter(parameter)


def test_the_report_is_the_programs():
    run = subprocess.run([sys.executable, "-m", "deepspeed.env_report"], capture_output=True, text=True, check=True)
    assert "deepspeed" in run.stdout.lower() and "torch" in run.stdout


def test_shutdown_does_not_exist():
    import deepspeed
    assert not hasattr(deepspeed, "shutdown")


def test_import_is_quick_quiet_and_loads_little():
    code = ("import sys, time, torch, os, threading\n"
            "before, env, threads = set(sys.modules), dict(os.environ), threading.active_count()\n"
            "best = time.perf_counter(); import deepspeed; took = time.perf_counter() - best\n"
            "heavy = [m for m in ('transformers', 'tensorboard', 'wandb', 'numba') if m in sys.modules]\n"
            "assert not heavy, heavy\n"
            "assert dict(os.environ) == env and threading.active_count() == threads\n"
            "print('seconds', took)\n")
    seconds = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.splitlines()[-1].startswith("seconds") and len(run.stdout.splitlines()) == 1, run.stdout
        seconds.append(float(run.stdout.split()[-1]))
    assert min(seconds) < 0.1


def test_the_package_is_known_as_a_distribution():
    """Transformers and Accelerate call the package only where importlib.metadata finds it, in a build's folder as when installed."""
    import deepspeed
    distribution = importlib.metadata.distribution("deepspeed")
    assert distribution.version == deepspeed.__version__
    assert distribution.locate_file("deepspeed/__init__.py").samefile(deepspeed.__file__)
