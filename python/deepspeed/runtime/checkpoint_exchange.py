"""Moves pieces of masters and optimizer states between ranks, from those that hold them to those that write them.

The engine cuts parameters between ranks in its own way, DeepSpeed's files in theirs. Each rank keeps what it lacks and nothing else; what
an exchange moves has a bound, whatever the sizes of parameters (every pair of ranks has as much room in it as the one that needs most).
"""
from __future__ import annotations

from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

EXCHANGE_NUMEL = 8 << 20  # elements that a rank gives at a time, to all others together
SMALLEST_GIFT = 1 << 16  # to one of them, however many they are


class Move(NamedTuple):
    """Elements [offset, offset + length) of a flattened parameter, for place `start` of dst's flat tensor."""

    index: int
    src: int
    dst: int
    offset: int
    start: int
    length: int


def moves_of(index: int, pieces: Any, fragments: list[tuple[int, int]]) -> list[Move] | None:
    """From whom the pieces (checkpoint_layout.Piece) of a parameter come. fragments: (offset, elements) that each rank holds. A rank that
    holds what it needs takes its own. None when nobody holds some of it."""
    moves: list[Move] = []
    for piece in pieces:
        open_parts = [(piece.offset, piece.offset + piece.length)]
        for src in [piece.rank, *(rank for rank in range(len(fragments)) if rank != piece.rank)]:
            begin, end = fragments[src][0], sum(fragments[src])
            left: list[tuple[int, int]] = []
            for first, last in open_parts:
                low, high = max(first, begin), min(last, end)
                if low >= high:
                    left.append((first, last))
                    continue
                moves.append(Move(index, src, piece.rank, low, piece.start + low - piece.offset, high - low))
                left += [part for part in ((first, low), (high, last)) if part[0] < part[1]]
            open_parts = left
            if not open_parts:
                break
        if open_parts:
            return None
    return moves


def _split(moves: list[Move], limit: int) -> list[Move]:
    return [Move(m.index, m.src, m.dst, m.offset + done, m.start + done, min(limit, m.length - done))
            for m in moves for done in range(0, m.length, limit)]


def _batches(moves: list[Move], limit: int) -> list[list[Move]]:
    """In each of them every rank gives every other one something as long as there is something, and never more than twice `limit`."""
    pairs: dict[tuple[int, int], list[Move]] = {}
    for move in moves:
        pairs.setdefault((move.src, move.dst), []).append(move)
    batches: list[list[Move]] = []
    for queue in pairs.values():
        turn, size = 0, 0
        for move in queue:
            if turn == len(batches):
                batches.append([])
            batches[turn].append(move)
            size += move.length
            if size >= limit:
                turn, size = turn + 1, 0
    return batches


class Exchange:
    """The moves of one engine; all ranks have the same ones."""

    def __init__(self, engine: Any) -> None:
        self.communicator, self.device = engine.communicator, engine.device
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def run(self, moves: list[Move], local: Callable[[Move], Tensor]) -> list[tuple[int, int, Tensor]]:
        """(start, length, values on the CPU) of what this rank gets. local: fp32 elements of a move that this rank sends. Collective."""
        got: list[tuple[int, int, Tensor]] = []
        limit = max(EXCHANGE_NUMEL // self.communicator.size, SMALLEST_GIFT)
        for batch in _batches(_split([move for move in moves if move.src != move.dst], limit), limit):
            got += self._exchange(batch, local)
        return got

    def _exchange(self, batch: list[Move], local: Callable[[Move], Tensor]) -> list[tuple[int, int, Tensor]]:
        ranks, rank = self.communicator.size, self.communicator.rank
        sizes: dict[tuple[int, int], int] = {}
        places = []
        for move in batch:
            places.append(sizes.get((move.src, move.dst), 0))
            sizes[move.src, move.dst] = places[-1] + move.length
        width = max(sizes.values())
        given, taken = self._buffer(ranks * width)
        for move, place in zip(batch, places):
            if move.src == rank:
                at = move.dst * width + place
                given[at:at + move.length].copy_(local(move))
        self.communicator.all_to_all(given, taken, "save_checkpoint").wait()
        mine = [(move, move.src * width + place) for move, place in zip(batch, places) if move.dst == rank]
        values, done, got = torch.empty(sum(move.length for move, _ in mine)), 0, []
        for move, at in mine:
            value = values[done:done + move.length]
            value.copy_(taken[at:at + move.length])
            got.append((move.start, move.length, value))
            done += move.length
        return got

    def _buffer(self, numel: int) -> tuple[Tensor, Tensor]:
        """Memory that is used again: new pages cost more than the copies."""
        held = max(self._buffers, default=0)
        if held < numel:
            self._buffers.clear()
            self._buffers[numel] = tuple(self.communicator.allocate(numel, torch.float32, self.device) for _ in range(2))
            held = numel
        given, taken = self._buffers[held]
        return given[:numel], taken[:numel]
