"""What all programs of this folder share: command line, text, the loop over micro-batches, and the end of a run.

The programs differ in how they make engine and optimizer; that is what they are there to show.
"""
from __future__ import annotations

import argparse
import json
import os
import sysconfig
from pathlib import Path
from typing import Any

import torch
from gpt_like import GPTLike, next_byte_loss
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

FOLDER = Path(__file__).resolve().parent
PRINT_EVERY = 10  # micro-batches


def parse_arguments(description: str, ds_config: str | None) -> argparse.Namespace:
    """The programs' options. `ds_config`: default of --ds_config, a file beside the programs; None for a program without DeepSpeed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--local_rank", type=int, default=int(os.environ.get("LOCAL_RANK", 0)), help="set by the launcher")
    if ds_config is not None:
        parser.add_argument("--ds_config", default=str(FOLDER / ds_config), help="DeepSpeed's JSON configuration")
    parser.add_argument("--n_layer", type=int, default=2, help="transformer blocks")
    parser.add_argument("--d_model", type=int, default=128, help="width")
    parser.add_argument("--n_head", type=int, default=4, help="attention heads")
    parser.add_argument("--block_size", type=int, default=64, help="bytes that the model looks at")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the text")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate; a scheduler of the configuration replaces it")
    parser.add_argument("--text", default=None, help="a text file, or a folder of Python files (default: Python's standard library)")
    parser.add_argument("--max_bytes", type=int, default=200_000, help="how much of the text is used")
    parser.add_argument("--output_dir", default="out", help="checkpoints and final weights")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def read_text(path: str | None, max_bytes: int) -> bytes:
    """The first `max_bytes` of a file, or of a folder's *.py in the order of their names. Raises SystemExit where there is too little."""
    source = Path(path).expanduser() if path else Path(sysconfig.get_path("stdlib"))
    files = sorted(source.glob("*.py")) if source.is_dir() else [source]
    text = b""
    for file in files:
        if len(text) >= max_bytes:
            break
        try:
            text += file.read_bytes()
        except OSError as error:
            raise SystemExit(f"--text: cannot read {file}: {error.strerror}") from None
    if not text:
        raise SystemExit(f"--text: {source} holds no text; give a text file or a folder with *.py files")
    return text[:max_bytes]


class Windows(Dataset):
    """Stretches of block_size bytes that do not overlap, and the same moved by one byte as targets."""

    def __init__(self, text: bytes, block_size: int) -> None:
        self.bytes = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        self.block_size = block_size
        if len(self) < 1:
            raise SystemExit(f"the text has {len(text)} bytes, less than one window of --block_size {block_size}")

    def __len__(self) -> int:
        return (len(self.bytes) - 1) // self.block_size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = index * self.block_size
        window = self.bytes[start : start + self.block_size + 1]
        return window[:-1], window[1:]


def make_model(args: argparse.Namespace) -> GPTLike:
    torch.manual_seed(args.seed)
    return GPTLike(args.n_layer, args.d_model, args.n_head, args.block_size)


def make_loader(args: argparse.Namespace, batch_size: int) -> DataLoader:
    """Each rank its part of the windows, in an order that the seed and the epoch give."""
    data = Windows(read_text(args.text, args.max_bytes), args.block_size)
    in_ranks = torch.distributed.is_initialized()
    ranks, rank = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if in_ranks else (1, 0)
    sampler = DistributedSampler(data, num_replicas=ranks, rank=rank, seed=args.seed)
    loader = DataLoader(data, batch_size=batch_size, sampler=sampler, drop_last=True)
    if len(loader) == 0:
        raise SystemExit(f"{len(data)} windows do not fill one batch of {batch_size} on each of {ranks} ranks: raise --max_bytes, or lower "
                         "train_micro_batch_size_per_gpu")
    return loader


def micro_batch_size(ds_config: str) -> int:
    try:
        return json.loads(Path(ds_config).read_text(encoding="utf-8"))["train_micro_batch_size_per_gpu"]
    except OSError as error:
        raise SystemExit(f"--ds_config: cannot read {ds_config}: {error.strerror}") from None


class LossPrinter:
    """Prints the mean loss of every PRINT_EVERY micro-batches and of every epoch, on rank 0."""

    def __init__(self, rank: int) -> None:
        self.rank, self.losses = rank, []

    def add(self, epoch: int, number: int, loss: Tensor) -> None:
        self.losses.append(loss.item())
        if self.rank == 0 and number % PRINT_EVERY == 0:
            latest = self.losses[-PRINT_EVERY:]
            print(f"epoch {epoch} micro-batch {number}: loss {sum(latest) / len(latest):.4f}", flush=True)

    def end_epoch(self, epoch: int) -> None:
        if self.rank == 0:
            print(f"epoch {epoch}: mean loss {sum(self.losses) / len(self.losses):.4f}", flush=True)
        self.losses = []


def train(engine: Any, args: argparse.Namespace) -> None:
    """The loop under DeepSpeed: forward, engine.backward, engine.step; a checkpoint after every epoch."""
    loader = make_loader(args, micro_batch_size(args.ds_config))
    printer = LossPrinter(torch.distributed.get_rank())
    for epoch in range(1, args.epochs + 1):
        engine.train()
        loader.sampler.set_epoch(epoch)
        for number, (tokens, targets) in enumerate(loader, start=1):
            loss = next_byte_loss(engine(tokens.to(engine.device)), targets.to(engine.device))
            engine.backward(loss)
            engine.step()
            printer.add(epoch, number, loss)
        printer.end_epoch(epoch)
        engine.save_checkpoint(args.output_dir, tag=f"epoch{epoch}")


def finish(args: argparse.Namespace) -> None:
    """All ranks leave together."""
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        print(f"saved in {args.output_dir}", flush=True)
    torch.distributed.destroy_process_group()


def save_weights(weights: dict[str, Tensor], args: argparse.Namespace) -> None:
    """Rank 0 writes model.pt: weights that every rank holds whole."""
    if torch.distributed.get_rank() == 0:
        torch.save(weights, Path(args.output_dir) / "model.pt")
