"""Bringing files and the names of files to the disk, so that what is renamed afterwards is whole also after a power failure."""
from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor

_SYNCS_AT_ONCE = 8  # a journal takes several with one write


def sync_file(path: str) -> None:
    with open(path, "rb+") as file:  # systems other than Linux refuse it for files that are open for reading
        os.fsync(file.fileno())


def sync_folder(path: str) -> None:
    """The names in a folder, not what its files hold."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no folders, and has nothing to bring to the disk for one
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that have nothing to synchronise for folders
            raise
    finally:
        os.close(descriptor)


def make_folders(path: str) -> None:
    """A folder and those above it; the names of those that were not there are on the disk."""
    made, parent = [], path
    while parent and not os.path.isdir(parent):
        made.append(parent)
        parent = os.path.dirname(parent)
    os.makedirs(path, exist_ok=True)
    for folder in made:
        sync_folder(os.path.dirname(folder) or ".")


def sync_tree(path: str) -> None:
    """All files and names below a folder, and its own."""
    folders, files = [], []
    for folder, _, names in os.walk(path):
        folders.append(folder)
        files += [os.path.join(folder, name) for name in names]
    with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:
        for kind, paths in ((sync_file, files), (sync_folder, folders)):
            for _ in pool.map(kind, paths):
                pass


def replace_text(path: str, text: str) -> None:
    """Readers see the old or the new text, also after a power failure."""
    partial = f"{path}.partial"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.remove(partial)
        raise
    sync_folder(os.path.dirname(path) or ".")
