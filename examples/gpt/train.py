"""Trains a GPT on text with any ZeRO stage, on GPUs or CPU cores.

    deepspeed --num_gpus 2 examples/gpt/train.py --deepspeed --deepspeed_config examples/gpt/ds_config_zero2.json
    torchrun --nproc_per_node 2 examples/gpt/train.py --deepspeed --deepspeed_config examples/gpt/ds_config_zero3.json

Batch sizes, precision, optimizer, schedule and sharding come from the JSON file; model size, data and duration from the
command line. README.md beside this file walks through a run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch

import deepspeed
import deepspeed.comm as dist
from data import DataError, EvaluationWindows, TextData, TrainingWindows, load_text
from model import GPT, GPTConfig, initial_value
from report import Report

HERE = Path(__file__).resolve().parent


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpWithDefaults)
    model = parser.add_argument_group("model")
    model.add_argument("--n_layer", type=int, default=6, help="transformer blocks")
    model.add_argument("--d_model", type=int, default=384, help="width; a multiple of n_head")
    model.add_argument("--n_head", type=int, default=6, help="attention heads")
    model.add_argument("--block_size", type=int, default=128, help="tokens that the model sees at once")
    model.add_argument("--init_from", metavar="FILE", help="initial weights (safetensors, names as in model.py)")
    model.add_argument("--save_init", metavar="FILE", help="writes the initial weights and goes on")
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="PATH", help="text file or folder (default: the sources of Python's standard library)")
    data.add_argument("--vocab_size", type=int, default=8192, help="of the byte-level BPE that is trained on the text")
    data.add_argument("--cache_dir", metavar="DIR", help="where tokenizer and tokens are kept (default: ~/.cache/deepscale)")
    run = parser.add_argument_group("run")
    run.add_argument("--max_steps", type=int, default=300, help="optimizer steps in all")
    run.add_argument("--max_minutes", type=float, help="ends training after this time, if max_steps are not done before")
    run.add_argument("--seed", type=int, default=1, help="of the initial weights and of the order of windows")
    run.add_argument("--eval_interval", type=int, default=50, metavar="STEPS", help="between two evaluations")
    run.add_argument("--eval_windows", type=int, default=64, help="held-out windows per evaluation, over all ranks")
    run.add_argument("--save_interval", type=int, default=0, metavar="STEPS", help="0: only at the end, -1: never")
    run.add_argument("--resume", action="store_true",
                     help="goes on from the last checkpoint in --output_dir; so does a job that the launcher restarted, if there is one")
    run.add_argument("--output_dir", type=Path, default=HERE / "out", help="metrics.jsonl, loss.png, sample.txt, checkpoints/")
    run.add_argument("--prompt", default="def ", help="start of the text that is sampled at the end")
    run.add_argument("--sample_tokens", type=int, default=120, help="length of that text")
    run.add_argument("--local_rank", type=int, default=int(os.environ.get("LOCAL_RANK", "0")), help="set by some launchers")
    deepspeed.add_config_arguments(parser)
    args = parser.parse_args(argv)
    if args.deepspeed_config is None:
        args.deepspeed_config = str(HERE / "ds_config_zero2.json")
    if args.max_steps < 1 or args.eval_interval < 1 or args.eval_windows < 1:
        parser.error("--max_steps, --eval_interval and --eval_windows must be at least 1")
    return args


def share_cores() -> None:
    """Divides the machine's cores among its ranks, unless the launcher or the user has already chosen."""
    if "OMP_NUM_THREADS" not in os.environ:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or dist.get_world_size())
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // ranks))


def shards_parameters(config_path: str) -> bool:
    """Whether the configuration asks for stage 3, where the model is best built sharded from the start."""
    return deepspeed.DeepSpeedConfig(config_path).zero_optimization_stage == 3


def build_model(config: GPTConfig, args: argparse.Namespace) -> GPT:
    """A GPT whose weights depend on --seed (or --init_from) alone; under stage 3 no rank ever holds all of it."""
    with deepspeed.zero.Init(config_dict_or_path=args.deepspeed_config, enabled=shards_parameters(args.deepspeed_config)):
        model = GPT(config)
    given = read_weights(args.init_from) if args.init_from else None
    kept = {}
    names = dict(model.named_parameters())  # the tied head appears once
    if given is not None and given.keys() != names.keys():
        wrong = sorted(given.keys() ^ names.keys())
        raise DataError(f"--init_from {args.init_from}: these names are only in the file or only in the model: {', '.join(wrong[:6])}")
    for name, parameter in names.items():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            value = given[name] if given is not None else initial_value(name, parameter.shape, config, args.seed)
            if value.shape != parameter.shape:
                raise DataError(f"--init_from {args.init_from}: {name} has shape {list(value.shape)}, the model {list(parameter.shape)}")
            parameter.copy_(value)
            if args.save_init and dist.get_rank() == 0:
                kept[name] = parameter.detach().float().cpu().clone()
    if kept:
        write_weights(kept, args.save_init)
    return model


def read_weights(path: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises several unrelated types for missing, cut and foreign files
        raise DataError(f"--init_from {path}: {error}") from error


def write_weights(weights: dict[str, torch.Tensor], path: str) -> None:
    from safetensors.torch import save_file
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, path)
    except OSError as error:
        raise DataError(f"--save_init {path}: {error}") from error


