"""Decisions that all ranks of an engine take together. Every function here is collective."""
from __future__ import annotations

import contextlib
import os
from typing import Any, Iterator, Sequence

import torch

from deepspeed.utils.logging import logger


def _reduced(engine: Any, values: list[int], op: str, what: str) -> list[int]:
    """Numbers of the host over all ranks, by way of the engine's device: its process group may serve no other."""
    travelling = torch.tensor(values, dtype=torch.int64, device=engine.device)
    engine.communicator.all_reduce(travelling, op, what).wait()
    return travelling.tolist()


def same_everywhere(engine: Any, number: int, what: str) -> bool:
    low, high = _reduced(engine, [-number, number], "max", what)
    return -low == high


def any_rank(engine: Any, flag: bool, what: str) -> bool:
    """Whether `flag` is set on any rank."""
    return bool(_reduced(engine, [int(flag)], "max", what)[0]) if engine.communicator.size > 1 else flag


def text_of_rank_0(engine: Any, text: str | None, what: str) -> str | None:
    """Rank 0's text (or None) on every rank."""
    if engine.communicator.size == 1:
        return text
    encoded = b"" if text is None else text.encode(errors="surrogateescape")  # paths may hold any bytes
    first = engine.communicator.rank == 0
    length = _reduced(engine, [(-1 if text is None else len(encoded)) if first else -1], "max", what)[0]
    if length < 0:
        return None
    return bytes(_reduced(engine, list(encoded) if first else [0] * length, "max", what)).decode(errors="surrogateescape")


def numbers_of_ranks(engine: Any, number: int, what: str) -> list[int]:
    """Every rank's number, which is not negative, on every rank."""
    numbers = [-1] * engine.communicator.size
    numbers[engine.communicator.rank] = number
    return _reduced(engine, numbers, "max", what)


def texts_of_ranks(engine: Any, text: str, what: str, wanted: Sequence[int]) -> dict[int, str]:
    """The texts of the ranks that this one asks for."""
    mine = text.encode(errors="surrogateescape")
    lengths = numbers_of_ranks(engine, len(mine), what)
    padded = torch.zeros(max(*lengths, 1), dtype=torch.uint8)
    padded[:len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8) if mine else 0
    every = torch.empty(engine.communicator.size * padded.numel(), dtype=torch.uint8, device=engine.device)
    engine.communicator.all_gather(padded.to(engine.device), every, what).wait()
    rows = every.view(engine.communicator.size, -1)
    return {rank: rows[rank, :lengths[rank]].cpu().numpy().tobytes().decode(errors="surrogateescape") for rank in wanted}


def warn_of_other_place(engine: Any, path: str) -> None:
    """Ranks that read other folders than rank 0 see other files, or none. Other machines may have one folder at two places, so it is no
    error, and said once for a machine."""
    path = os.path.abspath(path)
    first = text_of_rank_0(engine, path, "folder of a checkpoint")
    if path == first:
        return
    here = os.path.exists(first)
    same = here and os.path.exists(path) and os.path.samefile(path, first)
    if not same and (here or engine.local_rank == 0):
        logger.warning(f"rank {engine.global_rank} loads {path}, rank 0 {first}: they should be the same folder")


class Together:
    """Work with files in which all ranks succeed or all fail.

    A rank that fails goes on, because the others are in the same collectives; agree() then raises on all ranks: there its own
    error, on the others `error_class` with a message that names it. one_class: `error_class` there as well, for callers that go on from
    it together, and the consequence in every message."""

    def __init__(self, engine: Any, what: str, error_class: type[Exception] = RuntimeError, consequence: str = "",
                 one_class: bool = False) -> None:
        self._engine, self._what, self._error_class, self._consequence = engine, what, error_class, consequence
        self._one_class = one_class
        self._problem: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether this rank has; the others know it from agree() on."""
        return self._problem is not None

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        try:
            yield
        except Exception as problem:
            self._problem = self._problem or problem

    def agree(self) -> None:
        engine = self._engine
        failed = -1 if self._problem is None else engine.communicator.rank
        rank = _reduced(engine, [failed], "max", self._what)[0] if engine.communicator.size > 1 else failed
        if self._problem is not None and self._one_class and not isinstance(self._problem, self._error_class):
            raise self._error_class(f"{self._what}: {type(self._problem).__name__}: {self._problem}{self._consequence}") from self._problem
        if self._problem is not None and self._one_class and self._consequence and not str(self._problem).endswith(self._consequence):
            raise type(self._problem)(f"{self._problem}.{self._consequence}") from self._problem
        if self._problem is not None:
            raise self._problem
        if rank >= 0:
            raise self._error_class(f"{self._what}: rank {rank} failed, this rank did not; see that rank's error.{self._consequence}")
