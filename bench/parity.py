"""Numerical parity: losses over 20 steps against real DeepSpeed 0.19.8 and plain torch, and bits among our own settings.

A small GPT with a tied head and one frozen parameter, AdamW, clipping at a norm of 0.25, linear warm-up.
  1. fp32, worlds 1 and 2, stages 0-3, accumulation 1 and 3: every loss within 1e-5 of plain torch's and of real DeepSpeed's.
  2. bf16, world 2: within 2e-2.
  3. Ours, fp32: a hash over all losses and final weights is the same for stages 0-3 (with accumulation: 0 = 1 and 2 = 3), three
     bucket sizes, overlap on and off, offload on and off, and from run to run.
Plain torch computes all ranks' windows in one process and averages gradients: no communication can blur it.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "gpt"))
import harness  # noqa: E402

STEPS, BATCH, CLIP, WARM_UP = 20, 4, 0.25, 5
LR, BETAS, EPS, DECAY = 2e-3, (0.9, 0.95), 1e-8, 0.05
FROZEN = "position_embedding.weight"
BUCKETS = (2_000, 50_000, 500_000_000)
FP32_TOLERANCE, BF16_TOLERANCE = 1e-5, 2e-2


def make_model(dtype: str):
    import torch
    from model import GPT, GPTConfig, initial_value

    config = GPTConfig(vocab_size=193, block_size=24, n_layer=2, d_model=48, n_head=4)
    model = GPT(config)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(initial_value(name, parameter.shape, config, seed=3))
        parameter.requires_grad_(name != FROZEN)
    return model.to(getattr(torch, dtype)), config


def windows(config, rank: int, micro_step: int):
    """Structured text (a noisy arithmetic sequence), so that the loss really falls."""
    import torch

    generator = torch.Generator().manual_seed(1000 * rank + micro_step)
    start = torch.randint(0, config.vocab_size, (BATCH, 1), generator=generator)
    stride = torch.randint(1, 5, (BATCH, 1), generator=generator)
    tokens = (start + stride * torch.arange(config.block_size + 1)) % config.vocab_size
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def setup() -> None:
    import torch

    torch.set_num_threads(1)


def run_plain(dtype: str, world: int, accumulation: int) -> list[list[float]]:
    """losses[rank][micro-step] of plain torch; bf16 keeps an fp32 master copy."""
    import torch

    setup()
    model, config = make_model(dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    master = [p.detach().float().clone() for p in trained]
    optimizer = torch.optim.AdamW(master, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    losses: list[list[float]] = [[] for _ in range(world)]
    for step in range(STEPS):
        sums = [torch.zeros_like(m) for m in master]
        for micro, rank in itertools.product(range(accumulation), range(world)):
            loss = model(*windows(config, rank, step * accumulation + micro))
            losses[rank].append(loss.item())
            (loss / accumulation).backward()
            for total, p in zip(sums, trained):
                total += p.grad.float()
                p.grad = None
        for m, total in zip(master, sums):
            m.grad = total / world
        torch.nn.utils.clip_grad_norm_(master, CLIP)
        optimizer.param_groups[0]["lr"] = LR * min(1.0, max(0, step - 1) / WARM_UP)  # WarmupLR starts at its minimum twice
        optimizer.step()
        with torch.no_grad():
            for p, m in zip(trained, master):
                p.copy_(m)
    return losses


def engine_config(dtype: str, stage: int, accumulation: int, bucket: int, overlap: bool, offload: bool) -> dict:
    zero = {"stage": stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket, "overlap_comm": overlap}
    if stage == 3:
        zero.update(stage3_prefetch_bucket_size=bucket, stage3_param_persistence_threshold=100)
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": BATCH,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": CLIP,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": zero,
        "optimizer": {"type": "AdamW", "params": {"lr": LR, "betas": list(BETAS), "eps": EPS, "weight_decay": DECAY}},
        "scheduler": {
            "type": "WarmupLR",
            "params": {"warmup_min_lr": 0.0, "warmup_max_lr": LR, "warmup_num_steps": WARM_UP, "warmup_type": "linear"},
        },
    }


def run_engine(dtype: str, stage: int, accumulation: int, bucket: int = BUCKETS[1], overlap: bool = False, offload: bool = False) -> dict:
    """{"losses": this rank's, "hash": of its losses and the full final weights}."""
    import deepspeed

    setup()
    model, config = make_model("float32")
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config=engine_config(dtype, stage, accumulation, bucket, overlap, offload),
    )
    rank = deepspeed.comm.get_rank()
    losses = []
    for micro_step in range(STEPS * accumulation):
        loss = engine(*windows(config, rank, micro_step))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    digest = hashlib.sha256(repr([loss.hex() for loss in losses]).encode())
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            digest.update(name.encode() + parameter.detach().float().contiguous().numpy().tobytes())
    engine.destroy()
    return {"losses": losses, "hash": digest.hexdigest()}


def largest_difference(a: list[list[float]], b: list[list[float]]) -> float:
    return max(abs(x - y) for row_a, row_b in zip(a, b, strict=True) for x, y in zip(row_a, row_b, strict=True))


