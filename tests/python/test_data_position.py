"""A resumed run is handed the samples that the uninterrupted run would have been handed, in the same order, on any number of ranks."""
from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from common import run_ranks, single_rank
from models import batch, config, make_model

SAMPLES, MICRO, AFTERWARDS = 23, 2, 14
SAVE_AFTER = (1, 3, 5, 11, 12)  # batches; inside the first pass, the second and at ends of passes (12 batches of one rank are a pass)


class Numbered(Dataset):
    """Sample i says that it is i."""

    def __init__(self, count: int = SAMPLES) -> None:
        self.tokens, self.targets = batch(0, size=count)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Any:
        return index, self.tokens[index], self.targets[index]


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(SAMPLES))


def built(data: Dataset | None = None, layout: str = "native", **more: Any) -> Any:
    import deepspeed
    checkpoint = {"format": layout, **more.pop("checkpoint", {})}
    return deepspeed.initialize(model=make_model(), training_data=data, config=config(1, micro=MICRO, checkpoint=checkpoint, **more))[0]


def step(engine: Any, item: Any) -> list[int]:
    indices, tokens, targets = item
    engine.backward(engine(tokens, targets))
    engine.step()
    return indices.tolist()


def seed_zero_order() -> list[int]:
    return list(DistributedSampler(Numbered(), num_replicas=1, rank=0))


def in_turns(by_rank: list[list[list[int]]]) -> list[int]:
    """The order in which ranks together were handed samples; all ranks have equal batches."""
    order = []
    for batches in zip(*by_rank):
        for samples in zip(*batches):
            order += samples
    return order


# ---------------------------------------------------------------- several ranks
def body_saves(folder: str) -> None:
    import deepspeed
    deepspeed.init_distributed()
    engines = {layout: built(Numbered(), layout) for layout in ("native", "deepspeed")}
    endless = {layout: deepspeed.utils.RepeatingLoader(engine.training_dataloader) for layout, engine in engines.items()}
    handed: dict[str, list] = {layout: [] for layout in engines}
    for number in range(1, max(SAVE_AFTER) + AFTERWARDS + 1):
        for layout, engine in engines.items():
            handed[layout].append(step(engine, next(endless[layout])))
            if number in SAVE_AFTER:
                engine.save_checkpoint(os.path.join(folder, layout), tag=f"after{number}")
    Path(folder, f"handed{engine.global_rank}.json").write_text(json.dumps(handed))


def body_loads(folder: str, saved_by: list[int]) -> None:
    import deepspeed
    deepspeed.init_distributed()
    handed: dict[str, list] = {}
    for layout in ("native", "deepspeed"):
        engine = built(Numbered(), layout)
        endless = deepspeed.utils.RepeatingLoader(engine.training_dataloader)
        for ranks in saved_by:
            for number in SAVE_AFTER:
                engine.load_checkpoint(os.path.join(folder, str(ranks), layout), tag=f"after{number}")
                handed[f"{ranks} {layout} {number}"] = [next(endless)[0].tolist() for _ in range(AFTERWARDS)]
    Path(folder, f"loaded{engine.global_rank}.json").write_text(json.dumps(handed))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any) -> Callable[[int], Path]:
    folder = tmp_path_factory.mktemp("positions")

    def by(ranks: int) -> Path:
        if not (folder / str(ranks)).exists():
            (folder / str(ranks)).mkdir()
            run_ranks(body_saves, ranks, {"folder": str(folder / str(ranks))})
        return folder
    return by


@pytest.mark.parametrize("after", [1, 2, 3])
def test_every_number_of_ranks_goes_on_where_every_other_stood(after, saved):
    for before in (1, 2, 3):
        folder = saved(before)
    run_ranks(body_loads, after, {"folder": str(folder), "saved_by": [1, 2, 3]})
    loaded = [json.loads((folder / f"loaded{rank}.json").read_text()) for rank in range(after)]
    order = seed_zero_order()
    for name in loaded[0]:
        before, layout, number = name.split()
        handed = [json.loads((folder / before / f"handed{rank}.json").read_text())[layout] for rank in range(int(before))]
        if before == str(after):
            for rank in range(after):
                assert loaded[rank][name] == handed[rank][int(number):int(number) + AFTERWARDS], name
            continue
        batches = math.ceil(math.ceil(SAMPLES / int(before)) / MICRO)  # of a pass on one rank
        gone = ((int(number) - 1) % batches + 1) * MICRO * int(before)
        left = order[gone:]
        found = in_turns([loaded[rank][name] for rank in range(after)])
        assert found[:len(left)] == left, name
        following = found[len(left) + -len(left) % after:][:SAMPLES]
        assert following == order[:len(following)], name


