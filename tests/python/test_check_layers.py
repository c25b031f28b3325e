"""tools/check_layers.py finds every kind of violation, and finds none in this repository."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "check_layers.py"


def run(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), str(root)], capture_output=True, text=True, check=False)


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def test_the_repository_keeps_its_own_rules() -> None:
    result = run(ROOT)
    assert result.returncode == 0, result.stdout


VIOLATIONS = {
    "include against the order": ("src/config/a.cpp", '#include "zero/units.h"\n', "zero/ stands behind"),
    "include far against the order": ("src/base/a.h", '#include "engine/engine.h"\n', "include order"),
    "launcher beyond config": ("src/launcher/a.cpp", '#include "comm/communicator.h"\n', "only base, platform and config"),
    "public header includes an inner one": ("include/deepscale/a.h", '#include "zero/units.h"\n', "public header"),
    "unknown folder": ("src/stuff/a.cpp", "int a;\n", "src/stuff is not in the include order"),
    "Windows outside platform": ("src/comm/a.cpp", "#ifdef _WIN32\n#endif\n", "_WIN32 outside platform/"),
    "Linux outside platform": ("src/zero/a.cpp", "#if defined(__linux__)\n#endif\n", "__linux__ outside platform/"),
    "a POSIX header outside platform": ("src/comm/a.cpp", "#include <unistd.h>\n", "unistd.h exists on one"),
    "a POSIX header in a common test": ("src/comm/a_test.cpp", "#include <sys/wait.h>\n", "sys/wait.h exists on one"),
    "a Windows header outside platform": ("src/zero/a.cpp", "#include <Windows.h>\n", "Windows.h exists on one"),
    "mingw outside platform": ("src/kernels/cpu/a.cpp", "#ifdef __MINGW32__\n#endif\n", "__MINGW32__ outside platform/"),
    "torch in a file format": ("src/checkpoint/py_value.h", "#include <ATen/core/Tensor.h>\n", "torch-free"),
    "the stage as a variable": ("src/zero/units.cpp", "bool f(int stage) { return stage == 3; }\n", "'stage'"),
    "the stage as a member": ("src/engine/a.cpp", "int f(O o) { return o.zero.stage; }\n", "'stage'"),
    "the stage in a name": ("src/engine/a.cpp", "int zero_stage = 1;\n", "'zero_stage'"),
    "the stage in a question": ("src/memory/a.cpp", "bool is_stage3();\n", "'is_stage3'"),
    "c10d outside comm": ("src/engine/a.cpp", "#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>\n", "c10d header"),
    "extension outside bindings": ("src/engine/a.cpp", "#include <torch/extension.h>\n", "outside bindings/"),
    "all of torch": ("src/zero/a.cpp", "#include <torch/torch.h>\n", "25 s"),
    "environment outside base": ("src/engine/a.cpp", 'auto x = std::getenv("X");\n', "getenv outside"),
    "torch in a torch-free folder": ("src/platform/a.cpp", "#include <ATen/core/Tensor.h>\n", "torch-free"),
    "torch in CPU kernels": ("src/kernels/cpu/a.cpp", "#include <c10/util/Half.h>\n", "torch-free"),
    "torch in the public configuration": ("include/deepscale/config.h", "#include <c10/util/Half.h>\n", "torch-free"),
    "long C++ file": ("src/base/long.cpp", "int a;\n" * 600, "600 lines"),
    "long Python file": ("python/deepspeed/long.py", "a = 1\n" * 600, "600 lines"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_found_with_its_file_and_line(tmp_path: Path, name: str) -> None:
    path, text, expected = VIOLATIONS[name]
    (tmp_path / "src").mkdir()
    write(tmp_path, path, text)
    result = run(tmp_path)
    assert result.returncode == 1, name
    assert expected in result.stdout
    assert result.stdout.startswith(f"{path}:")


def test_the_line_is_counted_past_comments_and_strings(tmp_path: Path) -> None:
    write(tmp_path, "src/zero/a.cpp", '/* one\n two */\nconst char* s = R"(a\nb)";\nint zero_stage;\n')
    assert run(tmp_path).stdout.startswith("src/zero/a.cpp:5:")


ALLOWED = {
    "include in order": ("src/engine/a.cpp", '#include "zero/units.h"\n#include <memory>\n#include "base/error.h"\n'),
    "own folder": ("src/zero/a.cpp", '#include "zero/units.h"\n'),
    "bindings see everything": ("src/bindings/a.cpp", '#include <torch/extension.h>\n#include "launcher/run.h"\n'),
    "system code in platform": ("src/platform/a.cpp", "#ifdef _WIN32\n#endif\nauto x = getenv(y);\n"),
    "system headers in platform": ("src/platform/a.cpp", "#include <windows.h>\n#include <sys/mman.h>\n"),
    "system headers in tests of one system": ("src/comm/a_linux_test.cpp", "#include <unistd.h>\n"),
    "headers with similar names": ("src/comm/a.cpp", "#include <csignal>\n#include \"comm/process_group.h\"\n#include <iostream>\n"),
    "stage in comments": ("src/zero/a.cpp", "// stage 3 gathers\n/* zero_stage */ int a;\n"),
    "stage in texts": ("src/zero/a.cpp", 'auto t = "zero_optimization.stage";\nauto r = R"x(stage)x";\n'),
    "stage as an option's name": ("src/engine/a.cpp", "f(o.zero.stage3_max_live_parameters);\n"),
    "stages of a pipeline and staging": ("src/memory/a.cpp", "int stages; int staging_pool; void stage_piece();\n"),
    "stage in configuration and plan": ("src/zero/sharding_plan.cpp", "int f(int stage) { return stage; }\n"),
    "stage in tests": ("src/zero/units_test.cpp", "int stage = 3;\n"),
    "setenv in tests": ("src/comm/a_test.cpp", 'void f() { setenv("A", "1", 1); }\n'),
    "c10d in comm": ("src/comm/a.cpp", "#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>\n"),
    "environment in words": ("src/zero/a.cpp", "// getenv is in base\nint getenvious;\n"),
    "599 lines": ("src/base/a.cpp", "int a;\n" * 599),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_allowed_passes(tmp_path: Path, name: str) -> None:
    path, text = ALLOWED[name]
    (tmp_path / "src").mkdir()
    write(tmp_path, path, text)
    result = run(tmp_path)
    assert result.returncode == 0, result.stdout


def test_a_folder_without_sources_is_refused(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 2
