"""The choice of the compiled part that fits the installed torch."""
from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deepspeed
from deepspeed import _torch_choice

MINORS = ("2.9", "2.11", "2.12")


@pytest.fixture
def package(tmp_path: Path) -> str:
    """A package folder with compiled parts for MINORS."""
    for minor in MINORS:
        (tmp_path / "_torch" / minor).mkdir(parents=True)
    (tmp_path / "_torch" / "__pycache__").mkdir()
    return str(tmp_path)


@pytest.mark.parametrize("version", ["2.12.0", "2.12.1+cpu", "2.12.1+cu130", "2.12.0.dev20260101+cu130", "2.12.0a0+git0123456", "2.12.0rc1"])
def test_releases_local_versions_and_nightlies_of_a_minor_share_its_part(package: str, version: str):
    assert _torch_choice.folder(package, version) == os.path.join(package, "_torch", "2.12")


def test_the_version_that_torch_itself_gives_is_understood(package: str):
    from torch.torch_version import TorchVersion
    assert _torch_choice.folder(package, TorchVersion("2.9.1+cpu")).endswith("2.9")


@pytest.mark.parametrize("version", ["2.10.0", "2.1.0", "2.13.0+cpu", "3.0.0", "3.11.0"])
def test_an_unsupported_torch_is_an_import_error_that_lists_the_supported_ones(package: str, version: str):
    with pytest.raises(ImportError) as caught:
        _torch_choice.folder(package, version)
    text = str(caught.value)
    assert f"torch {version} is installed" in text
    assert "torch 2.9, 2.11, 2.12 only" in text  # in the order of versions, not of text
    assert "torch==2.12.*" in text


def test_a_source_tree_without_a_build_says_so(tmp_path: Path):
    with pytest.raises(ImportError, match="no compiled part.*source tree"):
        _torch_choice.folder(str(tmp_path), "2.11.0")


def test_the_extension_comes_from_the_folder_of_this_torch():
    spec = importlib.util.find_spec("deepspeed._C")
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).parent.name == _torch_choice.minor_version(torch.__version__)
    assert _torch_choice.minor_version(torch.__version__) in _torch_choice.supported(deepspeed.__path__[0])
    from deepspeed import _C
    assert _C.__name__ == "deepspeed._C"
    assert pickle.loads(pickle.dumps(_C.CheckpointError)) is _C.CheckpointError


@pytest.mark.parametrize("version", ["2.10.0", "2.99.0+cpu", "3.0.0"])
def test_import_deepspeed_refuses_an_unsupported_torch(version: str):
    code = f"import torch; torch.__version__ = {version!r}; import deepspeed"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(deepspeed.__path__[0])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: torch {version} is installed")
    assert all(minor in last for minor in _torch_choice.supported(deepspeed.__path__[0]))


@pytest.mark.skipif(shutil.which("ds_report") is None, reason="the program ds_report is not built or installed")
@pytest.mark.parametrize("version, complaint", [("2.12.1+cpu", None), ("2.13.0", "nothing is compiled for torch 2.13.0"), ("2.10.0", "torch 2.10.0 is not supported")])
def test_the_report_lists_the_compiled_parts_and_says_when_none_fits(tmp_path: Path, version: str, complaint: str | None):
    """An environment by its files, as ds_report reads it."""
    packages = tmp_path / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for minor in MINORS:
        (packages / "deepspeed" / "_torch" / minor).mkdir(parents=True)
    (packages / "torch").mkdir()
    for package in ("deepspeed", "torch"):
        (packages / package / "__init__.py").touch()
    (packages / "torch" / "version.py").write_text(f"__version__ = '{version}'\ncuda = None\nhip = None\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    (tmp_path / "pyvenv.cfg").write_text(f"home = {os.path.dirname(os.path.realpath(sys.executable))}\nversion = {sys.version.split()[0]}\n")
    environment = {**os.environ, "DEEPSCALE_PYTHON": str(tmp_path / "bin" / "python")}
    environment.pop("PYTHONPATH", None)
    report = json.loads(subprocess.check_output(["ds_report", "--json"], env=environment, text=True))
    assert sorted(report["versions"]["wheel_torch"]) == sorted(MINORS)
    about_parts = [warning for warning in report["warnings"] if "compiled for torch" in warning or "is not supported" in warning]
    if complaint is None:
        assert not about_parts
    else:
        assert any(complaint in warning for warning in about_parts), report["warnings"]
