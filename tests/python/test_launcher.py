"""Python's entries to the launcher."""
import base64
import json
import subprocess
import sys

# One write, because the ranks share the pipe.
SHOW = r"""
import os
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "CROSS_RANK", "CUDA_VISIBLE_DEVICES", "MASTER_ADDR")
os.write(1, (" ".join(os.environ[name] for name in names) + "\n").encode())
"""


def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=120)


def test_the_node_launcher_starts_the_slots_of_its_node(tmp_path):
    script = tmp_path / "show.py"
    script.write_text(SHOW)
    world = base64.urlsafe_b64encode(json.dumps({"zeta": [0, 1], "alpha": [1, 3]}).encode()).decode()
    result = run_module("deepspeed.launcher.launch", f"--world_info={world}", "--node_rank=1", "--master_addr=10.1.1.1",
                        "--master_port=29511", str(script), "--lr=1")
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == ["2 0 4 1 1,3 10.1.1.1", "3 1 4 1 1,3 10.1.1.1"]


def test_bad_world_information_is_refused(tmp_path):
    for text in ("", "!", base64.urlsafe_b64encode(b"[1]").decode(), base64.urlsafe_b64encode(b'{"a": []}').decode(),
                 base64.urlsafe_b64encode(b'{"a": 1}').decode()):
        result = run_module("deepspeed.launcher.launch", f"--world_info={text}", "script.py")
        assert result.returncode == 2, (text, result)
        assert "world_info" in result.stderr


def test_the_runner_is_the_native_program():
    result = run_module("deepspeed.launcher.runner", "--version")
    assert result.returncode == 0
    assert "DeepScale" in result.stdout
