"""Where parameters stand in checkpoint files. Pure arithmetic; no tensors, no files.

Two layouts exist for sharded optimizer states. "partitioned": the parameters of a group are laid end to end, the total is padded
to a multiple of 2 * ranks, and each rank stores one of the equal partitions. "per_parameter": every parameter is cut into equal
pieces of ceil(numel / ranks), and a rank stores its pieces of a sub-group end to end.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Sequence


@dataclass(frozen=True)
class Entry:
    """One parameter in a group."""

    index: int  # in the engine's list of parameters
    name: str
    shape: tuple[int, ...]
    numel: int
    group: int = 0  # its optimizer group


@dataclass(frozen=True)
class Piece:
    """length elements from `offset` of a flattened parameter stand at `start` of one rank's flat tensor."""

    rank: int
    offset: int
    start: int
    length: int


class PartitionedGroup:
    """Parameters end to end, cut into one partition per rank."""

    def __init__(self, numels: Sequence[int], ranks: int) -> None:
        self.starts = []
        total = 0
        for numel in numels:
            self.starts.append(total)
            total += numel
        self.numels, self.ranks, self.total = list(numels), ranks, total
        alignment = 2 * ranks
        self.partition_numel = -(-total // alignment) * alignment // ranks

    def padding(self, rank: int) -> int:
        """Elements of a rank's partition that no parameter fills."""
        return max(0, min(self.partition_numel, (rank + 1) * self.partition_numel - self.total))

    def pieces(self, position: int, offset: int = 0, length: int | None = None) -> Iterator[Piece]:
        """Where elements [offset, offset + length) of the parameter at `position` stand."""
        begin = self.starts[position] + offset
        end = begin + (self.numels[position] - offset if length is None else length)
        while begin < end:
            rank, start = divmod(begin, self.partition_numel)
            run = min(end - begin, self.partition_numel - start)
            yield Piece(rank, begin - self.starts[position], start, run)
            begin += run


class PerParameterGroup:
    """Every parameter in equal pieces."""

    def __init__(self, numels: Sequence[int], ranks: int) -> None:
        self.numels, self.ranks = list(numels), ranks
        self.piece_numels = [-(-numel // ranks) for numel in numels]
        self.starts = []
        total = 0
        for piece in self.piece_numels:
            self.starts.append(total)
            total += piece
        self.partition_numel = total

    def padding(self, rank: int) -> int:
        return 0

    def pieces(self, position: int, offset: int = 0, length: int | None = None) -> Iterator[Piece]:
        end = self.numels[position] if length is None else offset + length
        piece = self.piece_numels[position]
        while offset < end:
            rank, inside = divmod(offset, piece)
            run = min(end - offset, piece - inside)
            yield Piece(rank, offset, self.starts[position] + inside, run)
            offset += run


def sub_groups(entries: Sequence[Entry], ranks: int, sub_group_size: int) -> list[list[Entry]]:
    """Consecutive parameters until their pieces on one rank reach `sub_group_size`."""
    groups: list[list[Entry]] = []
    current: list[Entry] = []
    local = 0
    for entry in entries:
        current.append(entry)
        local += -(-entry.numel // ranks)
        if local >= sub_group_size:
            groups.append(current)
            current, local = [], 0
    if current:
        groups.append(current)
    return groups


def round_robin(entries: Sequence[Entry], ranks: int) -> list[Entry]:
    """Parameter k goes to slot k mod ranks; slots end to end."""
    return [entries[k] for slot in range(ranks) for k in range(slot, len(entries), ranks)]
