"""The fused optimizer step on one core: unscale + clip + AdamW + bf16 copy-out over one flat span, in one pass.

Opponents: the same work by torch: gradients cast to fp32, scaled, torch's fused AdamW, cast of the new weights to bf16;
and an in-place pass over the same bytes without an optimizer's arithmetic (the limit); and DeepSpeedCPUAdam 0.19.8 in its
own process, against ours with the same inputs (fp32 gradients, no copy-out).
Bytes per element: reads fp32 weight, bf16 gradient, two fp32 moments (14), writes weight, moments, bf16 copy (14); so the
pass runs over 14 bytes per element, each read and written once. Targets: 1.2 times torch, 0.85 of the pass.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness  # noqa: E402

LR, BETA1, BETA2, EPS, DECAY, SCALE = 1e-3, 0.9, 0.999, 1e-8, 0.01, 0.125
state: dict = {"step": 0}


def values(numel: int):
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randn(numel, generator=generator), torch.randn(numel, generator=generator)


def start(numel: int, threads: int, ours: bool) -> float:
    """Makes all contenders of our interpreter; returns the largest difference between our weights and torch's after 3 steps."""
    import torch

    torch.set_num_threads(threads)
    weight, gradient = values(numel)
    half = gradient.bfloat16()
    state["torch"] = torch_step(weight.clone(), half)
    state["pass"] = in_place_pass(torch.ones(numel * 14 // 4))
    if not ours:
        return 0.0
    state["fused"] = fused_step(weight.clone(), half)
    for _ in range(3):
        state["torch"]()
        state["fused"]()
    difference = (state["torch weight"] - state["fused weight"]).abs().max().item()
    state["fused fp32"] = fused_step(weight, gradient, copy=False)
    return difference


def torch_step(weight, half):
    import torch

    weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW([weight], lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY, fused=True)
    copy = torch.empty(weight.shape, dtype=torch.bfloat16)
    state["torch weight"] = weight

    def step() -> None:
        weight.grad.copy_(half)
        weight.grad.mul_(SCALE)
        optimizer.step()
        copy.copy_(weight)

    return step


def in_place_pass(buffer):
    return lambda: buffer.neg_()


def fused_step(weight, gradient, copy: bool = True):
    import torch

    from deepspeed import _C

    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    copy_out = torch.empty(weight.shape, dtype=torch.bfloat16) if copy else None
    state["fused weight"] = weight
    counter = {"t": 0}

    def step() -> None:
        counter["t"] += 1
        _C.adam_step(
            weight, gradient, first, second, LR, BETA1, BETA2, EPS, DECAY, True, True, counter["t"], SCALE if copy else 1.0, copy_out
        )

    return step


def start_reference(numel: int, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    weight, gradient = values(numel)
    parameter = torch.nn.Parameter(weight)
    parameter.grad = gradient
    optimizer = DeepSpeedCPUAdam([parameter], lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY)
    state["cpu adam"] = optimizer.step


def step(kind: str) -> float:
    return harness.seconds(state[kind])


def interleave(calls: dict[str, tuple[harness.Side, str]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 2):
        for name in list(calls)[:: 1 if index % 2 else -1]:
            side, kind = calls[name]
            value = side.slowest("step", kind=kind)
            if index >= 2:
                times[name].append(value)
    return times


def compare(args, ours: bool, numel: int, threads: int, rounds: int) -> dict:
    with harness.Side("ours", __file__, threads=threads) as side:
        difference = side.call("start", numel=numel, threads=threads, ours=ours)[0]
        calls = {"torch, separate passes": (side, "torch"), "in-place pass": (side, "pass")}
        if ours:
            calls = {"ours, fused": (side, "fused"), **calls, "ours, fp32 gradient": (side, "fused fp32")}
        reference = None
        try:
            if args.reference:
                reference = harness.reference_side("DeepSpeedCPUAdam", __file__, args.reference, threads=threads)
                reference.call("start_reference", numel=numel, threads=threads)
                calls["DeepSpeedCPUAdam"] = (reference, "cpu adam")
            times = interleave(calls, rounds)
        finally:
            if reference:
                reference.close()
    checked = f", largest difference from torch after 3 steps {difference:.1e}" if ours else ""
    print(f"--- {numel / 1e6:.0f} M elements, {threads} thread(s){checked}")
    for name, samples in times.items():
        median = statistics.median(samples)
        print(f"{name:24} {median * 1e3:9.2f} ms, {numel / median / 1e9:6.2f} G elements/s", flush=True)
    row = {"elements": numel, "threads": threads, **{name: statistics.median(samples) for name, samples in times.items()}}
    if ours:
        row["against_torch"] = harness.pair_ratio(times["torch, separate passes"], times["ours, fused"])
        row["of_the_pass"] = harness.pair_ratio(times["in-place pass"], times["ours, fused"])
        text = f"ours: {row['against_torch']:.2f} x torch, {row['of_the_pass']:.2f} of the pass"
        if reference:
            row["against_cpu_adam"] = harness.pair_ratio(times["DeepSpeedCPUAdam"], times["ours, fp32 gradient"])
            text += f", {row['against_cpu_adam']:.2f} x DeepSpeedCPUAdam"
        print(text, flush=True)
    return row


def main() -> None:
    args = harness.arguments(__doc__)
    ours = harness.have_ours()
    rounds = 9 if args.quick else 21
    sizes = (16_000_000,) if args.quick else (1_000_000, 16_000_000, 64_000_000)
    rows = [compare(args, ours, numel, threads, rounds) for threads in ((1,) if args.quick else (1, 2)) for numel in sizes]
    main_row = next(row for row in rows if row["elements"] == 16_000_000 and row["threads"] == 1)
    met = main_row["against_torch"] >= 1.2 and main_row["of_the_pass"] >= 0.85 if ours else None
    harness.result(
        "optimizer",
        ours=main_row.get("ours, fused"),
        opponent=main_row["torch, separate passes"],
        ratio=main_row.get("against_torch"),
        limit_share=main_row.get("of_the_pass"),
        unit="seconds for 16 M elements, one thread",
        against_cpu_adam=main_row.get("against_cpu_adam"),
        met=met,
        cases=rows,
    )


if __name__ == "__main__":
    harness.serve({"start": start, "start_reference": start_reference, "step": step}) if harness.is_worker() else main()
