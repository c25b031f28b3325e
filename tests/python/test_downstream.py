"""tests/downstream/run.sh: how it compares two runs, what it says about what is missing, and that its plugin isolates tests."""
from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "downstream"
sys.path.insert(0, str(FOLDER))

import compare  # noqa: E402
import environment  # noqa: E402
import run_suites  # noqa: E402
import suites  # noqa: E402


def outcomes(**by_name: str) -> dict:
    return {name: compare.Outcome(name, outcome, f"{name} says\nmore", 1.0) for name, outcome in by_name.items()}


def test_a_test_that_only_the_reference_passes_is_named_and_fails_the_comparison():
    ours = outcomes(a="passed", b="failed", c="skipped", d="passed", e="failed")
    theirs = outcomes(a="passed", b="passed", c="passed", d="failed", e="failed", f="passed")
    assert [one.test for one in compare.worse(ours, theirs)] == ["b", "c", "f"]
    text, good = compare.summary({"suite": (ours, theirs)})
    assert not good and "| suite | 2 | 2 | 1 | 4 | 2 | 0 | 1 | 3 |" in text
    for line in ("DeepSpeed passes, DeepScale does not: b\n    failed: b says", "does not: c\n    skipped: c says",
                 "does not: f\n    failed: no result", "fails with both: e\n    e says"):
        assert line in text
    assert "more" not in text and "fails with both: b" not in text


def test_a_comparison_is_good_when_ours_pass_what_the_reference_passes():
    text, good = compare.summary({"suite": (outcomes(a="passed", b="passed"), outcomes(a="passed", b="skipped"))})
    assert good and "| suite | 2 | 0 | 0 | 1 | 0 | 1 | 1 | 0 |" in text
    text, good = compare.summary({"alone": (outcomes(a="failed"), None)})
    assert not good and "| alone | 0 | 1 | 0 | - |" in text and "fails: a" in text, "compared with nothing"


def runs(pid: int) -> bool:
    """Whether the process is there and has not ended: its parent is gone, and nobody may have collected it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


TESTS = """
import os, pytest, sys, time

def test_passes(tmp_path):
    os.environ["LEFT_BEHIND"] = "1"

def test_is_alone():
    assert "LEFT_BEHIND" not in os.environ

@pytest.mark.skipif(True, reason="no such thing here")
def test_is_skipped(): ...

def test_fails():
    assert 1 == 2, "as it should"

def test_dies():
    os._exit(7)

def test_hangs():
    if os.fork() == 0:
        open(os.environ["CHILD_FILE"], "w").write(str(os.getpid()))
    time.sleep(600)

def test_starts_itself_again():
    import subprocess
    if os.environ.get("AGAIN"):
        open(os.environ["AGAIN"], "w").write("was here")
        return
    file = os.environ["CHILD_FILE"] + ".again"
    subprocess.run([sys.executable, "-m", "pytest", *sys.argv[1:]], env={**os.environ, "AGAIN": file}, check=True)
    assert open(file).read() == "was here"
