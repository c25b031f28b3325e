#!/usr/bin/env python3
"""Enforces the layout of docs/architecture.md on the C++ sources. Usage: check_layers.py [ROOT]; exit status 1 on findings.

Rules (each names the offending file and line):
- include order: a folder of src/ includes only itself and folders that stand before it in FOLDERS; the launcher only
  base, platform and config; public headers (include/deepscale) include no header of src/ except the vocabulary of base/.
- `_WIN32`, `__linux__` and their kin only in platform/; headers of one operating system (unistd.h, sys/*, windows.h, ...)
  only in platform/ and in files whose name ends in _linux, _windows, _linux_test or _windows_test.
- ZeRO's stage only in config/, sharding_plan files and the public option headers: identifiers like `stage`, `zero_stage`,
  `is_stage3`. Not meant: comments, texts in quotes, tests, option names (`stage3_max_live_parameters`), pipeline `stages` and
  the verb (`stage_piece`: to copy through a buffer).
- c10d headers only in comm/ and bindings/; torch/extension.h and pybind11 only in bindings/; torch/torch.h nowhere.
- getenv and setenv only in base/ and platform/ (tests may set variables).
- no torch header in base, platform, config, launcher, kernels/cpu, the public configuration headers and files that only decide.
- fewer than 600 lines in every C++ and Python file.
"""
from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Iterator, NamedTuple

FOLDERS = ("base", "platform", "config", "kernels", "comm", "memory", "zero", "parallel", "checkpoint", "engine", "inference",
           "compression", "launcher", "bindings")
LAUNCHER_MAY_INCLUDE = {"base", "platform", "config", "launcher"}
PUBLIC_MAY_INCLUDE = {"base"}
TORCH_FREE_FOLDERS = ("src/base/", "src/platform/", "src/config/", "src/launcher/", "src/kernels/cpu/")
TORCH_FREE_FILES = re.compile(r"(^include/deepscale/(config|error|options\w*)\.h$)"
                              r"|(^src/checkpoint/(block_checksums|checkpoint_kind|ckpt_\w+|elements|file_replace|manifest|optimizer_states|pickle\w*|py_value|safetensors\w*|save_job"
                              r"|shard_writer|state_layout|tag_\w+|tensor_\w+|torch_archive|verified_file|zip_file)"
                              r"(_test)?\.(h|cpp)$)"
                              r"|(^src/memory/(file_shares|io_calibration|io_handle|machine_limits|memory_plan|pinned_buffers|plan_text|residency)(_test)?\.(h|cpp)$)"
                              r"|(^src/engine/(model_shapes\w*|plan_\w+|file_pool_sizes)(_test)?\.(h|cpp)$)"
                              r"|(^src/zero/(shard_layout|sharding_plan|sharding_plan_sizes|loss_scaler)(_test)?\.(h|cpp)$)")
STAGE_FILES = re.compile(r"^src/config/|/sharding_plan\w*\.|^include/deepscale/(config|options\w*)\.h$")
MAX_LINES = 600
CPP_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
CHECKED_TREES = ("src", "include", "examples", "bench", "tests", "tools", "python")

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
OS_MACRO = re.compile(r"\b(_WIN32|_WIN64|__linux__|__linux|__APPLE__|__unix__|__MINGW32__|__MINGW64__)\b")
# Of POSIX and Linux, then of Windows and its C library.
OS_HEADER = re.compile(
    r"^((aio|dirent|dlfcn|fcntl|ftw|glob|grp|ifaddrs|libgen|mqueue|netdb|numa|poll|pthread|pwd|sched|semaphore|signal|spawn|strings"
    r"|syslog|termios|ucontext|unistd|utime|utmpx|wait)\.h|(arpa|asm|linux|net|netinet|sys)/.+"
    r"|(bcrypt|cfgmgr32|conio|direct|intrin|io|mmsystem|process|psapi|sddl|shellapi|shlobj|synchapi|tlhelp32|winbase|windows"
    r"|winsock2?|ws2tcpip)\.h)$", re.IGNORECASE)
OS_FILE = re.compile(r"_(linux|windows|mingw)(_test)?\.(h|cpp)$")
ENVIRONMENT = re.compile(r"\b(secure_getenv|getenv|_dupenv_s|setenv|unsetenv|putenv|_putenv_s)\b")
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
ZERO_STAGE = re.compile(r"^k?stage$|zero_?stage|stage_?[0-3](?!\d|_[a-z])", re.IGNORECASE)
TORCH_HEADER = re.compile(r"^(torch|ATen|c10|pybind11)/")
# Comments, raw strings, strings and character literals; digit separators (1'000) are no literals.
NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|R"(?P<tag>[^()\s\\]{0,16})\(.*?\)(?P=tag)"|"(?:\\.|[^"\\\n])*"'
                   r"|(?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'", re.DOTALL)


