"""Host overhead of one training step: 200 layers nn.Linear(8, 8), 400 parameters, one process, fp32, stages 0-3.

Ours: engine forward, backward, step. Opponent: the same model with plain torch and fused AdamW, stepping alternately in
the same process; and real DeepSpeed 0.19.8 measured in the same way in its own process (ratio to its own plain step).
Reported: engine step / plain step, median of pairs. Targets: 1.05 for stages 0-2, 1.3 for stage 3.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness  # noqa: E402

LAYERS, WIDTH, BATCH = 200, 8, 8
TARGETS = {0: 1.05, 1: 1.05, 2: 1.05, 3: 1.3}


def measure(stage: int, rounds: int) -> dict[str, list[float]]:
    """Times of `rounds` pairs of steps after warm-up."""
    import torch

    import deepspeed
    from torch import nn

    def model() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))

    config = {
        "train_micro_batch_size_per_gpu": BATCH,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    }
    sharded = model()
    engine, *_ = deepspeed.initialize(model=sharded, model_parameters=list(sharded.parameters()), config=config)
    plain = model()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, fused=True, weight_decay=0.0)
    x = torch.randn(BATCH, WIDTH)

    def engine_step() -> None:
        loss = engine(x).square().mean()
        engine.backward(loss)
        engine.step()

    def plain_step() -> None:
        plain(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    times: dict[str, list[float]] = {"engine": [], "plain": []}
    for index in range(rounds + 10):
        pair = {}
        for name, step in (("engine", engine_step), ("plain", plain_step))[:: 1 if index % 2 else -1]:
            pair[name] = harness.seconds(step)
        if index >= 10:
            for name, value in pair.items():
                times[name].append(value)
    engine.destroy()
    return times


def compare(side: harness.Side, rounds: int) -> dict[int, float]:
    ratios = {}
    for stage in TARGETS:
        times = side.call("measure", stage=stage, rounds=rounds)[0]
        ratios[stage] = harness.pair_ratio(times["engine"], times["plain"])
        best = {name: min(values) * 1e3 for name, values in times.items()}
        print(
            f"{side.name:16} stage {stage}: engine {best['engine']:7.2f} ms, plain torch {best['plain']:7.2f} ms (best), "
            f"median of {rounds} pair ratios {ratios[stage]:.3f}, target {TARGETS[stage]}",
            flush=True,
        )
    return ratios


def main() -> None:
    args = harness.arguments(__doc__)
    rounds = 40 if args.quick else 200
    ours = opponent = None
    if harness.have_ours():
        with harness.Side("ours", __file__) as side:
            ours = compare(side, rounds)
    if args.reference:
        with harness.reference_side("DeepSpeed 0.19.8", __file__, args.reference) as side:
            opponent = compare(side, rounds)
    worst = max(ours[stage] / TARGETS[stage] for stage in TARGETS) if ours else None
    harness.result(
        "overhead",
        ours=ours,
        opponent=opponent,
        ratio=opponent[3] / ours[3] if ours and opponent else None,
        limit_share=1 / max(ours.values()) if ours else None,
        unit="engine step / plain torch step, by stage",
        targets=TARGETS,
        met=worst <= 1.0 if worst else None,
    )


if __name__ == "__main__":
    harness.serve({"measure": measure}) if harness.is_worker() else main()
