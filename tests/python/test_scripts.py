"""What the shell scripts share."""
from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
cp {root}/scripts/common.sh {folder}/scripts/ && . {folder}/scripts/common.sh
{run} bash -c 'trap "" HUP; bash -c "echo \\$\\$ > {folder}/pid; exec sleep 600"; true'
echo came here
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("run", ["limited 300", "logged x.log 300"])
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_script_leaves_nothing_running(tmp_path: Path, run: str, number: int, code: int) -> None:
    (tmp_path / "scripts").mkdir()
    script = subprocess.Popen(["bash", "-c", COMMAND.format(root=ROOT, folder=tmp_path, run=run)], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert time.monotonic() < deadline and script.poll() is None
            time.sleep(0.05)
        script.send_signal(number)
        output, _ = script.communicate(timeout=60)
        assert script.returncode == code and "came here" not in output
        deadline = time.monotonic() + 60
        while alive(int((tmp_path / "pid").read_text())):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        script.kill()


def test_what_a_limited_command_starts_can_be_interrupted(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    text = COMMAND.split("{run}")[0].format(root=ROOT, folder=tmp_path)
    output = subprocess.run(["bash", "-c", text + "limited 60 bash -c 'kill -INT $$; echo deaf'; echo $?"], capture_output=True, text=True)
    assert "deaf" not in output.stdout, output
