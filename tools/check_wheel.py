"""Says what the binaries of a wheel need and show, and ends with an error when that is more than it should be.

    tools/check_wheel.py WHEEL          table of binaries, their libraries and the oldest system that runs them
    tools/check_wheel.py --tag WHEEL    only the platform tag that follows from them, for instance manylinux_2_35_x86_64

A binary may need: the C and C++ run-time libraries of the system, torch's libraries, and libdeepscale beside it. It may
search for them relative to itself only. It may export: names of namespace deepscale (libdeepscale), PyInit__C (the extension),
nothing (programs). Needs readelf (binutils).
"""
from __future__ import annotations

import argparse
import fnmatch
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

SYSTEM = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "ld-linux*.so.*", "libstdc++.so.6", "libgcc_s.so.1")
TORCH = ("libtorch.so", "libtorch_cpu.so", "libtorch_python.so", "libc10.so")
OWN = ("libdeepscale.so",)
EXPORTS = {"libdeepscale.so": ("_Z*9deepscale*",), "_C.*": ("PyInit__C",)}

# First version of the GNU C library whose distributions carry these versions of the C++ library (PEP 600 counts by the
# first; the table is that of auditwheel's policies).
CXX_SINCE = (("GLIBCXX_3.4.19", "2.17"), ("GLIBCXX_3.4.22", "2.24"), ("GLIBCXX_3.4.24", "2.27"), ("GLIBCXX_3.4.28", "2.31"),
             ("GLIBCXX_3.4.29", "2.34"), ("GLIBCXX_3.4.30", "2.35"), ("GLIBCXX_3.4.33", "2.39"),
             ("CXXABI_1.3.7", "2.17"), ("CXXABI_1.3.10", "2.24"), ("CXXABI_1.3.11", "2.27"), ("CXXABI_1.3.12", "2.31"),
             ("CXXABI_1.3.13", "2.34"), ("CXXABI_1.3.15", "2.39"),
             ("GCC_4.8.0", "2.17"), ("GCC_7.0.0", "2.27"), ("GCC_12.0.0", "2.35"), ("GCC_14.0.0", "2.39"))


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


@dataclass
class Binary:
    """What the dynamic section and the symbol table of one file say."""

    name: str  # path inside the wheel
    size: int
    needed: list[str] = field(default_factory=list)
    search: list[str] = field(default_factory=list)  # RPATH or RUNPATH
    versions: set[str] = field(default_factory=set)  # GLIBC_2.34, GLIBCXX_3.4.30, ... of the symbols it needs
    exported: list[str] = field(default_factory=list)

    @property
    def newest(self) -> dict[str, str]:
        """The highest version needed of each family."""
        best: dict[str, str] = {}
        for version in self.versions:
            family = version.partition("_")[0]
            if family not in best or number(version) > number(best[family]):
                best[family] = version
        return best

    @property
    def glibc(self) -> tuple[int, ...]:
        """The oldest C library of a distribution on which all needed symbols exist."""
        oldest = number(self.newest.get("GLIBC", "GLIBC_2.5"))[:2]
        for version in self.newest.values():
            family = version.partition("_")[0]
            if family == "GLIBC":
                continue
            steps = [number(since) for limit, since in CXX_SINCE if limit.startswith(family + "_") and number(limit) >= number(version)]
            if not steps:
                raise SystemExit(f"{self.name} needs {version}, which is newer than the table in {Path(__file__).name}")
            oldest = max(oldest, min(steps))
        return oldest

    def problems(self) -> list[str]:
        found = []
        for library in self.needed:
            if not any(fnmatch.fnmatch(library, pattern) for pattern in (*SYSTEM, *TORCH, *OWN)):
                found.append(f"needs {library}")
        found += [f"searches {path}" for path in self.search if not path.startswith("$ORIGIN")]
        name = PurePosixPath(self.name).name
        allowed = next((patterns for pattern, patterns in EXPORTS.items() if fnmatch.fnmatch(name, pattern)), ())
        foreign = [symbol for symbol in self.exported if not any(fnmatch.fnmatchcase(symbol, pattern) for pattern in allowed)]
        if foreign:
            found.append(f"exports {len(foreign)} names that it should hide, for instance {foreign[0]}")
        return found


def readelf(*arguments: str) -> str:
    return subprocess.run(["readelf", "-W", *arguments], check=True, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}).stdout


def inspect(name: str, path: Path) -> Binary:
    binary = Binary(name, path.stat().st_size)
    for line in readelf("-d", str(path)).splitlines():
        value = re.search(r"\((NEEDED|RUNPATH|RPATH)\).*\[(.*)\]", line)
        if value and value[1] == "NEEDED":
            binary.needed.append(value[2])
        elif value:
            binary.search += [part for part in value[2].split(":") if part]
    needs = readelf("-V", str(path)).partition("Version needs section")[2]
    binary.versions = set(re.findall(r"Name: ((?:GLIBC|GLIBCXX|CXXABI|GCC)_[0-9.]+)", needs))
    is_program = "INTERP" in readelf("-l", str(path))
    for line in readelf("--dyn-syms", str(path)).splitlines():
        part = line.split()
        if len(part) >= 8 and part[0].endswith(":") and part[4] in ("GLOBAL", "WEAK", "UNIQUE") and part[6] != "UND" and not is_program:
            binary.exported.append(part[7].partition("@")[0])
    return binary


def read_wheel(wheel: Path) -> list[Binary]:
    binaries = []
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                if file.read(4) != b"\x7fELF":
                    continue
            path = Path(archive.extract(entry, folder))
            binaries.append(inspect(entry.filename, path))
    return binaries


def tag(binaries: list[Binary]) -> str:
    major, minor = max(binary.glibc for binary in binaries)
    return f"manylinux_{major}_{minor}_{platform.machine()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--tag", action="store_true", help="print the platform tag only")
    arguments = parser.parse_args()
    binaries = read_wheel(arguments.wheel)
    if not binaries:
        print(f"{arguments.wheel} holds no binaries", file=sys.stderr)
        return 1
    if arguments.tag:
        print(tag(binaries))
        return 0
    failed = 0
    print(f"{arguments.wheel.name}: {arguments.wheel.stat().st_size / 1e6:.1f} MB")
    for binary in binaries:
        problems = binary.problems()
        failed += bool(problems)
        print(f"{'BAD' if problems else 'ok ':4}{binary.name}  {binary.size / 1e6:.2f} MB, glibc {'.'.join(map(str, binary.glibc))}")
        print(f"      needs {' '.join(binary.needed) or 'nothing'}")
        print(f"      versions {' '.join(sorted(binary.newest.values()))}; exports {len(binary.exported)} names")
        for problem in problems:
            print(f"      {problem}")
    wanted = tag(binaries)
    # A wheel may say less than it can (linux_x86_64), or promise a newer system than it needs, but never an older one.
    promised = re.search(r"manylinux_(\d+)_(\d+)_", arguments.wheel.name)
    if promised and (int(promised[1]), int(promised[2])) < number(wanted)[:2]:
        print(f"BAD the name promises {promised[0]}*, and the binaries need {wanted}")
        failed += 1
    print(f"{len(binaries)} binaries, {failed} problems; platform tag {wanted}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