class Finding(NamedTuple):
    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def code_only(text: str) -> str:
    """The text with comments and literals blanked, line for line; include lines keep their names."""
    def blank(match: re.Match[str]) -> str:
        start = text.rfind("\n", 0, match.start()) + 1
        if match.group().startswith('"') and text[start:match.start()].lstrip().startswith("#"):
            return match.group()
        return re.sub(r"[^\n]", " ", match.group())
    return NOISE.sub(blank, text)


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def folder_of(path: str) -> str:
    """'zero' for src/zero/x.cpp, 'public' for include/deepscale, otherwise ''."""
    parts = path.split("/")
    if parts[0] == "src" and len(parts) > 2:
        return parts[1]
    return "public" if path.startswith("include/deepscale/") else ""


def include_finding(path: str, name: str) -> str | None:
    """What is wrong with including `name` in file `path`, if anything."""
    folder = folder_of(path)
    target = name.split("/")[0] if "/" in name else ""
    is_test = "_test." in path
    if target in FOLDERS:
        if folder == "public" and target not in PUBLIC_MAY_INCLUDE:
            return f"a public header includes {name}; it may include only deepscale/ and {', '.join(PUBLIC_MAY_INCLUDE)}/"
        if folder in FOLDERS and FOLDERS.index(target) > FOLDERS.index(folder):
            return f"{folder}/ includes {name}, but {target}/ stands behind it in the include order"
        if folder == "launcher" and target not in LAUNCHER_MAY_INCLUDE:
            return f"the launcher includes {name}; it may use only base, platform and config"
    if OS_HEADER.match(name) and folder != "platform" and not OS_FILE.search(path):
        return f"{name} exists on one operating system; it belongs into platform/ (tests: x_linux_test.cpp)"
    if "distributed/c10d/" in name and folder not in ("comm", "bindings"):
        return f"c10d header {name} outside comm/ and bindings/"
    if (name == "torch/extension.h" or name.startswith("pybind11/")) and folder != "bindings":
        return f"{name} outside bindings/"
    if name == "torch/torch.h" and folder and not is_test:
        return "torch/torch.h takes 25 s to parse; include the narrow headers"
    if TORCH_HEADER.match(name) and (path.startswith(TORCH_FREE_FOLDERS) or TORCH_FREE_FILES.search(path)):
        return f"torch header {name} in a torch-free place"
    return None


def check_code(path: str, text: str) -> Iterator[Finding]:
    """Rules that hold for one C++ file under src/ or include/."""
    code = code_only(text)
    folder = folder_of(path)
    is_test = "_test." in path
    if folder and folder != "public" and folder not in FOLDERS:
        yield Finding(path, 1, f"folder src/{folder} is not in the include order")
    for match in INCLUDE.finditer(code):
        problem = include_finding(path, match.group(2))
        if problem:
            yield Finding(path, line_of(code, match.start(2)), problem)
    if folder != "platform":
        for match in OS_MACRO.finditer(code):
            yield Finding(path, line_of(code, match.start()), f"{match.group()} outside platform/")
    if folder not in ("base", "platform") and not is_test:
        for match in ENVIRONMENT.finditer(code):
            yield Finding(path, line_of(code, match.start()), f"{match.group()} outside base/ and platform/")
    if not is_test and not STAGE_FILES.search(path):
        without_includes = INCLUDE.sub(lambda m: " " * len(m.group()), code)
        for match in IDENTIFIER.finditer(without_includes):
            if ZERO_STAGE.search(match.group().rstrip("_")):
                yield Finding(path, line_of(code, match.start()),
                              f"'{match.group()}': only config/ and sharding_plan know the ZeRO stage; ask the plan")


def check_length(path: str, text: str) -> Iterator[Finding]:
    lines = text.count("\n")
    if lines >= MAX_LINES:
        yield Finding(path, lines, f"{lines} lines; a file has fewer than {MAX_LINES}")


def check_tree(root: Path) -> list[Finding]:
    findings: list[Finding] = []
    for tree in CHECKED_TREES:
        for file in sorted((root / tree).rglob("*")):
            if not file.is_file() or file.suffix not in CPP_SUFFIXES | {".py", ".pyi"}:
                continue
            path = file.relative_to(root).as_posix()
            text = file.read_text(encoding="utf-8")
            findings += check_length(path, text)
            if tree in ("src", "include") and file.suffix in CPP_SUFFIXES:
                findings += check_code(path, text)
    return findings


def main(arguments: list[str]) -> int:
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    if not (root / "src").is_dir():
        print(f"{root} has no src/ folder", file=sys.stderr)
        return 2
    findings = check_tree(root)
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
