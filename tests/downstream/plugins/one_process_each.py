"""A pytest plugin: every test runs in a forked process of its own, and one line of JSON per test says how it ended.

The suites leave process groups, engines and singletons behind and may crash or hang; none of that reaches the next test, so the order
of tests, and which of them fail, cannot change the result of another one. Modules are imported once, before the forks.
    --outcomes FILE     where the lines go: {"id", "outcome": passed | failed | skipped, "reason", "seconds"}
    --test-limit N      seconds after which a test and all that it started are ended; it counts as failed
"""
from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

LOST = 3  # exit status of a child that could not write its reports


def pytest_addoption(parser):
    group = parser.getgroup("one process each")
    group.addoption("--outcomes", required=True, metavar="FILE", help="one line of JSON per test")
    group.addoption("--test-limit", type=float, default=600.0, metavar="N", help="seconds per test")


def pytest_sessionstart(session):
    session.config._tmp_path_factory.getbasetemp()  # made once here, not by every child


def _end_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _command_of(item) -> list[str]:
    """The arguments of pytest that run this test alone: what a test starts again as another rank. Options are words that begin with "-"."""
    options = [word for word in item.config.invocation_params.args if word.startswith("-") and not word.startswith("--outcomes")]
    return [*options, f"--outcomes={os.devnull}", f"{item.path}::{item.nodeid.partition('::')[2]}"]


def _child(item, file: str) -> None:
    """Runs the test and ends this process."""
    status = LOST
    try:
        os.setsid()
        sys.argv[1:] = _command_of(item)
        reports = runtestprotocol(item, log=False, nextitem=None)
        data = [item.config.hook.pytest_report_to_serializable(config=item.config, report=report) for report in reports]
        Path(file).write_text(json.dumps(data, default=str), encoding="utf-8")
        status = 0
    finally:
        os._exit(status)


def _wait(pid: int, limit_s: float) -> str:
    """Empty when the child ended by itself and well, otherwise what happened to it. All that it started has ended, also on Ctrl-C."""
    end = time.monotonic() + limit_s
    ended = False
    try:
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended = True
                code = os.waitstatus_to_exitcode(status)
                return "" if code == 0 else f"the test's process ended by signal {-code}" if code < 0 else f"the test's process ended with {code}"
            time.sleep(0.02)
        return f"still running after {limit_s:.0f} s"
    finally:
        _end_group(pid)
        if not ended:
            os.waitpid(pid, 0)


def _lost_report(item, problem: str, seconds: float) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", problem, "call", duration=seconds)


def _reason(report) -> str:
    if report.skipped and isinstance(report.longrepr, (tuple, list)):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longrepr)


def _outcome(reports) -> tuple[str, str]:
    for outcome in ("failed", "skipped"):
        for report in reports:
            if report.outcome == outcome:
                return outcome, _reason(report)[:2000]
    return "passed", ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    hook, config = item.ihook, item.config
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "reports.json")
        pid = os.fork()
        if pid == 0:
            _child(item, file)
        problem = _wait(pid, config.getoption("--test-limit"))
        seconds = time.monotonic() - begin
        if problem:
            reports = [_lost_report(item, problem, seconds)]
        else:
            data = json.loads(Path(file).read_text(encoding="utf-8"))
            reports = [config.hook.pytest_report_from_serializable(config=config, data=one) for one in data]
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    outcome, reason = _outcome(reports)
    with open(config.getoption("--outcomes"), "a", encoding="utf-8") as lines:
        lines.write(json.dumps({"id": item.nodeid, "outcome": outcome, "reason": reason, "seconds": round(seconds, 2)}) + "\n")
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