# ---------------------------------------------------------------- one rank
def ids(loader: Any, count: int | None = None) -> list[list[int]]:
    found = []
    for item in loader:
        found.append((item[0] if isinstance(item, (list, tuple)) else item).tolist())
        if len(found) == count:
            break
    return found


@pytest.fixture
def engine(monkeypatch: Any) -> Any:
    single_rank(monkeypatch)
    return built()


LOADERS: dict[str, Callable[[Any], Any]] = {
    "own": lambda engine: engine.deepspeed_io(Numbered()),
    "in order": lambda engine: engine.deepspeed_io(Numbered(), route="eval"),
    "workers": lambda engine: engine.deepspeed_io(Numbered(), num_local_io_workers=2),
    "sequential": lambda engine: engine.deepspeed_io(Numbered(), data_sampler=SequentialSampler(Numbered())),
    "random": lambda engine: engine.deepspeed_io(Numbered(), data_sampler=RandomSampler(Numbered())),
    "random with replacement": lambda engine: engine.deepspeed_io(Numbered(), data_sampler=RandomSampler(Numbered(), True, 30)),
    "own generator": lambda engine: engine.deepspeed_io(Numbered(), data_sampler=RandomSampler(
        Numbered(), generator=torch.Generator().manual_seed(3))),
    "batches": lambda engine: engine.deepspeed_io(Numbered(), data_sampler=BatchSampler(RandomSampler(Numbered()), 4, True)),
    "stream": lambda engine: engine.deepspeed_io(Stream()),
}


@pytest.mark.parametrize("kind", list(LOADERS))
@pytest.mark.parametrize("count", [0, 1, 4])
def test_the_rest_of_a_pass_and_the_next_one_follow(kind, count, engine):
    torch.manual_seed(5)
    loader = LOADERS[kind](engine)
    ids(loader)  # a pass before
    iter(loader)
    begun = [next(loader) for _ in range(count)]
    assert len(begun) == count
    state, random = loader.state_dict(), torch.get_rng_state()
    rest = [item[0].tolist() if isinstance(item, list) else item.tolist() for item in iter(lambda: next(loader, None), None)]
    expected = rest, torch.get_rng_state(), ids(loader)
    other = LOADERS[kind](engine)
    torch.manual_seed(77)
    other.load_state_dict(state)
    torch.set_rng_state(random)
    rest = ids(other)
    numbers = torch.get_rng_state()
    assert rest == expected[0] and torch.equal(numbers, expected[1])
    assert ids(other) == expected[2]


def test_the_end_of_a_pass_is_a_place_too(engine):
    loader, other = LOADERS["own"](engine), LOADERS["own"](engine)
    whole = len(ids(loader, len(loader)))
    other.load_state_dict(loader.state_dict())  # all batches are handed out, and nobody was told that there are no more
    assert whole == 12 and ids(other) == [] and len(ids(other)) == 12
    assert next(loader, None) is None
    other.load_state_dict(loader.state_dict())
    assert len(ids(other)) == 12


def test_epochs_shuffle_anew_and_are_remembered(engine):
    loader, other = LOADERS["own"](engine), LOADERS["own"](engine)
    loader.data_sampler.set_epoch(3)
    third = ids(loader)
    ids(loader, 5)
    other.load_state_dict(loader.state_dict())
    assert other.data_sampler.epoch == 3 and ids(other) == third[5:]
    other.load_state_dict(loader.state_dict())
    other.data_sampler.set_epoch(3)
    assert ids(other) == third[5:]
    other.load_state_dict(loader.state_dict())
    other.data_sampler.set_epoch(4)  # another epoch begins at its beginning
    fourth = ids(other)
    assert len(fourth) == 12 and fourth != third


def test_a_running_loop_goes_back(engine):
    loader = LOADERS["own"](engine)
    first = ids(loader, 3)
    state = loader.state_dict()
    after = ids(loader)
    assert len(after) == 12 and state["position"] == 6
    found = []
    for item in loader:
        found.append(item[0].tolist())
        if len(found) == 5:
            loader.load_state_dict(state)
    assert found == after[:5] + after[3:] and first == after[:3]


def test_a_state_is_kept_until_a_batch_is_handed_out(engine):
    loader = LOADERS["own"](engine)
    whole = ids(loader)
    ids(loader, 3)
    state = loader.state_dict()
    other = LOADERS["own"](engine)
    other.load_state_dict(state)
    assert other.state_dict() == state
    iter(other)
    assert other.state_dict() == state and ids(other) == whole[3:]


def test_incomplete_batches_can_be_dropped(monkeypatch):
    single_rank(monkeypatch)
    engine = built(Numbered(), dataloader_drop_last=True)
    loader = engine.training_dataloader
    assert len(ids(loader)) == 11
    expected = ids(loader)[4:]
    ids(loader, 4)
    other = built(Numbered(), dataloader_drop_last=True).training_dataloader
    other.load_state_dict(loader.state_dict())
    assert ids(other) == expected and len(expected) == 7


