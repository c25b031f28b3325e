"""ds_report against what the imported package says, and with installations that are broken."""
from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import torch

from deepspeed import _C
from deepspeed.launcher.runner import native_program


def report(*options: str, python_path: Path | None = None) -> tuple[int, dict]:
    paths = ([str(python_path)] if python_path else []) + [os.environ.get("PYTHONPATH", "")]
    run = subprocess.run([native_program("ds_report"), "--json", *options], capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    return run.returncode, json.loads(run.stdout)


def test_files_say_what_the_imported_package_says() -> None:
    code, found = report()
    assert code == 0
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["torch_cuda"] == torch.version.cuda
    assert Path(found["paths"]["torch"]).resolve() == Path(torch.__file__).parent.resolve()
    assert found["cpu"]["kernel_variant"] == _C.cpu_target_name()


def test_import_confirms_an_installation() -> None:
    code, found = report("--import")
    assert code == 0, found["warnings"]
    assert found["import"]["torch"] == torch.__version__ and found["import"]["gloo"] is torch.distributed.is_gloo_available()
    assert found["import"]["kernel_variant"] == _C.cpu_target_name()


def test_a_broken_torch_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "torch"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('libtorch_cpu.so: cannot open shared object file')\n")
    code, found = report("--import", python_path=tmp_path)
    assert code == 1 and found["import"]["torch"] is None
    assert any("libtorch_cpu.so" in warning for warning in found["warnings"])
    assert any("version.py has no version" in warning for warning in found["warnings"])


def test_an_unsupported_torch_is_named_with_the_supported_ones(tmp_path: Path) -> None:
    old = tmp_path / "torch"
    old.mkdir()
    (old / "__init__.py").touch()
    (old / "version.py").write_text("__version__ = '2.4.1'\ncuda = None\n")
    code, found = report(python_path=tmp_path)
    assert code == 0 and found["versions"]["torch"] == "2.4.1"
    assert any("torch 2.4.1 is not supported" in warning and "2.11" in warning for warning in found["warnings"])