"""


def test_every_test_runs_alone_and_its_end_is_recorded(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS, encoding="utf-8")
    file = tmp_path / "outcomes.jsonl"
    variables = {**os.environ, "PYTHONPATH": str(FOLDER / "plugins"), "CHILD_FILE": str(tmp_path / "child")}
    run = subprocess.run([sys.executable, "-m", "pytest", "-pone_process_each", f"--outcomes={file}", "--test-limit=20", "-pno:cacheprovider",
                          f"--rootdir={tmp_path}", str(tmp_path / "test_some.py")], env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    found = {name.partition("::")[2]: (one.outcome, one.reason) for name, one in compare.read_outcomes(file).items()}
    assert {name: outcome for name, (outcome, _) in found.items()} == {
        "test_passes": "passed", "test_is_alone": "passed", "test_is_skipped": "skipped", "test_fails": "failed", "test_dies": "failed",
        "test_hangs": "failed", "test_starts_itself_again": "passed"}
    assert "as it should" in found["test_fails"][1] and "no such thing here" in found["test_is_skipped"][1]
    assert found["test_dies"][1] == "the test's process ended with 7" and found["test_hangs"][1] == "still running after 20 s"
    pid = int((tmp_path / "child").read_text())
    end = time.monotonic() + 60  # killed, and gone in a moment; a process that lives on would sleep for ten minutes
    while runs(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not runs(pid)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    suite = suites.SUITES[0]
    monkeypatch.setenv("DEEPSCALE_DOWNSTREAM", str(tmp_path))
    with pytest.raises(environment.Missing, match="has no folder accelerate: put a checkout of .* at v1.15.0 there"):
        environment.checkout(suite, tmp_path)
    (tmp_path / "accelerate").mkdir()
    with pytest.raises(environment.Missing, match="has no tests/deepspeed: use a checkout"):
        environment.checkout(suite, tmp_path)
    (tmp_path / "accelerate" / "tests" / "deepspeed").mkdir(parents=True)
    assert environment.checkout(suite, tmp_path) == tmp_path / "accelerate"
    monkeypatch.setenv("DEEPSCALE_REFERENCE_PATH", str(tmp_path))
    with pytest.raises(environment.Missing, match="there is no deepspeed in it; pip install"):
        environment.reference(tmp_path, Path(sys.executable))
    monkeypatch.setenv("DEEPSCALE_DOWNSTREAM_PYTHON", str(tmp_path / "python"))
    with pytest.raises(environment.Missing, match="no such program"):
        environment.interpreter(tmp_path)
    monkeypatch.delenv("DEEPSCALE_DOWNSTREAM")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(environment.Missing, match="and no git: set DEEPSCALE_DOWNSTREAM"):
        environment.checkout(suite, tmp_path / "other")


TWO_TESTS = "def test_a(): ...\n\ndef test_b():\n    raise ValueError('b')\n"


@pytest.fixture
def one_suite(tmp_path, monkeypatch) -> tuple[suites.Suite, run_suites.Plan]:
    """A checkout with one passing and one failing test, and a plan with one interpreter for both sides."""
    (tmp_path / "checkout" / "tests").mkdir(parents=True)
    (tmp_path / "checkout" / "tests" / "test_one.py").write_text(TWO_TESTS, encoding="utf-8")
    (tmp_path / "inputs").mkdir()
    monkeypatch.setenv("DEEPSCALE_DOWNSTREAM", str(tmp_path))
    suite = suites.Suite("one", "checkout", "pytest", "", "", "no:cacheprovider", ("tests",), "test_a")
    paths = {run_suites.OURS: tmp_path, run_suites.THEIRS: tmp_path}
    return suite, run_suites.Plan(tmp_path, Path(sys.executable), paths, tmp_path / "inputs", False)


def without_reference(plan: run_suites.Plan) -> run_suites.Plan:
    return dataclasses.replace(plan, paths={run_suites.OURS: plan.folder})


def test_without_the_reference_its_earlier_results_count(one_suite, monkeypatch, capsys):
    """Also: nothing to compare with, and a run of pytest that did not come to its tests, are problems and no success."""
    suite, both = one_suite
    plan = without_reference(both)
    results, problems = run_suites.run_all([suite], plan)
    assert results["one"][1] is None and {one.outcome for one in results["one"][0].values()} == {"passed", "failed"}
    assert len(problems) == 1 and "one: compared with nothing: no results of deepspeed in" in problems[0]
    monkeypatch.setattr(run_suites, "SUITES", (suite,))
    monkeypatch.setattr(run_suites, "make_plan", lambda args: plan)
    monkeypatch.setattr(sys, "argv", ["run.sh", "--ours-only"])
    assert run_suites.main() == 1 and "run once without --ours-only and without --quick" in capsys.readouterr().err
    tests = both.folder / "checkout" / "tests" / "test_one.py"
    tests.write_text(TWO_TESTS.replace("raise ValueError('b')", "..."), encoding="utf-8")
    assert run_suites.run(suite, run_suites.THEIRS, both.folder / "checkout", both)[1] == ""
    assert run_suites.main() == 0
    tests.write_text(TWO_TESTS, encoding="utf-8")
    results, problems = run_suites.run_all([suite], plan)
    assert not problems and [one.test for one in compare.worse(*results["one"])] == ["tests/test_one.py::test_b"]
    assert run_suites.main() == 1
    tests.write_text("import no_such_module\n", encoding="utf-8")
    results, problems = run_suites.run_all([suite], plan)
    assert len(problems) == 1 and "pytest ended with 2 after 0 tests" in problems[0]


def test_a_choice_or_an_interrupted_run_of_the_reference_is_not_a_whole_one(one_suite, monkeypatch):
    suite, both = one_suite
    quick = dataclasses.replace(both, quick=True)
    assert run_suites.run_all([suite], quick)[1] == []
    assert run_suites.run_all([suite], without_reference(quick))[1] == []
    assert "no results of deepspeed" in run_suites.run_all([suite], without_reference(both))[1][0]
    assert run_suites.run_all([suite], both)[1] == [] == run_suites.run_all([suite], without_reference(both))[1]

    def interrupted(command: list[str], *others) -> int:
        file = next(word for word in command if word.startswith("--outcomes=")).partition("=")[2]
        Path(file).write_text(json.dumps({"id": "a", "outcome": "passed", "reason": "", "seconds": 1}) + "\n", encoding="utf-8")
        raise SystemExit(130)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(run_suites, "execute", interrupted)
        run_suites.run(suite, run_suites.THEIRS, both.folder / "checkout", both)
    results, problems = run_suites.run_all([suite], without_reference(both))
    assert results["one"][1] is None and "an incomplete run's results of deepspeed" in problems[0]


def test_an_interrupted_run_ends_the_test_that_runs(tmp_path):
    body = "import os, time\n\ndef test_waits():\n    open('pid', 'w').write(str(os.getpid()))\n    time.sleep(600)\n"
    (tmp_path / "test_wait.py").write_text(body, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-pone_process_each", f"--outcomes={tmp_path / 'outcomes'}", f"--rootdir={tmp_path}", "test_wait.py"]
    variables = {**os.environ, "PYTHONPATH": str(FOLDER / "plugins")}
    run = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    file = tmp_path / "pid"
    while run.poll() is None and not (file.is_file() and file.read_text()):
        time.sleep(0.05)
    pid = int(file.read_text())
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=60) == 2 and not Path(f"/proc/{pid}").exists()
