"""zero.Init, GatheredParameters and module hooks on two ranks."""
from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from common import ranks, run_ranks
from models import TinyLanguageModel, batch, config, full_weights, make_model, train


@ranks(2)
def test_values_come_from_rank_zero_and_each_rank_holds_a_part():
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()
    rank = dist.get_rank()
    torch.manual_seed(rank)
    with deepspeed.zero.Init():
        layer = nn.Linear(64, 64)
    torch.manual_seed(0)
    expected = nn.Linear(64, 64)
    weights = full_weights(layer)
    assert torch.equal(weights["weight"], expected.weight) and torch.equal(weights["bias"], expected.bias)
    assert layer.weight.partition_numel() == 2048
    own = torch.tensor([layer.weight.ds_tensor.numel()])
    dist.all_reduce(own)
    assert own.item() == 4096


def _ranks_with_different_memory(folder: str) -> None:
    import deepspeed
    import torch.distributed as dist
    from deepspeed import _C
    from deepspeed.runtime.zero.parameter import slot_of
    deepspeed.init_distributed()
    layer_bytes = 64 * 64 * 4
    _C.available_memory = lambda: 4 * layer_bytes * (3 if dist.get_rank() == 0 else 1)
    zero = {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": folder}}
    torch.manual_seed(0)
    with deepspeed.zero.Init(config_dict_or_path=config(3, zero_optimization=zero)):
        model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(4)])
    assert [slot_of(layer.weight).unit.in_file for layer in model] == [False, True, True, True]
    torch.manual_seed(0)
    for name, value in nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(4)]).named_parameters():
        assert torch.equal(full_weights(model)[name], value)


def test_the_rank_with_the_least_memory_decides_what_goes_into_files(tmp_path):
    run_ranks(_ranks_with_different_memory, 2, {"folder": str(tmp_path)})


@ranks(2)
def test_the_modifier_ranks_values_win_on_all_ranks():
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()
    rank = dist.get_rank()
    with deepspeed.zero.Init():
        layer = nn.Linear(8, 8)
    for winner in (0, 1):
        with deepspeed.zero.GatheredParameters(layer.weight, modifier_rank=winner):
            layer.weight.data.fill_(rank + 10)  # all ranks write, one counts
        assert torch.equal(full_weights(layer)["weight"], torch.full((8, 8), winner + 10.0))
    with deepspeed.zero.GatheredParameters(list(layer.parameters())[::1 if rank else -1], modifier_rank=0):
        if rank == 0:
            nn.init.ones_(layer.weight)
    assert torch.equal(full_weights(layer)["weight"], torch.ones(8, 8))


@ranks(2)
def test_changes_of_a_block_that_failed_are_not_stored():
    import deepspeed
    deepspeed.init_distributed()
    with deepspeed.zero.Init():
        layer = nn.Linear(8, 8)
    expected = full_weights(layer)["weight"]
    try:
        with deepspeed.zero.GatheredParameters(layer.weight, modifier_rank=0):
            layer.weight.data.fill_(3.0)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(full_weights(layer)["weight"], expected)


@ranks(2)
def test_persistent_parameters_follow_their_modifier_in_an_engine():
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()
    engine = deepspeed.initialize(model=make_model(), config=config(3))[0]
    with deepspeed.zero.GatheredParameters([engine.module.down.bias, engine.module.up.weight], modifier_rank=0):
        engine.module.down.bias.data.fill_(dist.get_rank() + 5.0)
        engine.module.up.weight.data.fill_(dist.get_rank() + 6.0)
    from deepspeed.utils import safe_get_full_fp32_param
    for value, param in ((5.0, engine.module.down.bias), (6.0, engine.module.up.weight)):
        master = safe_get_full_fp32_param(param)
        assert torch.equal(master, torch.full_like(master, value))
    train(engine, 1, rank=dist.get_rank())


def body_different_branches():
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()
    rank = dist.get_rank()

    class Branching(TinyLanguageModel):

        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

        def forward(self, tokens, targets):
            h = self.embedding(tokens)
            if not (rank == 1 and self.training is False):
                h = self.branches[rank](h)
            return F.cross_entropy(self.head(h).flatten(0, 1), targets.flatten())

    engine = deepspeed.initialize(model=make_model(cls=Branching), config=config(3))[0]
    train(engine, 3, rank=rank)
    engine.eval()
    with torch.no_grad():
        for _ in range(3 + 4 * rank):  # sequences of different length
            engine.module(*batch(0))
    engine.train()
    train(engine, 2, rank=rank)


def test_ranks_may_take_different_branches_and_lengths():
    run_ranks(body_different_branches, 2, timeout_s=120)


@ranks(2)
def test_every_unit_order_is_the_same_for_sets_of_parameters():
    import random

    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed()
    model = make_model()
    deepspeed.zero.Init(module=model)
    params = list(model.parameters())
    random.Random(dist.get_rank()).shuffle(params)
    with deepspeed.zero.GatheredParameters(params, modifier_rank=0):
        if dist.get_rank() == 0:
            for param in params:
                param.data.fill_(2.0)
    assert all(torch.equal(v, torch.full_like(v, 2.0)) for v in full_weights(model).values())