def test_another_batch_size_goes_on_at_the_same_sample(engine):
    loader, other = LOADERS["own"](engine), engine.deepspeed_io(Numbered(), batch_size=5)
    ids(loader, 3)
    other.load_state_dict(loader.state_dict())
    assert sum(ids(other), []) == seed_zero_order()[6:]


def test_other_data_starts_anew_and_says_so(engine, caplog):
    loader, other = LOADERS["own"](engine), engine.deepspeed_io(Numbered(22))
    ids(loader, 3)
    other.load_state_dict(loader.state_dict())
    assert "dataset 23 there, 22 here" in caplog.text and len(ids(other)) == 11
    with pytest.raises(ValueError, match="expected 'iterable' or 'batches' or 'samples'"):
        other.load_state_dict({"epoch": 3})
    with pytest.raises(ValueError, match="position -1"):
        other.load_state_dict({**other.state_dict(), "position": -1})


class ClientLoader:
    """Keeps a state dictionary as torchdata's loaders do."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> dict:
        return {"inner": self.state}

    def load_state_dict(self, state: dict) -> None:
        self.state = state["inner"]


@pytest.mark.parametrize("layout", ["native", "deepspeed"])
def test_a_loader_of_the_clients_keeps_its_own_state(layout, tmp_path, monkeypatch, caplog):
    single_rank(monkeypatch)
    engine = built(layout=layout)
    engine.set_dataloader(ClientLoader({"seen": 5, "random": torch.arange(3)}))
    engine.save_checkpoint(tmp_path, tag="plain")
    engine.set_dataloader(ClientLoader(object()))
    engine.save_checkpoint(tmp_path, tag="object")
    assert "the state of the data loader (ClientLoader.state_dict()) is not saved" in caplog.text
    engine.set_dataloader(ClientLoader())
    assert set(engine.load_checkpoint(tmp_path, tag="object")[1]) == {"ds_config", "ds_version"} and engine.training_dataloader.state is None
    engine.load_checkpoint(tmp_path, tag="plain")
    assert engine.training_dataloader.state["seen"] == 5 and engine.training_dataloader.state["random"].tolist() == [0, 1, 2]


def test_a_loader_that_never_ends_keeps_its_place(engine):
    from deepspeed.utils import RepeatingLoader
    for make in (lambda: LOADERS["own"](engine), lambda: DataLoader(Numbered(), batch_size=4), lambda: [torch.tensor([i]) for i in range(5)]):
        endless = RepeatingLoader(make())
        for _ in range(17):
            next(endless)
        state = endless.state_dict()
        expected = ids(endless, 20)
        other = RepeatingLoader(make())
        next(other)
        other.load_state_dict(state)
        assert ids(other, 20) == expected


@pytest.mark.parametrize("layout", ["native", "deepspeed"])
def test_loading_moves_the_engines_loader_with_the_optimizer_and_where_wanted(layout, tmp_path, monkeypatch):
    single_rank(monkeypatch)
    engine = built(Numbered(), layout)
    order = ids(engine.training_dataloader)
    for _, item in zip(range(4), engine.training_dataloader):
        step(engine, item)
    # zip() asked the loader for no fifth batch.
    engine.save_checkpoint(tmp_path)
    for options, settings, first in (({}, {}, 4), ({"load_module_only": True}, {}, 0), ({"load_optimizer_states": False}, {}, 0),
                                     ({}, {"load_data_position": False}, 0)):
        other = built(Numbered(), layout, checkpoint=settings)
        other.load_checkpoint(tmp_path, **options)
        assert ids(other.training_dataloader, 3) == order[first:first + 3], (options, settings)


def test_a_run_with_random_data_and_dropout_goes_on_bit_for_bit(tmp_path, monkeypatch):
    single_rank(monkeypatch)
    import deepspeed

    def run(first: Callable[[Any], Any]) -> list[float]:
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(5, 40), torch.nn.Dropout(0.5), torch.nn.Linear(40, 1))
        engine = deepspeed.initialize(model=model, config=config(2, micro=MICRO, checkpoint={"format": "native"}))[0]
        data = Numbered()
        engine.set_dataloader(engine.deepspeed_io(data, data_sampler=RandomSampler(data)))
        first(engine)
        losses = []
        for _ in range(2):
            for number, (_, tokens, _) in enumerate(engine.training_dataloader):
                loss = engine(tokens.float()).square().mean()
                engine.backward(loss)
                engine.step()
                losses.append(loss.item())
                if engine.global_steps == 5:
                    engine.save_checkpoint(tmp_path)
        return losses
    torch.manual_seed(9)
    whole = run(lambda engine: torch.manual_seed(2))
    rest = run(lambda engine: engine.load_checkpoint(tmp_path))
    assert rest == whole[5:]
