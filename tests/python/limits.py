"""Programs in processes of their own, in a world that refuses things: no io_uring, no locked memory, a disk that is too small."""
from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits")

# What a program may call first.
_PREAMBLE = '''
import ctypes, os, resource, sys
libc = ctypes.CDLL(None, use_errno=True)

def forbid_io_uring(reason=1):
    """As the filters of containers have it: io_uring_setup (425 everywhere) fails with EPERM."""
    class Filter(ctypes.Structure):
        _fields_ = [("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32)]
    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_uint16), ("filter", ctypes.POINTER(Filter))]
    filters = (Filter * 4)(Filter(0x20, 0, 0, 0), Filter(0x15, 0, 1, 425), Filter(0x06, 0, 0, 0x00050000 | reason),
                           Filter(0x06, 0, 0, 0x7fff0000))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(Program(4, filters)), 0, 0) == 0

def forbid_locking():
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    if os.geteuid() == 0:  # an administrator needs no limit: give up that right
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        data = (ctypes.c_uint32 * 6)()
        assert libc.capget(header, data) == 0
        data[0] &= ~(1 << 14)
        assert libc.capset(header, data) == 0

def longest_file(size):
    """Writing further fails, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
'''


def run_limited(program: str, folder: pathlib.Path, prefix: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `program` behind the preamble in `folder`; a failed assertion in it fails the test."""
    script = folder / f"program_{os.getpid()}.py"
    script.write_text(_PREAMBLE + program)
    paths = os.pathsep.join([str(pathlib.Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run([*prefix, sys.executable, str(script)], cwd=folder, capture_output=True, text=True, timeout=300,
                         env={**os.environ, "PYTHONPATH": paths, **environment})
    script.unlink()
    assert run.returncode == 0, run.stdout + run.stderr
    return run


def in_own_mounts(command: str, folder: pathlib.Path) -> tuple[str, ...]:
    """Prefix of a process in `folder` that sees other mounts, which `command` makes. Skips the test where that is not allowed."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    prefix = ("unshare", "--mount", "--map-root-user") if os.geteuid() else ("unshare", "--mount")
    prefix = (*prefix, "sh", "-c", f'{command} || exit 77; exec "$@"', "sh")
    if subprocess.run([*prefix, "true"], cwd=folder, capture_output=True).returncode != 0:
        pytest.skip("this system allows no mounts of one's own")
    return prefix
