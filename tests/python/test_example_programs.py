"""tests/examples/run.sh: what it runs, how it judges, and that examples/gpt_like runs through it."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import built_program

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "tests" / "examples"
sys.path.insert(0, str(EXAMPLES))
import programs  # noqa: E402
import run_programs  # noqa: E402
from programs import Problem, Program  # noqa: E402


def run_sh(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, "DEEPSCALE_PYTHON": sys.executable, **environment}
    if environment.get("DEEPSCALE_EXAMPLES") is None:
        variables.pop("DEEPSCALE_EXAMPLES", None)
    launcher = built_program("deepspeed")
    if launcher is not None:
        variables["PATH"] = f"{Path(launcher).parent}{os.pathsep}{variables['PATH']}"
    return subprocess.run([str(EXAMPLES / "run.sh"), *arguments], env=variables, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.parametrize("name", ["ZeRO-3", "ZeRO-Offload", "Multihosts"])
def test_gpt_like_trains(name, tmp_path):
    if built_program("deepspeed") is None:
        pytest.skip("no deepspeed program was built")
    run = run_sh("--only", f"gptlike, {name}", str(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr + "".join(path.read_text() for path in tmp_path.glob("logs/*"))
    row = next(line for line in run.stdout.splitlines() if line.startswith(f"| GPTLike, {name} |"))
    assert "| ok |" in row and "{" not in row and "1 ok, 0 FAILED" in run.stdout


def test_without_a_checkout_its_programs_are_skipped(tmp_path):
    run = run_sh("--only", "cifar", str(tmp_path))
    assert run.returncode == 0 and "skipped: no checkout (set DEEPSCALE_EXAMPLES)" in run.stdout
    count = sum("cifar" in p.name.lower() for p in programs.all_programs())
    assert f"{count} skipped, 0 FAILED" in run.stdout and not list(tmp_path.glob("runs/*"))


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    run = run_sh("--only", "cifar", str(tmp_path / "out"), DEEPSCALE_EXAMPLES=str(tmp_path))
    assert run.returncode == 1 and "this is no checkout of DeepSpeedExamples, it has no training/cifar" in run.stderr


def test_a_program_that_fails_is_in_the_exit_status(tmp_path):
    """A checkout whose CIFAR-10 program does not learn."""
    folder = tmp_path / "checkout" / programs.CIFAR
    folder.mkdir(parents=True)
    (folder / "run_ds.sh").write_text("echo '[ 1, 10] loss: 2.0'; echo '[ 1, 20] loss: 2.5'; echo Finished Training\n")
    run = run_sh("--only", "run_ds.sh", str(tmp_path / "out"), DEEPSCALE_EXAMPLES=str(tmp_path / "checkout"))
    assert run.returncode == 1 and "FAILED: the loss did not fall: 2.0 at first, 2.5 at the end; log: " in run.stdout


def judged(status: int | None, output: str, *checks, **more) -> str:
    return ": ".join(filter(None, run_programs.judge(Program("x", "x", checks, **more), status, output, Path("."))))


def test_results():
    falls = programs.falls(r"loss ([\d.]+|nan)")
    assert judged(0, "loss 3.0\nloss 2.9", falls) == "ok"
    assert judged(0, "loss 3.0", falls).startswith("FAILED: 1 losses printed")
    assert judged(0, "loss 3.0\nloss nan\nloss 1.0", falls).startswith("FAILED: the loss did not fall")
    assert judged(1, "x\nValueError: too small\n", falls) == "FAILED: exit status 1, ValueError: too small"
    assert judged(None, "", falls) == "FAILED: still running after 600 s"
    refusal = "NotImplementedError: deepspeed.moe.layer.MoE is not built yet (mixture of experts)"
    assert judged(1, refusal, falls, not_built="mixture of experts") == "not built: mixture of experts"
    assert judged(1, "ValueError: no", falls, not_built="mixture of experts").startswith("FAILED")
    assert judged(1, refusal, falls).startswith("FAILED")


def test_outputs_are_looked_at(tmp_path):
    import torch
    torch.save({"w": torch.ones(2, 2), "b": torch.tensor([1.0, float("inf")])}, tmp_path / "m.pt")
    for check, message in ((programs.loads_whole("m.pt", "w", (4,)), r"expected w of shape \(4,\), found \(2, 2\)"),
                           (programs.loads_whole("m.pt", "w", (2, 2)), "b has values that are not finite"),
                           (programs.leaves("*.json"), r"no \*.json was written"),
                           (programs.prints(r"at (\d+)", at_least=5), "is 4, expected at least 5")):
        with pytest.raises(Problem, match=message):
            check("at 4", tmp_path)
    programs.leaves("m.*")("", tmp_path)


def test_packages_of_the_wrong_version_are_named():
    assert run_programs.missing_package({"torch": ""}) == ""
    assert run_programs.missing_package({"torch": "1."}).startswith("needs torch 1.x, found ")
    assert run_programs.missing_package({"no-such-package-here": ""}) == "needs no-such-package-here (tests/examples/requirements.txt)"


def test_what_takes_too_long_is_ended_with_all_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(run_programs, "LIMIT_S", 1)
    command = f"sleep 300 & echo $! > {tmp_path}/pid; wait"
    assert run_programs.execute(command, tmp_path, dict(os.environ), tmp_path / "log") is None
    wait_for_end_of(int((tmp_path / "pid").read_text()))


def wait_for_end_of(process: int) -> None:
    def alive() -> bool:
        try:
            return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    deadline = time.monotonic() + 10
    while alive():
        assert time.monotonic() < deadline, f"process {process} outlived its program"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_running(number, tmp_path):
    folder = tmp_path / "checkout" / programs.CIFAR
    folder.mkdir(parents=True)
    (folder / "run_ds.sh").write_text(f"sleep 300 & echo $! > {tmp_path}/unfinished; mv {tmp_path}/unfinished {tmp_path}/pid; wait\n")
    run = subprocess.Popen([str(EXAMPLES / "run.sh"), "--only", "run_ds.sh", str(tmp_path / "out")], stdout=subprocess.DEVNULL,
                           env={**os.environ, "DEEPSCALE_PYTHON": sys.executable, "DEEPSCALE_EXAMPLES": str(tmp_path / "checkout")})
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists():
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.05)
    run.send_signal(number)
    assert run.wait(timeout=30) == 128 + number
    wait_for_end_of(int((tmp_path / "pid").read_text()))


def test_every_program_of_a_folder_has_its_own_log():
    names = [programs.slug(program.name) for program in programs.all_programs()]
    assert len(set(names)) == len(names)
