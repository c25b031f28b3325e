"""Training speed: a 27 M-parameter GPT in bf16 on 2 CPU ranks with one thread each, one step of every side in turn.

Ours: stages 0-3. Opponents: real DeepSpeed 0.19.8 stages 0-3, FSDP2 (fully_shard) and DDP of this torch. The limit: two
independent processes that do the same forward and backward and the same full optimizer step and communicate nothing,
written twice, with plain torch (fused AdamW and its separate passes) and with our engine in worlds of one; the faster is
the limit. Every contender runs interleaved with the limit (A B B A ...); limit_share = limit's step / contender's step,
median of pairs. Targets for ours: 0.93 in stages 0-2, 0.88 in stage 3.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "gpt"))
import harness  # noqa: E402

VOCAB, BLOCK, LAYERS, WIDTH, HEADS = 4096, 128, 8, 512, 8  # 27.4 M parameters
LR, BETAS, DECAY, CLIP = 3e-4, (0.9, 0.95), 0.01, 1.0
TARGETS = {0: 0.93, 1: 0.93, 2: 0.93, 3: 0.88}

state: dict = {}  # of this worker: "step" is a function that does one step


def make_model():
    from model import GPT, GPTConfig, initial_value

    config = GPTConfig(VOCAB, BLOCK, LAYERS, WIDTH, HEADS)
    model = GPT(config)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(initial_value(name, parameter.shape, config, seed=1))
    return model


def make_batch(batch: int):
    import torch

    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, VOCAB, (batch, BLOCK + 1), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def start_deepspeed(batch: int, stage: int) -> None:
    import deepspeed

    model = make_model()
    config = {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_clipping": CLIP,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": LR, "betas": list(BETAS), "weight_decay": DECAY}},
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    inputs, targets = make_batch(batch)

    def step() -> float:
        loss = engine(inputs, targets)
        engine.backward(loss)
        engine.step()
        return loss.item()

    state["step"] = step


def start_plain(batch: int, data_parallel: bool) -> None:
    """bf16 model, fp32 master copy, gradients cast up, clipped, fused AdamW, cast down; optionally inside DDP."""
    import torch

    model = make_model().bfloat16()
    parameters = list(model.parameters())
    master = [p.detach().float() for p in parameters]
    for m in master:
        m.grad = torch.zeros_like(m)
    optimizer = torch.optim.AdamW(master, lr=LR, betas=BETAS, weight_decay=DECAY, fused=True)
    if data_parallel:
        torch.distributed.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    inputs, targets = make_batch(batch)

    def step() -> float:
        loss = model(inputs, targets)
        loss.backward()
        torch._foreach_copy_([m.grad for m in master], [p.grad for p in parameters])
        torch.nn.utils.clip_grad_norm_(master, CLIP, foreach=True)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(parameters, master)
        for p in parameters:
            if data_parallel:
                p.grad.zero_()
            else:
                p.grad = None
        return loss.item()

    state["step"] = step


def start_fsdp2(batch: int) -> None:
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    model = make_model()
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=DECAY, fused=True)
    inputs, targets = make_batch(batch)

    def step() -> float:
        loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    state["step"] = step


def start(kind: str, batch: int, stage: int = 0) -> None:
    import torch

    torch.set_num_threads(1)
    if kind == "deepspeed":
        start_deepspeed(batch, stage)
    elif kind == "fsdp2":
        start_fsdp2(batch)
    else:
        start_plain(batch, data_parallel=kind == "ddp")


def step(count: int = 1) -> float:
    """Seconds per step over `count` steps."""
    return harness.seconds(lambda: [state["step"]() for _ in range(count)]) / count


def last_loss() -> float:
    return state["step"]()


def open_side(name: str, kind: str, batch: int, *, stage: int = 0, python: str = sys.executable, independent: bool = False) -> harness.Side:
    environment = harness.reference_environment() if python != sys.executable else {}
    side = harness.Side(
        name,
        str(Path(__file__).resolve()),
        python=python,
        ranks=2,
        threads=1,
        environment=environment,
        independent=independent,
        timeout_s=900,
    )
    try:
        side.call("start", kind=kind, batch=batch, stage=stage)
    except BaseException:
        side.close()
        raise
    return side


def contenders(args: argparse.Namespace, ours: bool) -> list[dict]:
    stages = (2, 3) if args.quick else (0, 1, 2, 3)
    listed = [{"name": f"ours stage {s}", "kind": "deepspeed", "stage": s} for s in stages if ours]
    if args.reference:
        listed += [
            {"name": f"DeepSpeed 0.19.8 stage {s}", "kind": "deepspeed", "stage": s, "python": args.reference}
            for s in ((2,) if args.quick else stages)
        ]
    return listed + [{"name": "DDP", "kind": "ddp"}] + ([] if args.quick else [{"name": "FSDP2", "kind": "fsdp2"}])


def choose_limit(args: argparse.Namespace, ours: bool, rounds: int) -> tuple[dict, dict[str, float]]:
    """The faster of the two ways to write the limit, and the seconds per step of both."""
    ways = [{"name": "limit, plain torch", "kind": "plain"}]
    if ours:
        ways.append({"name": "limit, our engine alone", "kind": "deepspeed"})
    sides = [open_side(batch=args.batch, independent=True, **way) for way in ways]
    try:
        times = harness.interleave(sides, "step", rounds)
    finally:
        for side in sides:
            side.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name:26} {value * 1e3:8.1f} ms per step", flush=True)
    return min(ways, key=lambda way: medians[way["name"]]), medians


def main() -> None:
    args = harness.arguments(
        __doc__, lambda parser: parser.add_argument("--batch", type=int, default=2, help="windows of 128 tokens per rank and step")
    )
    ours = harness.have_ours()
    rounds = 5 if args.quick else 20
    limit_way, limits = choose_limit(args, ours, rounds)
    shares: dict[str, float] = {}
    with open_side(batch=args.batch, independent=True, **limit_way) as limit:
        for contender in contenders(args, ours):
            try:
                with open_side(batch=args.batch, **contender) as side:
                    times = harness.interleave([side, limit], "step", rounds)
                    loss = statistics.mean(side.call("last_loss"))
            except harness.SideFailed as failure:
                print(f"FAILED {contender['name']}: {failure}", flush=True)
                continue
            name = contender["name"]
            shares[name] = harness.pair_ratio(times[limit.name], times[name])
            own, best = (statistics.median(times[key]) * 1e3 for key in (name, limit.name))
            print(
                f"{name:26} {own:8.1f} ms per step, limit {best:8.1f} ms, "
                f"share of the limit {shares[name]:.3f} (median of {rounds} pairs), loss after it {loss:.4f}",
                flush=True,
            )
    report(shares, limits)


def report(shares: dict[str, float], limits: dict[str, float]) -> None:
    ours = {name: share for name, share in shares.items() if name.startswith("ours")}
    others = {name: share for name, share in shares.items() if not name.startswith("ours")}
    met = all(share >= TARGETS[int(name[-1])] for name, share in ours.items()) if ours else None
    harness.result(
        "train",
        ours=ours or None,
        opponent=others or None,
        ratio=min(ours.values()) / max(others.values()) if ours and others else None,
        limit_share=min(ours.values()) if ours else None,
        unit="share of the limit's speed",
        limit_s=limits,
        targets=TARGETS,
        met=met,
    )


if __name__ == "__main__":
    harness.serve({"start": start, "step": step, "last_loss": last_loss}) if harness.is_worker() else main()