class Verdict:
    """Collects what was compared; a failed comparison is printed at once."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}
        self.failures: list[str] = []

    def compare(self, kind: str, case: str, a: list[list[float]], b: list[list[float]], tolerance: float) -> None:
        difference = largest_difference(a, b)
        self.largest[kind] = max(self.largest.get(kind, 0.0), difference)
        good = difference <= tolerance
        outcome, count = "ok  " if good else "FAIL", len(a) * len(a[0])
        print(f"{outcome} {kind}, {case}: largest difference of {count} losses {difference:.2e} (limit {tolerance:g})", flush=True)
        if not good:
            self.failures.append(f"{kind}, {case}")


def sides(world: int, ours: bool, reference: str | None) -> list[harness.Side]:
    opened = [harness.Side("ours", __file__, ranks=world)] if ours else []
    if reference:
        opened.append(harness.reference_side("DeepSpeed 0.19.8", __file__, reference, ranks=world))
    return opened


def compare_losses(
    verdict: Verdict, plain: harness.Side, opened: list[harness.Side], world: int, dtype: str, cases: list[tuple[int, int]]
) -> None:
    tolerance = FP32_TOLERANCE if dtype == "float32" else BF16_TOLERANCE
    for stage, accumulation in cases:
        case = f"{dtype}, world {world}, stage {stage}, accumulation {accumulation}"
        expected = plain.call("plain", dtype=dtype, world=world, accumulation=accumulation)[0]
        found = {}
        for side in opened:
            try:
                found[side.name] = [answer["losses"] for answer in side.call("engine", dtype=dtype, stage=stage, accumulation=accumulation)]
            except harness.SideFailed as failure:
                print(f"FAIL {side.name}, {case}: {failure}", flush=True)
                verdict.failures.append(f"{side.name}, {case}")
        for name, losses in found.items():
            verdict.compare(f"{name} against plain torch", case, losses, expected, tolerance)
        if len(found) == 2:
            verdict.compare("ours against DeepSpeed 0.19.8", case, found["ours"], found["DeepSpeed 0.19.8"], tolerance)


def compare_bits(verdict: Verdict, side: harness.Side, world: int, quick: bool) -> int:
    """Hashes of every setting must agree inside their group; returns the number of runs."""
    runs = 0
    for accumulation in (1, 3):
        groups = [(0, 1, 2, 3)] if accumulation == 1 else [(0, 1), (2, 3)]
        for group in groups:
            seen: dict[str, str] = {}
            for stage, bucket, overlap, offload in itertools.product(group, BUCKETS, (False, True), (False, True)):
                if offload and stage == 0 or quick and (bucket == BUCKETS[1] or overlap != offload):
                    continue
                setting = {"stage": stage, "bucket": bucket, "overlap": overlap, "offload": offload}
                try:
                    answers = side.call("engine", dtype="float32", accumulation=accumulation, **setting)
                    seen[str(setting)] = "/".join(answer["hash"][:16] for answer in answers)
                except harness.SideFailed as failure:
                    print(f"FAIL bits, world {world}, accumulation {accumulation}, {setting}: {failure}", flush=True)
                    verdict.failures.append(f"bits, world {world}, accumulation {accumulation}, {setting}")
                runs += 1
            name = f"bits, world {world}, accumulation {accumulation}, stages {group}"
            if len(set(seen.values())) <= 1:
                print(f"ok   {name}: {len(seen)} settings, one hash {next(iter(seen.values()), None)}", flush=True)
            else:
                verdict.failures.append(name)
                print(f"FAIL {name}:", *(f"       {value}  {setting}" for setting, value in seen.items()), sep="\n", flush=True)
    return runs


def main() -> None:
    args = harness.arguments(__doc__)
    ours = harness.have_ours()
    verdict, runs = Verdict(), 0
    cases = [(2, 1), (3, 3)] if args.quick else list(itertools.product((0, 1, 2, 3), (1, 3)))
    with harness.Side("plain torch", __file__) as plain:
        for world in (2,) if args.quick else (1, 2):
            opened = sides(world, ours, args.reference)
            try:
                compare_losses(verdict, plain, opened, world, "float32", cases)
                if world == 2:
                    compare_losses(verdict, plain, opened, world, "bfloat16", cases)
                if ours:
                    runs += compare_bits(verdict, opened[0], world, args.quick)
            finally:
                for side in opened:
                    side.close()
    print("all comparisons passed" if not verdict.failures else f"{len(verdict.failures)} comparisons FAILED: {verdict.failures}")
    harness.result(
        "parity",
        ours={k: v for k, v in verdict.largest.items() if k.startswith("ours")} or None,
        opponent={k: v for k, v in verdict.largest.items() if not k.startswith("ours")} or None,
        ratio=None,
        limit_share=None,
        unit="largest absolute difference of a loss",
        bit_runs=runs,
        failures=verdict.failures,
        met=ours and not verdict.failures,
    )
    sys.exit(1 if verdict.failures else 0)


if __name__ == "__main__":
    harness.serve({"plain": run_plain, "engine": run_engine}) if harness.is_worker() else main()