def mean_over_ranks(values: list[float], device: torch.device) -> list[float]:
    total = torch.tensor(values, dtype=torch.float32, device=device)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).tolist()


@torch.no_grad()
def evaluate(engine, windows: EvaluationWindows) -> float:
    """Mean cross entropy in nats over all held-out windows, the same number on every rank."""
    engine.eval()
    loss_sum, count = 0.0, 0
    for inputs, targets, weight in windows:
        loss = engine(inputs.to(engine.device), targets.to(engine.device))
        loss_sum += loss.item() * weight
        count += weight
    engine.train()
    loss_sum, count = mean_over_ranks([loss_sum, count], engine.device)
    return loss_sum / count


def train_step(engine, windows: TrainingWindows, step: int) -> float:
    """One optimizer step; returns this rank's loss averaged over its micro-batches."""
    accumulation = engine.gradient_accumulation_steps()
    loss_sum = 0.0
    for micro in range(accumulation):
        inputs, targets = windows.batch(step * accumulation + micro)
        loss = engine(inputs.to(engine.device), targets.to(engine.device))
        engine.backward(loss)
        engine.step()
        loss_sum += loss.item()
    return loss_sum / accumulation


def train(engine, windows: TrainingWindows, held_out: EvaluationWindows, args: argparse.Namespace, report: Report, first: int) -> int:
    """Trains until --max_steps or --max_minutes; returns the number of steps done in all. All ranks stop at the same step."""
    tokens_per_step = engine.train_batch_size() * args.block_size
    started = time.monotonic()
    limit_s = args.max_minutes * 60 if args.max_minutes else float("inf")
    report.evaluated(first, evaluate(engine, held_out))
    for step in range(first, args.max_steps):
        begin = time.monotonic()
        loss = train_step(engine, windows, step)
        late = float(time.monotonic() - started > limit_s)
        loss, late = mean_over_ranks([loss, late], engine.device)
        done = step + 1
        report.stepped(done, loss, tokens_per_step / (time.monotonic() - begin), engine.get_lr()[0])
        if late > 0.0:
            return done
        if done % args.eval_interval == 0 and done < args.max_steps:
            report.evaluated(done, evaluate(engine, held_out))
        if args.save_interval > 0 and done % args.save_interval == 0 and done < args.max_steps:
            save(engine, args, done)
    return args.max_steps


def save(engine, args: argparse.Namespace, step: int) -> None:
    engine.save_checkpoint(str(args.output_dir / "checkpoints"), client_state={"step": step})


def resume(engine, args: argparse.Namespace) -> int:
    """Step of the checkpoint to go on from: asked for, or because `deepspeed --max_restarts` started this job again."""
    restarted = int(os.environ.get("DEEPSPEED_RESTART_COUNT", "0")) > 0
    if not args.resume and not (restarted and (args.output_dir / "checkpoints" / "latest").exists()):
        return 0
    folder, state = engine.load_checkpoint(str(args.output_dir / "checkpoints"))
    if folder is None:
        raise DataError(f"--resume: no checkpoint in {args.output_dir / 'checkpoints'}")
    return state["step"]


def sample(engine, text: TextData, args: argparse.Namespace) -> str:
    """A text sampled from the model. All ranks take part and draw the same tokens."""
    engine.eval()
    prompt = text.tokenizer.encode(args.prompt or "\n").ids
    generator = torch.Generator(device=engine.device).manual_seed(args.seed)
    tokens = engine.module.generate(torch.tensor([prompt], device=engine.device), args.sample_tokens, generator=generator)
    return text.tokenizer.decode(tokens[0].tolist())


def run(args: argparse.Namespace) -> None:
    text = load_text(args.data, args.vocab_size, args.cache_dir, make=args.local_rank == 0)
    config = GPTConfig(text.vocab_size, args.block_size, args.n_layer, args.d_model, args.n_head)
    rank, world = dist.get_rank(), dist.get_world_size()
    model = build_model(config, args)
    engine, _, _, _ = deepspeed.initialize(args=args, model=model, model_parameters=list(model.parameters()))
    batch = engine.train_micro_batch_size_per_gpu()
    windows = TrainingWindows(text.train, args.block_size, batch, seed=args.seed, rank=rank)
    held_out = EvaluationWindows(text.held_out, args.block_size, batch, args.eval_windows, rank=rank, world_size=world)
    first = resume(engine, args)

    report = Report(args.output_dir, total_steps=args.max_steps, first_step=first, visible=rank == 0)
    report.say(f"{describe(model)} on {len(text.train):,} tokens of text, vocabulary {text.vocab_size}, {world} rank(s), "
               f"ZeRO stage {engine.zero_optimization_stage()}, {engine.train_batch_size()} windows of {args.block_size} tokens a step")
    last = train(engine, windows, held_out, args, report, first)
    report.evaluated(last, evaluate(engine, held_out))
    if args.save_interval >= 0:
        save(engine, args, last)
    report.finish(sample(engine, text, args) if args.sample_tokens > 0 else "")


def describe(model: GPT) -> str:
    count = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    return f"GPT with {count / 1e6:.1f} M parameters"


def main() -> int:
    args = parse_arguments()
    deepspeed.init_distributed()
    share_cores()
    torch.manual_seed(args.seed)
    try:
        run(args)
    except (DataError, ValueError) as error:
        if dist.get_rank() == 0:
            print(f"train.py: {error}", file=sys.stderr)
        return 2
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
