"""same_losses.py: its judgement, and its cases where DeepSpeed is at hand."""
from __future__ import annotations

import os

import pytest

import same_losses
from same_losses import Case, difference, judge
from tiny import needs

pytestmark = needs("transformers", "accelerate")
CASE = Case("trainer", "opt", 2, "fp32", False)


def test_what_agrees_and_what_does_not():
    assert difference([1.0, 2.0], [1.0, 2.0]) == 0 and difference([1.0], [1.0, 2.0]) == float("inf") and difference([], []) == float("inf")
    assert difference([float("nan")], [1.0]) == float("inf") and difference([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
    assert judge(CASE, [5.0, 4.0], [5.0, 4.00003])[0] and not judge(CASE, [5.0, 4.0], [5.0, 4.0001])[0]
    assert judge(CASE._replace(dtype="bf16"), [5.0, 4.0], [5.0, 4.007])[0] and not judge(CASE._replace(dtype="bf16"), [5.0, 4.0], [5.0, 4.01])[0]
    agrees, cells = judge(CASE, "Traceback\nValueError: no", [1.0])
    assert not agrees and cells == "FAILED with ours: ValueError: no"
    assert len(same_losses.all_cases()) == len({case.name for case in same_losses.all_cases()}) == 72


def test_a_worker_that_ends_early_is_named(tmp_path):
    """There is no cases.json."""
    endings = same_losses.run_workers(tmp_path, None, 2, 120.0)
    assert len(endings) == 2 and all("ended with 1: " in ending and "cases.json" in ending for ending in endings)
    assert same_losses.rows_of(tmp_path / "losses0.jsonl") == {}


@pytest.mark.parametrize("trainer", ["trainer", pytest.param("accelerate", marks=pytest.mark.whole),
                                     pytest.param("lightning", marks=[pytest.mark.whole, needs("pytorch_lightning")])])
@pytest.mark.parametrize("more", [[], pytest.param(["--ranks", "2", "--own-adam"], marks=pytest.mark.whole)], ids=["one-rank", "two-ranks"])
def test_losses_are_deepspeeds(trainer, more, request, capsys):
    reference = os.environ.get("DEEPSCALE_REFERENCE_PATH")
    if not reference:
        pytest.skip("set DEEPSCALE_REFERENCE_PATH to a folder with DeepSpeed (pip install --no-deps --target FOLDER deepspeed==0.19.8)")
    only = trainer if request.config.getoption("--whole") else f"{trainer} llama stage 3 bf16,{trainer} opt stage 2 fp32"
    assert same_losses.main(["--reference", reference, "--only", only, *more]) == 0, capsys.readouterr().out
