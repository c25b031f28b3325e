"""Folders of checkpoints: how one comes to be on all ranks, and which one is loaded.

A save writes into a hidden folder that is renamed when it is complete (src/checkpoint/tag_folder.h), in whatever layout; its manifest
has checksums of all files. Loading checks them, and where nobody asked for a certain checkpoint takes the newest one that is intact.
"""
from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
import weakref
from typing import Any

import torch

from deepspeed import _C
from deepspeed._C import CheckpointError
from deepspeed.checkpoint.safe_load import has_manifest, verify_before_loading
from deepspeed.git_version_info import version
from deepspeed.runtime.agreement import Together, any_rank, numbers_of_ranks, text_of_rank_0, texts_of_ranks
from deepspeed.runtime.checkpoint_load import CheckpointLoader
from deepspeed.runtime.checkpoint_native import NativeLoader
from deepspeed.runtime.checkpoint_pickle import pickled
from deepspeed.runtime.checkpoint_restore import CheckpointMisfit
from deepspeed.runtime.memory_plan import ranks_per_host
from deepspeed.utils.logging import log_dist, logger

_PATIENCE_S = 1800.0  # for the slowest rank's files


class CheckpointSave:
    """One save on one rank. write() and tensors() collect what this rank writes, start() makes the checkpoint valid."""

    def __init__(self, engine: Any, save_dir: str, tag: str, save_latest: bool) -> None:
        self.engine, self.save_dir, self.tag, self.save_latest = engine, save_dir, tag, save_latest
        self.path = os.path.join(save_dir, tag)
        self.parent, self.name = os.path.split(self.path)
        self.folder = _C.saving_folder(self.parent, self.name)
        self.together = Together(engine, f"save_checkpoint({self.path})", CheckpointError)
        self._archives: list[tuple] = []
        self._tensor_file, self._slices = "", []
        self._in_files = bool(engine._core.file_tier_facts())  # loaded while they are written, so not beside training
        self._job: Any = None
        self._reported = False
        self._finish: Any = None
        self._name_for_people = f"[rank {engine.global_rank}] the checkpoint {self.path}"
        log_dist(f"Saving model checkpoint: {self.path}", ranks=[0])
        ranks = list(range(engine.communicator.size))
        self.here = ranks  # those that write into the same folder; the first of them makes the checkpoint valid
        if self.leads:
            with self.together.attempt():
                _C.begin_save(self.parent, self.name)
        self.together.agree()
        if len(ranks) > 1:
            self._find_ranks_here()
        self.elsewhere = sorted(set(ranks) - set(self.here))

    def _find_ranks_here(self) -> None:
        """Ranks that save apart have a folder of their own after this. Collective."""
        engine, rank = self.engine, self.engine.communicator.rank
        mark = f".begun_{text_of_rank_0(engine, secrets.token_hex(8), 'a mark in a folder')}_"
        with self.together.attempt():
            self.here = ranks_with_this_folder(engine, self.parent, mark)
            if self.leads and rank != 0:
                _C.begin_save(self.parent, self.name)
        self._agree()
        if not engine._saves_apart:
            return
        # Two that took one folder for their own would write into it both: only one of them can make this file.
        own = os.path.join(self.folder, mark)
        with self.together.attempt():
            if self.leads:
                _put_mark(own, "x", rank)
        self._agree()
        with self.together.attempt():
            if not _is_seen(own, 40):
                raise CheckpointError(_late(rank, self.folder))
        self._agree()
        with self.together.attempt():
            if self.leads:
                os.remove(own)

    @property
    def leads(self) -> bool:
        return self.engine.communicator.rank == self.here[0]

    def write(self, name: str, state: Any) -> None:
        """A file of torch.save's format. Tensors in `state` must keep their values until start() has returned."""
        with self.together.attempt():
            self._archives.append((name, *pickled(state)))

    def tensors(self, name: str, slices: list) -> None:
        """This rank's file of tensors."""
        self._tensor_file, self._slices = name, slices

    def start(self) -> "CheckpointSave | None":
        """Returns itself when the rest goes on beside training, None when all is done. Raises on all ranks."""
        engine, checkpoint = self.engine, self.engine._config.checkpoint
        self._agree()
        wanted = checkpoint.async_save or (checkpoint.writer is not None and checkpoint.writer.decoupled)
        beside = wanted and not self._in_files and not self.elsewhere and self._has_room()
        engine._save_memory = engine._save_memory or _C.KeptMemory()
        with self.together.attempt():
            info = json.dumps(self._info())
        self._agree()
        if self.elsewhere:  # one manifest in all folders
            info = text_of_rank_0(engine, info, "what a checkpoint says of itself") or "{}"
        with self.together.attempt():
            self._job = _C.SaveJob(self._plan(checkpoint, info), self._slices, self._archives, engine._save_memory)
            self._slices, self._archives = [], []
            if beside:
                engine._save_image = engine._save_image or _C.ShardImage()
                self._job.take_snapshot(engine._save_image, torch.get_num_threads())
                self._job.start()
            else:
                self._job.write_part()
        self._agree()  # so that no rank waits in vain for what another could not write
        if beside:
            self._finish = weakref.finalize(engine, _say_failure, self._job, self._name_for_people)
            return self
        if self.elsewhere:
            self._exchange_parts()
        with self.together.attempt():
            self._job.commit()
        self._agree()
        return None

    def _exchange_parts(self) -> None:
        """Ranks without a folder in common give each other their parts of the manifest, which is the same in all folders then."""
        part = ""
        with self.together.attempt():
            part = _C.read_part(self.folder, self.engine.communicator.rank)
        self._agree()
        parts = texts_of_ranks(self.engine, part, "parts of a checkpoint", self.elsewhere if self.leads else ())
        with self.together.attempt():
            for rank, text in parts.items():
                _C.put_part(self.folder, rank, text)
        self._agree()

    def _info(self) -> dict[str, Any]:
        """What the manifest says of the run."""
        engine = self.engine
        info = {"saved_at": time.time(), "global_steps": engine.global_steps, "global_samples": engine.global_samples,
                "world": engine.communicator.size, "stage": engine.zero_optimization_stage(), "deepscale": version, "torch": torch.__version__,
                "config": _as_json(engine._config._param_dict)}
        return {**info, "own_folders": True} if self.elsewhere else info

    def _plan(self, checkpoint: Any, info: str) -> dict[str, Any]:
        engine = self.engine
        native = checkpoint.format == "native"
        return {"save_dir": self.parent, "tag": self.name, "layout": "native" if native else "deepspeed", "rank": engine.communicator.rank,
                "tensor_file": self._tensor_file, "threads": torch.get_num_threads(), "commits": self.leads,
                "ranks": engine.communicator.size, "elsewhere": self.elsewhere, "info": info,
                # A tag may be a path: `latest` then stands above the folder of the checkpoint.
                "write_latest": self.save_latest, "latest_dir": self.save_dir if os.path.dirname(self.tag) else "", "latest_text": self.tag,
                "keep_last": checkpoint.keep_last, "patience_s": _PATIENCE_S}

    def _has_room(self) -> bool:
        """Whether a copy of what is written fits into memory. What all ranks decide together."""
        size = sum(numel * dtype.itemsize for _, _, _, numel, dtype, _ in self._slices)
        size += sum(part[0] for _, _, storages in self._archives for parts in storages for part in parts)
        held = self.engine._save_image.capacity if self.engine._save_image is not None else 0
        here = ranks_per_host(self.engine.communicator, self.engine.device)
        lacks = any_rank(self.engine, size - held > _C.available_memory() // 2 // here, "room for a copy")
        if lacks:
            log_dist("checkpoint.async_save: memory has no room for a copy of the state: training waits until it is written", ranks=[0])
        return not lacks

    def _agree(self) -> None:
        """One outcome on all ranks; what a failed save left behind goes."""
        try:
            self.together.agree()
        except Exception:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Removes the folder when nobody writes into it any more. Nothing of this may hide why the save failed."""
        try:
            if self._finish is not None:
                self._finish.detach()
            if self._job is not None:
                self._job.cancel()
            any_rank(self.engine, False, "a save that failed")
            if self.leads:
                _C.abandon_save(self.parent, self.name)
        except Exception as problem:  # its name has a dot in front; the next save of the tag removes it
            logger.warning(f"{self.folder} is left: {problem}")

    def wait(self) -> None:
        with self.together.attempt():
            self._job.wait_for_part()
        self._agree()
        with self.together.attempt():
            self._job.wait()
        self._agree()
        self._finish.detach()

    def finish(self) -> None:
        """For a rank that ends alone: waits for its own part. Says when it has failed."""
        self._finish()

    def report(self) -> None:
        """Says once when the part that goes on beside training has failed."""
        if not self._reported and self._job.done:
            self._reported = True
            _say_failure(self._job, self._name_for_people)


def ranks_with_this_folder(engine: Any, parent: str, mark: str) -> list[int]:
    """Ranks whose `parent` is the same folder as this rank's, all of them as a rule. Ray's workers, for example, save into temporary folders
    of their own, and Ray brings the files together. mark: how files begin that only this save knows. Collective."""
    rank, size = engine.communicator.rank, engine.communicator.size
    together = Together(engine, f"save_checkpoint({parent})", CheckpointError)
    here, firsts = list(range(size)), [0] * size
    try:
        with together.attempt():
            if rank == 0:
                _put_mark(os.path.join(parent, f"{mark}0"), "w", rank)
        together.agree()
        seen = _is_seen(os.path.join(parent, f"{mark}0"), 1 if engine._saves_apart else 40)
        if any_rank(engine, not seen, "a folder that not all ranks see"):
            with together.attempt():
                if rank != 0:
                    _put_mark(os.path.join(parent, f"{mark}{rank}"), "w", rank)
            together.agree()
            found = [rank]
            with together.attempt():
                found += [int(name[len(mark):]) for name in os.listdir(parent) if name.startswith(mark)]
            firsts = numbers_of_ranks(engine, min(found), "the first ranks in folders")
            with together.attempt():
                # One that looks into a folder too early takes it for its own, and would clear it.
                if any(firsts[other] != firsts[rank] for other in found):
                    raise CheckpointError(_late(rank, parent))
            together.agree()
            here = [other for other in here if firsts[other] == firsts[rank]]
            _say_apart(parent, firsts)
        engine._saves_apart = any(firsts)
    finally:
        with contextlib.suppress(OSError):
            os.remove(os.path.join(parent, f"{mark}{rank}"))
    return here


def _put_mark(path: str, mode: str, rank: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        with open(path, mode, encoding="ascii"):
            pass
    except FileExistsError:
        raise CheckpointError(_late(rank, os.path.dirname(path))) from None


def _late(rank: int, folder: str) -> str:
    return (f"rank {rank} does not see in {folder} what other ranks have written there: a network's file system is late; save once more, "
            "and where it happens again give all ranks the same path of a file system that shows new files at once")


def _say_apart(parent: str, firsts: list[int]) -> None:
    apart = [rank for rank, first in enumerate(firsts) if first != 0]
    if not apart:  # all see it by now
        return
    few = ", ".join(map(str, apart[:8])) + (f" and {len(apart) - 8} more" if len(apart) > 8 else "")
    log_dist(f"save_checkpoint({parent}): {len(apart)} ranks ({few}) do not see this folder of rank 0, and save into theirs. To load the checkpoint, "
             "bring the files of all ranks together in one folder; where they should be one already, give all ranks the same save_dir, on several "
             "machines one on a shared file system", ranks=[0], level=logging.WARNING)


def _is_seen(path: str, attempts: int) -> bool:
    """A new file may come late over a network."""
    for attempt in range(attempts):
        if os.path.exists(path):
            return True
        if attempt + 1 < attempts:
            time.sleep(0.05)
    return False


def _say_failure(job: Any, name: str) -> None:
    """Waits for what a job does beside training; logs when it failed."""
    try:
        job.wait()
    except Exception as problem:
        logger.error(f"{name} was not saved: {problem}")


def _as_json(config: dict) -> Any:
    """What the user configured, for whoever reads the manifest. Infinities, which Accelerate gives, are no JSON: they become text."""
    return json.loads(json.dumps(config, default=repr), parse_constant=str)


def restore_replaced(engine: Any, load_dir: str, tag: Any) -> None:
    """A checkpoint that a killed run had moved aside gets its name back, before all ranks look for it. Collective."""
    together = Together(engine, f"load_checkpoint({load_dir})", CheckpointError)
    if engine.global_rank == 0:
        with together.attempt():
            _C.restore_replaced(os.path.dirname(os.path.join(load_dir, "" if tag is None else str(tag))) or ".")
    together.agree()


def open_checkpoint(engine: Any, load_dir: str, tag: str) -> CheckpointLoader:
    """What loads a checkpoint of its layout. Raises on all ranks when a file is damaged; nothing has changed then."""
    directory = os.path.join(load_dir, tag)
    layout = text_of_rank_0(engine, _layout(directory) if engine.global_rank == 0 else None, "layout of a checkpoint")
    if layout == "universal":
        raise CheckpointMisfit(f"{directory} is a universal checkpoint: set checkpoint.load_universal to true to load it. Nothing was changed.")
    if layout == "native":
        return NativeLoader(engine, directory)
    if layout == "deepspeed":
        together = Together(engine, f"load_checkpoint({directory})", CheckpointError, " Nothing was changed.", one_class=True)
        with together.attempt():
            if engine.local_rank == 0:  # once per machine
                # Masters and states, most of what an engine that trains reads, are read past the page cache afterwards. Reading twice
                # with direct access is faster than filling the cache once, and nothing of the engine changes before all is checked.
                verify_before_loading(directory, through_cache=engine._stepper is None)
        together.agree()
    return CheckpointLoader(engine, directory)


def _layout(directory: str) -> str:
    """"native" (perhaps without its manifest: then it is not finished), "universal", "deepspeed", or "" for files of DeepSpeed's layout
    without a manifest, which another program wrote, and for what is no checkpoint."""
    kind = _C.checkpoint_kind(directory) if os.path.isdir(directory) else ""
    return kind if kind in ("native", "universal") else "deepspeed" if has_manifest(directory) else ""


def load_named(engine: Any, load_dir: str, tag: str, options: dict) -> tuple[str, dict]:
    """That checkpoint or none; an error says which other one could be taken."""
    try:
        return open_checkpoint(engine, load_dir, tag).load(**options)
    except CheckpointError as problem:
        others = _other_tags(engine, load_dir, tag)
        if not others or any_rank(engine, isinstance(problem, CheckpointMisfit), "a checkpoint that does not fit"):
            raise
        raise type(problem)(f"{problem}\nThe newest other checkpoint in {load_dir} whose files are all there is {others[0]}.") from problem


def load_newest(engine: Any, load_dir: str, latest: str, options: dict) -> tuple[str, dict]:
    """The checkpoint that `latest` names, else the newest other one that is intact. latest: "" when the file is damaged."""
    first: CheckpointError | None = None
    tags = [latest] if latest else []
    if not latest:
        first = CheckpointError(f"{os.path.join(load_dir, 'latest')} is damaged: it should hold the name of a checkpoint in one line")
        tags = _next_tags(engine, load_dir, latest, first)
    while tags:
        tag = tags.pop(0)
        try:
            return open_checkpoint(engine, load_dir, tag).load(**options)
        except CheckpointError as problem:
            # One that is whole but of another model or optimizer: an older one would hide the mistake.
            misfit = any_rank(engine, isinstance(problem, CheckpointMisfit), "a checkpoint that does not fit")
            if misfit:
                raise first or problem
            if first is None:
                first, tags = problem, _next_tags(engine, load_dir, latest, problem)
            elif tags and engine.global_rank == 0:
                logger.warning(f"{problem}\nThe checkpoint {tags[0]} is tried instead.")
    raise first


def _next_tags(engine: Any, load_dir: str, latest: str, problem: Exception) -> list[str]:
    tags = _other_tags(engine, load_dir, latest)
    if tags and engine.global_rank == 0:
        logger.warning(f"{problem}\nThe checkpoint {tags[0]} is tried instead of {latest or 'the one that is not named'}.")
    return tags


def _other_tags(engine: Any, load_dir: str, latest: str) -> list[str]:
    """Older checkpoints with a manifest, newest first, as rank 0 sees them."""
    found = None
    if engine.global_rank == 0:
        found = json.dumps([entry["tag"] for entry in _C.list_tags(load_dir) if entry["tag"] != latest and not entry["problem"]])
    return json.loads(text_of_rank_0(engine, found, "other checkpoints") or "[]")
