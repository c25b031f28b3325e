"""tools/check_wheel.py finds what a wheel's binaries may not need, search or show, and the platform tag that they allow."""
from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "check_wheel.py"
spec = importlib.util.spec_from_file_location("check_wheel", TOOL)
assert spec is not None and spec.loader is not None
check_wheel = importlib.util.module_from_spec(spec)
sys.modules["check_wheel"] = check_wheel
spec.loader.exec_module(check_wheel)

needs_tools = pytest.mark.skipif(not (shutil.which("g++") and shutil.which("readelf")), reason="no g++ or readelf here")


def wheel_with(tmp_path: Path, source: str, *options: str, name: str = "libdeepscale.so", tag: str = "linux_x86_64") -> Path:
    """A wheel that holds one shared library, compiled from `source`."""
    library = tmp_path / name
    subprocess.run(["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library), *options], input=source, text=True, check=True)
    wheel = tmp_path / f"deepspeed-1.0-cp311-cp311-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(library, f"deepspeed/_torch/2.11/{name}")
    return wheel


def run_tool(wheel: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), str(wheel)], capture_output=True, text=True)


@needs_tools
def test_a_library_of_the_systems_needs_and_own_names_passes(tmp_path: Path):
    wheel = wheel_with(tmp_path, "namespace deepscale { int step(int a) { return a + 1; } }", "-Wl,-rpath,$ORIGIN/../../../torch/lib")
    run = run_tool(wheel)
    assert run.returncode == 0, run.stdout
    assert "1 binaries, 0 problems" in run.stdout


@needs_tools
@pytest.mark.parametrize("name, source, options, complaint", [
    ("libdeepscale.so", "int shared_name() { return 1; }", [], "exports 1 names that it should hide, for instance _Z11shared_namev"),
    ("_C.cpython-311-x86_64-linux-gnu.so", "namespace deepscale { int step() { return 1; } }", [], "exports 1 names"),
    ("libdeepscale.so", "namespace deepscale { int step() { return 1; } }", ["-Wl,-rpath,/opt/torch/lib"], "searches /opt/torch/lib"),
    ("libdeepscale.so", "namespace deepscale { int step() { return 1; } }", ["-Wl,--no-as-needed", "-lcrypt"], "needs libcrypt.so.1"),
])
def test_each_kind_of_problem_is_named_and_ends_with_an_error(tmp_path: Path, name: str, source: str, options: list[str], complaint: str):
    try:
        wheel = wheel_with(tmp_path, source, *options, name=name)
    except subprocess.CalledProcessError:
        pytest.skip(f"cannot link with {options}")
    run = run_tool(wheel)
    assert run.returncode == 1
    assert complaint in run.stdout


@needs_tools
def test_a_name_that_promises_an_older_system_than_the_binaries_need_is_an_error(tmp_path: Path):
    source = "#include <pthread.h>\nnamespace deepscale { int start(void* (*f)(void*)) { pthread_t t; return pthread_create(&t, nullptr, f, nullptr); } }"
    run = run_tool(wheel_with(tmp_path, source, tag="manylinux_2_1_x86_64"))
    assert run.returncode == 1
    assert "promises manylinux_2_1_" in run.stdout


@pytest.mark.parametrize("versions, expected", [
    ({"GLIBC_2.14", "GLIBC_2.4"}, (2, 14)),
    ({"GLIBC_2.9", "GLIBC_2.28", "GLIBC_2.3.4"}, (2, 28)),
    ({"GLIBC_2.17", "GLIBCXX_3.4.29"}, (2, 34)),  # the C++ library decides
    ({"GLIBC_2.34", "GLIBCXX_3.4.30"}, (2, 35)),
    ({"GLIBC_2.36", "GLIBCXX_3.4.22", "CXXABI_1.3.11", "GCC_3.0"}, (2, 36)),
    ({"GCC_14.0.0"}, (2, 39)),
])
def test_the_platform_tag_follows_from_the_newest_symbols_needed(versions: set[str], expected: tuple[int, int]):
    assert check_wheel.Binary("x", 0, versions=versions).glibc == expected


def test_a_version_newer_than_the_table_is_an_error():
    with pytest.raises(SystemExit, match="GLIBCXX_3.4.99"):
        check_wheel.Binary("x", 0, versions={"GLIBCXX_3.4.99"}).glibc
