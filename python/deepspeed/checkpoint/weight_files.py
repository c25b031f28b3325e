"""Sets of weight files, and how a folder comes to hold another one.

A set is one file (model.safetensors, pytorch_model.bin, or of a name that the user chose), or STEM-00001-of-00002.ENDING, ... and
STEM.ENDING.index.json, which says what is in which part: {"metadata": {"total_size": bytes}, "weight_map": {name: file}}.

A new set is written beside, in .FILE.saving, and brought to the disk. Then an index of the same name goes, so that parts of two sets
are never taken for one; the new files get their names, the index last; and what is left of earlier sets goes, because readers
might prefer it. A failure before the first name changes leaves the folder as it was. After a kill a reader finds the old set, the
new one, or that there is none.
"""
from __future__ import annotations

import json
import os
import re
import shutil
from typing import Any, Callable, Sequence

from deepspeed.checkpoint.on_disk import make_folders, replace_text, sync_file, sync_folder

_WHOLE = ("model.safetensors", "pytorch_model.bin")
FOLDER_NAMES = tuple(name for whole in _WHOLE for name in (whole, f"{whole}.index.json"))
"""Where the reading of a folder begins: with the first of these that is there."""


def write_weights(folder: str, filename: str, parts: Sequence[dict], total_bytes: int, write: Callable[[dict, str], Any],
                  other_formats_go: bool = True) -> None:
    """`parts` (name -> tensor), each by write(part, path), as the folder's set `filename`. A set of one of FOLDER_NAMES is then the only
    one of these names, or with other_formats_go=False of its own format; other files stay. OSError, or what `write` raises."""
    work = os.path.join(folder, f".{filename}.saving")
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    make_folders(folder)
    os.mkdir(work)
    try:
        names = _part_names(filename, len(parts))
        for part, name in zip(parts, names):
            write(part, os.path.join(work, name))
            sync_file(os.path.join(work, name))
        if len(parts) > 1:
            weight_map = {tensor: name for part, name in zip(parts, names) for tensor in part}
            text = json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": weight_map}, indent=2, sort_keys=True)
            names.append(f"{filename}.index.json")
            replace_text(os.path.join(work, names[-1]), f"{text}\n")
        _publish(work, folder, names, _WHOLE if other_formats_go and filename in _WHOLE else (filename,))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _part_names(filename: str, count: int) -> list[str]:
    stem, ending = os.path.splitext(filename)
    return [filename] if count == 1 else [f"{stem}-{number + 1:05d}-of-{count:05d}{ending}" for number in range(count)]


def _publish(work: str, folder: str, names: list[str], replaced: Sequence[str]) -> None:
    """replaced: names of the sets that go, the new one's among them."""
    if len(names) > 1:
        _remove(os.path.join(folder, names[-1]))
        sync_folder(folder)
    for name in names[:-1]:
        os.replace(os.path.join(work, name), os.path.join(folder, name))
    sync_folder(folder)
    os.replace(os.path.join(work, names[-1]), os.path.join(folder, names[-1]))
    sync_folder(folder)
    for name in _of_earlier_sets(folder, replaced, names):
        _remove(os.path.join(folder, name))
    sync_folder(folder)


def _of_earlier_sets(folder: str, wholes: Sequence[str], new: list[str]) -> list[str]:
    """Files where reading begins come first: what is removed in part is not begun with."""
    beginnings = [name for whole in wholes for name in (whole, f"{whole}.index.json")]
    endings = [os.path.splitext(whole) for whole in wholes]
    part = re.compile("|".join(rf"{re.escape(stem)}-\d{{5,}}-of-\d{{5,}}{re.escape(ending)}" for stem, ending in endings))
    found = beginnings + sorted(name for name in os.listdir(folder) if part.fullmatch(name))
    return [name for name in found if name not in new and os.path.isfile(os.path.join(folder, name))]


def _remove(path: str) -> None:
    try:
        os.remove(path)
    except FileNotFoundError:
        pass
    except OSError as problem:
        raise OSError(f"{path} is of an earlier set of weights and cannot be removed ({problem}), so readers may take it for the new one: close "
                      "the program that has it open, or save into another folder") from problem
