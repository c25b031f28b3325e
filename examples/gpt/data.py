"""Text for language models: files -> byte-level BPE -> token arrays -> random windows for training, fixed ones for evaluation.

The tokenizer and the token arrays are made once and kept in a cache folder named after a hash of the text and the
vocabulary size. One process per machine makes them in a temporary folder that is renamed when complete; the others wait
for that name to appear, so a half-written cache is never read. A cache folder holds tokenizer.json, train.npy and
held_out.npy (1-D, uint16; uint32 for more than 65536 tokens); the C++ example reads the same files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
CACHE_FORMAT = 1  # raised when tokenizer settings, split or file layout change
HELD_OUT_SHARE = 20  # one file in 20 is held out; of a single file, its last 1/20

# Not part of the default text: tests, third-party packages, and generated tables (character maps, help topics).
DEFAULT_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data"}


class DataError(Exception):
    """The text cannot be used; the message says which file and what to change."""


@dataclass(frozen=True)
class TextData:
    """A tokenised text: two 1-D integer arrays (memory-mapped) and the tokenizer that made them."""

    train: np.ndarray
    held_out: np.ndarray
    tokenizer: Tokenizer
    cache: Path

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()


def find_text_files(path: str | None) -> list[tuple[str, Path]]:
    """Pairs (name used for the split, path), sorted by name. `None` means the sources of Python's standard library."""
    if path is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        found = [p for p in root.rglob("*.py") if DEFAULT_SKIPPED_FOLDERS.isdisjoint(p.relative_to(root).parts)]
    else:
        root = Path(path).expanduser()
        if not root.exists():
            raise DataError(f"--data {path}: no such file or folder")
        if root.is_file():
            return [(root.name, root)]
        found = [p for p in root.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(root).parts)]
    if not found:
        raise DataError(f"--data {path or root}: no text files in this folder")
    return sorted((p.relative_to(root).as_posix(), p) for p in found)


def read_texts(files: list[tuple[str, Path]]) -> list[tuple[str, str]]:
    """Pairs (name, text). Of a folder, files that are not UTF-8 text are left out; a single file must be."""
    texts = []
    for name, path in files:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            if len(files) == 1:
                raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
            continue
        if "\0" not in text and text.strip():
            texts.append((name, text))
    if not texts:
        raise DataError(f"nothing to train on: {len(files)} file(s) found, none holds UTF-8 text")
    return texts


def split_texts(texts: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """(training texts, held-out texts), chosen by a hash of the file name, so that new files do not move old ones."""
    if len(texts) == 1:
        text = texts[0][1]
        cut = len(text) - max(1, len(text) // HELD_OUT_SHARE)
        return [text[:cut]], [text[cut:]]
    ranked = sorted(texts, key=lambda item: hashlib.sha256(item[0].encode()).digest())
    count = max(1, len(ranked) // HELD_OUT_SHARE)
    return [text for _, text in ranked[count:]], [text for _, text in ranked[:count]]


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE: any text can be encoded and decoded without loss."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts as one array, each followed by the end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    pieces = []
    for encoding in tokenizer.encode_batch(texts):
        pieces.append(np.asarray(encoding.ids + [end], dtype=dtype))
    return np.concatenate(pieces)


def cache_key(texts: list[tuple[str, str]], vocab_size: int) -> str:
    digest = hashlib.sha256(f"{CACHE_FORMAT}/{vocab_size}/{HELD_OUT_SHARE}\n".encode())
    for name, text in texts:
        content = text.encode()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:20]


def make_cache(texts: list[tuple[str, str]], vocab_size: int, target: Path) -> None:
    train, held_out = split_texts(texts)
    tokenizer = train_tokenizer(train, vocab_size)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=target.name + ".", dir=target.parent))
    try:
        tokenizer.save(str(work / "tokenizer.json"))
        np.save(work / "train.npy", encode(tokenizer, train))
        np.save(work / "held_out.npy", encode(tokenizer, held_out))
        os.rename(work, target)
    except OSError:
        if not target.exists():  # else another run was faster: its cache is the same
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def load_text(path: str | None, vocab_size: int, cache_dir: str | None, *, make: bool = True, timeout_s: float = 3600.0) -> TextData:
    """The tokenised text, from the cache when it is there. The process with `make` makes a missing cache, others wait.

    Raises DataError for text that cannot be used, and TimeoutError when the maker does not finish.
    """
    if vocab_size < 257:
        raise DataError(f"--vocab_size must be at least 257 (256 bytes and one end mark), got {vocab_size}")
    texts = read_texts(find_text_files(path))
    folder = Path(cache_dir).expanduser() if cache_dir else Path.home() / ".cache" / "deepscale"
    target = folder / f"gpt-bpe{vocab_size}-{cache_key(texts, vocab_size)}"
    if make and not target.exists():
        try:
            make_cache(texts, vocab_size, target)
        except OSError as error:
            raise DataError(f"cannot write the token cache {target}: {error.strerror}; choose another --cache_dir") from error
    deadline = time.monotonic() + timeout_s
    while not target.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the token cache {target} did not appear within {timeout_s:.0f} s; rank 0 of this machine makes it")
        time.sleep(0.1)
    return TextData(np.load(target / "train.npy", mmap_mode="r"), np.load(target / "held_out.npy", mmap_mode="r"),
                    Tokenizer.from_file(str(target / "tokenizer.json")), target)


