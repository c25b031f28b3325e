"""Tensors of torch.save's files read from where they stand in a checkpoint with a manifest: past the page cache, straight into other
tensors, every block checked. Mapped tensors, which load_file() returns, are read page by page through the cache instead."""
from __future__ import annotations

import os
import zipfile
from typing import Any, Iterator

import torch
from torch import Tensor

from deepspeed import _C


class VerifiedBytes:
    """The files of one checkpoint folder. Raises CheckpointError as _C.CheckpointTensors: no manifest, files missing or of another size."""

    def __init__(self, directory: str) -> None:
        self._tensors = _C.CheckpointTensors(directory)
        self._mapped: dict[str, tuple[int, int]] = {}  # of a file's path: the address at which its first byte is mapped, and its size

    def add(self, path: str, loaded: Any) -> None:
        """A file and what load_file() made of it. Its tensors are found later while `loaded` lives."""
        first = _address_of_first_byte(path, loaded)
        if first is not None:
            self._mapped[path] = (first, os.path.getsize(path))

    def place_of(self, path: str, tensor: Tensor) -> int | None:
        """The byte of the file at which a contiguous tensor begins; None when it is not known to stand there."""
        if path not in self._mapped or not tensor.is_contiguous():
            return None
        first, size = self._mapped[path]
        begin = tensor.data_ptr() - first
        return begin if 0 <= begin <= size - tensor.nbytes else None

    def read(self, requests: list[tuple[str, int, Tensor]]) -> None:
        """(path, first byte, contiguous CPU tensor to fill), all of them at once. CheckpointError names what is damaged."""
        self._tensors.read_files([(os.path.basename(path), begin, target) for path, begin, target in requests])


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    """Each container once: lists that hold a list twice, sixty levels deep, are a small file and more than a lifetime's work."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            yield item.untyped_storage()
        elif isinstance(item, (dict, list, tuple, set, frozenset)) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def _address_of_first_byte(path: str, loaded: Any) -> int | None:
    """torch maps a file as one piece, and every storage is a member of the archive: both in order, at equal distances, give the address.
    None where that does not come out even (a storage that was not found, another format)."""
    if not zipfile.is_zipfile(path):
        return None
    reader = torch._C.PyTorchFileReader(path)
    with zipfile.ZipFile(path) as archive:
        names = {entry.filename.split("/", 1)[-1]: entry.file_size for entry in archive.infolist()}
    members = sorted((reader.get_record_offset(name), size) for name, size in names.items() if name.startswith("data/") and size > 0)
    found = {storage.data_ptr(): storage.nbytes() for storage in _storages(loaded) if storage.nbytes() > 0}
    storages = sorted(found.items())
    if not members or len(members) != len(storages):
        return None
    first = storages[0][0] - members[0][0]
    even = all(address - first == offset and held == size for (address, held), (offset, size) in zip(storages, members))
    return first if even else None
