"""Ulysses: ranks that share sequences train as one rank with whole sequences does."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from common import run_ranks, single_rank
from models import config

LENGTH, VOCABULARY, RATE = 12, 64, 0.5


class Attention(torch.nn.Module):
    """What an attention function of Transformers asks of a module."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def causal(module, query, key, value, mask, **_):
    key, value = (heads.repeat_interleave(module.num_key_value_groups, dim=1) for heads in (key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2), None


def body_attention(kv_heads: int):
    import deepspeed
    from deepspeed.runtime.sequence_parallel.parallel_state_sp import initialize_sequence_parallel
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
    deepspeed.init_distributed()
    unit = initialize_sequence_parallel(2)
    assert initialize_sequence_parallel(2) is unit  # for a second model
    rank, heads, size = unit.get_sequence_parallel_rank(), 4, 8
    torch.manual_seed(3)
    whole = [torch.randn(2, count, LENGTH, size, requires_grad=True) for count in (heads, kv_heads, kv_heads)]
    module = Attention(heads // kv_heads)
    expected, _ = causal(module, *whole, None)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    attention = UlyssesSPAttentionHF(attn=causal, batch_size=2, attn_head_count=heads, attn_head_size=size, kv_head_count=kv_heads,
                                     num_hidden_layers=1, process_group=unit.get_sequence_parallel_group(), seq_length_is_variable=True)
    mine = slice(LENGTH // 2 * rank, LENGTH // 2 * (rank + 1))
    pieces = [part.detach()[:, :, mine].clone().requires_grad_() for part in whole]
    positions = torch.arange(LENGTH)[mine].expand(2, -1)
    output, _ = attention(module, *pieces, None, position_ids=positions)
    torch.testing.assert_close(output, expected[:, mine])
    (output * weights[:, mine]).sum().backward()
    for piece, part in zip(pieces, whole):
        torch.testing.assert_close(piece.grad, part.grad[:, :, mine])
    assert module.num_key_value_groups == heads // kv_heads
    with pytest.raises(ValueError, match="needs position_ids"):
        attention(module, *pieces, None)


@pytest.mark.parametrize("kv_heads", (4, 2, 1))
def test_attention_over_shared_sequences_equals_attention_over_whole_ones(kv_heads):
    run_ranks(body_attention, 2, {"kv_heads": kv_heads})


def llama():
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    torch.manual_seed(1)
    shape = transformers.LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                     num_key_value_heads=2, max_position_embeddings=LENGTH, attn_implementation="sdpa")
    return transformers.LlamaForCausalLM(shape)


def tokens(count: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(5))


def stage_config(stage: int) -> dict:
    return config(stage, micro=1, gradient_clipping=0, optimizer={"type": "SGD", "params": {"lr": RATE}})


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """This piece's part of the mean over a whole sequence."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum") / (LENGTH - 1)


def plain_losses(steps: int) -> list[float]:
    model, losses = llama(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for row in tokens(steps):
        loss = loss_of(model(input_ids=row[None]).logits, F.pad(row[1:], (0, 1), value=-100)[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def body_training(stage: int, expected: list[float], own_backward: bool):
    import deepspeed
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF, UlyssesSPDataLoaderAdapter
    deepspeed.init_distributed()
    model = llama()
    mpu = UlyssesSPAttentionHF.register_with_transformers(model, "sdpa", sequence_parallel_size=2, micro_batch_size=1)
    engine = deepspeed.initialize(model=model, config=stage_config(stage), mpu=mpu)[0]
    assert engine.train_batch_size() == 1 and deepspeed.utils.groups._get_sequence_parallel_world_size() == 2
    rows = tokens(len(expected))[mpu.get_sequence_parallel_rank()::2]  # each rank loads every second sequence
    loader = DataLoader([{"input_ids": row, "labels": row} for row in rows], batch_size=1)
    shared = UlyssesSPDataLoaderAdapter(loader, mpu.get_sequence_parallel_rank(), mpu.get_sequence_parallel_group(), 2, engine.device)
    assert len(shared) == len(expected)
    for number, batch in enumerate(shared):
        targets = batch.pop("shift_labels")
        assert batch["input_ids"].shape == targets.shape == (1, LENGTH // 2)
        loss = loss_of(engine(**batch).logits, targets)
        total = loss.detach().clone()
        deepspeed.comm.all_reduce(total)
        assert total.item() == pytest.approx(expected[number], rel=1e-5), (number, total.item(), expected)
        loss.backward() if own_backward else engine.backward(loss)
        engine.step()
    assert number + 1 == len(expected) and [len(list(shared))] == [len(expected)]  # and another epoch


@pytest.mark.parametrize(("stage", "own_backward"), ((0, False), (2, False), (3, False), (2, True)))
def test_training_on_shared_sequences_follows_training_on_whole_ones(stage, own_backward):
    expected = plain_losses(6)
    assert expected[-1] != pytest.approx(expected[0], rel=1e-2)
    run_ranks(body_training, 2, {"stage": stage, "expected": expected, "own_backward": own_backward})


def body_refusals():
    import deepspeed
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF, UlyssesSPDataLoaderAdapter
    deepspeed.init_distributed()
    register = UlyssesSPAttentionHF.register_with_transformers
    model = llama()
    assert register(model, "sdpa", sequence_parallel_size=1, micro_batch_size=1) is None
    for message, arguments in (("divide the number of ranks, 2, got 3", {"sequence_parallel_size": 3}),
                               ("the model uses attn_implementation='sdpa'", {"core_attn_implementation": "eager"}),
                               ("seq_length must be", {"seq_length_is_variable": False})):
        with pytest.raises(ValueError, match=message):
            register(model, **{"core_attn_implementation": "sdpa", "sequence_parallel_size": 2, "micro_batch_size": 1, **arguments})
    unit = register(model, "sdpa", sequence_parallel_size=2, micro_batch_size=1)
    odd = DataLoader([{"input_ids": torch.zeros(5, dtype=torch.int64)}], batch_size=1)
    adapter = UlyssesSPDataLoaderAdapter(odd, unit.get_sequence_parallel_rank(), unit.get_sequence_parallel_group(), 2, "cpu")
    with pytest.raises(ValueError, match="whose length 2 divides, found 5: pad"):
        next(adapter)


def test_what_cannot_be_shared_is_refused(monkeypatch):
    single_rank(monkeypatch)
    llama()
    run_ranks(body_refusals, 2)