def check_length(tokens: np.ndarray, block_size: int, part: str) -> None:
    if len(tokens) < block_size + 2:
        raise DataError(f"the {part} part has {len(tokens)} tokens, fewer than block_size + 2 = {block_size + 2}: "
                        "give more text with --data or a smaller --block_size")


def windows_at(tokens: np.ndarray, starts: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, targets), each [len(starts), block_size] int64; targets are one token ahead."""
    rows = np.stack([tokens[start:start + block_size + 1] for start in starts.tolist()]).astype(np.int64)
    both = torch.from_numpy(rows)
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


class TrainingWindows:
    """Random contiguous windows. What a rank sees at a micro-step depends on (seed, rank, micro-step) alone, so a resumed
    run goes on with exactly the windows that an uninterrupted one would have seen."""

    def __init__(self, tokens: np.ndarray, block_size: int, batch_size: int, *, seed: int, rank: int) -> None:
        check_length(tokens, block_size, "training")
        self.tokens, self.block_size, self.batch_size, self.seed, self.rank = tokens, block_size, batch_size, seed, rank

    def batch(self, micro_step: int) -> tuple[torch.Tensor, torch.Tensor]:
        digest = hashlib.sha256(f"{self.seed}/{self.rank}/{micro_step}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        last = len(self.tokens) - self.block_size - 1
        starts = torch.randint(0, last + 1, (self.batch_size,), generator=generator)
        return windows_at(self.tokens, starts, self.block_size)


class EvaluationWindows:
    """A fixed set of windows spread evenly over the held-out tokens, dealt out to the ranks.

    Iterating gives (inputs, targets, weight) with the same number of batches on every rank; a batch that only fills up
    the last round has weight 0.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, batch_size: int, count: int, *, rank: int, world_size: int) -> None:
        check_length(tokens, block_size, "held-out")
        last = len(tokens) - block_size - 1
        starts = torch.linspace(0, last, min(count, last + 1)).long()
        batches = list(starts.split(batch_size))
        rounds = -(-len(batches) // world_size)
        mine = [index * world_size + rank for index in range(rounds)]
        self.tokens, self.block_size = tokens, block_size
        self.batches = [(batches[i], len(batches[i])) if i < len(batches) else (batches[-1], 0) for i in mine]

    def __iter__(self):
        for starts, weight in self.batches:
            inputs, targets = windows_at(self.tokens, starts, self.block_size)
            yield inputs, targets, weight
